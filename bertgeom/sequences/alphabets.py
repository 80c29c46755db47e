"""What sequences are made of, and how their letters are read.

Nucleotides and proteins are folded to upper case with one letter for a gap; text keeps its bytes,
which are UTF-8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Alphabet:
    """The letters of a kind of sequence.

    Attributes:
        name: "nucleotide", "protein" or "text".
        noun: what one of its letters is called in messages.
        letters: what a sequence may hold after folding; empty: every byte.
        fold: (256,) bytes, what each byte becomes.
        ambiguous: (256,) bool, letters that leave open what is meant.
        complemented: whether there is a reverse complement.
    """

    name: str
    noun: str
    letters: bytes
    fold: bytes
    ambiguous: np.ndarray
    complemented: bool

    def wrong(self, folded: bytes) -> bytes:
        """The bytes that are no letters."""
        return folded.translate(None, self.letters) if self.letters else b""


def _all_but(letters: bytes) -> np.ndarray:
    found = np.ones(256, dtype=bool)
    found[np.frombuffer(letters, np.uint8)] = False
    return found


NUCLEOTIDES = Alphabet(
    "nucleotide",
    "bases",
    b"ACGTNRYSWKMBDHV-",
    bytes.maketrans(b"acgtuUnryswkmbdhvxX?._~*", b"ACGTTTNRYSWKMBDHVNNN----"),
    _all_but(b"ACGTUacgtu"),
    complemented=True,
)
_RESIDUES = b"ACDEFGHIKLMNPQRSTVWYUO"
PROTEINS = Alphabet(
    "protein",
    "residues",
    _RESIDUES + b"BJZX-",
    bytes.maketrans(b"acdefghiklmnpqrstvwyuobjzx?._~*", b"ACDEFGHIKLMNPQRSTVWYUOBJZXX----"),
    _all_but(_RESIDUES),
    complemented=False,
)
TEXT = Alphabet(
    "text",
    "text",
    b"",
    bytes(range(256)),
    np.zeros(256, dtype=bool),
    complemented=False,
)
#: By their own names.
ALPHABETS = {found.name: found for found in (NUCLEOTIDES, PROTEINS, TEXT)}
_BY_NAME = {"dna": NUCLEOTIDES, "rna": NUCLEOTIDES, "protein": PROTEINS, "text": TEXT}


def alphabet_of(name: str | None) -> Alphabet:
    """The letters for a value of `--alphabet`; None: nucleotides.

    Example:
        >>> from bertgeom.sequences.alphabets import alphabet_of
        >>> alphabet_of("rna").name, alphabet_of("protein").noun
        ('nucleotide', 'residues')
    """
    return NUCLEOTIDES if name is None else _BY_NAME[name]
