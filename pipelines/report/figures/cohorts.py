"""How labelled cohorts differ: [CLS] by layer, clustering scores, effect sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from bertgeom.analysis.cohorts import Moments
from bertgeom.analysis.contrasts import rounding, welch
from bertgeom.pipelines.report.figures import style
from bertgeom.pipelines.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Agreement of clusters with labels, and how a small panel names it.
SCORES = {"homogeneity": "h", "completeness": "c", "adjusted_rand": "ARI"}


@dataclass(frozen=True, eq=False)
class Plane:
    """Vectors of one station on their first two principal axes.

    Attributes:
        name: of the station.
        points: (S, 2) float64.
        explained: shares of the variance of the two axes.
        scores: homogeneity, completeness, ARI of k-means against the labels, if computed.
    """

    name: str
    points: np.ndarray
    explained: tuple[float, float]
    scores: Mapping[str, float] | None = None


def plane(name: str, vectors: np.ndarray, scores: Mapping[str, float] | None = None) -> Plane:
    """The first two principal axes of (S, D) vectors; the largest loading of each is positive."""
    x = np.asarray(vectors, dtype=np.float64)
    x = x - x.mean(axis=0)
    _, s, axes = np.linalg.svd(x, full_matrices=False)
    axes = (
        axes[:2] * np.sign(axes[np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    )
    points = np.zeros((len(x), 2))
    points[:, : len(axes)] = x @ axes.T
    total = float((s**2).sum()) or 1.0
    first, second = (*(s[:2] ** 2 / total), 0.0, 0.0)[:2]
    return Plane(name, points, (float(first), float(second)), scores)


@style.drawn
def planes(found: Sequence[Plane], codes: np.ndarray, cohorts: Sequence[str]) -> Figure:
    """Scatter plots of principal planes, one a station, coloured by cohort."""
    columns = 2 if len(found) == 4 else min(3, len(found))
    figure, panels = style.panels(
        len(found), columns=columns, width=8.6 / columns, height=8.0 / columns
    )
    for axes, one in zip(panels, found, strict=True):
        _scatter(axes, one.points, codes, cohorts)
        title = one.name.replace("output_", "after layer ")
        if one.scores:
            title += "\n" + ", ".join(f"{k} {one.scores[n]:.2f}" for n, k in SCORES.items())
        axes.set_title(title, loc="left", size=8.5)
        axes.set_xlabel(f"axis 1 ({one.explained[0]:.0%})", size=8)
        axes.set_ylabel(f"axis 2 ({one.explained[1]:.0%})", size=8)
        axes.set(xticks=[], yticks=[])
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=5, markerscale=1.6)
    return figure


def _scatter(axes: Axes, points: np.ndarray, codes: np.ndarray, cohorts: Sequence[str]) -> None:
    free = codes < 0
    if free.any():
        axes.scatter(points[free, 0], points[free, 1], s=7, color=style.GRID, lw=0, rasterized=True)
    for i, cohort in enumerate(cohorts):
        here = codes == i
        if here.any():
            axes.scatter(
                points[here, 0],
                points[here, 1],
                s=12,
                color=style.COHORTS[i % len(style.COHORTS)],
                marker=style.MARKERS[i % len(style.MARKERS)],
                lw=0,
                alpha=0.8,
                label=style.shown(cohort, 20),
                rasterized=len(points) > 800,
            )


@style.drawn
def scores(found: Sequence[Plane]) -> Figure:
    """Homogeneity, completeness and adjusted Rand index of k-means by station."""
    figure = style.new_figure(8.6, 2.6)
    axes = figure.subplots()
    for i, name in enumerate(SCORES):
        values = [one.scores[name] if one.scores else np.nan for one in found]
        axes.plot(
            values,
            color=style.COHORTS[i],
            marker=style.MARKERS[i],
            ms=5,
            label="adjusted Rand index" if name == "adjusted_rand" else name,
        )
    names = [one.name.replace("output_", "after layer ") for one in found]
    style.ticks(axes, "x", names, rotation=30 if len(names) > 6 else 0)
    axes.set(ylim=(min(0.0, axes.get_ylim()[0]), 1.02), ylabel="score")
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@style.drawn
def effects(summary: Summary, statistic: str = "attention_entropy") -> Figure:
    """Cohen's d of a head statistic, every cohort against all other labelled windows."""
    values = cohens_d(summary, statistic)
    flat = values.reshape(len(values), -1)
    names = [f"{a}.{b}" for a in summary.names("layer") for b in summary.names("head")]
    figure = style.new_figure(8.6, 1.3 + 0.26 * len(flat))
    axes = figure.subplots()
    limit = min(5.0, float(np.nanmax(np.abs(flat), initial=0.1))) or 0.1
    style.heat(
        figure, axes, flat, label="Cohen's d", colours=style.DIVERGING, limits=(-limit, limit)
    )
    style.ticks(axes, "y", [style.shown(c, 20) for c in summary.cohorts])
    style.ticks(axes, "x", names, most=36, rotation=90)
    axes.set(xlabel="layer.head")
    return figure


def cohens_d(summary: Summary, statistic: str) -> np.ndarray:
    """(mean of a cohort - mean of the other labelled ones) / pooled standard deviation, by cohort.

    Records or windows count once, as `summary.unit` says. NaN where either side has fewer than
    2 of them, or where nothing but rounding varies.
    """
    moments = summary.effects[statistic]
    rows = [_row(moments, i) for i in range(len(summary.cohorts))]
    none = Moments.none(moments.count.shape[1:])
    # All in front of a cohort and all behind it, so that very many cohorts take no longer each.
    front = list(accumulate(rows, Moments.merge, initial=none))
    back = list(accumulate(reversed(rows), Moments.merge, initial=none))[::-1]
    dtype = str(summary.attributes.get("dtype", "float32"))
    found = []
    for i, own in enumerate(rows):
        rest = front[i].merge(back[i + 1])
        both = Moments(
            *(np.stack([getattr(own, p), getattr(rest, p)]) for p in ("count", "mean", "m2"))
        )
        found.append(welch(both, 0, 1, rounding(statistic, both, dtype))["cohens_d"])
    return np.stack(found)


def _row(moments: Moments, index: int) -> Moments:
    return Moments(moments.count[index], moments.mean[index], moments.m2[index])
