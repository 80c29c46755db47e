"""Distributions along the information stream: four mergeable moments, and Jarque-Bera.

A store holds mean, variance, skewness and excess kurtosis of the n D entries of every window
and station, and of the D entries of the summed rows. Together with the counts they give the
central sums M2, M3, M4, which merge exactly over windows (Chan et al. 1983; Pebay 2008): the
distribution of all entries of a cohort, without its entries.

Jarque and Bera's statistic JB = n/6 (S^2 + K^2/4) tests against a normal distribution; under
it and for independent entries it is chi-squared with 2 degrees of freedom, so that
p = exp(-JB/2). Entries of token vectors are not independent and n is large: nearly every
station is "not normal". JB/n, which does not grow with n, is the number to compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from bertgeom.errors import StoreError
from bertgeom.kernels.arrays import Float64Array

if TYPE_CHECKING:
    import xarray

#: Families of moments in the store, and what their entries are.
FAMILIES = {
    "stream": "all entries of the token vectors",
    "stream_rowsum": "the entries of the sum of the token vectors",
}
_STATISTICS = ("mean", "variance", "skewness", "kurtosis")


@dataclass(frozen=True)
class FourMoments:
    """Count, mean and the sums of 2nd, 3rd and 4th powers of deviations; float64 arrays."""

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    m3: np.ndarray
    m4: np.ndarray

    @classmethod
    def of_statistics(
        cls,
        count: np.ndarray,
        mean: np.ndarray,
        variance: np.ndarray,
        skewness: np.ndarray,
        kurtosis: np.ndarray,
    ) -> FourMoments:
        """From population variance, skewness and excess kurtosis; NaN means no entries."""
        count, mean, variance, skewness, kurtosis = (
            np.asarray(x, dtype=np.float64)
            for x in np.broadcast_arrays(count, mean, variance, skewness, kurtosis)
        )
        there = np.isfinite(mean + variance + skewness + kurtosis) & (count > 0)
        parts = (
            count,
            mean,
            count * variance,
            count * skewness * variance**1.5,
            count * (kurtosis + 3) * variance**2,
        )
        return cls(*(np.where(there, x, 0.0) for x in parts))

    def merge(self, other: FourMoments) -> FourMoments:
        """Moments of the union of two disjoint sets of entries."""
        n1, n2 = self.count, other.count
        n = n1 + n2
        safe = np.maximum(n, 1)
        delta = other.mean - self.mean
        step = delta / safe
        m2 = self.m2 + other.m2 + delta * step * n1 * n2
        m3 = self.m3 + other.m3 + delta * step**2 * n1 * n2 * (n1 - n2)
        m3 += 3 * step * (n1 * other.m2 - n2 * self.m2)
        m4 = self.m4 + other.m4 + delta * step**3 * n1 * n2 * (n1**2 - n1 * n2 + n2**2)
        m4 += 6 * step**2 * (n1**2 * other.m2 + n2**2 * self.m2)
        m4 += 4 * step * (n1 * other.m3 - n2 * self.m3)
        return FourMoments(n, self.mean + step * n2, m2, m3, m4)

    def merged(self) -> FourMoments:
        """The union along the first axis, by halves; the order is fixed."""
        parts = self
        while len(parts.count) > 1:
            half = (len(parts.count) + 1) // 2
            rest = parts._rows(slice(half, None))
            joined = parts._rows(slice(0, len(rest.count))).merge(rest)
            odd = parts._rows(slice(len(rest.count), half))
            parts = FourMoments(
                *(np.concatenate(pair) for pair in zip(joined._all(), odd._all(), strict=True))
            )
        return parts._rows(0)

    def masked(self) -> FourMoments:
        """The same with a mean of NaN where there is no entry."""
        mean = np.where(self.count > 0, self.mean, np.nan)
        return FourMoments(self.count, mean, self.m2, self.m3, self.m4)

    @property
    def variance(self) -> np.ndarray:
        return _divide(self.m2, self.count)

    @property
    def skewness(self) -> np.ndarray:
        return _divide(_divide(self.m3, self.count), self.variance**1.5)

    @property
    def kurtosis(self) -> np.ndarray:
        """Excess kurtosis."""
        return _divide(_divide(self.m4, self.count), self.variance**2) - 3

    def _all(self) -> tuple[np.ndarray, ...]:
        return self.count, self.mean, self.m2, self.m3, self.m4

    def _rows(self, rows: slice | int) -> FourMoments:
        return FourMoments(*(x[rows] for x in self._all()))


def jarque_bera(
    count: np.ndarray | float, skewness: np.ndarray | float, kurtosis: np.ndarray | float
) -> Float64Array:
    """The Jarque-Bera statistic, JB = n/6 (S^2 + K^2/4): large where numbers are not normal.

    Args:
        count: n. skewness: S. kurtosis: the excess kurtosis K. Of one shape, or broadcast.

    Example:
        >>> import numpy as np
        >>> from bertgeom.analysis.moments import jarque_bera
        >>> jarque_bera(np.array(600), np.array(0.1), np.array(0.2)).round(6).item()
        2.0
    """
    found: Float64Array = count / 6 * (np.square(skewness) + np.square(kurtosis) / 4)
    return found


def distribution_analysis(
    dataset: xarray.Dataset,
    hidden: int,
    codes: np.ndarray | None = None,
    cohorts: tuple[str, ...] = ("all",),
    *,
    step: int = 4096,
) -> xarray.Dataset:
    """Moments and Jarque-Bera statistics per cohort and station, computed from a store.

    Args:
        dataset: a store opened by xarray, with the stream_* arrays and n_tokens.
        hidden: D, entries of a token vector.
        codes: (windows,) cohort of every window, -1 for none; default all in one.
        cohorts: their names.
        step: windows in memory at a time.

    Returns:
        For both families, `stream` and `stream_rowsum`: `_count`, `_mean`, `_variance`,
        `_skewness`, `_kurtosis` of the entries of all windows of the cohort together, and
        `_jarque_bera`, `_jarque_bera_per_entry`, `_jarque_bera_p`, with dimensions cohort and
        station; and `_jarque_bera_window` (window, station), that of each single window.

    Raises:
        StoreError: if the store lacks an array.

    Example:
        >>> import bertgeom
        >>> from bertgeom.analysis.moments import distribution_analysis
        >>> found = distribution_analysis(bertgeom.open("run.zarr"), hidden=32)
        >>> found.stream_jarque_bera_per_entry.dims
        ('cohort', 'station')
    """
    import xarray

    names = ["n_tokens", *(f"{f}_{s}" for f in FAMILIES for s in _STATISTICS)]
    if missing := [name for name in names if name not in dataset.variables]:
        raise StoreError(f"expected a store with {', '.join(missing)}, found none")
    codes = np.zeros(dataset.sizes["window"], int) if codes is None else np.asarray(codes)
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]] = {}
    for family, what in FAMILIES.items():
        pooled, by_window = _pool(dataset, family, hidden, codes, len(cohorts), step)
        jb = jarque_bera(pooled.count, pooled.skewness, pooled.kurtosis)
        for name, values, text in (
            ("count", pooled.count, "number"),
            ("mean", pooled.mean, "mean"),
            ("variance", pooled.variance, "population variance"),
            ("skewness", pooled.skewness, "skewness"),
            ("kurtosis", pooled.kurtosis, "excess kurtosis"),
            ("jarque_bera", jb, "Jarque-Bera statistic"),
            ("jarque_bera_per_entry", _divide(jb, pooled.count), "Jarque-Bera statistic / count"),
            ("jarque_bera_p", np.exp(-jb / 2), "p of the Jarque-Bera test"),
        ):
            attributes = {"units": "1", "description": f"{text} of {what}, over a cohort"}
            arrays[f"{family}_{name}"] = (("cohort", "station"), values, attributes)
        attributes = {"units": "1", "description": f"Jarque-Bera statistic of {what}"}
        arrays[f"{family}_jarque_bera_window"] = (("window", "station"), by_window, attributes)
    coords: dict[str, object] = {"cohort": list(cohorts)}
    if "window" in dataset.coords:
        coords["window"] = dataset["window"].values
    if "station" in dataset.coords:
        coords["station"] = dataset["station"].values.tolist()
    return xarray.Dataset(arrays, coords=coords)


def _pool(
    dataset: xarray.Dataset,
    family: str,
    hidden: int,
    codes: np.ndarray,
    n_cohorts: int,
    step: int,
) -> tuple[FourMoments, np.ndarray]:
    """Pooled moments (cohort, station), and JB (window, station)."""
    names = [f"{family}_{s}" for s in _STATISTICS]
    parts: list[list[FourMoments]] = [[] for _ in range(n_cohorts)]
    by_window = []
    for start in range(0, len(codes), step):
        here = dataset[["n_tokens", *names]].isel(window=slice(start, start + step)).load()
        entries = hidden * (here["n_tokens"].values if family == "stream" else 1)
        count = np.broadcast_to(np.reshape(entries, (-1, 1)), here[names[0]].shape)
        mean, variance, skewness, kurtosis = (here[name].values for name in names)
        by_window.append(jarque_bera(count, skewness, kurtosis))
        moments = FourMoments.of_statistics(count, mean, variance, skewness, kurtosis)
        for code, cohort_parts in enumerate(parts):
            rows = np.flatnonzero(codes[start : start + step] == code)
            if len(rows):
                cohort_parts.append(FourMoments(*(x[rows] for x in moments._all())).merged())
    stations = dataset.sizes["station"]
    nothing = FourMoments(*(np.zeros(stations) for _ in range(5)))
    pooled = [reduce(FourMoments.merge, cohort_parts, nothing).masked() for cohort_parts in parts]
    stacked = FourMoments(*(np.stack(x) for x in zip(*(p._all() for p in pooled), strict=True)))
    return stacked, np.concatenate(by_window or [np.zeros((0, stations))])


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    safe = np.where(denominator == 0, 1, denominator)
    return np.where(denominator == 0, np.nan, numerator / safe)
