"""How sequences are written for a tokenizer, found from what it knows.

A vocabulary has its letters in upper or in lower case, and T or U for the same base. Some
tokenizers of proteins cut at white space: they know letters that stand alone, not words of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bertgeom.errors import ModelError, UsageError

#: Sequences that show how a tokenizer reads letters; short, as a word may be no longer than 100.
N_PROBES, PROBE_LETTERS = 64, 48
#: Another spelling must save this share of the tokens to be preferred over upper case with T.
_CLEARLY_FEWER = 0.1
_LETTERS = {"nucleotide": b"ACGT", "protein": b"ACDEFGHIKLMNPQRSTVWY"}
_RARE = str.maketrans("UZOB", "XXXX")


@dataclass(frozen=True)
class Spelling:
    """How a sequence is written for a tokenizer.

    Attributes:
        case: "upper" or "lower". thymine: "T" or "U", the letter for both.
        alphabet: "nucleotide", "protein" or "text"; a text is written as it is.
        spaced: whether a space stands between letters.
        rare_as_x: whether the rare and ambiguous residues U, Z, O and B are written as X.
    """

    case: str = "upper"
    thymine: str = "T"
    alphabet: str = "nucleotide"
    spaced: bool = False
    rare_as_x: bool = False

    def __post_init__(self) -> None:
        if self.case not in ("upper", "lower"):
            raise UsageError(f"expected case 'upper' or 'lower', found {self.case!r}")
        if self.thymine not in ("T", "U"):
            raise UsageError(f"expected thymine 'T' or 'U', found {self.thymine!r}")

    def text(self, bases: np.ndarray) -> str:
        """uint8 ASCII bases (n,) as n characters, and the spaces between; UTF-8 as its text."""
        if self.alphabet == "text":
            return _decoded(bases)
        text = np.ascontiguousarray(bases).tobytes().decode("ascii", "replace").upper()
        if self.alphabet == "nucleotide":
            other = "U" if self.thymine == "T" else "T"
            text = text.replace(other, self.thymine)
        if self.rare_as_x:
            text = text.translate(_RARE)
        text = text if self.case == "upper" else text.lower()
        return " ".join(text) if self.spaced else text

    def places(self, offsets: np.ndarray, bases: np.ndarray) -> np.ndarray:
        """Characters of `text(bases)`, int32 (n, 2), as places in the sequence."""
        if self.spaced:
            # Letter i is character 2 i.
            return ((offsets + 1) // 2).astype(np.int32)
        if self.alphabet == "text" and (bases > 127).any():
            sizes = np.array([_size(letter) for letter in _characters(bases)], dtype=np.int32)
            edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
            found: np.ndarray = edges[np.clip(offsets, 0, len(sizes))]
            return found
        return offsets


def _characters(bases: np.ndarray) -> str:
    """UTF-8 as text; a byte that is none, as at a cut through a character, is one of its own."""
    return np.ascontiguousarray(bases).tobytes().decode("utf-8", "surrogateescape")


def _decoded(bases: np.ndarray) -> str:
    return "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in _characters(bases))


def _size(letter: str) -> int:
    return 1 if "\udc80" <= letter <= "\udcff" else len(letter.encode())


#: Of a spelling: letters of the probes without a known token, and tokens of all probes.
Reading = Callable[[Spelling], tuple[int, int]]


def best_spelling(
    read: Reading, case: str | None = None, thymine: str | None = None, alphabet: str = "nucleotide"
) -> Spelling:
    """The spelling that suits a tokenizer best.

    The one that leaves the fewest letters without a known token; among equals, one that needs
    clearly fewer tokens (a vocabulary of bytes knows every letter, but has pieces in only one
    spelling); else upper case with T, without spaces.

    Args:
        read: what a tokenizer makes of the probes.
        case: "upper" or "lower", and thymine: "T" or "U", if they are decided.
        alphabet: what sequences are made of.

    Raises:
        ModelError: if the places of its tokens cannot be found in any spelling.
    """
    best, least, refused = None, (0, 0.0), None
    for spelling in _options(case, thymine, alphabet):
        try:
            lost, tokens = read(spelling)
        except ModelError as error:
            refused = error
            continue
        if (
            best is None
            or lost < least[0]
            or (lost == least[0] and tokens < (1 - _CLEARLY_FEWER) * least[1])
        ):
            best, least = spelling, (lost, tokens)
    if best is None:
        raise refused or ModelError("expected a spelling, found none")
    return best


def _options(case: str | None, thymine: str | None, alphabet: str) -> list[Spelling]:
    if alphabet == "text":
        return [Spelling(alphabet=alphabet)]
    cases = [case] if case else ["upper", "lower"]
    if alphabet == "protein":
        return [Spelling(c, "T", alphabet, spaced) for spaced in (False, True) for c in cases]
    letters = [thymine] if thymine else ["T", "U"]
    return [Spelling(c, t) for c in cases for t in letters]


def probes(alphabet: str = "nucleotide") -> list[np.ndarray]:
    """Sequences that show how a tokenizer reads letters; the same each time."""
    letters = np.frombuffer(_LETTERS.get(alphabet, b"abcdefghijklmnopqrstuvwxyz"), np.uint8)
    rng = np.random.default_rng(0)
    return [letters[rng.integers(0, len(letters), PROBE_LETTERS)] for _ in range(N_PROBES)]
