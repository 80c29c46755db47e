"""Windows of tokenizers with tokens of many lengths (BPE, WordPiece, Unigram), cut by tokens.

    record    0                                                              length
    tokens    |--|----|-|---|--|...                 as the tokenizer cuts the whole stretch
    windows   [ max_tokens tokens ][ max_tokens tokens ][    the rest    ]

Every base is in exactly one window, and every window but the last of a record is as full as the
tokenizer allows. The tokens of a long stretch tell where to cut; each window is then encoded
alone, as the run does it, and loses bases at its end until it fits. On strand "-" and "both"
the reverse complement has to fit, too. The cuts depend on the bases, the tokenizer and the
settings alone, so that a cluster, a resumed run and `plan` see the same windows.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bertgeom.errors import DamagedError, UsageError
from bertgeom.kernels.arrays import BoolArray
from bertgeom.kernels.kmers import reverse_complement
from bertgeom.pipelines.plan.partitions import Windows
from bertgeom.sequences.shards import CHUNK_BASES, Sequences
from bertgeom.tokens.encoded import Encoded
from bertgeom.tokens.huggingface import HuggingFace
from bertgeom.tokens.select import Tokenizer

#: Bases that are looked at together; a window never needs bases beyond.
_STRETCH = 2**22
#: Bases of a tokenizer call, and those around them that put its tokens in step.
_PIECE, _MARGIN = 2**14, 2**10
#: Sequences of a tokenizer call.
_CALL = 64
#: No window has more bases, however long its tokens are.
_LONGEST = 2**20

#: Bases of a record in order, and whether they are its last.
Piece = tuple[np.ndarray, bool]


@dataclass(frozen=True, eq=False)
class TokenWindows:
    """All windows of a database, cut by tokens.

    Attributes:
        record_windows: uint32 (records,), windows of every record on one strand.
        bases: uint32 (n,), bases of every window; they lie side by side in their record.
        tokens: uint32 (strands, n), tokens of every window.
        strand: "+", "-" or "both".
    """

    record_windows: np.ndarray
    bases: np.ndarray
    tokens: np.ndarray
    strand: str

    @cached_property
    def _first(self) -> np.ndarray:
        """(records + 1,): number of the first window of every record, on one strand."""
        return np.concatenate([[0], np.cumsum(self.record_windows, dtype=np.int64)])

    @cached_property
    def _before(self) -> np.ndarray:
        """(n + 1,): bases of all windows in front of every window."""
        return np.concatenate([[0], np.cumsum(self.bases, dtype=np.int64)])

    @property
    def _strands(self) -> int:
        return len(self.tokens)

    @property
    def n_windows(self) -> int:
        return len(self.bases) * self._strands

    @property
    def longest(self) -> int:
        """Bases of the longest window."""
        return int(self.bases.max(initial=1))

    def windows(self, first: int, stop: int) -> Windows:
        """Windows number first..stop."""
        number = np.arange(first, stop)
        place, turn = np.divmod(number, self._strands)
        record = np.searchsorted(self._first, place, side="right") - 1
        start = self._before[place] - self._before[self._first[record]]
        sign = {"+": 1, "-": -1}.get(self.strand)
        strand = np.full(len(number), sign) if sign else 1 - 2 * turn
        return Windows(
            record,
            start,
            start + self.bases[place],
            strand.astype(np.int8),
            self.tokens[turn, place].astype(np.int64),
        )

    def short(self, windows: Windows) -> BoolArray:
        """bool: windows that hold a whole record."""
        found: BoolArray = self.record_windows[windows.record] == 1
        return found

    def to_bytes(self) -> bytes:
        """The file that a run keeps."""
        arrays = {
            "bases": self.bases.astype("<u4"),
            "record_windows": self.record_windows.astype("<u4"),
            "tokens": self.tokens.astype("<u4"),
        }
        return save(arrays)

    @staticmethod
    def of_bytes(data: bytes, sha256: str, strand: str, where: str) -> TokenWindows:
        """The inverse of `to_bytes`.

        Raises:
            DamagedError: if these are not the bytes with that SHA-256.
        """
        try:
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError("checksum")
            arrays = load(data)
        except (ValueError, SafetensorError) as error:
            raise DamagedError(
                f"{where}: expected the windows that the run was set up with, found a damaged "
                "file; the bertgeom run command of this store, given again, restores it"
            ) from error
        return TokenWindows(arrays["record_windows"], arrays["bases"], arrays["tokens"], strand)


def by_tokens(tokenizer: object, window: int | None, stride: int | None) -> bool:
    """Whether windows are cut by tokens: unless bases are asked for, where tokens differ."""
    return window is None and stride is None and bool(getattr(tokenizer, "variable_length", False))


def cut_windows(
    tokenizer: Tokenizer,
    pieces: Iterable[Piece],
    *,
    strand: str = "+",
    min_length: int = 1,
    on_bases: Callable[[int, int], None] = lambda bases, windows: None,
) -> TokenWindows:
    """Cut records into windows that are full of tokens.

    Args:
        pieces: the bases of all records in order; how they are cut into pieces changes nothing.
        strand: "+", "-" or "both".
        min_length: shorter records have no window; a shorter last window shares its bases
            evenly with the one before.
        on_bases: called now and then with the bases and windows so far.

    Raises:
        UsageError: if the special tokens leave no room.
        ModelError: if a base has no token.
        TypeError: for a tokenizer whose windows are never cut by tokens, see `by_tokens`.
    """
    if not isinstance(tokenizer, HuggingFace):
        raise TypeError(f"expected a tokenizer of tokens of many lengths, found {tokenizer!r}")
    cutter = _Cutter(tokenizer, strand, min_length)
    for bases, last in pieces:
        cutter.add(bases, last)
        on_bases(cutter.n_bases, len(cutter.bases))
    cutter.flush()
    return TokenWindows(
        np.array(cutter.record_windows, dtype=np.uint32),
        np.array(cutter.bases, dtype=np.uint32),
        np.array(cutter.tokens, dtype=np.uint32).reshape(len(cutter.signs), -1),
        strand,
    )


def record_pieces(sequences: Sequences) -> Iterator[Piece]:
    """The records of a shard set, read chunk by chunk."""
    offsets, lengths = sequences.offsets, sequences.lengths
    total, i = int(lengths.sum()), 0
    none = np.zeros(0, np.uint8)
    for low in range(0, total, CHUNK_BASES):
        high = min(low + CHUNK_BASES, total)
        block = sequences.bases(low, high)
        while i < len(lengths) and (not lengths[i] or offsets[i] < high):
            stop = int(offsets[i] + lengths[i])
            begin = max(int(offsets[i]), low)
            yield (block[begin - low : min(stop, high) - low] if lengths[i] else none), stop <= high
            if stop > high:
                break
            i += 1
    for _ in range(i, len(lengths)):
        yield none, True


class _Cutter:
    """Takes the bases of one record after the other, and keeps what a run needs to know.

    Attributes:
        record_windows, bases, tokens: as in `TokenWindows`, so far.
        n_bases: bases taken so far.
    """

    def __init__(self, tokenizer: HuggingFace, strand: str, min_length: int) -> None:
        self.tokenizer, self.min_length = tokenizer, min_length
        self.signs = {"+": (1,), "-": (-1,), "both": (1, -1)}[strand]
        room = tokenizer.max_tokens - tokenizer.n_special
        if room < 1:
            raise UsageError(
                f"expected --max-tokens of at least {tokenizer.n_special + 1} for "
                f"{tokenizer.name}, found {tokenizer.max_tokens}"
            )
        # The cut of one strand splits a token of the other at either end of the window.
        self._room = room if len(self.signs) == 1 else max(1, room - 2)
        self._cap = max(room, min(room * tokenizer.longest_token, _LONGEST))
        self._stretch = max(_STRETCH, 4 * self._cap)
        self.record_windows, self.bases = array("I"), array("I")
        self.tokens = [array("I") for _ in self.signs]
        self.n_bases = 0
        self._waiting: list[np.ndarray] = []
        self._n_waiting = self._in_record = 0
        self._previous = np.zeros(0, np.uint8)
        self._short: list[tuple[int, np.ndarray]] = []

    def add(self, bases: np.ndarray, last: bool) -> None:
        """The next bases of the record; `last` if it ends with them."""
        self.n_bases += len(bases)
        self._waiting.append(bases)
        self._n_waiting += len(bases)
        while self._n_waiting >= self._stretch:
            block = self._joined()
            self._keep(block[self._cut(block[: self._stretch], end=False) :])
        if last:
            self._end(self._joined())

    def _joined(self) -> np.ndarray:
        return self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)

    def _keep(self, rest: np.ndarray) -> None:
        self._waiting, self._n_waiting = [rest], len(rest)

    def _end(self, rest: np.ndarray) -> None:
        """Cut what is left of a record."""
        if not self._in_record and len(rest) <= self._room:
            # Surely fits: its tokens are counted together with those of other short records.
            if len(rest) >= max(self.min_length, 1):
                self._short.append((len(self.bases), rest))
                self._accept(rest, [0] * len(self.signs))
        else:
            self._cut(rest, end=True)
        self.record_windows.append(self._in_record)
        self._waiting, self._n_waiting, self._in_record = [], 0, 0
        if len(self._short) >= _CALL:
            self.flush()

    def flush(self) -> None:
        """Count the tokens of the short records that wait for it."""
        for turn, sign in enumerate(self.signs):
            rows = self._encode([bases for _, bases in self._short], sign)
            for (place, _), row in zip(self._short, rows, strict=True):
                self.tokens[turn][place] = row.ids.size
        self._short = []

    def _cut(self, block: np.ndarray, *, end: bool) -> int:
        """Cut a stretch into windows; how many of its bases are in them.

        Args:
            end: whether the record ends with the stretch; else its end is left for the next.
        """
        edges = [self._edges(block, sign) for sign in self.signs]
        limit = len(block) if end else len(block) - self._cap
        start, ahead = 0, _CALL
        while start < limit:
            stops = self._planned(start, limit, len(block), edges, ahead)
            starts = [start, *stops[:-1]]
            windows = [block[a:b] for a, b in zip(starts, stops, strict=True)]
            tokens = self._count(windows)
            fits = (tokens <= self.tokenizer.max_tokens).all(axis=0)
            good = len(windows) if fits.all() else int(fits.argmin())
            for window, counts in zip(windows[:good], tokens.T[:good], strict=True):
                start += len(window)
                self._take(window, counts.tolist(), last=end and start == len(block))
            # After a cut that did not fit, all cuts behind it are other ones.
            ahead = min(2 * ahead, _CALL)
            if good < len(windows):
                ahead = 1
                window, counts_ = self._fitting(windows[good])
                start += len(window)
                self._take(window, counts_, last=end and start == len(block))
        return start

    def _planned(
        self, start: int, limit: int, length: int, edges: list[np.ndarray], n: int
    ) -> list[int]:
        """Where the next windows end, by the tokens of the whole stretch."""
        stops: list[int] = []
        while start < limit and len(stops) < n:
            stop = min(start + self._cap, length)
            for places in edges:
                last = int(np.searchsorted(places, start, side="right")) + self._room - 1
                if last < len(places):
                    stop = min(stop, int(places[last]))
            stops.append(stop)
            start = stop
        return stops

    def _fitting(self, window: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """As many of the first bases of a window as fit, and their tokens by strand."""
        while True:
            rows = [self._encode([window], sign)[0] for sign in self.signs]
            over = [row.ids.size - self.tokenizer.max_tokens for row in rows]
            if max(over) <= 0:
                return window, [row.ids.size for row in rows]
            kept = min(
                _kept(row, n, sign, len(window))
                for row, n, sign in zip(rows, over, self.signs, strict=True)
                if n > 0
            )
            if not 0 < kept < len(window):
                raise UsageError(
                    f"expected --max-tokens with room for a base of {self.tokenizer.name}, found "
                    f"{self.tokenizer.max_tokens}"
                )
            window = window[:kept]

    def _take(self, window: np.ndarray, tokens: list[int], *, last: bool) -> None:
        """Keep a window; a last one that is too short shares bases with the one before."""
        if last and len(window) < self.min_length:
            if not self._in_record:
                return
            both = np.concatenate([self._previous, window])
            halves = [both[: len(both) // 2], both[len(both) // 2 :]]
            counts = self._count(halves)
            if (counts <= self.tokenizer.max_tokens).all():
                self.bases.pop()
                for column in self.tokens:
                    column.pop()
                self._in_record -= 1
                self._accept(halves[0], counts[:, 0].tolist())
                window, tokens = halves[1], counts[:, 1].tolist()
        self._accept(window, tokens)

    def _accept(self, window: np.ndarray, tokens: list[int]) -> None:
        self.bases.append(len(window))
        for column, n in zip(self.tokens, tokens, strict=True):
            column.append(n)
        self._in_record += 1
        self._previous = window

    def _count(self, windows: list[np.ndarray]) -> np.ndarray:
        """int64 (strands, windows): tokens, special ones included."""
        rows = [self._encode(windows, sign) for sign in self.signs]
        return np.array([[row.ids.size for row in some] for some in rows], dtype=np.int64)

    def _encode(self, windows: list[np.ndarray], sign: int) -> list[Encoded]:
        turned = windows if sign > 0 else [reverse_complement(window) for window in windows]
        return self.tokenizer.encode_whole(turned)

    def _edges(self, block: np.ndarray, sign: int) -> np.ndarray:
        """int64: where the tokens of a stretch end, ascending; on strand - where they begin."""
        found = [np.zeros(0, np.int64)]
        lows = list(range(0, len(block), _PIECE))
        for i in range(0, len(lows), _CALL):
            some = lows[i : i + _CALL]
            begins = [max(0, low - _MARGIN) for low in some]
            pieces = [
                block[begin : low + _PIECE + _MARGIN]
                for begin, low in zip(begins, some, strict=True)
            ]
            rows = self._encode(pieces, sign)
            for low, begin, piece, row in zip(some, begins, pieces, rows, strict=True):
                content = ~row.special
                stop = row.stop[content] if sign > 0 else len(piece) - row.start[content][::-1]
                places = begin + stop.astype(np.int64)
                found.append(places[(places > low) & (places <= low + _PIECE)])
        return np.concatenate(found)


def _kept(row: Encoded, over: int, sign: int, n_bases: int) -> int:
    """First bases of a window that are left without the tokens that do not fit."""
    stop = row.stop[~row.special]
    if len(stop) <= over:
        return 0
    return int(stop[-over - 1]) if sign > 0 else n_bases - int(stop[over - 1])
