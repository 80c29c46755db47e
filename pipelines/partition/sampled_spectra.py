"""Exact spectra of a few windows of every partition: `bertgeom run --spectra K`.

A partition's windows are a stratified sample of those of it that have statistics (`sampling`),
drawn anew in every partition. Their spectra wait with its row group and become the group
`spectra` of the finished store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load, save

from bertgeom.kernels.arrays import Int64Array, UInt8Array
from bertgeom.pipelines.plan.sampling import stratified
from bertgeom.variables import LOST

if TYPE_CHECKING:
    import xarray

    from bertgeom.pipelines.context.run_context import RunContext
    from bertgeom.tokens.encoded import EncodedBatch

#: Group of the store that holds them, and the prefix of their names among results.
GROUP = "spectra"
_PREFIX = "spectra/"
_WINDOW = "window_index"
#: How windows are drawn, as `run.json` notes it.
SAMPLING = "stratified"


def with_statistics(flags: UInt8Array) -> Int64Array:
    """Places of the windows that have statistics, by their flags."""
    return np.flatnonzero(flags & LOST == 0)


def sampled_rows(
    context: RunContext, partition: int, flags: UInt8Array, record: Int64Array
) -> Int64Array:
    """Rows of a partition whose spectra are due, by flags and records of its windows."""
    there, n = with_statistics(flags), context.settings.spectra
    if context.facts.sampling == SAMPLING:
        return there[stratified(record[there], n, (0, partition))]
    # A store that an earlier version began goes on with the same windows: evenly spread rows.
    return there if len(there) <= n else there[np.arange(n) * len(there) // n]


def window_results(
    context: RunContext, first: int, rows: np.ndarray, encoded: Sequence[EncodedBatch]
) -> dict[str, np.ndarray]:
    """Spectra of windows as results of a partition; none of no windows.

    Args:
        first: number of the partition's first window. rows: (n,) of the windows.
        encoded: the tokens of each, alone.
    """
    from bertgeom.analysis.spectra import captured_spectra, spectra_dataset
    from bertgeom.model.capture import capture_window

    if not len(rows):
        return {}
    samples = [captured_spectra(capture_window(context.loaded, e.row(0).ids)) for e in encoded]
    numbers = (first + rows).tolist()
    found = spectra_dataset(samples, numbers)
    return {f"{_PREFIX}{name}": x.values for name, x in found.data_vars.items()} | {
        f"{_PREFIX}{_WINDOW}": np.array(numbers, np.int64)
    }


def to_bytes(parts: Iterable[Mapping[str, np.ndarray]]) -> bytes:
    """The spectra among the results of the partitions of a row group, as safetensors."""
    found = {
        f"{i:08d}/{name.removeprefix(_PREFIX)}": np.ascontiguousarray(array)
        for i, part in enumerate(parts)
        for name, array in part.items()
        if is_spectra(name)
    }
    return save(dict(sorted(found.items())))


def is_spectra(name: str) -> bool:
    """Whether a result of a partition is one of its spectra."""
    return name.startswith(_PREFIX)


def merged(context: RunContext, groups: Iterable[bytes]) -> xarray.Dataset | None:
    """The spectra of all row groups, with the places of their windows; None without any."""
    samples: list[dict[str, np.ndarray]] = []
    numbers: list[int] = []
    for data in groups:
        arrays = load(data)
        for part in sorted({key.split("/")[0] for key in arrays}):
            found = {k.split("/")[1]: x for k, x in arrays.items() if k.startswith(f"{part}/")}
            windows = found.pop(_WINDOW)
            numbers += windows.tolist()
            samples += [{name: x[i] for name, x in found.items()} for i in range(len(windows))]
    if not samples:
        return None
    from bertgeom.analysis.spectra import spectra_dataset

    dataset = spectra_dataset(samples, numbers)
    dataset.attrs["description"] = (
        f"exact spectra of {context.settings.spectra} windows a partition"
    )
    return dataset.assign_coords(places(context, numbers))


def places(context: RunContext, numbers: Sequence[int]) -> dict[str, Any]:
    """Coordinates of samples: where in the database the windows of these numbers are."""
    windows = [context.plan.index.windows(n, n + 1) for n in numbers]
    records = [int(w.record[0]) for w in windows]
    ids = [context.sequences.ids(record, record + 1)[0] for record in records]
    values = {
        "record_index": np.array(records, np.int64),
        "record_id": np.array(ids, object),
        "start": np.array([w.start[0] for w in windows], np.int64),
        "stop": np.array([w.stop[0] for w in windows], np.int64),
        "strand": np.array([w.strand[0] for w in windows], np.int8),
    }
    return {name: ("sample", x) for name, x in values.items()}
