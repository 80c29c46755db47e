"""The output of a tokeniser: ids, special tokens, and the bases of every token."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Encoded:
    """One sequence as tokens.

    Attributes:
        ids: int32 (n,).
        special: bool (n,), tokens that stand for no base.
        start, stop: int32 (n,), first base and one past the last, in the given sequence;
            -1 for special tokens.
        n_unknown: how many of the tokens are the unknown token.
        n_ambiguous: bases of the whole given sequence that are not A, C, G, T or U.
        truncated: whether tokens were cut off at `max_tokens`.
    """

    ids: np.ndarray
    special: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    n_unknown: int
    n_ambiguous: int
    truncated: bool


@dataclass(frozen=True)
class EncodedBatch:
    """Sequences as rows of tokens, as wide as the longest.

    Attributes:
        ids: int32 (B, N), the tokenizer's `pad_id` beyond a row's length.
        lengths: int64 (B,), tokens of every row.
        special: bool (B, N), False in padded slots.
        start, stop: int32 (B, N), as in `Encoded`; -1 in padded slots too.
        n_unknown, n_ambiguous: int64 (B,).
        truncated: bool (B,).
    """

    ids: np.ndarray
    lengths: np.ndarray
    special: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    n_unknown: np.ndarray
    n_ambiguous: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, b: int) -> Encoded:
        """Row b without its padding."""
        n = int(self.lengths[b])
        return Encoded(
            self.ids[b, :n],
            self.special[b, :n],
            self.start[b, :n],
            self.stop[b, :n],
            int(self.n_unknown[b]),
            int(self.n_ambiguous[b]),
            bool(self.truncated[b]),
        )


@runtime_checkable
class Tokenizer(Protocol):
    """Bases to tokens.

    Attributes:
        name: short name for messages.
        pad_id: id that fills a row of a batch.
        max_tokens: maximum tokens of a sequence, special ones included.
        exact_counts: whether `count_tokens` is exact; else it is an upper bound.
        variable_length: whether the number of tokens depends on the bases, as with BPE.
        vocab_size: one more than the largest id that can occur.
        unknown_ids: ids of tokens that are not in the vocabulary; empty if there is no such id.
    """

    @property
    def name(self) -> str: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def exact_counts(self) -> bool: ...
    @property
    def variable_length(self) -> bool: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def unknown_ids(self) -> tuple[int, ...]: ...

    def settings(self) -> dict[str, Any]:
        """JSON-able: everything that changes an id. Part of a run's fingerprint."""
        ...

    def encode(self, bases: np.ndarray) -> Encoded:
        """Tokens of uint8 ASCII bases of any case."""
        ...

    def encode_batch(self, sequences: Sequence[np.ndarray]) -> EncodedBatch:
        """Tokens of several sequences; row b is `encode(sequences[b])` and padding."""
        ...

    @overload
    def count_tokens(self, n_bases: int) -> int: ...
    @overload
    def count_tokens(self, n_bases: np.ndarray) -> np.ndarray: ...
    def count_tokens(self, n_bases: int | np.ndarray) -> int | np.ndarray:
        """Tokens of a sequence of n bases, at most `max_tokens`."""
        ...

    def window_bases(self) -> int:
        """Longest sequence of A, C, G, T that is guaranteed to fit `max_tokens`."""
        ...


class NamedSpecialIds:
    """Padding and the unknown token, of a tokenizer that lists its special ids by name."""

    special_ids: Mapping[str, int]

    @property
    def pad_id(self) -> int:
        return self.special_ids["pad"]

    @property
    def unknown_ids(self) -> tuple[int, ...]:
        return (self.special_ids["unk"],)


class BatchTokenizer(ABC):
    """What follows from `encode_batch` and from counts of whole arrays."""

    @abstractmethod
    def encode_batch(self, sequences: Sequence[np.ndarray]) -> EncodedBatch:
        """Tokens of several sequences, each a row."""

    @abstractmethod
    def _counts(self, n_bases: np.ndarray) -> np.ndarray:
        """Tokens of sequences of so many bases, int64."""

    def encode(self, bases: np.ndarray) -> Encoded:
        """Tokens of uint8 ASCII bases (n,) of any case."""
        return self.encode_batch([bases]).row(0)

    @overload
    def count_tokens(self, n_bases: int) -> int: ...
    @overload
    def count_tokens(self, n_bases: np.ndarray) -> np.ndarray: ...
    def count_tokens(self, n_bases: int | np.ndarray) -> int | np.ndarray:
        """Tokens of a sequence of n bases, special ones included; see `exact_counts`."""
        counts = self._counts(np.asarray(n_bases, dtype=np.int64))
        return counts if isinstance(n_bases, np.ndarray) else int(counts)


def stack(rows: Sequence[Encoded], pad_id: int) -> EncodedBatch:
    """Encoded sequences as one padded batch."""
    lengths = np.array([row.ids.size for row in rows], dtype=np.int64)
    shape = (len(rows), int(lengths.max(initial=0)))
    ids = np.full(shape, pad_id, dtype=np.int32)
    special = np.zeros(shape, dtype=bool)
    start, stop = np.full(shape, -1, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
    for b, row in enumerate(rows):
        n = row.ids.size
        ids[b, :n], special[b, :n] = row.ids, row.special
        start[b, :n], stop[b, :n] = row.start, row.stop
    return EncodedBatch(
        ids,
        lengths,
        special,
        start,
        stop,
        np.array([row.n_unknown for row in rows], dtype=np.int64),
        np.array([row.n_ambiguous for row in rows], dtype=np.int64),
        np.array([row.truncated for row in rows], dtype=bool),
    )


def join(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sequences end to end, with the start and stop of each."""
    stops = np.cumsum([len(s) for s in sequences], dtype=np.int64)
    bases = np.concatenate(sequences) if len(sequences) else np.zeros(0, dtype=np.uint8)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), stops[:-1]])[: len(sequences)]
    return bases, starts, stops


def empty_ids(lengths: np.ndarray, pad_id: int) -> np.ndarray:
    """int32 (B, longest), all padding."""
    return np.full((lengths.size, int(lengths.max(initial=0))), pad_id, dtype=np.int32)


def frame(ids: np.ndarray, lengths: np.ndarray, first: int | None, last: int | None) -> np.ndarray:
    """Write a first and a last token into every row, and mark them: bool (B, N)."""
    special = np.zeros(ids.shape, dtype=bool)
    rows = np.arange(lengths.size)
    if first is not None:
        ids[:, :1], special[:, :1] = first, True
    if last is not None:
        ids[rows, lengths - 1], special[rows, lengths - 1] = last, True
    return special


def digest(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 of a vocabulary, independent of its order."""
    lines = sorted(f"{i}\t{token}\n" for token, i in vocabulary.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
