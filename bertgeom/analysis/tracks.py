"""Attention received and query entropy along the genome.

A token's value belongs to each of its bases. The value of a base is the mean over all tokens
that cover it, in all windows and strands: overlapping k-mers and overlapping windows are
averaged with equal weight. Bases without a token have no value.

The store is read window by window; bases that no later window of the record can reach are
returned at once, so that memory does not grow with the length of the record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertgeom import variables
from bertgeom.errors import StoreError, UsageError
from bertgeom.kernels.arrays import Float64Array
from bertgeom.store.files import replacing

if TYPE_CHECKING:
    import xarray

TRACKS = tuple(
    name for name, v in variables.VARIABLES.items() if v.keep == "tracks" and v.kind == "attention"
)
#: What may be averaged before values are assigned to bases.
MEANS = ("none", "head", "all")
_NEEDED = ("token_start", "token_stop", "record_index", "record_id", "start", "stop")


@dataclass(frozen=True)
class TrackBlock:
    """Values of consecutive stretches of one record.

    Attributes:
        record_index, record_id: of the record.
        start, stop: (k,) int64, 0-based, half-open, ascending and disjoint bases.
        values: (k, columns) float64, mean over the token values of the stretch's bases.
        coverage: (k,) int64, token values averaged at each base of the stretch.
    """

    record_index: int
    record_id: str
    start: np.ndarray
    stop: np.ndarray
    values: np.ndarray
    coverage: np.ndarray


def track_columns(
    dataset: xarray.Dataset,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    mean: str = "head",
) -> list[str]:
    """Names of the columns of `genome_tracks`, such as `layer3_head5`, `layer3` or `mean`.

    Args:
        dataset, layers, heads, mean: as in `genome_tracks`.

    Raises:
        UsageError: for a layer or head that the store does not have, or an unknown `mean`.

    Example:
        >>> import bertgeom
        >>> from bertgeom.analysis.tracks import track_columns
        >>> track_columns(bertgeom.open("run.zarr"), layers=[1], mean="none")
        ['layer1_head0', 'layer1_head1']
    """
    layers, heads = _selection(dataset, layers, heads, mean)
    if mean == "all":
        return ["mean"]
    if mean == "head":
        return [f"layer{layer}" for layer in layers]
    return [f"layer{layer}_head{head}" for layer in layers for head in heads]


def genome_tracks(
    dataset: xarray.Dataset,
    variable: str,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    mean: str = "head",
    records: Sequence[int] | None = None,
    step: int = 32,
) -> Iterator[TrackBlock]:
    """Values along the bases of every record, in order.

    Args:
        dataset: a store with `--keep tracks`, opened by xarray.
        variable: "attention_received" (1 is the average token) or "query_entropy" (nats).
        layers, heads: positions to use; default all.
        mean: "head": mean over the heads of each layer; "all": over layers too; "none".
        records: record indices; default all.
        step: windows in memory at a time.

    Raises:
        UsageError: for an unknown variable, layer, head or mean.
        StoreError: if the store has no tracks, or windows of a record are not contiguous.

    Example:
        >>> import bertgeom
        >>> from bertgeom.analysis.tracks import genome_tracks
        >>> blocks = genome_tracks(bertgeom.open("run.zarr"), "query_entropy", mean="all")
        >>> next(iter(blocks)).record_id
        'r0'
    """
    layers, heads = _selection(dataset, layers, heads, mean)
    _check_store(dataset, variable)
    record = np.asarray(dataset["record_index"]).astype(np.int64)
    if (np.diff(record) < 0).any():
        raise StoreError(
            "expected the windows of a record to follow each other, found record_index falling"
        )
    for index in np.unique(record) if records is None else records:
        first, last = np.searchsorted(record, [index, index + 1])
        if first < last:
            windows = _windows(dataset, variable, slice(int(first), int(last)), step)
            reduced = (
                (origin, a, b, _reduce(values, layers, heads, mean))
                for origin, a, b, values in windows
            )
            name = str(dataset["record_id"].values[first])
            reach = np.asarray(dataset["start"][first:last]).astype(np.int64)
            yield from _along_record(int(index), name, reach, reduced)


def export_tracks(
    dataset: xarray.Dataset,
    path: str | Path,
    variable: str,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    mean: str = "head",
    records: Sequence[int] | None = None,
) -> list[Path]:
    """Write tracks as a table (`.tsv`) or as bedGraph (`.bedgraph`, `.bg`), optionally `.gz`.

    A TSV has one line per stretch, and one column per layer (and head). bedGraph has one file
    per column, `NAME.layer3.bedgraph` where there are several; lines are sorted and disjoint
    within a record and carry no track header, as converters to BigWig need them. Records
    with the same id are named `id~index`.

    Args:
        path: the file to write; its suffix names the format.
        dataset, variable, layers, heads, mean, records: as in `genome_tracks`.

    Returns:
        The files written.

    Raises:
        UsageError: for another suffix, or as `genome_tracks`.

    Example:
        >>> import bertgeom
        >>> from bertgeom.analysis.tracks import export_tracks
        >>> ds = bertgeom.open("run.zarr")
        >>> [path.name for path in export_tracks(ds, "t.bedgraph", "query_entropy", mean="all")]
        ['t.bedgraph']
    """
    path = Path(path)
    kind = next((s for s in reversed(path.suffixes) if s != ".gz"), "")
    if kind not in (".tsv", ".bedgraph", ".bg"):
        raise UsageError(f"expected a file .tsv, .bedgraph or .bg (maybe .gz), found {path.name}")
    columns = track_columns(dataset, layers, heads, mean)
    blocks = genome_tracks(
        dataset, variable, layers=layers, heads=heads, mean=mean, records=records
    )
    if kind == ".tsv":
        return _write([path], _table_lines(blocks, variable, columns))
    names = [path] if len(columns) == 1 else [_with_column(path, kind, c) for c in columns]
    return _write(names, _bedgraph_lines(blocks, len(columns)))


def chromosome_sizes(dataset: xarray.Dataset) -> Iterator[tuple[str, int]]:
    """Name and minimum length of every record: the end of its last window.

    Args:
        dataset: a store with windows, opened by xarray.

    Example:
        >>> import bertgeom
        >>> from bertgeom.analysis.tracks import chromosome_sizes
        >>> next(iter(chromosome_sizes(bertgeom.open("run.zarr"))))
        ('r0', 90)
    """
    record = np.asarray(dataset["record_index"]).astype(np.int64)
    ids, stop = dataset["record_id"].values, np.asarray(dataset["stop"]).astype(np.int64)
    names = _Names()
    for index in np.unique(record):
        rows = record == index
        yield names.of(int(index), str(ids[rows][0])), int(stop[rows].max())


def _selection(
    dataset: xarray.Dataset, layers: Sequence[int] | None, heads: Sequence[int] | None, mean: str
) -> tuple[list[int], list[int]]:
    if mean not in MEANS:
        raise UsageError(f"expected mean out of {', '.join(MEANS)}, found {mean!r}")
    chosen = []
    for dim, wanted in (("layer", layers), ("head", heads)):
        size = dataset.sizes.get(dim, 0)
        positions = list(range(size)) if wanted is None else list(wanted)
        if any(not 0 <= i < size for i in positions):
            raise UsageError(f"expected {dim}s from 0 to {size - 1}, found {positions}")
        chosen.append(positions)
    return chosen[0], chosen[1]


def _check_store(dataset: xarray.Dataset, variable: str) -> None:
    if variable not in TRACKS:
        raise UsageError(f"expected a track out of {', '.join(TRACKS)}, found {variable!r}")
    missing = [name for name in (variable, *_NEEDED) if name not in dataset.variables]
    if missing:
        raise StoreError(
            f"expected a store with tracks, found none ({', '.join(missing)} missing); "
            "run with --keep tracks"
        )


Window = tuple[int, np.ndarray, np.ndarray, np.ndarray]


def _windows(dataset: xarray.Dataset, variable: str, rows: slice, step: int) -> Iterator[Window]:
    """Start of the window, token bases (n,) relative to it, values (layer, head, n)."""
    for start in range(rows.start, rows.stop, step):
        part = dataset[[variable, "token_start", "token_stop", "start"]].isel(
            window=slice(start, min(start + step, rows.stop))
        )
        part = part.load()
        for i in range(part.sizes["window"]):
            yield (
                int(part["start"].values[i]),
                part["token_start"].values[i].astype(np.int64),
                part["token_stop"].values[i].astype(np.int64),
                part[variable].values[i],
            )


def _reduce(values: np.ndarray, layers: list[int], heads: list[int], mean: str) -> Float64Array:
    """(columns, n) float64 from (layer, head, n)."""
    chosen = values[np.ix_(layers, heads)].astype(np.float64)
    if mean == "head":
        over_layers: Float64Array = chosen.mean(axis=1)
        return over_layers
    if mean == "all":
        over_all: Float64Array = chosen.mean(axis=(0, 1), keepdims=True)
        return over_all.reshape(1, -1)
    return chosen.reshape(-1, chosen.shape[-1])


def _along_record(
    index: int, name: str, window_start: np.ndarray, windows: Iterator[Window]
) -> Iterator[TrackBlock]:
    """Blocks of one record; a base is done when no later window starts at or before it."""
    reach = np.append(np.minimum.accumulate(window_start[::-1])[::-1][1:], np.iinfo(np.int64).max)
    buffer: _Bases | None = None
    for done, (origin, start, stop, values) in zip(reach, windows, strict=True):
        there = (start >= 0) & (stop > start) & np.isfinite(values).all(axis=0)
        if there.any():
            buffer = buffer or _Bases(values.shape[0])
            buffer.add(origin + start[there], origin + stop[there], values[:, there])
        if buffer is not None:
            block = buffer.release(int(done))
            if block is not None:
                yield TrackBlock(index, name, *block)


class _Bases:
    """Sums and counts of the bases that are not done yet, from `origin` on."""

    def __init__(self, columns: int) -> None:
        self.origin = 0
        self.sums = np.zeros((columns, 0))
        self.counts = np.zeros(0, dtype=np.int64)

    def add(self, start: np.ndarray, stop: np.ndarray, values: np.ndarray) -> None:
        """Add values (columns, n) to the bases of n tokens."""
        self._cover(int(start.min()), int(stop.max()))
        length = stop - start
        distinct = len(np.unique(start)) == len(start)
        for i in range(int(length.max())):
            longer = length > i
            at = start[longer] + (i - self.origin)
            if distinct:
                self.sums[:, at] += values[:, longer]
                self.counts[at] += 1
            else:
                np.add.at(self.sums.T, at, values[:, longer].T)
                np.add.at(self.counts, at, 1)

    def release(self, bound: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Stretches of equal values before `bound`, which are dropped from the buffer."""
        n = min(max(bound - self.origin, 0), len(self.counts))
        counts, sums = self.counts[:n], self.sums[:, :n]
        values = (sums / np.maximum(counts, 1)).T
        origin = self.origin
        self.origin, self.counts, self.sums = origin + n, self.counts[n:], self.sums[:, n:]
        if not counts.any():
            return None
        change = np.flatnonzero((np.diff(counts) != 0) | (np.diff(values, axis=0) != 0).any(1)) + 1
        first = np.concatenate([[0], change])
        stop = np.concatenate([change, [n]])
        covered = counts[first] > 0
        first, stop = first[covered], stop[covered]
        return origin + first, origin + stop, values[first], counts[first]

    def _cover(self, low: int, high: int) -> None:
        """Make room for the bases [low, high)."""
        if not len(self.counts):
            self.origin = low
        before = max(self.origin - low, 0)
        after = max(high - self.origin - len(self.counts), 0)
        if before or after:
            self.sums = np.pad(self.sums, ((0, 0), (before, after)))
            self.counts = np.pad(self.counts, (before, after))
            self.origin -= before


class _Names:
    """Unique names of records: the id, and `id~index` where another record has it."""

    def __init__(self) -> None:
        self._owner: dict[str, int] = {}

    def of(self, index: int, record_id: str) -> str:
        owner = self._owner.setdefault(record_id, index)
        return record_id if owner == index else f"{record_id}~{index}"


Lines = Iterator[tuple[int, str]]


def _table_lines(blocks: Iterator[TrackBlock], variable: str, columns: list[str]) -> Lines:
    names = [f"{variable}_{column}" for column in columns]
    yield 0, "\t".join(["record_index", "record_id", "start", "stop", "n_values", *names])
    for block in blocks:
        for a, b, n, row in zip(block.start, block.stop, block.coverage, block.values, strict=True):
            values = "\t".join(f"{x:.6g}" for x in row)
            yield 0, f"{block.record_index}\t{block.record_id}\t{a}\t{b}\t{n}\t{values}"


def _bedgraph_lines(blocks: Iterator[TrackBlock], n_columns: int) -> Lines:
    names = _Names()
    for block in blocks:
        name = names.of(block.record_index, block.record_id)
        for a, b, row in zip(block.start, block.stop, block.values, strict=True):
            for column in range(n_columns):
                yield column, f"{name}\t{a}\t{b}\t{row[column]:.6g}"


def _with_column(path: Path, kind: str, column: str) -> Path:
    stem, _, rest = path.name.rpartition(kind)
    return path.with_name(f"{stem}.{column}{kind}{rest}")


def _write(paths: list[Path], lines: Lines) -> list[Path]:
    """Write lines to the files they name, which appear under their names when complete."""
    from xopen import xopen

    with ExitStack() as stack:
        drafts = [stack.enter_context(replacing(path)) for path in paths]
        with ExitStack() as opened:
            files = [opened.enter_context(xopen(p, "wt", encoding="utf-8")) for p in drafts]
            for column, line in lines:
                files[column].write(line + "\n")
    return paths
