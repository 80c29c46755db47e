"""Runs over proteins and over text, from the command line to the finished store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architecture_cases import CASES
from transformers import BertTokenizer, EsmTokenizer, T5Config, T5EncoderModel, T5Tokenizer

import bertgeom
from bertgeom.errors import UsageError
from bertgeom.pipelines.run.estimate import preview
from bertgeom.pipelines.run.stages import ingest
from bertgeom.testing import tiny_model
from bertgeom.variables import flag_bit

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"


@pytest.fixture(scope="module", params=["esm", "bert"])
def proteins(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with residues as tokens, written together or as words, and some proteins."""
    folder = tmp_path_factory.mktemp(request.param)
    spaced = request.param == "bert"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if not spaced:
        special = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>"]
    lines = [*special, *RESIDUES]
    model = tiny_model(request.param, vocabulary=len(lines), max_tokens=40)
    model.save_pretrained(folder / "model")
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    kind: Any = BertTokenizer if spaced else EsmTokenizer
    more: dict[str, Any] = {"do_lower_case": False} if spaced else {}
    kind(str(folder / "vocab.txt"), model_max_length=40, **more).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    records = [
        f">p{i}\n{''.join(rng.choice(list(RESIDUES), n))}\n" for i, n in enumerate((90, 38, 5))
    ]
    (folder / "p.faa").write_text("".join(records))
    return folder / "model", folder / "p.faa"


def test_proteins_are_measured_residue_by_residue(
    proteins: tuple[Path, Path], tmp_path: Path
) -> None:
    model, source = proteins
    options: dict[str, Any] = {"model": model, "alphabet": "protein", "workers": 1}
    assert preview(source, measure=False, **options).windows == 5
    bertgeom.run(source, out=tmp_path / "run.zarr", **options)
    dataset = bertgeom.open(tmp_path / "run.zarr")
    assert dataset.n_tokens.values.tolist() == [40, 40, 16, 40, 7]
    assert dataset.n_unknown.values.sum() == 0
    assert not (dataset.flags.values & flag_bit("unknown")).any()
    text = source.read_text()
    letters = "".join(line for line in text.splitlines() if not line.startswith(">"))
    assert dataset.n_ambiguous.values.sum() == sum(letters.count(c) for c in "XBZ")
    again = bertgeom.run(source, out=tmp_path / "run.zarr", **options)
    assert again.windows == 5
    with pytest.raises(UsageError, match=r"found protein.*--alphabet"):
        bertgeom.run(source, out=tmp_path / "run.zarr", model=model)


@pytest.fixture(scope="module", params=["T5EncoderModel", "T5ForConditionalGeneration"])
def prot_t5(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny ProtT5: of the encoder alone, or with its decoder."""
    folder = tmp_path_factory.mktemp("t5") / "model"
    case = next(c for c in CASES if c.name == "T5")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"\u2581{letter}", -2.0) for letter in RESIDUES]
    config = T5Config(**{**case.more, "vocab_size": len(pieces)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, request.param)(config).save_pretrained(folder)
    tokenizer: Any = T5Tokenizer
    tokenizer(vocab=pieces, extra_ids=0, model_max_length=40).save_pretrained(folder)
    return folder


def test_prot_t5_reads_residues_apart_and_rare_ones_as_x(prot_t5: Path, tmp_path: Path) -> None:
    """As its authors ask for: spaces between residues, U, Z, O and B as X; </s> closes."""
    (tmp_path / "p.faa").write_text(">a\nMKVLUAZGOBX\n>b\nMKVLXAXGXXX\n")
    bertgeom.run(
        tmp_path / "p.faa", model=prot_t5, out=tmp_path / "x.zarr", alphabet="protein", workers=1
    )
    dataset = bertgeom.open(tmp_path / "x.zarr")
    assert dataset.n_tokens.values.tolist() == [12, 12]
    assert dataset.n_unknown.values.tolist() == [0, 0]
    assert dataset.n_ambiguous.values.tolist() == [3, 5]
    for name in ("attention_entropy", "stream_norm_max"):
        np.testing.assert_array_equal(dataset[name][0], dataset[name][1])
    encoder = bertgeom.load_encoder(prot_t5, alphabet="protein")
    assert type(encoder.model) is T5EncoderModel
    row = encoder.tokenizer.encode(np.frombuffer(b"MUK", np.uint8))
    vocabulary = encoder.tokenizer.tokenizer.get_vocab()
    names = ("\u2581M", "\u2581X", "\u2581K", "</s>")
    assert row.ids.tolist() == [vocabulary[name] for name in names]
    assert row.special.tolist() == [False, False, False, True]
    assert row.start.tolist() == [0, 1, 2, -1]


def test_shards_are_used_with_their_own_alphabet(
    proteins: tuple[Path, Path], tmp_path: Path
) -> None:
    model, source = proteins
    shards = ingest(source, tmp_path / "shards.zarr", alphabet="protein")
    assert shards.alphabet == "protein"
    with pytest.raises(UsageError, match="expected shards of nucleotide sequences, found protein"):
        bertgeom.run(tmp_path / "shards.zarr", model=model, out=tmp_path / "x.zarr")
    with pytest.raises(UsageError, match="expected shards of nucleotide"):
        preview(tmp_path / "shards.zarr", model=model, measure=False)
    with pytest.raises(UsageError, match=r"--strand \+ with --alphabet protein"):
        preview(source, model=model, alphabet="protein", strand="both")
    done = bertgeom.run(
        tmp_path / "shards.zarr", model=model, out=tmp_path / "y.zarr", alphabet="protein"
    )
    assert done.windows == 5


def test_text_is_cut_by_tokens_and_verified(minilm: Path, tmp_path: Path) -> None:
    words = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, 東京. "
    (tmp_path / "t.txt").write_text(f">long\n{words * 12}\n>short\nHello, world!\n")
    bertgeom.run(
        tmp_path / "t.txt",
        model=minilm,
        out=tmp_path / "run.zarr",
        alphabet="text",
        max_tokens=64,
        tier="core",
    )
    dataset = bertgeom.open(tmp_path / "run.zarr")
    assert dataset.record_id.values.tolist()[-1] == "short"
    n = dataset.n_tokens.values
    assert n.max() == 64
    assert n[-1] == len(("[CLS]", "hello", ",", "world", "!", "[SEP]"))
    # Windows lie side by side: no byte of a document is left out.
    size = len((words * 12).strip().encode())
    starts, stops = dataset.start.values[:-1], dataset.stop.values[:-1]
    assert starts[0] == 0
    assert stops[-1] == size
    assert (starts[1:] == stops[:-1]).all()
    assert not dataset.truncated.values.any()
    facts = json.loads((tmp_path / "run.zarr" / "run" / "run.json").read_text())
    assert facts["settings"]["alphabet"] == "text"
