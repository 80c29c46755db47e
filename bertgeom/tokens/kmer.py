"""k-mer tokenisers over a vocabulary file: the paper's (k, stride) and DNABERT's.

Their rules, one line each:
- paper: lower case, the sequence padded with N to a multiple of k, k-mers at 0, stride, ...,
  the first `max_tokens` - 2 of them between [CLS] and [SEP]. A k-mer with N or another
  ambiguity code is a token if the vocabulary has it, else [UNK]. With a stride that does not
  divide the rest, up to stride - 1 bases at the end have no token.
- DNABERT: upper case, stride 1, no padding; the vocabulary holds the k-mers of A, C, G, T.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bertgeom.errors import ModelError, UsageError
from bertgeom.kernels.kmers import (
    KmerTable,
    count_ambiguous,
    encode_kmers,
    kmer_keys,
    kmer_places,
    n_kmers,
    unpack_kmers,
)
from bertgeom.tokens.encoded import (
    BatchTokenizer,
    EncodedBatch,
    NamedSpecialIds,
    digest,
    empty_ids,
    frame,
    join,
)

SPECIAL_NAMES = ("pad", "unk", "cls", "sep", "mask")
#: The ids of bert-base-cased, whose vocabulary the paper's extends.
PAPER_SPECIAL_IDS = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
DNABERT_SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
#: DNABERT and Nucleotide Transformer list their k-mers in this order of bases.
BASE_ORDER = "ATCG"


@dataclass(frozen=True, eq=False)
class KmerTokenizer(NamedSpecialIds, BatchTokenizer):
    """[CLS], k-mers looked up in a vocabulary, [SEP].

    Attributes:
        vocabulary: k-mer -> id; k-mers of IUPAC letters, case is folded.
        k, stride: bases of a k-mer, and from one to the next.
        pad_with_n: whether a sequence is padded with N to a multiple of k first.
        special_ids: ids of pad, unk, cls, sep, mask.
        max_tokens: maximum tokens of a sequence, special ones included.
        name: short name for messages.
    """

    vocabulary: Mapping[str, int]
    k: int
    stride: int
    pad_with_n: bool
    special_ids: Mapping[str, int]
    max_tokens: int = 512
    name: str = "kmer"
    exact_counts = True
    variable_length = False

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise UsageError(f"expected a stride of at least 1, found {self.stride}")
        if self.max_tokens < 3:
            raise UsageError(f"expected max_tokens of at least 3, found {self.max_tokens}")
        missing = set(SPECIAL_NAMES) - set(self.special_ids)
        if missing:
            raise ModelError(
                f"expected ids of {', '.join(SPECIAL_NAMES)}, found none of {sorted(missing)}"
            )
        taken = set(self.special_ids.values()) & set(self.vocabulary.values())
        if taken:
            raise ModelError(f"expected special ids apart from k-mer ids, found {sorted(taken)}")
        _ = self.table

    @cached_property
    def table(self) -> KmerTable:
        """The vocabulary as the kernels read it."""
        try:
            return KmerTable.build(self.vocabulary, self.k, self.special_ids["unk"])
        except ValueError as error:
            raise ModelError(f"vocabulary of {self.name}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max([*self.special_ids.values(), *self.vocabulary.values()]) + 1

    def settings(self) -> dict[str, Any]:
        """Everything that changes an id, JSON-able."""
        return {
            "kind": "kmer",
            "k": self.k,
            "stride": self.stride,
            "pad_with_n": self.pad_with_n,
            "max_tokens": self.max_tokens,
            "special_ids": {name: int(self.special_ids[name]) for name in SPECIAL_NAMES},
            "n_kmers": len(self.vocabulary),
            "vocabulary_sha256": self._digest,
        }

    @cached_property
    def _digest(self) -> str:
        return digest(self.table.vocabulary)

    def _counts(self, n_bases: np.ndarray) -> np.ndarray:
        """Tokens of a sequence of n bases, special ones included; exact."""
        counts = n_kmers(n_bases, self.k, self.stride, pad=self.pad_with_n) + 2
        return np.minimum(counts, self.max_tokens)

    def window_bases(self) -> int:
        """Longest sequence of which no k-mer is cut off."""
        room = self.max_tokens - 2
        longest = (room - 1) * self.stride + self.k + self.stride - 1
        return longest // self.k * self.k if self.pad_with_n else longest

    def encode_batch(self, sequences: Sequence[np.ndarray]) -> EncodedBatch:
        """Tokens of several sequences, each a row."""
        bases, starts, stops = join(sequences)
        available = n_kmers(stops - starts, self.k, self.stride, pad=self.pad_with_n)
        counts = np.minimum(available, self.max_tokens - 2)
        lengths = counts + 2
        ids = empty_ids(lengths, self.pad_id)
        n_unknown = encode_kmers(
            bases, starts, stops, self.table, stride=self.stride, counts=counts, ids=ids, first=1
        )
        special = frame(ids, lengths, self.special_ids["cls"], self.special_ids["sep"])
        start, stop = kmer_places(
            counts, stops - starts, self.k, self.stride, width=ids.shape[1], first=1
        )
        return EncodedBatch(
            ids,
            lengths,
            special,
            start,
            stop,
            n_unknown,
            count_ambiguous(bases, starts, stops),
            available > counts,
        )


def PaperKmer(
    vocabulary: Mapping[str, int] | Sequence[str],
    *,
    k: int = 12,
    stride: int = 9,
    special_ids: Mapping[str, int] | None = None,
    max_tokens: int = 512,
) -> KmerTokenizer:
    """The tokeniser of the paper: k-mers seen in training, padded with N.

    Args:
        vocabulary: k-mer -> id, or k-mers in order, which then get the ids after the
            special ones.
        k, stride: bases of a k-mer, and from one to the next.
        special_ids: ids of pad, unk, cls, sep, mask; the paper's if None.
        max_tokens: maximum tokens of a sequence, [CLS] and [SEP] included.

    Raises:
        ModelError: for a vocabulary that is not one of k-mers.
    """
    special = dict(PAPER_SPECIAL_IDS if special_ids is None else special_ids)
    if not isinstance(vocabulary, Mapping):
        first = max(special.values()) + 1
        vocabulary = {kmer: first + i for i, kmer in enumerate(vocabulary)}
    return KmerTokenizer(
        vocabulary, k, stride, True, special, max_tokens, f"kmer(k={k}, stride={stride})"
    )


def DnabertKmer(
    k: int = 6, *, vocabulary: Mapping[str, int] | None = None, max_tokens: int = 512
) -> KmerTokenizer:
    """DNABERT's tokeniser: every k-mer of A, C, G, T at stride 1; others are [UNK].

    Args:
        k: 3 to 6 in the published models.
        vocabulary: k-mer -> id; the published order if None.
        max_tokens: maximum tokens of a sequence, [CLS] and [SEP] included.
    """
    if vocabulary is None:
        first = max(DNABERT_SPECIAL_IDS.values()) + 1
        vocabulary = {kmer: first + i for i, kmer in enumerate(all_kmers(k))}
    return KmerTokenizer(
        vocabulary, k, 1, False, dict(DNABERT_SPECIAL_IDS), max_tokens, f"dnabert(k={k})"
    )


def all_kmers(k: int) -> list[str]:
    """The 4^k k-mers in the order A, T, C, G, last base fastest."""
    return ["".join(letters) for letters in itertools.product(BASE_ORDER, repeat=k)]


def build_vocabulary(
    sequences: Iterable[np.ndarray], k: int = 12, stride: int = 9, min_count: int = 1
) -> list[str]:
    """The lower-case k-mers that `PaperKmer(k, stride)` finds in `sequences`, sorted.

    Args:
        sequences: uint8 ASCII bases; padded with N as the tokeniser does.
        k, stride: as in `PaperKmer`.
        min_count: rarer k-mers are left out.

    k-mers with a byte that is not a base (a gap, a stop) are left out.
    """
    keys, counts = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    for some in _batched(sequences, 256):
        met = np.concatenate([kmer_keys(bases, k, stride, pad=True) for bases in some])
        new, times = np.unique(met, return_counts=True)
        keys, place = np.unique(np.concatenate([keys, new]), return_inverse=True)
        merged = np.zeros(keys.size, dtype=np.int64)
        np.add.at(merged, place, np.concatenate([counts, times]))
        counts = merged
    kmers = unpack_kmers(keys[counts >= min_count], k)
    return sorted(kmer.lower() for kmer in kmers if "?" not in kmer)


def _batched(items: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    rest = iter(items)
    while some := list(itertools.islice(rest, size)):
        yield some
