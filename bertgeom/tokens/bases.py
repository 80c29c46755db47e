"""Tokenisers with a fixed alphabet: Nucleotide Transformer's 6-mers, and single bases.

- Nucleotide Transformer: upper case, [CLS] at the start, nothing at the end; a stretch of
  A, C, G, T is cut into k-mers end to end, its rest into single bases; N is a token; other
  letters break k-mers, and a run of them is one unknown token, as in transformers' EsmTokenizer.
- single bases (HyenaDNA, Caduceus): A, C, G, T and N are tokens, every other letter is
  unknown; [SEP] at the end, nothing at the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bertgeom.errors import ModelError, UsageError
from bertgeom.kernels.kmers import (
    KmerTable,
    count_ambiguous,
    encode_singles,
    encode_split,
    kmer_places,
    single_table,
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
from bertgeom.tokens.kmer import BASE_ORDER, all_kmers

#: HyenaDNA and Caduceus.
SINGLE_SPECIAL_IDS = {"cls": 0, "sep": 1, "bos": 2, "mask": 3, "pad": 4, "unk": 6}
SINGLE_IDS = {letter: 7 + i for i, letter in enumerate("ACGTN")}
#: Maximum tokens of a window, by version of the Nucleotide Transformer.
NT_MAX_TOKENS = {"v1": 1000, "v2": 2048}


def nt_vocabulary(version: str = "v2", k: int = 6) -> dict[str, int]:
    """Token -> id of the published Nucleotide Transformers.

    Both versions list their k-mers and single bases in the order A, T, C, G; version 1 puts
    <eos> and <bos> last, where its embedding has no rows, version 2 in front.

    Raises:
        UsageError: for another version than v1 and v2.
    """
    if version not in NT_MAX_TOKENS:
        raise UsageError(f"expected nt:v1 or nt:v2, found {version!r}")
    first, last = ["<unk>", "<pad>", "<mask>", "<cls>"], ["<eos>", "<bos>"]
    body = [*all_kmers(k), *BASE_ORDER, "N"]
    tokens = [*first, *body, *last] if version == "v1" else [*first, *last, *body]
    return {token: i for i, token in enumerate(tokens)}


@dataclass(frozen=True, eq=False)
class NucleotideTransformer(BatchTokenizer):
    """[CLS], then k-mers end to end and single bases where none fits.

    Attributes:
        vocabulary: token -> id, with <unk>, <pad>, <cls>, all k-mers of A, C, G, T, and the
            single bases.
        max_tokens: maximum tokens of a sequence, [CLS] included.
        k: bases of a k-mer.
        name: short name for messages.
    """

    vocabulary: Mapping[str, int] = field(default_factory=nt_vocabulary)
    max_tokens: int = NT_MAX_TOKENS["v2"]
    k: int = 6
    name: str = "nucleotide-transformer"
    exact_counts = False
    variable_length = False

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise UsageError(f"expected max_tokens of at least 2, found {self.max_tokens}")
        missing = [
            token
            for token in ("<unk>", "<pad>", "<cls>", *BASE_ORDER, *all_kmers(self.k))
            if token not in self.vocabulary
        ]
        if missing:
            raise ModelError(
                f"expected <unk>, <pad>, <cls>, single bases and all {self.k}-mers in the "
                f"vocabulary of {self.name}, found no {missing[0]}"
            )

    @cached_property
    def _table(self) -> KmerTable:
        kmers = {kmer: self.vocabulary[kmer] for kmer in all_kmers(self.k)}
        return KmerTable.build(kmers, self.k, self.vocabulary["<unk>"])

    @cached_property
    def _singles(self) -> np.ndarray:
        return single_table(self._letters)

    @property
    def _letters(self) -> dict[str, int]:
        return {token: i for token, i in self.vocabulary.items() if len(token) == 1}

    @property
    def pad_id(self) -> int:
        return self.vocabulary["<pad>"]

    @property
    def unknown_ids(self) -> tuple[int, ...]:
        return (self.vocabulary["<unk>"],)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that can occur."""
        special = [self.vocabulary[name] for name in ("<unk>", "<pad>", "<cls>")]
        return max(*special, *self._letters.values(), int(self._table.ids.max())) + 1

    def settings(self) -> dict[str, Any]:
        """Everything that changes an id, JSON-able."""
        return {
            "kind": "nt",
            "k": self.k,
            "max_tokens": self.max_tokens,
            "vocabulary_sha256": digest(self.vocabulary),
        }

    def _counts(self, n_bases: np.ndarray) -> np.ndarray:
        """Upper bound: one token per base, as next to N."""
        counts: np.ndarray = np.minimum(n_bases + 1, self.max_tokens)
        return counts

    def window_bases(self) -> int:
        """Longest sequence of only A, C, G, T that fits; with N, fewer bases do."""
        return self.k * (self.max_tokens - 1)

    def encode_batch(self, sequences: Sequence[np.ndarray]) -> EncodedBatch:
        """Tokens of several sequences, each a row."""
        bases, starts, stops = join(sequences)
        widest = self.count_tokens(stops - starts)
        ids = empty_ids(widest, self.pad_id)
        start, stop = np.full_like(ids, -1), np.full_like(ids, -1)
        tokens = encode_split(
            bases,
            starts,
            stops,
            self._table,
            self._singles,
            room=max(ids.shape[1] - 1, 0),
            ids=ids,
            begins=start,
            ends=stop,
            first=1,
        )
        lengths = tokens.lengths + 1
        n = int(lengths.max(initial=0))
        ids = np.ascontiguousarray(ids[:, :n])
        special = frame(ids, lengths, self.vocabulary["<cls>"], None)
        return EncodedBatch(
            ids,
            lengths,
            special,
            np.ascontiguousarray(start[:, :n]),
            np.ascontiguousarray(stop[:, :n]),
            tokens.n_unknown,
            count_ambiguous(bases, starts, stops),
            tokens.truncated,
        )


@dataclass(frozen=True, eq=False)
class SingleNucleotide(NamedSpecialIds, BatchTokenizer):
    """One token per base.

    Attributes:
        max_tokens: maximum tokens of a sequence, special ones included.
        letters: letter -> id; case is folded, and where only one of T and U is listed, it
            stands for both.
        special_ids: ids of pad, unk, and of cls and sep where they are used.
        cls, sep: whether a sequence starts with [CLS], and ends with [SEP].
        name: short name for messages.
    """

    max_tokens: int
    letters: Mapping[str, int] = field(default_factory=lambda: dict(SINGLE_IDS))
    special_ids: Mapping[str, int] = field(default_factory=lambda: dict(SINGLE_SPECIAL_IDS))
    cls: bool = False
    sep: bool = True
    name: str = "single-nucleotide"
    exact_counts = True
    variable_length = False

    def __post_init__(self) -> None:
        if self.max_tokens <= self._extra:
            raise UsageError(
                f"expected max_tokens of at least {self._extra + 1}, found {self.max_tokens}"
            )
        needed = ["pad", "unk", *["cls"] * self.cls, *["sep"] * self.sep]
        missing = [name for name in needed if name not in self.special_ids]
        if missing:
            raise ModelError(
                f"expected ids of {', '.join(needed)} for single bases, found none of {missing[0]}"
            )

    @property
    def _extra(self) -> int:
        return int(self.cls) + int(self.sep)

    @cached_property
    def _singles(self) -> np.ndarray:
        return single_table(self.letters)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max([*self.letters.values(), *self.special_ids.values()]) + 1

    def settings(self) -> dict[str, Any]:
        """Everything that changes an id, JSON-able."""
        upper = {letter.upper() for letter in self.letters}
        return {
            "kind": "single",
            "cls": self.cls,
            "sep": self.sep,
            "max_tokens": self.max_tokens,
            "letters": dict(sorted(self.letters.items())),
            "special_ids": dict(sorted(self.special_ids.items())),
            **({"thymine": "U"} if "U" in upper and "T" not in upper else {}),
        }

    def _counts(self, n_bases: np.ndarray) -> np.ndarray:
        """Tokens of a sequence of n bases, special ones included; exact."""
        counts: np.ndarray = np.minimum(n_bases + self._extra, self.max_tokens)
        return counts

    def window_bases(self) -> int:
        """Longest sequence of which no base is cut off."""
        return self.max_tokens - self._extra

    def encode_batch(self, sequences: Sequence[np.ndarray]) -> EncodedBatch:
        """Tokens of several sequences, each a row."""
        bases, starts, stops = join(sequences)
        lengths = self.count_tokens(stops - starts)
        counts = lengths - self._extra
        first = int(self.cls)
        ids = empty_ids(lengths, self.pad_id)
        n_unknown = encode_singles(
            bases,
            starts,
            self._singles,
            self.special_ids["unk"],
            counts=counts,
            ids=ids,
            first=first,
        )
        special = frame(
            ids,
            lengths,
            self.special_ids["cls"] if self.cls else None,
            self.special_ids["sep"] if self.sep else None,
        )
        start, stop = kmer_places(counts, counts, 1, 1, width=ids.shape[1], first=first)
        return EncodedBatch(
            ids,
            lengths,
            special,
            start,
            stop,
            n_unknown,
            count_ambiguous(bases, starts, stops),
            stops - starts > counts,
        )
