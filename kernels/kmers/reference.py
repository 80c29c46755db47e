"""The oracle: the rules of every tokeniser in plain Python, on strings.

Nothing here is fast, and nothing is shared with `cpu.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

COMPLEMENT = {
    "A": "T",
    "C": "G",
    "G": "C",
    "T": "A",
    "U": "A",
    "N": "N",
    "R": "Y",
    "Y": "R",
    "S": "S",
    "W": "W",
    "K": "M",
    "M": "K",
    "B": "V",
    "V": "B",
    "D": "H",
    "H": "D",
}

#: (token id, first base, one past the last base)
Token = tuple[int, int, int]


def fold(sequence: str) -> str:
    """Upper case, U as T."""
    return sequence.upper().replace("U", "T")


def reverse_complement(sequence: str) -> str:
    """The other strand, upper case; other letters stay as they are."""
    return "".join(COMPLEMENT.get(letter.upper(), letter) for letter in reversed(sequence))


def count_ambiguous(sequence: str) -> int:
    """How many letters are not A, C, G, T or U."""
    return sum(letter not in "ACGTU" for letter in sequence.upper())


def pad_to_multiple(sequence: str, k: int) -> str:
    """N at the end until the length is a multiple of k."""
    return sequence + "N" * (-len(sequence) % k)


def kmers(sequence: str, k: int, stride: int, *, pad: bool) -> Iterator[tuple[str, int, int]]:
    """(k-mer, start, stop) at 0, stride, ... as long as a whole k-mer fits.

    With `pad` the sequence is first padded with N to a multiple of k; stop then never lies
    beyond the last real base.
    """
    folded = fold(sequence)
    text = pad_to_multiple(folded, k) if pad else folded
    for start in range(0, len(text) - k + 1, stride):
        yield text[start : start + k], min(start, len(folded)), min(start + k, len(folded))


def kmer_tokens(
    sequence: str, vocabulary: Mapping[str, int], k: int, stride: int, unknown: int, *, pad: bool
) -> list[Token]:
    """Tokens of overlapping or spaced k-mers; those not in the vocabulary are `unknown`."""
    return [
        (vocabulary.get(kmer, unknown), start, stop)
        for kmer, start, stop in kmers(sequence, k, stride, pad=pad)
    ]


def split_kmer_tokens(
    sequence: str, vocabulary: Mapping[str, int], k: int, unknown: int
) -> list[Token]:
    """Tokens of the longest-match rule: a k-mer where one fits, else a single base.

    Letters that are no token by themselves break k-mers, and a run of them is one
    unknown token.
    """
    text = fold(sequence)
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        kmer, letter = text[position : position + k], text[position]
        if len(kmer) == k and kmer in vocabulary:
            tokens.append((vocabulary[kmer], position, position + k))
        elif letter in vocabulary:
            tokens.append((vocabulary[letter], position, position + 1))
        elif tokens and tokens[-1][0] == unknown and tokens[-1][2] == position:
            tokens[-1] = (unknown, tokens[-1][1], position + 1)
        else:
            tokens.append((unknown, position, position + 1))
        position = tokens[-1][2]
    return tokens


def single_tokens(sequence: str, vocabulary: Mapping[str, int], unknown: int) -> list[Token]:
    """One token per base."""
    return [(vocabulary.get(letter, unknown), i, i + 1) for i, letter in enumerate(fold(sequence))]
