"""What a tokenizer makes of sequences, and whether its tokens spell them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertgeom.tokens.coverage import coverage
from bertgeom.tokens.encoded import Tokenizer
from bertgeom.tokens.huggingface import HuggingFace
from bertgeom.tokens.select import (
    DnabertKmer,
    NucleotideTransformer,
    PaperKmer,
    SingleNucleotide,
    load_tokenizer,
)


def letters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def sample(alphabet: str = "ACGT", n: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [letters("".join(rng.choice(list(alphabet), n))) for _ in range(3)]


KMERS: dict[str, tuple[Tokenizer, float]] = {
    "dnabert": (DnabertKmer(3), 60 / 58),
    "paper": (PaperKmer([a + b for a in "acgtn" for b in "acgtn"], k=2, stride=2), 2.0),
    "nt": (NucleotideTransformer(), 6.0),
    "single": (SingleNucleotide(64), 1.0),
}


@pytest.mark.parametrize("name", KMERS)
def test_tokens_of_bases_spell_them(name: str) -> None:
    tokenizer, bases_per_token = KMERS[name]
    found = coverage(tokenizer, sample())
    assert found.bases == 180
    assert found.bases_per_token == pytest.approx(bases_per_token)
    assert (found.unknown_share, found.returned_share) == (0, 1)
    again = coverage(tokenizer, [letters(s.tobytes().decode().lower()) for s in sample()])
    assert again == found


@pytest.mark.parametrize("name", KMERS)
def test_a_vocabulary_in_another_order_spells_something_else(name: str) -> None:
    """Ids are looked up where the tokenizer looks, texts where the vocabulary says."""
    tokenizer: Any = KMERS[name][0]
    right = coverage(tokenizer, sample())
    field = "letters" if name == "single" else "vocabulary"
    held = dict(getattr(tokenizer, field))
    keys = [key for key in held if set(key.upper()) <= set("ACGT")]

    class Swapped(type(tokenizer)):  # type: ignore[misc]
        def encode(self, bases: np.ndarray) -> Any:
            return tokenizer.encode(bases)

    turned = zip(keys, [*keys[1:], keys[0]], strict=True)
    swapped = {**held, **{key: held[other] for key, other in turned}}
    values = {name: getattr(tokenizer, name) for name in tokenizer.__dataclass_fields__}
    wrong = coverage(Swapped(**{**values, field: swapped}), sample())
    assert (wrong.tokens, wrong.known_bases) == (right.tokens, right.known_bases)
    assert wrong.returned_share is not None
    assert wrong.returned_share < 1


def test_unknown_tokens_are_counted_and_cover_nothing() -> None:
    found = coverage(DnabertKmer(3), [letters("ACGTNACGT")])
    assert (found.tokens, found.unknown) == (7, 3)
    assert (found.known_bases, found.returned_bases) == (8, 8)
    nothing = coverage(DnabertKmer(3), [letters("N" * 9)])
    assert (nothing.unknown_share, nothing.returned_share) == (1, 0)


def test_pieces_of_words_spell_bases_without_their_marks(minilm: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    found = coverage(tokenizer, sample(n=60))
    assert found.bases_per_token > 1
    assert (found.unknown, found.returned_share) == (0, 1)
    assert isinstance(tokenizer, HuggingFace)
    text = coverage(replace(tokenizer, alphabet="text"), [letters("a text of words")])
    assert (text.tokens, text.returned_share) == (4, None)
