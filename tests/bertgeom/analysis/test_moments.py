"""Pooled moments and Jarque-Bera against scipy on the entries themselves."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgeom.analysis.moments import FourMoments, distribution_analysis, jarque_bera
from bertgeom.errors import StoreError

HIDDEN = 16


def statistics(x: np.ndarray) -> tuple[float, float, float, float]:
    return x.mean(), x.var(), scipy.stats.skew(x), scipy.stats.kurtosis(x)


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(1, 199), max_size=6, unique=True), seed=st.integers(0, 9))
def test_any_partitioning_gives_the_moments_of_all(cuts: list[int], seed: int) -> None:
    x = 5 + np.random.default_rng(seed).gamma(2.0, size=200)
    parts = np.split(x, sorted(cuts))
    rows = np.array([[len(p), *(statistics(p) if p.std() else (p[0], 0, 0, 0))] for p in parts])
    merged = FourMoments.of_statistics(*rows.T).merged()
    found = (merged.mean, merged.variance, merged.skewness, merged.kurtosis)
    np.testing.assert_allclose(found, statistics(x), rtol=1e-9)
    assert merged.count == 200


def test_jarque_bera_is_scipys() -> None:
    x = np.random.default_rng(0).standard_t(6, size=500)
    expected = scipy.stats.jarque_bera(x)
    _, _, skewness, kurtosis = statistics(x)
    found = jarque_bera(500, skewness, kurtosis)
    assert found == pytest.approx(expected.statistic, rel=1e-12)
    assert np.exp(-found / 2) == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.fixture(scope="module")
def windows() -> list[np.ndarray]:
    """Token vectors (station, tokens, hidden) of 9 windows of unequal length."""
    rng = np.random.default_rng(2)
    return [rng.gamma(1.5, size=(2, n, HIDDEN)) for n in rng.integers(3, 12, 9)]


@pytest.fixture(scope="module")
def store(windows: list[np.ndarray]) -> xarray.Dataset:
    arrays: dict[str, np.ndarray] = {}
    for family in ("stream", "stream_rowsum"):
        entries = [w.reshape(2, -1) if family == "stream" else w.sum(axis=1) for w in windows]
        table = np.array([[statistics(row) for row in x] for x in entries])
        for i, name in enumerate(("mean", "variance", "skewness", "kurtosis")):
            arrays[f"{family}_{name}"] = table[..., i]
    dataset = xarray.Dataset(
        {name: (("window", "station"), x.astype(np.float32)) for name, x in arrays.items()},
        coords={"station": ["embedding", "output_0"]},
    )
    dataset["n_tokens"] = ("window", np.array([w.shape[1] for w in windows], dtype=np.uint32))
    return dataset


@pytest.mark.parametrize("step", [2, 100])
def test_cohorts_have_the_distribution_of_their_entries(
    store: xarray.Dataset, windows: list[np.ndarray], step: int
) -> None:
    codes = np.array([0, 0, 1, 1, -1, 0, 1, 0, 0])
    found = distribution_analysis(store, HIDDEN, codes, ("a", "b"), step=step)
    for code in range(2):
        for station in range(2):
            chosen = [w[station] for w, c in zip(windows, codes, strict=True) if c == code]
            for family in ("stream", "stream_rowsum"):
                rows = chosen if family == "stream" else [w.sum(axis=0) for w in chosen]
                x = np.concatenate([r.ravel() for r in rows])
                here = found.isel(cohort=code, station=station)
                assert here[f"{family}_count"] == len(x)
                names = ("mean", "variance", "skewness", "kurtosis")
                values = [float(here[f"{family}_{name}"]) for name in names]
                np.testing.assert_allclose(values, statistics(x), rtol=2e-5)
                expected = scipy.stats.jarque_bera(x)
                jb = float(here[f"{family}_jarque_bera"])
                assert jb == pytest.approx(expected.statistic, rel=1e-4)
                assert here[f"{family}_jarque_bera_p"] == pytest.approx(np.exp(-jb / 2))
                per_entry = float(here[f"{family}_jarque_bera_per_entry"])
                assert per_entry == pytest.approx(jb / len(x))


def test_windows_have_their_own_jarque_bera(
    store: xarray.Dataset, windows: list[np.ndarray]
) -> None:
    found = distribution_analysis(store, HIDDEN).stream_jarque_bera_window
    for i, window in enumerate(windows):
        expected = scipy.stats.jarque_bera(window[1].ravel()).statistic
        assert found[i, 1] == pytest.approx(expected, rel=1e-4)


def test_missing_windows_are_no_entries(store: xarray.Dataset) -> None:
    broken = store.copy(deep=True)
    broken["stream_mean"][3] = np.nan
    codes = np.ones(9, dtype=int)
    codes[3] = 0
    found = distribution_analysis(broken, HIDDEN, codes, ("lost", "rest"))
    assert (found.stream_count.sel(cohort="lost") == 0).all()
    assert np.isnan(found.stream_variance.sel(cohort="lost")).all()
    without = distribution_analysis(store.drop_isel(window=3), HIDDEN)
    np.testing.assert_allclose(
        found.stream_kurtosis.sel(cohort="rest"), without.stream_kurtosis[0], rtol=1e-9
    )


def test_a_store_without_moments_is_refused(store: xarray.Dataset) -> None:
    with pytest.raises(StoreError, match="stream_rowsum_kurtosis"):
        distribution_analysis(store.drop_vars("stream_rowsum_kurtosis"), HIDDEN)
