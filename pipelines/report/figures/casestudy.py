"""Figures of the case study alone: answers, confidence, one exact map, few positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.pipelines.report.figures import style
from bertgeom.pipelines.report.figures.heads import MAP_LEAST, upper_limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Pixels of an exact map in a figure, at most.
_PIXELS = 128


@style.drawn
def confusion(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Counts (rows = true class, columns = answer), coloured by the share of the row."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.where(total > 0, total, np.nan)
    figure = style.new_figure(min(8.6, 2.6 + 0.56 * len(columns)), 1.3 + 0.36 * len(rows))
    axes = figure.subplots()
    image = style.heat(figure, axes, share, label="share of the true class", limits=(0, 1))
    for (i, j), n in np.ndenumerate(counts):
        if n:
            red, green, blue, _ = image.cmap(image.norm(share[i, j]))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            axes.text(
                j,
                i,
                f"{n:.0f}",
                ha="center",
                va="center",
                size=8,
                color="#ffffff" if dark else "#101418",
            )
    style.ticks(axes, "x", [style.shown(c, 14) for c in columns], rotation=45, ha="right")
    style.ticks(axes, "y", [style.shown(r, 14) for r in rows])
    axes.set(xlabel="answer", ylabel="true class")
    return figure


@style.drawn
def reliability(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Accuracy against confidence by bin; the area of a dot is the number of genomes."""
    figure = style.new_figure(4.6, 3.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=style.FAINT, lw=1, ls="--")
    x = [row["confidence"] for row in rows]
    y = [row["accuracy"] for row in rows]
    size = np.sqrt(np.array([row["n"] for row in rows], dtype=np.float64))
    axes.scatter(
        x,
        y,
        s=18 + 300 * size / max(float(size.max(initial=1)), 1),
        lw=0,
        alpha=0.7,
        color=style.COHORTS[1],
    )
    for row, a, b in zip(rows, x, y, strict=True):
        axes.annotate(f"{row['n']:.0f}", (a, b), ha="center", va="center", size=7)
    axes.set(xlim=(0, 1.05), ylim=(-0.05, 1.08), xlabel="confidence", ylabel="share correct")
    axes.grid()
    axes.set_axisbelow(True)
    return figure


@style.drawn
def exact_maps(maps: np.ndarray, places: np.ndarray, columns: int = 4) -> Figure:
    """Exact attention maps (k, n, n) of one window, layer.head above each.

    Maps wider than 128 tokens are reduced; a pixel shows the largest weight of its tokens.
    """
    from matplotlib.colors import LogNorm

    n = maps.shape[-1]
    times = np.stack([_largest(np.asarray(m, dtype=np.float64)) for m in maps]) * n
    limits = MAP_LEAST, upper_limit(times)
    figure, panels = style.panels(len(maps), columns=columns, width=8.6 / columns, height=2.15)
    for axes, one, (layer, head) in zip(panels, times, places, strict=True):
        image = axes.imshow(
            np.clip(one, *limits),
            cmap=style.SEQUENTIAL,
            norm=LogNorm(*limits),
            interpolation="none",
            extent=(0, n, n, 0),
        )
        axes.set_title(f"{layer}.{head}", loc="left", size=8.5)
        axes.set(xticks=[0, n], yticks=[0, n])
        axes.tick_params(length=0, labelsize=7)
        for spine in axes.spines.values():
            spine.set_visible(False)
    style.bar(figure, image, panels, "times the uniform weight")
    return figure


def _largest(map_: np.ndarray) -> np.ndarray:
    n = map_.shape[0]
    step = -(-n // _PIXELS)
    edges = np.arange(0, n, step)
    return np.maximum.reduceat(np.maximum.reduceat(map_, edges, axis=0), edges, axis=1)


@style.drawn
def few_positions(found: Sequence[Mapping[str, Any]]) -> Figure:
    """F1 of every class from few token positions, one panel a way of choosing them."""
    ways = list(dict.fromkeys(one["by"] for one in found))
    names = list(dict.fromkeys(one["name"] for one in found))
    splits = sorted({one["splits"] for one in found})
    figure, panels = style.panels(len(ways), columns=2, width=4.3, height=3.3, sharey=True)
    for axes, way in zip(panels, ways, strict=True):
        for i, name in enumerate(names):
            f1 = {
                one["splits"]: one["f1"]
                for one in found
                if one["by"] == way and one["name"] == name
            }
            axes.plot(
                range(len(splits)),
                [f1.get(s, np.nan) for s in splits],
                ms=4.5,
                lw=1.1,
                color=style.COHORTS[i % 10],
                marker=style.MARKERS[i % 10],
                label=style.shown(name, 16),
            )
        axes.set_title(
            {"tokens": "any position", "attention": "where attention differs most"}.get(way, way),
            loc="left",
        )
        axes.set_xticks(range(len(splits)), [str(s) for s in splits])
        axes.set(xlabel="token positions, at most", ylim=(-0.03, 1.03))
        axes.grid(axis="y")
    panels[0].set_ylabel("F1, cross-validated")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure
