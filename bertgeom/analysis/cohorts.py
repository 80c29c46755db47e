"""Cohorts of windows: exact mergeable sums of every statistic.

A cohort is a set of windows with the same label (a variant, a species, a chromosome). For
every statistic and cohort, count, mean and M2 = sum (x - mean)^2 are kept in float64 and
merged by Chan's update, so that any partitioning of a database gives the same sums up to
rounding. Missing values (NaN) are left out statistic by statistic. `bertgeom.analysis.contrasts`
compares cohorts using only these sums.

Definitions: `docs/statistics.md` section 6 and `docs/catalogue.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from bertgeom import variables
from bertgeom.analysis.labels import Labels as Labels
from bertgeom.analysis.labels import assign_labels as assign_labels
from bertgeom.analysis.labels import read_labels as read_labels
from bertgeom.errors import StoreError, UsageError
from bertgeom.store.dataset import label_codes

if TYPE_CHECKING:
    import xarray

#: Derived from `gate`: share of windows by gate, `mixed` included.
GATE_SHARE = "gate_share"
GATE_LABELS = (*variables.GATES, "mixed")
_DERIVED_DIMS = {GATE_SHARE: ("window", "layer", "head", "gate_label")}
_PARTS = ("count", "mean", "m2")


@dataclass(frozen=True)
class Moments:
    """Count, mean and M2 of one statistic by cohort.

    Attributes:
        count: (C, ...) int64, values that are not missing.
        mean: (C, ...) float64, NaN where the count is 0.
        m2: (C, ...) float64, sum of squared deviations from the mean; NaN where the count is 0.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Moments:
        """Moments of no values at all."""
        return cls(np.zeros(shape, np.int64), np.full(shape, np.nan), np.full(shape, np.nan))

    @classmethod
    def of(cls, values: np.ndarray, codes: np.ndarray, n_cohorts: int) -> Moments:
        """Moments of values (B, ...) whose cohorts are codes (B,); -1 is no cohort."""
        out = cls.none((n_cohorts, *values.shape[1:]))
        for code in np.unique(codes[codes >= 0]):
            x = values[codes == code].astype(np.float64)
            there = np.isfinite(x)
            x[~there] = 0
            count = there.sum(axis=0)
            mean = x.sum(axis=0) / np.maximum(count, 1)
            x -= mean
            x[~there] = 0
            out.count[code] = count
            out.mean[code] = np.where(count > 0, mean, np.nan)
            out.m2[code] = np.where(count > 0, np.square(x, out=x).sum(axis=0), np.nan)
        return out

    def merge(self, other: Moments) -> Moments:
        """Moments of the union of two disjoint sets of windows (Chan et al. 1983)."""
        a, b = self.filled(), other.filled()
        count = a.count + b.count
        share = b.count / np.maximum(count, 1)
        delta = b.mean - a.mean
        mean = a.mean + delta * share
        m2 = a.m2 + b.m2 + delta**2 * a.count * share
        return Moments(count, mean, m2).masked()

    def filled(self) -> Moments:
        """The same with 0 in place of what is missing, for sums and for files of sums."""
        there = self.count > 0
        return Moments(self.count, np.where(there, self.mean, 0), np.where(there, self.m2, 0))

    def masked(self) -> Moments:
        """The same with NaN where the count is 0; files of sums hold 0 there."""
        there = self.count > 0
        return Moments(
            self.count, np.where(there, self.mean, np.nan), np.where(there, self.m2, np.nan)
        )

    def variance(self, correction: int = 1) -> np.ndarray:
        """M2 / (count - correction); NaN where that is not positive."""
        degrees = self.count - correction
        return np.where(degrees > 0, self.m2 / np.maximum(degrees, 1), np.nan)


Sums = dict[str, Moments]


def statistics_of(names: Iterable[str]) -> list[str]:
    """Those of `names` that cohorts summarise, `gate_share` for `gate`, in declared order.

    Left out: identities of windows, vectors of the first token, and per-token tracks.

    Example:
        >>> from bertgeom.analysis.cohorts import statistics_of
        >>> statistics_of(["gate", "cls", "attention_entropy"])
        ['attention_entropy', 'gate_share']
    """
    present = set(names)
    out = []
    for name, variable in variables.VARIABLES.items():
        if name not in present or variable.kind == "window" or "token" in variable.dims:
            continue
        if name != "cls":
            out.append(GATE_SHARE if name == "gate" else name)
    return out


def cohort_sums(
    arrays: Mapping[str, np.ndarray],
    codes: np.ndarray,
    n_cohorts: int,
    statistics: Iterable[str] | None = None,
) -> Sums:
    """Sums of a batch of windows by statistic.

    Args:
        arrays: (B, ...) by name, as in `bertgeom.variables`. Windows whose `flags`, if given,
            say empty or quarantined are left out.
        codes: (B,) cohort of every window, -1 for none.
        n_cohorts: number of cohorts.
        statistics: which ones; default `statistics_of(arrays)`.

    Example:
        >>> import numpy as np
        >>> from bertgeom.analysis.cohorts import cohort_sums
        >>> values = np.array([1.0, 3.0, 10.0]).reshape(3, 1, 1)  # window, layer, head
        >>> sums = cohort_sums({"attention_entropy": values}, np.array([0, 0, 1]), 2)
        >>> sums["attention_entropy"].mean.ravel().tolist()
        [2.0, 10.0]
    """
    codes = _without_missing(codes, arrays.get("flags"))
    wanted = statistics_of(arrays) if statistics is None else statistics
    return {name: Moments.of(_values(arrays, name), codes, n_cohorts) for name in wanted}


def merge_sums(parts: Iterable[Sums]) -> Sums:
    """The sums of disjoint sets of windows, merged in the order given.

    Raises:
        UsageError: for no parts, or parts with unequal statistics.

    Example:
        >>> import numpy as np
        >>> from bertgeom.analysis.cohorts import cohort_sums, merge_sums
        >>> x = np.arange(4.0).reshape(4, 1, 1)
        >>> code = np.zeros(2, dtype=int)
        >>> parts = [cohort_sums({"attention_entropy": half}, code, 1) for half in (x[:2], x[2:])]
        >>> merge_sums(parts)["attention_entropy"].mean.item()
        1.5
    """
    total: Sums | None = None
    for part in parts:
        if total is None:
            total = dict(part)
        elif total.keys() != part.keys():
            raise UsageError(
                "expected sums of the same statistics, found a difference in "
                f"{sorted(total.keys() ^ part.keys())}"
            )
        else:
            total = {name: total[name].merge(part[name]) for name in total}
    if total is None:
        raise UsageError("expected at least one part to merge, found none")
    return total


def store_sums(
    dataset: xarray.Dataset,
    codes: np.ndarray | None = None,
    n_cohorts: int | None = None,
    *,
    statistics: Iterable[str] | None = None,
    unit: str = "window",
    step: int | None = None,
) -> Sums:
    """Sums of a finished store, read `step` windows at a time.

    Args:
        dataset: a store opened by xarray.
        codes: (windows,) int, -1 for none; default the codes of the store's labels.
        n_cohorts: default 1 + the largest code.
        statistics: names out of `statistics_of(dataset)`; default all.
        unit: "window", or "record": the windows of a record are averaged first and every
            record counts once, as contrasts need it if windows of a record are similar.
        step: windows in memory at a time; default the store's chunk, at most 512.

    Raises:
        UsageError: for an unknown unit or statistic, or codes of another length.
        StoreError: with unit "record", if the windows of a record are not contiguous.

    Example:
        >>> import bertgeom
        >>> from bertgeom.analysis.cohorts import store_sums
        >>> sums = store_sums(bertgeom.open("run.zarr"), statistics=["attention_entropy"])
        >>> sums["attention_entropy"].mean.shape  # cohort, layer, head
        (2, 2, 2)
    """
    if unit not in ("window", "record"):
        raise UsageError(f"expected unit 'window' or 'record', found {unit!r}")
    n_windows = dataset.sizes["window"]
    codes = label_codes(dataset) if codes is None else np.asarray(codes)
    if len(codes) != n_windows:
        raise UsageError(f"expected {n_windows} cohort codes, found {len(codes)}")
    largest = int(codes.max(initial=-1))
    n_cohorts = largest + 1 if n_cohorts is None else n_cohorts
    if largest >= n_cohorts:
        raise UsageError(f"expected codes from -1 to {n_cohorts - 1}, found {largest}")
    known = statistics_of([str(name) for name in dataset.data_vars])
    wanted = known if statistics is None else list(statistics)
    if unknown := set(wanted) - set(known):
        raise UsageError(f"expected statistics of the store, found {sorted(unknown)}")
    batches = _batches(dataset, codes, wanted, step or _chunk_length(dataset, wanted))
    if unit == "record":
        batches = _record_means(batches, np.asarray(dataset["record_index"]))
    empty = _empty(dataset, wanted, n_cohorts)
    parts = (
        {name: Moments.of(x, codes, n_cohorts) for name, x in arrays.items()}
        for arrays, codes in batches
    )
    return merge_sums(chain([empty], parts))


def record_sums(
    records: xarray.Dataset, codes: np.ndarray, n_cohorts: int, statistics: Iterable[str]
) -> Sums:
    """Sums with the records as units, from the group `records` of a store made with --reduce.

    Args:
        records: the group, with `<statistic>_mean` (record, ...).
        codes: (records,) cohort of every record, -1 for none.
        n_cohorts: number of cohorts.
        statistics: which ones.
    """
    return {
        name: Moments.of(np.asarray(records[f"{name}_mean"]), codes, n_cohorts)
        for name in statistics
    }


def codes_of_records(record: np.ndarray, codes: np.ndarray, n_records: int) -> np.ndarray:
    """Code of every record, (n_records,) int64, -1 without windows, from those of its windows."""
    found = np.full(n_records, -1, dtype=np.int64)
    np.maximum.at(found, record.astype(np.int64), codes)
    return found


def sums_dataset(
    sums: Sums, cohorts: Sequence[str], coords: Mapping[str, object] | None = None
) -> xarray.Dataset:
    """Sums as a Dataset: `<statistic>_count`, `_mean` and `_m2` with dimension cohort first.

    Mean and m2 are NaN where the count is 0.

    Args:
        sums: by statistic. cohorts: names, in the order of the sums.
        coords: values of the other dimensions by name, such as station.

    Example:
        >>> import bertgeom
        >>> from bertgeom.analysis.cohorts import store_sums, sums_dataset
        >>> sums = store_sums(bertgeom.open("run.zarr"), statistics=["attention_entropy"])
        >>> sorted(sums_dataset(sums, ["a", "b"]).data_vars)
        ['attention_entropy_count', 'attention_entropy_m2', 'attention_entropy_mean']
    """
    import xarray

    arrays = {}
    for name, moments in sums.items():
        declared = variables.VARIABLES.get(name)
        dims = ("cohort", *statistic_dims(name)[1:])
        unit = declared.unit if declared else "1"
        text = declared.description if declared else "share of windows by gate label"
        for part, unit_of_part, what in (
            ("count", "1", "number of values of"),
            ("mean", unit, "mean of"),
            ("m2", f"({unit})^2", "sum of squared deviations from the mean of"),
        ):
            attributes = {"units": unit_of_part, "description": f"{what}: {text}"}
            arrays[f"{name}_{part}"] = (dims, getattr(moments, part), attributes)
    used = {dim for dims, _, _ in arrays.values() for dim in dims}
    given = {dim: values for dim, values in (coords or {}).items() if dim in used}
    if "gate_label" in used:
        given["gate_label"] = list(GATE_LABELS)
    return xarray.Dataset(arrays, coords={"cohort": list(cohorts), **given})


def sums_of_dataset(dataset: xarray.Dataset) -> Sums:
    """The inverse of `sums_dataset`."""
    names = [str(n)[: -len("_m2")] for n in dataset.data_vars if str(n).endswith("_m2")]
    return {
        name: Moments(*(np.asarray(dataset[f"{name}_{part}"]) for part in _PARTS)).masked()
        for name in names
    }


def statistic_dims(name: str) -> tuple[str, ...]:
    """Dimensions of a statistic by window."""
    return _DERIVED_DIMS.get(name) or variables.VARIABLES[name].dims


def _without_missing(codes: np.ndarray, flags: np.ndarray | None) -> np.ndarray:
    if flags is None:
        return codes
    return np.where(flags & variables.LOST, -1, codes)


def _values(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Values of a statistic; the largest value of an integer type is a missing one."""
    source = np.asarray(arrays["gate" if name == GATE_SHARE else name])
    if source.dtype.kind in "iu":
        source = np.where(source == np.iinfo(source.dtype).max, np.nan, source)
    if name != GATE_SHARE:
        return source
    one_hot = (source[..., None] == np.arange(len(GATE_LABELS))).astype(np.float64)
    return np.where(np.isnan(source)[..., None], np.nan, one_hot)


def _batches(
    dataset: xarray.Dataset, codes: np.ndarray, wanted: Sequence[str], step: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    flags = np.asarray(dataset["flags"]) if "flags" in dataset else None
    codes = _without_missing(codes, flags)
    sources = ["gate" if name == GATE_SHARE else name for name in wanted]
    for start in range(0, len(codes), step):
        here = slice(start, start + step)
        arrays = {name: dataset[name].isel(window=here).values for name in sources}
        yield {name: _values(arrays, name) for name in wanted}, codes[here]


def _chunk_length(dataset: xarray.Dataset, wanted: Sequence[str]) -> int:
    names = ["gate" if name == GATE_SHARE else name for name in wanted]
    chunks = [dataset[name].encoding.get("chunks") for name in names]
    return min(512, max((c[0] for c in chunks if c), default=256))


def _record_means(
    batches: Iterable[tuple[dict[str, np.ndarray], np.ndarray]], record: np.ndarray
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Means over the windows of each record; a record may continue in the next batch."""
    if (np.diff(record.astype(np.int64)) < 0).any():
        raise StoreError(
            "expected the windows of a record to follow each other, found record_index falling; "
            "use unit 'window'"
        )
    start = 0
    waiting: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    waiting_code, waiting_record = -1, -1
    for arrays, codes in batches:
        ids = record[start : start + len(codes)]
        start += len(codes)
        first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
        # A record's cohort is that of its windows that are not missing.
        run_codes = np.maximum.reduceat(codes, first)
        joined = ids[0] == waiting_record
        sums = {name: _run_sums(x, codes, first) for name, x in arrays.items()}
        if joined:
            for name, (total, count) in sums.items():
                total[0] += waiting[name][0]
                count[0] += waiting[name][1]
            run_codes[0] = max(run_codes[0], waiting_code)
        elif waiting:
            yield (
                _means({n: (t[None], c[None]) for n, (t, c) in waiting.items()}),
                np.array([waiting_code]),
            )
        if len(first) > 1:
            yield _means({n: (t[:-1], c[:-1]) for n, (t, c) in sums.items()}), run_codes[:-1]
        waiting = {name: (total[-1], count[-1]) for name, (total, count) in sums.items()}
        waiting_code, waiting_record = int(run_codes[-1]), int(ids[-1])
    if waiting:
        yield (
            _means({n: (t[None], c[None]) for n, (t, c) in waiting.items()}),
            np.array([waiting_code]),
        )


def _run_sums(x: np.ndarray, codes: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = x.astype(np.float64)
    there = np.isfinite(values) & (codes >= 0).reshape(-1, *[1] * (x.ndim - 1))
    values[~there] = 0
    return np.add.reduceat(values, first, axis=0), np.add.reduceat(
        there.astype(np.int64), first, axis=0
    )


def _means(sums: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        name: np.where(count > 0, total / np.maximum(count, 1), np.nan)
        for name, (total, count) in sums.items()
    }


def _empty(dataset: xarray.Dataset, wanted: Sequence[str], n_cohorts: int) -> Sums:
    out = {}
    for name in wanted:
        source = dataset["gate" if name == GATE_SHARE else name]
        tail = (*source.shape[1:], *((len(GATE_LABELS),) if name == GATE_SHARE else ()))
        out[name] = Moments.none((n_cohorts, *tail))
    return out
