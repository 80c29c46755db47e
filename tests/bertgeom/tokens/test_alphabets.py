"""Tokens of RNA, proteins and text: the right letters, spaces, and places."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, EsmTokenizer, PreTrainedTokenizerFast

from bertgeom.errors import UsageError
from bertgeom.tokens.huggingface import HuggingFace, read_spelling
from bertgeom.tokens.select import load_tokenizer
from bertgeom.tokens.spelling import Spelling

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"
PROTEIN = np.frombuffer(b"MKTUUAYIAKQRXBZO-LL", np.uint8)


def esm(folder: Path) -> Any:
    """A tokenizer of residues, written together."""
    special = ["<cls>", "<pad>", "<eos>", "<unk>"]
    lines = [*special, *RESIDUES, ".", "-", "<null_1>", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    return EsmTokenizer(str(folder / "vocab.txt"))


def protbert(folder: Path) -> Any:
    """A tokenizer of words, each a residue."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *RESIDUES]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False)


def of(tokenizer: Any, alphabet: str, thymine: str | None = None) -> HuggingFace:
    found = read_spelling(tokenizer, None, thymine, alphabet)
    return HuggingFace(tokenizer, 512, found.case, "x", found.thymine, found.alphabet, found.spaced)


@pytest.mark.parametrize(("make", "spaced"), [(esm, False), (protbert, True)])
def test_every_residue_is_a_token_of_its_own(make: Any, spaced: bool, tmp_path: Path) -> None:
    tokenizer = of(make(tmp_path), "protein")
    assert tokenizer.spaced is spaced
    row = tokenizer.encode(PROTEIN)
    content = ~row.special
    assert row.start[content].tolist() == list(range(len(PROTEIN)))
    assert row.stop[content].tolist() == list(range(1, len(PROTEIN) + 1))
    tokens = tokenizer.tokenizer.convert_ids_to_tokens(row.ids[content].tolist())
    shown = [t if len(t) == 1 else "?" for t in tokens]
    # U is selenocysteine, and never T; ProtBert has no gap.
    assert "".join(shown) == PROTEIN.tobytes().decode().replace("-", "?" if spaced else "-")
    assert row.n_unknown == spaced
    # X, B, Z and the gap leave open which residue it is.
    assert row.n_ambiguous == 4
    assert not tokenizer.variable_length
    assert tokenizer.count_tokens(len(PROTEIN)) == row.ids.size
    assert tokenizer.settings()["alphabet"] == "protein"
    assert tokenizer.settings().get("spaced", False) is spaced


def test_a_long_protein_is_cut_after_whole_residues(tmp_path: Path) -> None:
    found = read_spelling(protbert(tmp_path), alphabet="protein")
    tokenizer = HuggingFace(
        protbert(tmp_path), 10, found.case, "x", "T", "protein", spaced=found.spaced
    )
    row = tokenizer.encode(PROTEIN)
    assert row.truncated
    assert row.stop[~row.special].tolist() == list(range(1, 9))
    assert tokenizer.window_bases() == 8


def letters(known: str) -> Any:
    vocabulary = {"[UNK]": 0, "[PAD]": 1, **{c: i for i, c in enumerate(known, 2)}}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def test_rna_is_spelled_with_u_where_both_are_known() -> None:
    both = letters("ACGTU")
    bases = np.frombuffer(b"ACGT", np.uint8)
    ids = {
        thymine: of(both, "nucleotide", thymine).encode(bases).ids.tolist()
        for thymine in ("T", "U", None)
    }
    assert ids["T"] == ids[None] == [2, 3, 4, 5]
    assert ids["U"] == [2, 3, 4, 6]
    assert of(letters("acgu"), "nucleotide").spelling == Spelling("lower", "U")


DOCUMENT = "Grüße aus Köln:  naïve café, 50 € — 東京!\nSecond line.  "


@pytest.mark.parametrize("cut", [None, 17])
def test_tokens_of_a_text_have_places_in_its_bytes(minilm: Path, cut: int | None) -> None:
    tokenizer = load_tokenizer(minilm, alphabet="text")
    data = DOCUMENT.encode()[:cut]
    row = tokenizer.encode(np.frombuffer(data, np.uint8))
    plain = tokenizer.tokenizer(  # type: ignore[attr-defined]
        data.decode("utf-8", "replace"), return_offsets_mapping=True
    )
    assert row.ids.tolist() == plain["input_ids"]
    content = np.flatnonzero(~row.special)
    assert row.special.sum() == 2
    text = data.decode("utf-8", "replace")
    for i in content:
        a, b = plain["offset_mapping"][i]
        assert data[row.start[i] : row.stop[i]].decode("utf-8", "replace") == text[a:b]
    assert row.n_ambiguous == 0
    assert tokenizer.variable_length


def byte_level(*, metaspace: bool) -> Any:
    backend = Backend(models.BPE() if not metaspace else models.BPE(byte_fallback=True))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.normalizer = normalizers.NFC()
        initial = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=initial, show_progress=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=alphabet, show_progress=False
        )
    backend.train_from_iterator(["plain words, and more of them"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("metaspace", [False, True])
def test_bytes_of_one_character_share_its_place(metaspace: bool) -> None:
    tokenizer = of(byte_level(metaspace=metaspace), "text")
    data = "東a".encode()
    row = tokenizer.encode(np.frombuffer(data, np.uint8))
    content = ~row.special
    assert row.stop[content].max() == len(data)
    assert set(zip(row.start[content].tolist(), row.stop[content].tolist(), strict=True)) == {
        (0, 3),
        (3, 4),
    }
    assert content.sum() >= 4


class Marked:
    """A tokenizer without offsets that marks pieces of words, as slow ones do."""

    is_fast = False
    unk_token_id, pad_token_id = 0, 0
    all_special_tokens = ("<s>",)
    pieces: ClassVar = {
        "##": ("ACG", "##T"),
        "\u2581": ("\u2581", "ACG", "T"),
        "</w>": ("ACG", "T</w>"),
    }

    def __init__(self, mark: str) -> None:
        self.tokens = self.pieces[mark]

    def get_vocab(self) -> dict[str, int]:
        return {"<s>": 0} | {token: i for i, token in enumerate(self.tokens, 1)}

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 1

    def tokenize(self, text: str) -> list[str]:
        return list(self.tokens) * (len(text) // 4)

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [self.get_vocab()[token] for token in tokens]

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        ids = [[0, *self.convert_tokens_to_ids(self.tokenize(text))] for text in texts]
        return {"input_ids": ids, "special_tokens_mask": [[0] * len(row) for row in ids]}


@pytest.mark.parametrize("mark", Marked.pieces)
def test_a_slow_tokenizer_may_mark_its_pieces(mark: str) -> None:
    tokenizer = HuggingFace(Marked(mark), 32)
    row = tokenizer.encode(np.frombuffer(b"ACGT", np.uint8))
    content = ~row.special
    assert row.start[content].tolist() == [0, 3]
    assert row.stop[content].tolist() == [3, 4]


def test_a_tokenizer_of_bases_reads_no_protein(tmp_path: Path) -> None:
    for alphabet in ("protein", "text"):
        with pytest.raises(UsageError, match=f"a tokenizer of {alphabet}.*found kmer"):
            load_tokenizer(tmp_path, override="kmer:k=3", alphabet=alphabet)
