"""Bytes of a sequence, and the small codes that k-mers are packed from.

Four bits a base: A C G T are 0..3, N is 4, the other ambiguity codes of IUPAC follow, and
every other byte (gap, stop, digit) is `OTHER`. Case is folded and U is T.
"""

from __future__ import annotations

import numpy as np

#: Code c stands for LETTERS[c].
LETTERS = "ACGTNRYSWKMBDHV"
OTHER = 15
BITS = 4
#: Longest k-mer whose key fits 64 bits.
MAX_K = 16

_COMPLEMENTS = dict(zip(LETTERS, "TGCANYRSWMKVHDB", strict=True))


def _code_table() -> np.ndarray:
    table = np.full(256, OTHER, dtype=np.uint8)
    for code, letter in enumerate(LETTERS):
        table[[ord(letter), ord(letter.lower())]] = code
    table[[ord("U"), ord("u")]] = LETTERS.index("T")
    return table


def _complement_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint8)
    for letter, complement in _COMPLEMENTS.items():
        table[[ord(letter), ord(letter.lower())]] = ord(complement)
    table[[ord("U"), ord("u")]] = ord("A")
    return table


#: uint8 (256,): byte -> code.
CODES = _code_table()
#: uint8 (256,): byte -> complementary upper-case letter; bytes that are no base stay.
COMPLEMENTS = _complement_table()
