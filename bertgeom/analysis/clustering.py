"""Do the first tokens' vectors separate the labels? PCA and k-means, layer by layer.

For every hidden state the vectors of all windows are projected on their principal
components, clustered there by k-means, and the clusters compared with the labels by
homogeneity, completeness (Rosenberg and Hirschberg 2007), their harmonic mean, and the
adjusted Rand index (Hubert and Arabie 1985). If the vectors of one hidden state exceed the
memory limit, `IncrementalPCA` and `MiniBatchKMeans` are used, and the result says so.

Needs scikit-learn (extra `casestudy`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.errors import UsageError

if TYPE_CHECKING:
    import xarray

_MEASURES = {
    "homogeneity": "share of label entropy that clusters explain: 1, every cluster has one label",
    "completeness": "share of cluster entropy that labels explain: 1, a label is in one cluster",
    "v_measure": "harmonic mean of homogeneity and completeness",
    "adjusted_rand": "adjusted Rand index: 1 equal partitions, 0 expected by chance",
}


@dataclass(frozen=True)
class ClusterSettings:
    """How to cluster.

    Attributes:
        n_components: principal components that k-means sees.
        n_clusters: clusters; None: as many as there are labels.
        n_scores: leading components whose scores are returned per window.
        n_init: random starts of k-means; the best is kept.
        seed: of k-means.
        memory: bytes that the float64 vectors of one hidden state may take.
        step: windows at a time in the incremental mode.
    """

    n_components: int = 50
    n_clusters: int | None = None
    n_scores: int = 2
    n_init: int = 10
    seed: int = 0
    memory: int = 2 * 2**30
    step: int = 4096


def cluster_layers(
    vectors: xarray.DataArray,
    labels: np.ndarray | None = None,
    settings: ClusterSettings | None = None,
) -> xarray.Dataset:
    """PCA, k-means and agreement with labels of every hidden state.

    Args:
        vectors: (window, hidden_state, hidden), read lazily; windows with missing values are
            left out.
        labels: (window,) codes, -1 for none; windows without a label are clustered, but not
            compared. None: nothing is compared.
        settings: see `ClusterSettings`.

    Returns:
        Dataset: explained_variance_ratio (hidden_state, component), inertia, homogeneity,
        completeness, v_measure, adjusted_rand (hidden_state), cluster (hidden_state, window;
        -1 for windows left out), score (hidden_state, window, score_component), and the
        attributes `method` ("exact" or "incremental"), n_clusters, n_windows, seed. A hidden
        state at which all vectors are equal is one cluster and has no components (NaN).

    Raises:
        UsageError: without scikit-learn, without labels and n_clusters, or with fewer windows
            than clusters.

    Example:
        >>> import bertgeom
        >>> from bertgeom.analysis.clustering import ClusterSettings, cluster_layers
        >>> ds = bertgeom.open("run.zarr")  # of a run with --keep cls
        >>> found = cluster_layers(ds.cls, ds.label_code.values, ClusterSettings(n_components=2))
        >>> found.homogeneity.sizes["hidden_state"]
        3
    """
    import xarray

    settings = settings or ClusterSettings()
    _require_scikit_learn()
    n_windows, n_states, hidden = vectors.shape
    codes = np.full(n_windows, -1) if labels is None else np.asarray(labels)
    there = _complete(vectors, settings.step)
    k = _n_clusters(codes[there], settings)
    components = min(settings.n_components, hidden, int(there.sum()))
    if there.sum() < max(k, 2):
        raise UsageError(f"expected at least {max(k, 2)} windows, found {there.sum()}")
    exact = int(there.sum()) * hidden * 8 <= settings.memory
    # A step of the incremental PCA needs as many rows as components.
    step = max(settings.step, components)
    states: list[dict[str, Any]] = []
    for state in range(n_states):
        rows = _Rows(vectors, state, there, step)
        ratio, scores, clusters, inertia = _fit(rows, components, k, settings, exact)
        states.append(
            {"explained_variance_ratio": ratio, "inertia": inertia}
            | {
                "cluster": _scatter(clusters, there, -1).astype(np.int32),
                "score": _scatter(scores[:, : settings.n_scores], there, np.nan),
            }
            | _agreement(codes[there], clusters)
        )
    dims: dict[str, tuple[str, ...]] = {
        "explained_variance_ratio": ("hidden_state", "component"),
        "cluster": ("hidden_state", "window"),
        "score": ("hidden_state", "window", "score_component"),
    }
    arrays: dict[str, Any] = {
        name: (
            dims.get(name, ("hidden_state",)),
            np.stack([s[name] for s in states]),
            {"units": "1", "description": _describe(name)},
        )
        for name in states[0]
    }
    return xarray.Dataset(
        arrays,
        coords={
            name: coord
            for name, coord in vectors.coords.items()
            if name == "hidden_state" or coord.dims == ("window",)
        },
        attrs={
            "method": "exact" if exact else "incremental",
            "n_clusters": k,
            "n_windows": int(there.sum()),
            "seed": settings.seed,
        },
    )


@dataclass(frozen=True)
class _Rows:
    """The vectors of one hidden state, all or in steps."""

    vectors: Any
    state: int
    there: np.ndarray
    step: int

    def steps(self) -> Iterator[np.ndarray]:
        """(b, hidden) float64 of at least `step` rows, or all rows if there are fewer."""
        waiting: list[np.ndarray] = []
        ready: np.ndarray | None = None
        for start in range(0, len(self.there), self.step):
            here = slice(start, start + self.step)
            rows = self.vectors[here, self.state].values[self.there[here]]
            waiting.append(rows.astype(np.float64))
            if sum(map(len, waiting)) >= self.step:
                if ready is not None:
                    yield ready
                ready, waiting = np.concatenate(waiting), []
        yield np.concatenate([*([] if ready is None else [ready]), *waiting])

    def all(self) -> np.ndarray:
        return np.concatenate(list(self.steps()))


Fit = tuple[np.ndarray, np.ndarray, np.ndarray, float]


def _fit(rows: _Rows, components: int, k: int, settings: ClusterSettings, exact: bool) -> Fit:
    if _is_constant(rows):
        # The first token's embedding is the same in every window: one cluster, no component.
        n = int(rows.there.sum())
        none = np.full(components, np.nan)
        return none, np.zeros((n, components)), np.zeros(n, np.int64), 0.0
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer distinct vectors than clusters leave some clusters empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return (_fit_exactly if exact else _fit_in_steps)(rows, components, k, settings)


def _is_constant(rows: _Rows) -> bool:
    first: np.ndarray | None = None
    for x in rows.steps():
        first = x[0] if first is None else first
        if (x != first).any():
            return False
    return True


def _fit_exactly(rows: _Rows, components: int, k: int, settings: ClusterSettings) -> Fit:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    x = rows.all()
    solver = "covariance_eigh" if x.shape[0] > x.shape[1] else "full"
    pca = PCA(components, svd_solver=solver)
    scores = pca.fit_transform(x)
    means = KMeans(k, n_init=settings.n_init, random_state=settings.seed).fit(scores)
    return pca.explained_variance_ratio_, scores, means.labels_, float(means.inertia_)


def _fit_in_steps(rows: _Rows, components: int, k: int, settings: ClusterSettings) -> Fit:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import IncrementalPCA

    pca = IncrementalPCA(components)
    for x in rows.steps():
        pca.partial_fit(x)
    scores = np.concatenate([pca.transform(x) for x in rows.steps()])
    means = MiniBatchKMeans(
        k, n_init=settings.n_init, random_state=settings.seed, batch_size=settings.step
    ).fit(scores)
    return pca.explained_variance_ratio_, scores, means.labels_, float(means.inertia_)


def _agreement(codes: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    from sklearn import metrics

    labelled = codes >= 0
    if not labelled.any():
        return dict.fromkeys(_MEASURES, np.nan)
    truth, found = codes[labelled], clusters[labelled]
    parts = metrics.homogeneity_completeness_v_measure(truth, found)
    return dict(zip(_MEASURES, (*parts, metrics.adjusted_rand_score(truth, found)), strict=True))


def _complete(vectors: xarray.DataArray, step: int) -> np.ndarray:
    """Windows whose vectors are all finite, (window,) bool."""
    parts = [
        np.isfinite(vectors[start : start + step].values).all(axis=(1, 2))
        for start in range(0, vectors.shape[0], step)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)


def _n_clusters(codes: np.ndarray, settings: ClusterSettings) -> int:
    if settings.n_clusters is not None:
        return settings.n_clusters
    n_labels = len(np.unique(codes[codes >= 0]))
    if n_labels == 0:
        raise UsageError(
            "expected labels or a number of clusters, found neither; give --labels or --clusters"
        )
    return n_labels


def _scatter(x: np.ndarray, there: np.ndarray, missing: float) -> np.ndarray:
    out = np.full((len(there), *x.shape[1:]), missing)
    out[there] = x
    return out


def _describe(name: str) -> str:
    return (
        _MEASURES.get(name)
        or {
            "explained_variance_ratio": "share of the variance along each principal component",
            "inertia": "sum of squared distances to the cluster centres, in the components",
            "cluster": "k-means cluster of the window, -1 if left out",
            "score": "leading principal component scores of the window",
        }[name]
    )


def _require_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UsageError(
            "expected scikit-learn for clustering, found none; "
            "pip install 'bertgeom[casestudy]' or scikit-learn"
        ) from None
