"""What a report needs of a store: means by cohort, and a bounded sample of windows.

A store is read array by array, chunk by chunk; no array is ever in memory as a whole. Means
and variances are exact over all windows (merged by count, mean and M2, as in
`bertgeom.analysis.cohorts`); distributions come from a stratified sample of windows. Of a store
made with --reduce, means and variances are those that the run has kept. Effect sizes count
records once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom import variables
from bertgeom.analysis.cohorts import (
    GATE_LABELS,
    GATE_SHARE,
    Moments,
    codes_of_records,
    record_sums,
    statistics_of,
    store_sums,
    sums_of_dataset,
)
from bertgeom.errors import UsageError
from bertgeom.kernels.arrays import BoolArray
from bertgeom.pipelines.plan.sampling import stratified
from bertgeom.pipelines.run.shares import MOST_UNKNOWN, Shares, mostly_unknown, percent, shares
from bertgeom.store.dataset import attribute, check_flags, excluded, label_codes
from bertgeom.store.dataset import label_names as names_of

if TYPE_CHECKING:
    import xarray

#: The cohort of all windows with statistics, labelled or not.
ALL = "all windows"
#: Windows of the sample, at most.
SAMPLE = 2000
#: Numbers of one array that are in memory at a time.
_AT_ONCE = 4 * 2**20
PARTS = ("count", "mean", "m2")
#: Statistics of which effect sizes are shown.
EFFECTS = ("attention_entropy",)
_SAMPLED = ("attention_k90_median", "cls", "logits", "cone_index", "n_tokens")


@dataclass(frozen=True, eq=False)
class Counts:
    """What was counted over all windows.

    Attributes:
        windows, records, tokens, unknown, ambiguous, truncated, measured: totals; `measured`
            windows have statistics and are not excluded.
        shares: of unknown and truncated tokens, as run and status tell them.
        excluded: windows left out by their flags.
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
    shares: Shares
    excluded: int = 0

    @property
    def mostly_unknown(self) -> bool:
        """Whether most tokens are unknown, special ones left out where these are counted."""
        if self.shares.unknown_tokens is None:
            return mostly_unknown(self.unknown, self.tokens)
        return self.shares.unknown_tokens > 100 * MOST_UNKNOWN

    @property
    def unknown_share(self) -> str:
        """Unknown tokens in per cent; of all tokens, hence at least, where more is not known."""
        if self.shares.unknown_tokens is None and self.tokens:
            return f"at least {percent(100 * self.unknown / self.tokens)}"
        return percent(self.shares.unknown_tokens)


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
        effects: moments of `EFFECTS` by labelled cohort, `unit` by unit.
        unit: "window" or "record", what counts once in effect sizes.
        excluded: names of the flags whose windows are left out.
    """

    mean: xarray.Dataset
    variance: xarray.Dataset
    sample: xarray.Dataset
    codes: np.ndarray
    counts: Counts
    attributes: dict[str, Any]
    static: xarray.Dataset
    effects: dict[str, Moments] = field(default_factory=dict)
    unit: str = "record"
    excluded: tuple[str, ...] = ()

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
        return f"a sample of {n:,} of {total:,} measured windows"


def summarise(
    dataset: xarray.Dataset,
    *,
    n_sample: int = SAMPLE,
    exclude_flags: Iterable[str] = (),
    unit: str = "record",
    kept: Kept | None = None,
    counts: Mapping[str, int] | None = None,
) -> Summary:
    """Read a store (or the result of `bertgeom.measure`) once, chunk by chunk.

    Args:
        dataset: as `bertgeom.open` gives it.
        n_sample: windows of the sample at most.
        exclude_flags: windows with one of these flags are left out.
        unit: "record" or "window", what counts once in effect sizes.
        kept: what a store made with --reduce holds in place of statistics of windows.
        counts: counts of the run that made the store, see `progress.counts_of`.

    Raises:
        UsageError: for an unknown flag or unit, and for flagged windows to be left out of means
            that were taken already.
    """
    if unit not in ("record", "window"):
        raise UsageError(f"expected --unit out of window, record, found {unit!r}")
    flags_out = check_flags(exclude_flags)
    n = dataset.sizes["window"]
    flags = _column(dataset, "flags", n)
    out = excluded(dataset, flags_out)
    if kept is not None and out.any():
        raise UsageError(
            "expected no --exclude-flags, found a store made with --reduce, which holds no "
            "windows apart; run again without --reduce"
        )
    label = label_codes(dataset)
    valid = (flags & variables.LOST == 0) & ~out
    names = label_names(dataset, int(label.max(initial=-1)) + 1)
    codes = np.where(valid, np.where(label >= 0, label, len(names)), -1)
    there = np.flatnonzero(valid)
    record = _column(dataset, "record_index", n)
    chosen = there[stratified(record[there], n_sample)]
    mean, variance = _moments(dataset, codes, names) if kept is None else kept.moments(names)
    named = np.where((codes >= 0) & (codes < len(names)), codes, -1)
    if kept is not None:
        effects = kept.effects(record, named, len(names), unit)
    else:
        effects = _effects(dataset, named, len(names), unit)
    return Summary(
        mean,
        variance,
        _sample(dataset, chosen),
        label[chosen].astype(np.int32),
        _counts(dataset, flags, codes, names, int(out.sum()), counts),
        {str(key): attribute(dataset, str(key)) for key in dataset.attrs},
        _static(dataset),
        effects,
        unit,
        flags_out,
    )


@dataclass(frozen=True, eq=False)
class Kept:
    """The groups `cohorts` and `records` of a store made with --reduce, in memory."""

    cohorts: xarray.Dataset
    records: xarray.Dataset

    def moments(self, names: Sequence[str]) -> tuple[xarray.Dataset, xarray.Dataset]:
        """Means and population variances by cohort, as `Summary` holds them."""
        import xarray

        means, variances = {}, {}
        # Stores with very many labels keep the sums of all windows alone.
        rows = 1 + len(names)
        for statistic, moments in sums_of_dataset(self.cohorts).items():
            array = self.cohorts[f"{statistic}_mean"]
            means[statistic] = (array.dims, _to_rows(moments.mean, rows), array.attrs)
            variances[statistic] = (array.dims, _to_rows(moments.variance(0), rows), array.attrs)
        if "block_map_mean" in self.cohorts:
            array = self.cohorts["block_map_mean"]
            means["block_map"] = (array.dims, _to_rows(array.values, rows), array.attrs)
        coords = {str(k): c for k, c in self.cohorts.coords.items() if k != "cohort"}
        coords["cohort"] = [ALL, *names]
        if "gate_mass" in means:
            coords["gate_name"] = ("gate", list(variables.GATES))
        return xarray.Dataset(means, coords=coords), xarray.Dataset(variances, coords=coords)

    def effects(
        self, record: np.ndarray, codes: np.ndarray, n_labels: int, unit: str
    ) -> dict[str, Moments]:
        """Moments of `EFFECTS` by label; codes (windows,) of the labels."""
        if unit == "record":
            found = [name for name in EFFECTS if f"{name}_mean" in self.records]
            by_record = codes_of_records(record, codes, self.records.sizes["record"])
            return record_sums(self.records, by_record, n_labels, found)
        sums = sums_of_dataset(self.cohorts)
        return {
            name: Moments(
                *(_to_rows(getattr(sums[name], part), 1 + n_labels)[1:] for part in PARTS)
            )
            for name in EFFECTS
            if name in sums and len(sums[name].count) == 1 + n_labels
        }


def _to_rows(values: np.ndarray, rows: int) -> np.ndarray:
    """The first dimension made `rows` long by missing values."""
    missing = np.full((rows - len(values), *values.shape[1:]), np.nan)
    return np.concatenate([values, missing]) if len(missing) else values


def _effects(
    dataset: xarray.Dataset, codes: np.ndarray, n_labels: int, unit: str
) -> dict[str, Moments]:
    """Moments of `EFFECTS` by label; windows where there are no records to speak of."""
    found = [name for name in EFFECTS if name in dataset]
    if not n_labels or not found:
        return {}
    unit = unit if "record_index" in dataset.variables else "window"
    return store_sums(dataset, codes, n_labels, statistics=found, unit=unit)


def label_names(dataset: xarray.Dataset, n_labels: int) -> list[str]:
    """Names of the labels, by code; "label 3" where the store does not tell."""
    found = names_of(dataset)
    found += [f"label {i}" for i in range(len(found), n_labels)]
    return [f"{name} (label)" if name == ALL else name for name in found]


def _column(dataset: xarray.Dataset, name: str, n: int, default: int = 0) -> np.ndarray:
    if name not in dataset:
        return np.full(n, default, dtype=np.int64)
    return np.asarray(dataset[name]).astype(np.int64)


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
        total = Moments.none((len(names) + 1, *_values(array[:0], statistic).shape[1:]))
        for rows in _blocks(array):
            values = _values(array[rows], statistic)
            total = total.merge(Moments.of(values, codes[rows], len(names) + 1))
        total = _with_all(total, len(names))
        dims = ("cohort", *array.dims[1:], *(("gate_label",) if statistic == GATE_SHARE else ()))
        attributes = {k: array.attrs[k] for k in ("units", "description") if k in array.attrs}
        means[statistic] = (dims, total.mean, attributes)
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
    chosen: BoolArray = values[..., None] == np.arange(len(GATE_LABELS))
    return chosen.astype(np.float64)


def _with_all(parts: Moments, n_named: int) -> Moments:
    """All cohorts merged, in front of the named ones; the unlabelled are left out."""
    total = Moments(parts.count[0], parts.mean[0], parts.m2[0])
    for i in range(1, n_named + 1):
        total = total.merge(Moments(parts.count[i], parts.mean[i], parts.m2[i]))
    return Moments(
        *(
            np.concatenate([getattr(total, part)[None], getattr(parts, part)[:n_named]])
            for part in PARTS
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
    dataset: xarray.Dataset,
    flags: np.ndarray,
    codes: np.ndarray,
    names: Sequence[str],
    n_excluded: int,
    counts: Mapping[str, int] | None,
) -> Counts:
    n = len(flags)
    valid = codes >= 0
    tokens = _column(dataset, "n_tokens", n)
    here = tokens[valid]
    known = len(here) and here.max() > 0
    unknown = int(_column(dataset, "n_unknown", n).sum())
    truncated = int(_column(dataset, "truncated", n).sum())
    if counts is None or "content_tokens" not in counts:
        # The arrays do not say which tokens stand for bases.
        few = int((flags & variables.flag_bit("unknown") != 0).sum())
        counts = {"windows": n, "unknown": few, "truncated_windows": truncated}
    return Counts(
        windows=n,
        records=len(np.unique(_column(dataset, "record_index", n))),
        tokens=int(tokens.sum()),
        unknown=unknown,
        ambiguous=int(_column(dataset, "n_ambiguous", n).sum()),
        truncated=truncated,
        measured=int(valid.sum()),
        flags={
            name: int((flags & variables.flag_bit(name) != 0).sum()) for name in variables.FLAGS
        },
        cohorts={name: int((codes == i).sum()) for i, name in enumerate(names)},
        tokens_median=float(np.median(here)) if known else float("nan"),
        tokens_least=int(here.min()) if known else 0,
        tokens_most=int(here.max()) if known else 0,
        shares=shares(counts),
        excluded=n_excluded,
    )
