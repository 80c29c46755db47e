"""Sums by cohort of a finished store, however it was made: from its windows, or as it kept them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

import bertgeom
from bertgeom.analysis import cohorts as core
from bertgeom.errors import UsageError
from bertgeom.store.dataset import (
    attribute,
    check_flags,
    excluded,
    label_codes,
    label_names,
    without_flagged,
)

if TYPE_CHECKING:
    import xarray

#: Cohort of every window, -1 for none, and the names of the cohorts.
Cohorts = tuple[np.ndarray, Sequence[str]]


def cohort_dataset(
    store: str,
    dataset: xarray.Dataset,
    cohorts: Cohorts | None = None,
    *,
    unit: str = "window",
    statistics: Sequence[str] | None = None,
    exclude_flags: Iterable[str] = (),
) -> xarray.Dataset:
    """Sums of a store as `bertgeom.analysis.cohorts.sums_dataset` gives them.

    Args:
        store: its place. dataset: what `bertgeom.open` gave of it.
        cohorts: in place of the store's labels; all windows are one cohort where none is
            labelled.
        unit: "window" or "record", see `bertgeom.analysis.cohorts.store_sums`.
        statistics: which ones; default all.
        exclude_flags: windows with one of these flags are left out.

    Raises:
        UsageError: for an unknown unit, statistic or flag; and for what a store made with
            --reduce cannot tell: windows by other labels, or without flagged ones.

    Example:
        >>> import bertgeom
        >>> from bertgeom.pipelines.catalogue.cohorts import cohort_dataset
        >>> found = cohort_dataset("run.zarr", bertgeom.open("run.zarr"), unit="record")
        >>> found.attention_entropy_count.sel(cohort="a").values.max().item()
        2
    """
    if unit not in ("window", "record"):
        raise UsageError(f"expected --unit out of window, record, found {unit!r}")
    flags = check_flags(exclude_flags)
    if attribute(dataset, "settings", {}).get("reduce"):
        return _stored(store, dataset, cohorts, unit, statistics, flags)
    codes, names = cohorts or own_cohorts(dataset)
    if flags:
        codes = codes[~excluded(dataset, flags)]
        dataset = without_flagged(dataset, flags)
    sums = core.store_sums(dataset, codes, len(names), statistics=statistics, unit=unit)
    coords = {str(k): c.values for k, c in dataset.coords.items() if "window" not in c.dims}
    return core.sums_dataset(sums, names, coords)


def own_cohorts(dataset: xarray.Dataset) -> Cohorts:
    """The store's labels; one cohort of all windows without any."""
    names = label_names(dataset)
    if names:
        return label_codes(dataset), names
    return np.zeros(dataset.sizes["window"], dtype=np.int64), ["all"]


def _stored(
    store: str,
    dataset: xarray.Dataset,
    cohorts: Cohorts | None,
    unit: str,
    statistics: Sequence[str] | None,
    flags: tuple[str, ...],
) -> xarray.Dataset:
    """The sums that a run with --reduce has kept: by window, or of the means of records."""
    if flags and excluded(dataset, flags).any():
        raise UsageError(
            f"{store}: expected no --exclude-flags, found a store made with --reduce, which "
            "holds no windows apart; run again without --reduce"
        )
    if unit == "window" and cohorts is not None:
        raise UsageError(
            f"{store}: expected no --labels with --unit window, found a store made with --reduce, "
            "which holds sums of windows by its own labels alone; give --unit record"
        )
    group = bertgeom.open(store, group="cohorts" if unit == "window" else "records").load()
    found = [str(n)[: -len("_mean")] for n in group.data_vars if str(n).endswith("_mean")]
    known = [name for name in found if name != "block_map"]
    wanted = list(statistics or known)
    if unknown := sorted(set(wanted) - set(known)):
        raise UsageError(f"expected --statistics out of {', '.join(known)}, found {unknown}")
    coords = {
        str(k): c.values for k, c in group.coords.items() if not {"cohort", "record"} & {*c.dims}
    }
    if unit == "window":
        sums = core.sums_of_dataset(group)
        names: Sequence[str] = [str(name) for name in group["cohort"].values]
        return core.sums_dataset({name: sums[name] for name in wanted}, names, coords)
    codes, names = cohorts or own_cohorts(dataset)
    record = np.asarray(dataset["record_index"])
    by_record = core.codes_of_records(record, codes, group.sizes["record"])
    return core.sums_dataset(core.record_sums(group, by_record, len(names), wanted), names, coords)
