"""Tokenizers get bases in the spelling of their own vocabulary; no base is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgeom.errors import ModelError
from bertgeom.tokens.huggingface import HuggingFace, read_spelling
from bertgeom.tokens.kmer import all_kmers
from bertgeom.tokens.select import SingleNucleotide, load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def as_bases(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def fast(kind: str, letters: str, *, unknown: str | None = "[UNK]") -> Any:
    """A tokenizer trained on these letters; `unknown` is that of its model alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list(letters), 90)) for _ in range(60)]
    special = [] if unknown is None else [unknown]
    options: dict[str, Any] = {"show_progress": False, "special_tokens": special}
    if kind == "character":
        vocabulary = {token: i for i, token in enumerate([*special, *letters])}
        made = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
        made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        return PreTrainedTokenizerFast(tokenizer_object=made)
    trainer: Any
    if kind == "unigram":
        made = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=80, unk_token=unknown, **options)
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token=unknown))
        trainer = trainers.WordPieceTrainer(vocab_size=120, **options)
    else:
        made = Tokenizer(models.BPE(unk_token=unknown))
        if kind == "bytes":
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
        if kind == "metaspace":
            made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=400 if kind == "bytes" else 120, **options)
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)


KINDS = ("bpe", "wordpiece", "unigram", "character", "bytes", "metaspace")
ALPHABETS = {
    "ACGT": ("upper", "T"),
    "ACGU": ("upper", "U"),
    "acgt": ("lower", "T"),
    "acgu": ("lower", "U"),
}


@pytest.mark.parametrize("letters", ALPHABETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_decides_how_bases_are_written(
    tmp_path: Path, kind: str, letters: str
) -> None:
    fast(kind, letters).save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path, max_tokens=100)
    assert isinstance(found, HuggingFace)
    assert (found.case, found.thymine) == ALPHABETS[letters]
    ids = [found.encode(as_bases(text)).ids.tolist() for text in ("ACGTTGCAT", "acguugcau")]
    assert ids[0] == ids[1]
    assert found.encode(as_bases("ACGTTGCATU")).n_unknown == 0
    assert ("thymine" in found.settings()) == (found.thymine == "U")


def test_a_case_that_is_asked_for_is_kept() -> None:
    assert read_spelling(fast("character", "ACGU"), "lower").case == "lower"


def test_an_unknown_token_that_only_the_model_names_is_counted() -> None:
    tokenizer = fast("bpe", "ACGT")
    assert tokenizer.unk_token_id is None
    assert HuggingFace(tokenizer, 50).encode(as_bases("ACNNGT")).n_unknown == 2


def test_the_mark_in_front_of_a_text_stands_for_no_base() -> None:
    found = HuggingFace(fast("metaspace", "ACGT"), 50)
    encoded = found.encode(as_bases("NACGT"))
    assert encoded.special.tolist()[0]
    assert encoded.start[~encoded.special].tolist()[:2] == [0, 1]
    assert found.n_special == 1
    assert found.settings()["marks"] == 1


def test_a_letter_that_a_tokenizer_drops_is_refused_by_name() -> None:
    found = HuggingFace(fast("bpe", "ACGT", unknown=None), 50)
    assert found.encode(as_bases("ACGT")).n_unknown == 0
    for text in ("ACNGT", "N", "ACGTN"):
        with pytest.raises(ModelError, match="found none for 'N'"):
            found.encode(as_bases(text))


@settings(deadline=None, max_examples=60)
@given(text=st.text("ACGTUNRacgtun", max_size=90), kind=st.sampled_from(KINDS))
def test_every_base_is_in_one_token(text: str, kind: str) -> None:
    if kind not in _MADE:
        _MADE[kind] = HuggingFace(fast(kind, "ACGU"), 200, thymine="U")
    encoded = _MADE[kind].encode(as_bases(text))
    content = ~encoded.special
    edges = [0, *encoded.stop[content].tolist()]
    assert encoded.start[content].tolist() == edges[:-1]
    assert edges[-1] == len(text)


_MADE: dict[str, HuggingFace] = {}


# Tables.


def test_kmers_of_rna_are_kmers_of_dna(tmp_path: Path) -> None:
    lines = [*SPECIAL, *(kmer.replace("T", "U") for kmer in all_kmers(3))]
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    found = load_tokenizer(tmp_path)
    assert found.settings()["kind"] == "kmer"
    assert found.encode(as_bases("AUUGCAUTA")).n_unknown == 0


def test_the_case_of_kmers_is_that_of_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *all_kmers(2)]))
    (tmp_path / "bertgeom_tokenizer.json").write_text('{"kind": "kmer", "k": 2, "stride": 2}')
    assert load_tokenizer(tmp_path).encode(as_bases("acgtuu")).n_unknown == 0


@pytest.mark.parametrize("thymine", ["T", "U"])
def test_single_letters_are_those_of_the_vocabulary(tmp_path: Path, thymine: str) -> None:
    lines = ["<pad>", "<unk>", "<cls>", "<eos>", *f"ACG{thymine}"]
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    found = load_tokenizer(tmp_path, override="single:cls=1", max_tokens=20)
    assert found.encode(as_bases("ACGTUn")).ids.tolist() == [2, 4, 5, 6, 7, 7, 1, 3]
    assert found.settings().get("thymine") == ("U" if thymine == "U" else None)


def test_listed_characters_are_counted_after_the_special_tokens(tmp_path: Path) -> None:
    config = {
        "tokenizer_class": "HyenaDNATokenizer",
        "model_max_length": 20,
        "characters": [*"UGCA"],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).encode(as_bases("ATU")).ids.tolist() == [10, 7, 7, 1]


def test_single_letters_need_the_special_tokens_that_they_use() -> None:
    with pytest.raises(ModelError, match="found none of sep"):
        SingleNucleotide(20, special_ids={"pad": 0, "unk": 1})
