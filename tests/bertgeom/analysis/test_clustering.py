"""Clusters of first-token vectors and their agreement with labels."""

from __future__ import annotations

import sys
from math import comb

import numpy as np
import pytest
import xarray

from bertgeom.analysis.clustering import ClusterSettings, cluster_layers
from bertgeom.errors import UsageError

N, HIDDEN = 240, 20


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(-1, 3, N)


@pytest.fixture(scope="module")
def vectors(labels: np.ndarray) -> xarray.DataArray:
    """State 0: noise; state 1: three separate clouds; state 2: two labels share a cloud."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((N, 3, HIDDEN))
    centres = 12 * rng.standard_normal((4, HIDDEN))
    x[:, 1] += centres[labels % 3]
    x[:, 2] += centres[np.where(labels == 2, 1, labels % 3)]
    x[7] = np.nan
    return xarray.DataArray(
        x.astype(np.float32),
        dims=("window", "hidden_state", "hidden"),
        coords={"hidden_state": ["embedding", "output_0", "output_1"]},
    )


def entropies(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Entropy of a, and of a given b, by definition."""
    table = np.array([[np.sum((a == i) & (b == j)) for j in np.unique(b)] for i in np.unique(a)])
    joint = table / table.sum()
    given = joint / joint.sum(axis=0)
    marginal = joint.sum(axis=1)
    plogq = np.where(joint > 0, joint * np.log(np.where(given > 0, given, 1)), 0)
    return -(marginal * np.log(marginal)).sum(), -plogq.sum()


def adjusted_rand(a: np.ndarray, b: np.ndarray) -> float:
    pairs = sum(
        comb(int(np.sum((a == i) & (b == j))), 2) for i in np.unique(a) for j in np.unique(b)
    )
    rows = sum(comb(int(np.sum(a == i)), 2) for i in np.unique(a))
    columns = sum(comb(int(np.sum(b == j)), 2) for j in np.unique(b))
    expected = rows * columns / comb(len(a), 2)
    return (pairs - expected) / ((rows + columns) / 2 - expected)


def test_agreement_follows_its_definition(vectors: xarray.DataArray, labels: np.ndarray) -> None:
    found = cluster_layers(vectors, labels, ClusterSettings(n_components=5))
    assert found.attrs["n_clusters"] == 3
    assert found.attrs["n_windows"] == N - 1
    for state in range(3):
        clusters = found.cluster.values[state]
        used = (labels >= 0) & (clusters >= 0)
        truth, cluster = labels[used], clusters[used]
        total, rest = entropies(truth, cluster)
        back, back_rest = entropies(cluster, truth)
        homogeneity, completeness = 1 - rest / total, 1 - back_rest / back
        one = found.isel(hidden_state=state)
        assert one.homogeneity == pytest.approx(homogeneity, abs=1e-12)
        assert one.completeness == pytest.approx(completeness, abs=1e-12)
        harmonic = 2 * homogeneity * completeness / (homogeneity + completeness)
        assert one.v_measure == pytest.approx(harmonic, abs=1e-12)
        assert one.adjusted_rand == pytest.approx(adjusted_rand(truth, cluster), abs=1e-12)
    assert found.adjusted_rand.sel(hidden_state="output_0") == 1
    assert abs(found.adjusted_rand.sel(hidden_state="embedding")) < 0.1


def test_components_are_those_of_the_covariance(
    vectors: xarray.DataArray, labels: np.ndarray
) -> None:
    found = cluster_layers(vectors, labels, ClusterSettings(n_components=6))
    x = np.delete(vectors.values[:, 1].astype(np.float64), 7, axis=0)
    x -= x.mean(axis=0)
    _, singular, basis = np.linalg.svd(x, full_matrices=False)
    ratio = singular**2 / (singular**2).sum()
    np.testing.assert_allclose(found.explained_variance_ratio[1], ratio[:6], rtol=1e-10)
    scores = np.delete(found.score.values[1], 7, axis=0)
    np.testing.assert_allclose(np.abs(scores), np.abs(x @ basis[:2].T), atol=1e-8)
    assert np.isnan(found.score.values[1, 7]).all()
    assert found.cluster.values[1, 7] == -1


@pytest.mark.parametrize("step", [40, 57])
def test_the_incremental_mode_agrees_on_separate_clouds(
    vectors: xarray.DataArray, labels: np.ndarray, step: int
) -> None:
    exact = cluster_layers(vectors, labels, ClusterSettings(n_components=5))
    settings = ClusterSettings(n_components=5, memory=1000, step=step)
    found = cluster_layers(vectors, labels, settings)
    assert (exact.attrs["method"], found.attrs["method"]) == ("exact", "incremental")
    assert found.adjusted_rand.sel(hidden_state="output_0") == 1
    np.testing.assert_allclose(
        found.explained_variance_ratio[1, :2], exact.explained_variance_ratio[1, :2], rtol=0.02
    )


def test_results_do_not_depend_on_the_run(vectors: xarray.DataArray, labels: np.ndarray) -> None:
    first, second = (cluster_layers(vectors, labels) for _ in range(2))
    assert first.identical(second)


@pytest.mark.parametrize("memory", [2**30, 1000])
def test_equal_vectors_are_one_cluster(
    vectors: xarray.DataArray, labels: np.ndarray, memory: int
) -> None:
    same = vectors.copy(deep=True)
    same[:, 0] = 1.5
    two = np.arange(N) % 2
    same[:, 1] = two[:, None] * np.ones(HIDDEN)
    settings = ClusterSettings(n_components=5, memory=memory, step=60)
    found = cluster_layers(same, labels, settings)
    assert (found.cluster[0] <= 0).all()
    assert np.isnan(found.explained_variance_ratio[0]).all()
    assert (found.homogeneity[0], found.completeness[0], found.adjusted_rand[0]) == (0, 1, 0)
    assert len(np.unique(np.delete(found.cluster.values[1], 7))) == 2


def test_clusters_without_labels_are_not_compared(vectors: xarray.DataArray) -> None:
    found = cluster_layers(vectors, settings=ClusterSettings(n_clusters=4))
    assert np.isnan(found.homogeneity).all()
    assert set(np.unique(found.cluster[1])) == {-1, 0, 1, 2, 3}


def test_missing_numbers_of_clusters_and_windows_are_refused(vectors: xarray.DataArray) -> None:
    with pytest.raises(UsageError, match="labels or a number of clusters"):
        cluster_layers(vectors)
    with pytest.raises(UsageError, match="at least 4 windows, found 2"):
        cluster_layers(vectors[6:9], settings=ClusterSettings(n_clusters=4))


def test_a_missing_scikit_learn_is_explained(
    vectors: xarray.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"pip install 'bertgeom\[casestudy\]'"):
        cluster_layers(vectors)
