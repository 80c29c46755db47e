"""Means of every statistic by record, for stores without arrays of windows (`run --reduce`).

Sums of a row group are kept as count and mean of every record it touches, and merged where a
record lies in two groups (Chan et al. 1983).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load, save

from bertgeom.analysis.cohorts import cohort_sums, statistic_dims, statistics_of
from bertgeom.store import root_file, zarr_io
from bertgeom.store.layout import MEAN_CHUNK
from bertgeom.variables import LOST, VARIABLES, Variable

if TYPE_CHECKING:
    from bertgeom.pipelines.context.run_context import RunContext
    from bertgeom.store.storage import Storage

#: Group of the store that holds the means.
GROUP = "records"
_FIRST, _WINDOWS = "first", "n_windows"
#: By statistic: count and mean, float64 (R, ...), of some records.
Parts = dict[str, tuple[np.ndarray, np.ndarray]]


class RecordSums:
    """Sums of a row group by record, added chunk by chunk.

    Args:
        records, flags: (n,) of the windows of the group; records do not decrease.
    """

    def __init__(self, records: np.ndarray, flags: np.ndarray) -> None:
        self._first = int(records[0])
        self._codes = records.astype(np.int64) - self._first
        self._n = int(self._codes[-1]) + 1
        self._flags = flags
        self._parts: Parts = {}

    def add(self, variable: Variable, start: int, rows: np.ndarray) -> None:
        """Add rows of an array, the first of them window `start` of the group."""
        here = slice(start, start + len(rows))
        arrays = {variable.name: rows, "flags": self._flags[here]}
        codes = self._codes[here]
        low, high = int(codes[0]), int(codes[-1]) + 1
        for name in statistics_of([variable.name]):
            found = cohort_sums(arrays, codes - low, high - low, [name])[name].filled()
            if name not in self._parts:
                shape = (self._n, *found.mean.shape[1:])
                self._parts[name] = (np.zeros(shape), np.zeros(shape))
            count, mean = (x[low:high] for x in self._parts[name])
            _merge(count, mean, found.count, found.mean)

    def to_bytes(self) -> bytes:
        """The sums as safetensors."""
        there = self._flags & LOST == 0
        arrays = {f"{name}/count": count for name, (count, _) in self._parts.items()}
        arrays |= {f"{name}/mean": mean for name, (_, mean) in self._parts.items()}
        arrays[_FIRST] = np.array([self._first])
        arrays[_WINDOWS] = np.bincount(self._codes[there], minlength=self._n)
        return save({k: np.ascontiguousarray(x) for k, x in sorted(arrays.items())})


def write(context: RunContext, storage: Storage, groups: Iterable[bytes]) -> list[str]:
    """Write the means of all records as a group, row group by row group; returns the names."""
    root_file.clear(storage)
    arrays = zarr_io.Arrays(storage, format_version=context.format_version)
    text = "statistics of windows, mean by record; NaN where a record has no window with them"
    arrays.create_group({"description": text})
    n_records = len(context.sequences.lengths)
    names, used = ["record_id", _WINDOWS], set[str]()
    plain = {"units": "1", "description": "id of the record"}
    arrays.create("record_id", ("record",), (n_records,), (n_records,), "string", "", plain)
    arrays.write("record_id", 0, np.array(context.sequences.ids(), object))
    plain = {"units": "1", "description": "windows of the record that have statistics"}
    arrays.create(_WINDOWS, ("record",), (n_records,), (n_records,), "uint32", 0, plain)
    for first, windows, parts in _whole_records(groups):
        arrays.write(_WINDOWS, first, windows.astype(np.uint32))
        for name, (count, mean) in parts.items():
            target = f"{name}_mean"
            if target not in names:
                _create(arrays, name, (n_records, *mean.shape[1:]))
                names.append(target)
                used |= set(statistic_dims(name))
            values = np.where(count > 0, mean, np.nan).astype(np.float32)
            arrays.write(target, first, values)
    for coordinate in context.layout.coordinates:
        if coordinate.dim in used and coordinate.name == coordinate.dim:
            zarr_io.write_coordinate(arrays, coordinate)
            names.append(coordinate.name)
    return names


def _create(arrays: zarr_io.Arrays, name: str, shape: tuple[int, ...]) -> None:
    declared = VARIABLES.get(name)
    row = 4 * int(np.prod(shape[1:], dtype=np.int64))
    chunks = (min(shape[0], max(1, MEAN_CHUNK // max(row, 1))), *shape[1:])
    text = declared.description if declared else "share of windows by gate label"
    about = {"units": declared.unit if declared else "1", "description": f"mean of: {text}"}
    dims = ("record", *statistic_dims(name)[1:])
    arrays.create(f"{name}_mean", dims, shape, chunks, "float32", float("nan"), about)


def _whole_records(groups: Iterable[bytes]) -> Iterator[tuple[int, np.ndarray, Parts]]:
    """First record, windows and sums, such that no record comes twice."""
    held: tuple[int, np.ndarray, Parts] | None = None
    for data in groups:
        arrays = load(data)
        first, windows = int(arrays.pop(_FIRST)[0]), arrays.pop(_WINDOWS)
        names = sorted({key.rsplit("/", 1)[0] for key in arrays})
        parts = {name: (arrays[f"{name}/count"], arrays[f"{name}/mean"]) for name in names}
        if held is not None and held[0] == first:
            windows[0] += held[1][0]
            for name, (count, mean) in parts.items():
                earlier = held[2][name]
                _merge(earlier[0], earlier[1], count[:1], mean[:1])
                count[:1], mean[:1] = earlier
        elif held is not None:
            yield held
        last = len(windows) - 1
        if last:
            yield first, windows[:last], {k: (c[:last], m[:last]) for k, (c, m) in parts.items()}
        held = (
            first + last,
            windows[last:],
            {k: (c[last:].copy(), m[last:].copy()) for k, (c, m) in parts.items()},
        )
    if held is not None:
        yield held


def _merge(count: np.ndarray, mean: np.ndarray, count_b: np.ndarray, mean_b: np.ndarray) -> None:
    """count, mean become those of both samples."""
    count += count_b
    mean += (mean_b - mean) * (count_b / np.maximum(count, 1))
