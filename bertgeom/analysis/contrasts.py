"""Contrasts between two cohorts, computed from their sums without reading windows.

Definitions and assumptions: `docs/catalogue.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertgeom import variables
from bertgeom.analysis.cohorts import Moments, sums_of_dataset
from bertgeom.errors import UsageError
from bertgeom.kernels.arrays import Float64Array

if TYPE_CHECKING:
    import xarray

#: Rounding of a number, in units of its type's epsilon. A statistic is a sum over the tokens of
#: a window; n roundings of half an epsilon each add up like a random walk, to sqrt(n) / 2: this
#: is n = 1,024. Windows of equal sequences differ by as much when their batches differ.
ROUNDINGS = 16
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def contrast(
    sums: xarray.Dataset,
    first: str,
    second: str,
    *,
    statistics: Sequence[str] | None = None,
    family: str = "statistic",
) -> xarray.Dataset:
    """Compare two cohorts, statistic by statistic, using only their sums.

    Welch's t-test assumes independent values whose means are about normal; it does not assume
    equal variances. Overlapping windows, and windows of one record, are not independent: use
    sums with `unit="record"` for such data. q values control the false discovery rate
    (Benjamini and Hochberg 1995).

    Args:
        sums: from `sums_dataset`.
        first, second: names of two cohorts.
        statistics: which ones; default all.
        family: "statistic": the tests of one statistic over layers, heads and its other
            dimensions are one family; "all": all tests together.

    Returns:
        Per statistic `_difference` (first - second), `_cohens_d` (difference over the pooled
        standard deviation), `_t`, `_df`, `_p` (two-sided) and `_q`. The difference is NaN where
        a cohort has no value; all else where a cohort has fewer than 2 values, or where the
        pooled standard deviation is not above `rounding`.

    Raises:
        UsageError: for an unknown cohort, statistic or family.

    Example:
        >>> import bertgeom
        >>> from bertgeom.analysis.cohorts import store_sums, sums_dataset
        >>> from bertgeom.analysis.contrasts import contrast
        >>> sums = store_sums(bertgeom.open("run.zarr"), unit="record")
        >>> found = contrast(sums_dataset(sums, ["a", "b"]), "a", "b")
        >>> found.attention_entropy_cohens_d.dims
        ('layer', 'head')
    """
    import xarray

    if family not in ("statistic", "all"):
        raise UsageError(f"expected family 'statistic' or 'all', found {family!r}")
    known = [str(name) for name in sums["cohort"].values]
    if missing := {first, second} - set(known):
        raise UsageError(f"expected cohorts out of {', '.join(known)}, found {sorted(missing)}")
    available = sums_of_dataset(sums)
    if unknown := set(statistics or ()) - set(available):
        raise UsageError(f"expected statistics of the sums, found {sorted(unknown)}")
    pair = known.index(first), known.index(second)
    results = {
        name: welch(moments, *pair, rounding(name, moments, sums.attrs.get("dtype")))
        for name, moments in available.items()
        if statistics is None or name in statistics
    }
    _add_q_values(results, family)
    arrays = {}
    for name, values in results.items():
        dims = sums[f"{name}_mean"].dims[1:]
        for part, array in values.items():
            units = sums[f"{name}_mean"].attrs["units"] if part == "difference" else "1"
            text = f"{part} between {first} and {second} of {name}"
            arrays[f"{name}_{part}"] = (dims, array, {"units": units, "description": text})
    coords = {dim: sums[dim] for dim in sums.coords if dim != "cohort"}
    attributes = {"first": first, "second": second, "family": family}
    if "unit" in sums.attrs:
        attributes["unit"] = sums.attrs["unit"]
    return xarray.Dataset(arrays, coords=coords, attrs=attributes)


def welch(
    moments: Moments, first: int, second: int, least: np.ndarray | float = 0.0
) -> dict[str, np.ndarray]:
    """Difference, Cohen's d, Welch's t, its degrees of freedom, and two-sided p.

    Args:
        moments: of one statistic, cohort first. first, second: positions of two cohorts.
        least: standard deviations up to this are rounding (`rounding`): nothing varies.

    Example:
        >>> import numpy as np
        >>> from bertgeom.analysis.cohorts import Moments
        >>> from bertgeom.analysis.contrasts import welch
        >>> moments = Moments.of(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), np.repeat([0, 1], 3), 2)
        >>> found = welch(moments, 0, 1)
        >>> found["difference"].item(), round(found["cohens_d"].item(), 6), found["df"].item()
        (-3.0, -3.0, 4.0)
    """
    from scipy.special import stdtr

    n1, n2 = moments.count[first], moments.count[second]
    variance = moments.variance()
    v1, v2 = variance[first], variance[second]
    difference = moments.mean[first] - moments.mean[second]
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.sqrt((moments.m2[first] + moments.m2[second]) / (n1 + n2 - 2))
        tested = (n1 > 1) & (n2 > 1) & (pooled > least)
        e1, e2 = v1 / n1, v2 / n2
        t = difference / np.sqrt(e1 + e2)
        df = (e1 + e2) ** 2 / (e1**2 / (n1 - 1) + e2**2 / (n2 - 1))
        d = difference / pooled
        p = 2 * stdtr(df, -np.abs(t))
    found = {"cohens_d": d, "t": t, "df": df, "p": p}
    return {"difference": difference} | {
        name: np.where(tested, values, np.nan) for name, values in found.items()
    }


def rounding(name: str, moments: Moments, dtype: str | None = None) -> Float64Array:
    """Standard deviations of a statistic up to which values differ only by rounding.

    `ROUNDINGS` epsilons of the type of the computation, relative to the means, or to 1 where
    they are smaller: statistics are differences of numbers of about 1 and more (logits, cosines,
    masses that sum to 1). An array of a narrower type adds the epsilon of its values.

    Args:
        name: of the statistic. moments: cohort first.
        dtype: of the computation; default float32.

    Returns:
        (...) float64, without the dimension of cohorts.
    """
    size: Float64Array = np.abs(np.nan_to_num(moments.mean)).max(axis=0, initial=0.0)
    computed = _EPSILON.get(dtype or "float32", _EPSILON["float32"])
    declared = variables.VARIABLES.get(name)
    stored = _EPSILON.get(declared.dtype, 0.0) if declared else 0.0
    return ROUNDINGS * computed * np.maximum(size, 1.0) + stored * size


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q values of a family of tests, in the shape of the p values.

    Args:
        p: p values, of any shape; NaN is no test and stays NaN.

    Example:
        >>> import numpy as np
        >>> from bertgeom.analysis.contrasts import benjamini_hochberg
        >>> benjamini_hochberg(np.array([0.01, 0.02, 0.5, np.nan])).round(3).tolist()
        [0.03, 0.03, 0.5, nan]
    """
    from scipy.stats import false_discovery_control

    q = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = false_discovery_control(p[tested])
    return q


def contrast_table(result: xarray.Dataset) -> Iterator[dict[str, object]]:
    """Rows of a contrast, one per test, by rising q and falling |d| within a statistic."""
    for name in [str(n)[: -len("_q")] for n in result.data_vars if str(n).endswith("_q")]:
        columns = {
            part: np.asarray(result[f"{name}_{part}"])
            for part in ("difference", "cohens_d", "t", "df", "p", "q")
        }
        dims = result[f"{name}_q"].dims
        size = np.abs(columns["cohens_d"]).ravel()
        order = np.lexsort((-np.nan_to_num(size), columns["q"].ravel()))
        for flat in order:
            place = np.unravel_index(flat, columns["q"].shape)
            row: dict[str, object] = {"statistic": name}
            for dim, i in zip(dims, place, strict=True):
                row[str(dim)] = result[dim].values.tolist()[i] if dim in result.coords else int(i)
            yield row | {part: float(values[place]) for part, values in columns.items()}


def _add_q_values(results: dict[str, dict[str, np.ndarray]], family: str) -> None:
    if family == "statistic":
        for values in results.values():
            values["q"] = benjamini_hochberg(values["p"])
        return
    joined = benjamini_hochberg(np.concatenate([v["p"].ravel() for v in results.values()]))
    start = 0
    for values in results.values():
        size = values["p"].size
        values["q"] = joined[start : start + size].reshape(values["p"].shape)
        start += size
