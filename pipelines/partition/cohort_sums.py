"""Statistics by cohort, summed while the results are at hand, merged when a run is finalised.

Sums of all stored statistics are taken by row group from what is written. Block maps are
larger than all other arrays together and stay out of the store unless asked for; their sums
are taken by batch, before the maps are dropped. Everything is added in the order of the
windows, so that the sums are the same whoever computed what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load, save

from bertgeom.analysis.cohorts import Moments, cohort_sums, merge_sums, statistics_of, sums_dataset
from bertgeom.store.layout import row_bytes
from bertgeom.variables import VARIABLES, Variable

if TYPE_CHECKING:
    import xarray

    from bertgeom.pipelines.context.run_context import RunContext

#: The cohort of all windows; the labels follow.
ALL = "all windows"
#: Group of the store that holds the merged sums.
GROUP = "cohorts"
#: With so many labels that the sums of a row group were larger, only `ALL` is summed.
LARGEST = 256 * 2**20
#: Keys of block map sums among the results of a partition.
CODES, COUNTS, MAPS = "cohort/codes", "cohort/counts", "cohort/block_map"
_BLOCK_MAP = "block_map"
_PARTS = ("count", "mean", "m2")


def cohort_names(context: RunContext) -> list[str]:
    """Names of the cohorts that are summed: all windows, then the labels unless too many."""
    labels = context.facts.identity.label_names or ()
    values = sum(row_bytes(v, context.layout.sizes) for v in context.layout.measured) // 4
    fits = (1 + len(labels)) * values * 24 <= LARGEST
    return [ALL, *(labels if fits else [])]


class BlockMapSums:
    """Block maps of a partition, summed by cohort.

    Codes count in `cohort_names`: 0 is all windows, 1 + c the label c.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._maps: dict[int, np.ndarray] = {}

    def add(self, maps: np.ndarray, labels: np.ndarray) -> None:
        """Add maps (B, layer, head, 16, 16) of windows with label codes (B,), -1 for none."""
        for code in (-1, *np.unique(labels[labels >= 0]).tolist()):
            mine = maps if code < 0 else maps[labels == code]
            if not len(mine):
                continue
            total = mine.sum(axis=0, dtype=np.float64)
            self._counts[code + 1] = self._counts.get(code + 1, 0) + len(mine)
            self._maps[code + 1] = self._maps.get(code + 1, 0.0) + total

    def arrays(self) -> dict[str, np.ndarray]:
        """The sums as results of the partition; none if nothing was added."""
        if not self._counts:
            return {}
        codes = sorted(self._counts)
        return {
            CODES: np.array(codes, np.int64),
            COUNTS: np.array([self._counts[code] for code in codes], np.int64),
            MAPS: np.stack([self._maps[code] for code in codes]),
        }


class GroupSums:
    """Sums of a row group, added chunk by chunk.

    Args:
        n_cohorts: as in `cohort_names`.
        labels, flags: (n,) of the windows of the group.
    """

    def __init__(self, n_cohorts: int, labels: np.ndarray, flags: np.ndarray) -> None:
        self._n, self._labels, self._flags = n_cohorts, labels, flags
        self._sums: dict[str, Moments] = {}
        self._maps: dict[str, np.ndarray] = {}

    def add(self, variable: Variable, start: int, rows: np.ndarray) -> None:
        """Add rows of an array, the first of them window `start` of the group."""
        for name in statistics_of([variable.name]):
            here = slice(start, start + len(rows))
            arrays = {variable.name: rows, "flags": self._flags[here]}
            everyone = np.zeros(len(rows), np.int64)
            parts = [cohort_sums(arrays, everyone, 1, [name])[name]]
            if self._n > 1:
                labels = self._labels[here]
                parts.append(cohort_sums(arrays, labels, self._n - 1, [name])[name])
            found = _stacked(parts)
            self._sums[name] = self._sums[name].merge(found) if name in self._sums else found

    def add_maps(self, results: Mapping[str, np.ndarray]) -> None:
        """Add the block map sums of a partition, if it has any."""
        if CODES not in results or _BLOCK_MAP in self._sums:
            return
        shape = results[MAPS].shape[1:]
        counts = self._maps.setdefault("counts", np.zeros(self._n, np.int64))
        totals = self._maps.setdefault("totals", np.zeros((self._n, *shape)))
        for code, count, total in zip(results[CODES], results[COUNTS], results[MAPS], strict=True):
            if code < self._n:
                counts[code] += count
                totals[code] += total

    def to_bytes(self) -> bytes:
        """The sums as safetensors."""
        arrays = {
            f"{name}/{part}": np.ascontiguousarray(getattr(moments.filled(), part))
            for name, moments in self._sums.items()
            for part in _PARTS
        }
        return save(
            dict(sorted((arrays | {f"maps/{k}": v for k, v in self._maps.items()}).items()))
        )


def _stacked(parts: list[Moments]) -> Moments:
    """Moments of several groups of cohorts as one, along the first axis."""
    return Moments(*(np.concatenate([getattr(p, f) for p in parts]) for f in _PARTS))


def merged(context: RunContext, groups: Iterable[bytes]) -> xarray.Dataset:
    """The sums of all row groups, in order, as a dataset with dimension `cohort`."""
    sums, counts, totals = None, None, None
    for data in groups:
        arrays = load(data)
        if "maps/counts" in arrays:
            counts = arrays["maps/counts"] + (0 if counts is None else counts)
            totals = arrays["maps/totals"] + (0.0 if totals is None else totals)
        names = sorted({key.rsplit("/", 1)[0] for key in arrays} - {"maps"})
        part = {name: Moments(*(arrays[f"{name}/{p}"] for p in _PARTS)).masked() for name in names}
        sums = part if sums is None else merge_sums([sums, part])
    coords = {c.dim: np.asarray(c.values) for c in context.layout.coordinates if c.name == c.dim}
    names = cohort_names(context)
    dataset = sums_dataset(sums or {}, names, coords)
    if counts is not None:
        means = totals / np.maximum(counts, 1).reshape(-1, 1, 1, 1, 1)
        means[counts == 0] = np.nan
        text = VARIABLES[_BLOCK_MAP].description
        dims = ("cohort", *VARIABLES[_BLOCK_MAP].dims[1:])
        dataset["block_map_count"] = (
            ("cohort",),
            counts,
            {"units": "1", "description": "number of windows of the mean block map"},
        )
        dataset["block_map_mean"] = (dims, means, {"units": "1", "description": f"mean of: {text}"})
    dataset.attrs["description"] = (
        "statistics of windows by cohort; m2 is the sum of squared deviations from the mean; "
        "mean and m2 are NaN where nothing was counted"
    )
    return dataset
