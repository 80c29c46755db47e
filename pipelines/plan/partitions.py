"""Windows, partitions, batches: what a run will do, before it does any of it.

The same input and settings give the same plan, on one core or on a cluster.

    windows      0 1 2 3 4 5 6 7 8 9 ...          numbered through all records
    partitions   [   0   ][   1   ][   2   ]      fixed runs of windows, the unit of work
    row groups   [        0        ][      1 ...  whole chunks of every array, the unit of writing
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bertgeom.config import Settings
from bertgeom.kernels.arrays import BoolArray, Int64Array
from bertgeom.sequences.windows import count_windows, windows_of
from bertgeom.tokens.encoded import Tokenizer


@dataclass(frozen=True)
class Windows:
    """Some windows, in order.

    Attributes:
        record: int64 (n,), index of the record.
        start, stop: int64 (n,), bases in the record.
        strand: int8 (n,), +1 or -1.
        n_tokens: int64 (n,), tokens of the windows where they were cut by tokens, else None.
    """

    record: Int64Array
    start: Int64Array
    stop: Int64Array
    strand: npt.NDArray[np.int8]
    n_tokens: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.record)

    def take(self, rows: Int64Array) -> Windows:
        """Those at `rows`, in that order."""
        tokens = None if self.n_tokens is None else self.n_tokens[rows]
        return Windows(
            self.record[rows], self.start[rows], self.stop[rows], self.strand[rows], tokens
        )


class Index(Protocol):
    """All windows of a database by number: of equal bases, or cut by tokens."""

    @property
    def n_windows(self) -> int: ...
    @property
    def longest(self) -> int:
        """Bases of the longest window."""
        ...

    def windows(self, first: int, stop: int) -> Windows:
        """Windows number first..stop."""
        ...

    def short(self, windows: Windows) -> BoolArray:
        """bool: the only window of a record, shorter than others."""
        ...


@dataclass(frozen=True, eq=False)
class WindowIndex:
    """All windows of a database, found by number without a list of them.

    Attributes:
        lengths: int64 (records,), bases of the records.
        size, stride, min_length: as in `Settings`, resolved.
        strand: "+", "-" or "both".
    """

    lengths: np.ndarray
    size: int
    stride: int
    min_length: int
    strand: str

    @cached_property
    def _first(self) -> np.ndarray:
        """(records + 1,): number of the first window of every record, on one strand."""
        counts = count_windows(self.lengths, self.size, self.stride, self.min_length)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def _strands(self) -> int:
        return 2 if self.strand == "both" else 1

    @property
    def n_windows(self) -> int:
        return int(self._first[-1]) * self._strands

    @property
    def longest(self) -> int:
        """Bases of a whole window."""
        return self.size

    def short(self, windows: Windows) -> BoolArray:
        """bool: the only window of a record, shorter than a whole one."""
        found: BoolArray = (windows.stop - windows.start < self.size) & (windows.start == 0)
        return found

    def windows(self, first: int, stop: int) -> Windows:
        """Windows number first..stop."""
        number = np.arange(first, stop)
        place = number // self._strands
        record = np.searchsorted(self._first, place, side="right") - 1
        pieces = [np.zeros((0, 2), dtype=np.int64)]
        for index, begin, count in zip(
            *np.unique(record, return_index=True, return_counts=True), strict=True
        ):
            mine = place[begin : begin + count] - self._first[index]
            pieces.append(self._of_length(int(self.lengths[index]))[mine])
        bounds = np.concatenate(pieces)
        sign = {"+": 1, "-": -1}.get(self.strand)
        strand = np.full(len(number), sign) if sign else 1 - 2 * (number % 2)
        return Windows(record, bounds[:, 0], bounds[:, 1], strand.astype(np.int8))

    def _of_length(self, length: int) -> np.ndarray:
        return windows_of(length, self.size, self.stride, self.min_length)


@dataclass(frozen=True)
class Pieces:
    """So many windows, cut into partitions and row groups.

    Attributes:
        n_windows: windows of all records.
        partition_windows: windows of a partition; the last one has what is left.
        group_windows: windows of a row group, a multiple of `partition_windows`.
    """

    n_windows: int
    partition_windows: int
    group_windows: int

    @property
    def n_partitions(self) -> int:
        return -(-self.n_windows // self.partition_windows)

    @property
    def n_groups(self) -> int:
        return -(-self.n_windows // self.group_windows)

    def partition(self, number: int) -> tuple[int, int]:
        """First window of a partition, and one past its last."""
        first = number * self.partition_windows
        return first, min(first + self.partition_windows, self.n_windows)

    def group(self, number: int) -> tuple[int, int]:
        """First window of a row group, and one past its last."""
        first = number * self.group_windows
        return first, min(first + self.group_windows, self.n_windows)

    def group_of(self, partition: int) -> int:
        """The row group that a partition belongs to."""
        return partition * self.partition_windows // self.group_windows

    def partitions_of(self, group: int) -> range:
        """The partitions of a row group."""
        first, stop = self.group(group)
        return range(first // self.partition_windows, -(-stop // self.partition_windows))


@dataclass(frozen=True, eq=False)
class Plan(Pieces):
    """A run, cut into pieces, with its windows.

    Attributes:
        index: the windows.
        batch_tokens: padded tokens of a batch at most, but at least one window.
    """

    index: Index
    batch_tokens: int

    @classmethod
    def of(
        cls, index: Index, partition_windows: int, group_windows: int, batch_tokens: int
    ) -> Plan:
        """The plan of all windows of an index."""
        return cls(index.n_windows, partition_windows, group_windows, index, batch_tokens)


def batches(n_tokens: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Rows of a partition in batches of like lengths: longest first, then by number.

    Args:
        n_tokens: int (n,), tokens of every row; rows without tokens get no batch.
        batch_tokens: rows times longest row of a batch; a longer row is a batch of its own.

    Returns:
        Row numbers, int64, of every batch.
    """
    order = np.argsort(-n_tokens, kind="stable")
    order = order[n_tokens[order] > 0]
    found = []
    while len(order):
        rows = max(1, batch_tokens // int(n_tokens[order[0]]))
        found.append(order[:rows])
        order = order[rows:]
    return found


def window_index(lengths: np.ndarray, settings: Settings) -> WindowIndex:
    """The windows of records of these lengths, for resolved settings."""
    if settings.window is None or settings.stride is None:
        raise ValueError("expected resolved settings with a window and a stride")
    return WindowIndex(
        lengths, settings.window, settings.stride, settings.min_length, settings.strand
    )


def planned_tokens(tokenizer: Tokenizer, windows: Windows) -> np.ndarray:
    """int64 (n,): tokens of windows, an upper bound where nobody knows better."""
    if windows.n_tokens is not None:
        return windows.n_tokens
    return np.asarray(tokenizer.count_tokens(windows.stop - windows.start), dtype=np.int64)
