"""What a report needs of a store: means by cohort, and a bounded sample of windows.

A store is read array by array, chunk by chunk; no array is ever in memory as a whole. Means
and variances are exact over all windows (merged by count, mean and M2, as in
`bertgeom.cohorts`); distributions come from a sample of windows that depends on their
number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom import variables
from bertgeom.cohorts import GATE_LABELS, GATE_SHARE, Moments, statistics_of

if TYPE_CHECKING:
    import xarray

#: The cohort of all windows with statistics, labelled or not.
ALL = "all windows"
#: Windows of the sample, at most.
SAMPLE = 2000
#: Numbers of one array that are in memory at a time.
_AT_ONCE = 4 * 2**20
_SAMPLED = ("attention_k90_median", "cls", "logits", "cone_index", "n_tokens")


@dataclass(frozen=True, eq=False)
class Counts:
    """What was counted over all windows.

    Attributes:
        windows, records, tokens, unknown, ambiguous, truncated, measured: totals; `measured`
            windows have statistics.
        flags: windows by name of the flag.
        cohorts: measured windows by cohort.
        tokens_median, tokens_least, tokens_most: valid tokens of measured windows.
    """

    windows: int
    records: int
    tokens: int
    unknown: int
    ambiguous: int
    truncated: int
    measured: int
    flags: dict[str, int]
    cohorts: dict[str, int]
    tokens_median: float
    tokens_least: int
    tokens_most: int


@dataclass(frozen=True, eq=False)
class Summary:
    """A store in brief; figures are drawn from it alone.

    Attributes:
        mean: means over windows by cohort; dimension `cohort` first, `ALL` its first entry.
        variance: population variances, likewise.
        sample: some arrays of some windows, in the order of the store.
        codes: int32, cohort of every window of the sample, -1 without a label.
        counts: totals.
        attributes: of the store.
        static: arrays of the store without windows (spectra, weights), as they are.
    """

    mean: xarray.Dataset
    variance: xarray.Dataset
    sample: xarray.Dataset
    codes: np.ndarray
    counts: Counts
    attributes: dict[str, Any]
    static: xarray.Dataset

    @property
    def cohorts(self) -> list[str]:
        """Names of the labelled cohorts; without labels none."""
        return [str(name) for name in self.mean["cohort"].values[1:]]

    def has(self, *names: str) -> bool:
        """Whether the means of these statistics are there."""
        return all(name in self.mean for name in names)

    def of(self, name: str, cohort: str = ALL) -> np.ndarray:
        """Mean of a statistic over the windows of a cohort."""
        return np.asarray(self.mean[name].sel(cohort=cohort))

    def names(self, dimension: str) -> list[str]:
        """Names of the positions of a dimension."""
        coords = self.mean.coords
        key = "gate_name" if dimension == "gate" and "gate_name" in coords else dimension
        if key in coords:
            return [str(name) for name in coords[key].values]
        return [str(i) for i in range(self.mean.sizes[dimension])]

    @property
    def sampled(self) -> str:
        """How the sample was taken, for captions."""
        n, total = self.sample.sizes.get("window", 0), self.counts.measured
        if n == total:
            return f"all {total:,} measured windows"
        return f"{n:,} of {total:,} measured windows, evenly spaced"


def summarise(dataset: xarray.Dataset, *, n_sample: int = SAMPLE) -> Summary:
    """Read a store (or the result of `bertgeom.measure`) once, chunk by chunk.

    Args:
        dataset: as `bertgeom.open` gives it.
        n_sample: windows of the sample at most.
    """
    n = dataset.sizes["window"]
    flags = _column(dataset, "flags", n)
    label = _column(dataset, "label", n, -1)
    measured = flags & variables.LOST == 0
    names = label_names(dataset, int(label.max(initial=-1)) + 1)
    codes = np.where(measured, np.where(label >= 0, label, len(names)), -1)
    chosen = _evenly(np.flatnonzero(measured), n_sample)
    mean, variance = _moments(dataset, codes, names)
    return Summary(
        mean,
        variance,
        _sample(dataset, chosen),
        label[chosen].astype(np.int32),
        _counts(dataset, flags, codes, names),
        dict(dataset.attrs),
        _static(dataset),
    )


def label_names(dataset: xarray.Dataset, n_labels: int) -> list[str]:
    """Names of the labels, by code; "label 3" where the store does not tell."""
    found = dataset.attrs.get("labels", [])
    given = [str(name) for name in found] if isinstance(found, (list, tuple)) else []
    return given + [f"label {i}" for i in range(len(given), n_labels)]


def _column(dataset: xarray.Dataset, name: str, n: int, default: int = 0) -> np.ndarray:
    if name not in dataset:
        return np.full(n, default, dtype=np.int64)
    return np.asarray(dataset[name]).astype(np.int64)


def _evenly(rows: np.ndarray, most: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _blocks(array: xarray.DataArray) -> Iterator[slice]:
    """Rows of a chunk, or of a part of one where a chunk is large."""
    n = array.sizes["window"]
    row = max(1, int(np.prod(array.shape[1:], dtype=np.int64)))
    chunk = (array.encoding.get("chunks") or (n,))[0] or 1
    step = max(1, min(chunk, _AT_ONCE // row))
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        for first in range(start, stop, step):
            yield slice(first, min(first + step, stop))


def _moments(
    dataset: xarray.Dataset, codes: np.ndarray, names: Sequence[str]
) -> tuple[xarray.Dataset, xarray.Dataset]:
    import xarray

    means, variances = {}, {}
    for statistic in statistics_of([str(name) for name in dataset.data_vars]):
        source = "gate" if statistic == GATE_SHARE else statistic
        array = dataset[source]
        total = Moments.of(np.zeros((0, *_values(array[:0], statistic).shape[1:])), codes[:0], 0)
        total = _no_moments(total, len(names) + 1)
        for rows in _blocks(array):
            values = _values(array[rows], statistic)
            total = total.merge(Moments.of(values, codes[rows], len(names) + 1))
        total = _with_all(total, len(names))
        dims = ("cohort", *array.dims[1:], *(("gate_label",) if statistic == GATE_SHARE else ()))
        attributes = {k: array.attrs[k] for k in ("units", "description") if k in array.attrs}
        mean = np.where(total.count > 0, total.mean, np.nan)
        means[statistic] = (dims, mean, attributes)
        variances[statistic] = (dims, total.variance(0), attributes)
    coords: dict[str, Any] = {
        str(name): coord
        for name, coord in dataset.coords.items()
        if "window" not in coord.dims and name != "cohort"
    }
    coords |= {"cohort": [ALL, *names], "gate_label": list(GATE_LABELS)}
    return xarray.Dataset(means, coords=coords), xarray.Dataset(variances, coords=coords)


def _values(array: xarray.DataArray, statistic: str) -> np.ndarray:
    values = np.asarray(array)
    if statistic != GATE_SHARE:
        return values
    return (values[..., None] == np.arange(len(GATE_LABELS))).astype(np.float64)


def _no_moments(like: Moments, n_cohorts: int) -> Moments:
    shape = (n_cohorts, *like.mean.shape[1:])
    return Moments(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape))


def _with_all(parts: Moments, n_named: int) -> Moments:
    """All cohorts merged, in front of the named ones; the unlabelled are left out."""
    total = Moments(parts.count[0], parts.mean[0], parts.m2[0])
    for i in range(1, n_named + 1):
        total = total.merge(Moments(parts.count[i], parts.mean[i], parts.m2[i]))
    return Moments(
        *(
            np.concatenate([getattr(total, field)[None], getattr(parts, field)[:n_named]])
            for field in ("count", "mean", "m2")
        )
    )


def _sample(dataset: xarray.Dataset, chosen: np.ndarray) -> xarray.Dataset:
    import xarray

    picked = {}
    for name in _SAMPLED:
        if name not in dataset:
            continue
        array = dataset[name]
        pieces = [np.asarray(array[:0])]
        for rows in _blocks(array):
            here = chosen[(chosen >= rows.start) & (chosen < rows.stop)] - rows.start
            if len(here):
                pieces.append(np.asarray(array[rows])[here])
        picked[name] = (array.dims, np.concatenate(pieces))
    coords = {"window": chosen} | {
        str(k): c for k, c in dataset.coords.items() if "window" not in c.dims
    }
    return xarray.Dataset(picked, coords=coords)


def _static(dataset: xarray.Dataset) -> xarray.Dataset:
    names = [name for name, array in dataset.data_vars.items() if "window" not in array.dims]
    return dataset[names].load()


def _counts(
    dataset: xarray.Dataset, flags: np.ndarray, codes: np.ndarray, names: Sequence[str]
) -> Counts:
    n = len(flags)
    measured = codes >= 0
    tokens = _column(dataset, "n_tokens", n)
    here = tokens[measured]
    known = len(here) and here.max() > 0
    return Counts(
        windows=n,
        records=len(np.unique(_column(dataset, "record_index", n))),
        tokens=int(tokens.sum()),
        unknown=int(_column(dataset, "n_unknown", n).sum()),
        ambiguous=int(_column(dataset, "n_ambiguous", n).sum()),
        truncated=int(_column(dataset, "truncated", n).sum()),
        measured=int(measured.sum()),
        flags={
            name: int((flags & variables.flag_bit(name) != 0).sum()) for name in variables.FLAGS
        },
        cohorts={name: int((codes == i).sum()) for i, name in enumerate(names)},
        tokens_median=float(np.median(here)) if known else float("nan"),
        tokens_least=int(here.min()) if known else 0,
        tokens_most=int(here.max()) if known else 0,
    )
