"""How the cone of token vectors opens and closes along the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bertgeom.pipelines.report.figures import style
from bertgeom.pipelines.report.summary import ALL, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def station_labels(names: list[str]) -> list[str]:
    """Short names of stations: embedding, att 0, out 0, ..."""
    return [n.replace("attention_", "att ").replace("output_", "out ") for n in names]


@style.drawn
def cone_stations(summary: Summary) -> Figure:
    """Cone along the stations: index against its isotropic baseline, and angles to the axis.

    Reads `cone_index`, `cone_axis_angle_mean`, `cone_axis_angle_max`; the band is one
    standard deviation over windows.
    """
    figure = style.new_figure(8.6, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    x = np.arange(len(summary.names("station")))
    _cohort_lines(upper, summary, "cone_index")
    n = summary.counts.tokens_median
    if np.isfinite(n):
        upper.axhline(
            np.sqrt(n), color=style.FAINT, lw=1, ls="--", label="isotropic, about sqrt(n)"
        )
        upper.axhline(n, color=style.FAINT, lw=1, ls=":", label="all parallel, n tokens")
    upper.set(ylabel="cone index", ylim=(0, None))
    for name, label, dash in (
        ("cone_axis_angle_max", "half-angle of the cone (largest)", "--"),
        ("cone_axis_angle_mean", "mean angle to the axis", "-"),
    ):
        mean, spread = summary.of(name), np.sqrt(summary.variance[name].values[0])
        lower.fill_between(x, mean - spread, mean + spread, color="#56b4e9", alpha=0.25, lw=0)
        lower.plot(x, mean, dash, color=style.TEXT, lw=1.4, label=label)
    lower.set(ylabel="angle to the axis (degrees)", ylim=(0, None))
    for axes in (upper, lower):
        axes.grid(axis="y")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    style.ticks(lower, "x", station_labels(summary.names("station")), rotation=60, ha="right")
    return figure


def _cohort_lines(axes: Axes, summary: Summary, name: str) -> None:
    mean, spread = summary.of(name), np.sqrt(summary.variance[name].values[0])
    x = np.arange(len(mean))
    axes.fill_between(x, mean - spread, mean + spread, color=style.GRID, alpha=0.6, lw=0)
    for i, cohort in enumerate(summary.cohorts[:10]):
        axes.plot(
            x,
            summary.of(name, cohort),
            color=style.COHORTS[i],
            lw=1.1,
            ms=3.6,
            marker=style.MARKERS[i],
            label=style.shown(cohort, 20),
        )
    axes.plot(x, mean, color=style.TEXT, lw=1.8, label=ALL)


@style.drawn
def cone_of_window(summary: Summary, row: int = 0) -> Figure:
    """Cone index of one window along the stations, between its two bounds; `cone_index`."""
    values = np.asarray(summary.sample["cone_index"][row], dtype=np.float64)
    figure = style.new_figure(8.6, 2.6)
    axes = figure.subplots()
    x = np.arange(len(values))
    axes.plot(x, values, color=style.COHORTS[1], marker="o", ms=4, lw=1.6)
    if "n_tokens" in summary.sample:
        n = float(summary.sample["n_tokens"][row])
        axes.axhline(np.sqrt(n), color=style.FAINT, lw=1, ls="--")
        axes.axhline(n, color=style.FAINT, lw=1, ls=":")
        axes.annotate(
            "isotropic, about sqrt(n)",
            (x[-1], np.sqrt(n)),
            (0, 3),
            textcoords="offset points",
            size=8,
            ha="right",
            color=style.FAINT,
        )
        axes.annotate(
            f"all parallel, n = {n:.0f}",
            (x[-1], n),
            (0, -11),
            textcoords="offset points",
            size=8,
            ha="right",
            color=style.FAINT,
        )
    style.ticks(axes, "x", station_labels(summary.names("station")), rotation=60, ha="right")
    axes.set(ylabel="cone index", ylim=(0, None))
    axes.grid(axis="y")
    return figure


@style.drawn
def angle_histograms(summary: Summary, cohort: str = ALL) -> Figure:
    """Share of token pairs by angle at every station; `angle_histogram`, `angle_mean`."""
    counts = summary.of("angle_histogram", cohort)
    total = counts.sum(axis=1, keepdims=True)
    share = 100 * counts / np.where(total > 0, total, np.nan) / 2
    names = station_labels(summary.names("angle_station"))
    figure = style.new_figure(8.6, max(2.4, min(1.2 + 0.3 * len(names), 8)))
    axes = figure.subplots()
    image = axes.imshow(
        share,
        cmap=style.SEQUENTIAL,
        aspect="auto",
        interpolation="none",
        extent=(0, 180, len(names) - 0.5, -0.5),
        vmin=0,
    )
    style.bar(figure, image, axes, "% of pairs per degree")
    axes.plot(
        summary.of("angle_mean", cohort),
        range(len(names)),
        color="#ffffff",
        lw=1.2,
        marker="o",
        ms=4,
        mec="#101418",
        label="mean angle",
    )
    style.ticks(axes, "y", names, most=40)
    axes.set(xlabel="angle between two token vectors (degrees)", xlim=(0, 180))
    axes.set_xticks(range(0, 181, 30))
    axes.tick_params(length=0)
    return figure


@style.drawn
def head_cones(summary: Summary, cohort: str = ALL) -> Figure:
    """Mean cosine at every step of a layer: query, key, value, head, multi-head, layer.

    Reads `head_cone_mean_cosine` (one dot a head) and `cone_mean_cosine`.
    """
    inside = summary.of("head_cone_mean_cosine", cohort)
    along = summary.of("cone_mean_cosine", cohort)
    n_layers, n_heads, _ = inside.shape
    steps = ["in", "query", "key", "value", "head", "att", "out"]
    figure, panels = style.panels(
        n_layers, columns=min(4, n_layers), width=8.6 / min(4, n_layers), height=2.15, sharey=True
    )
    jitter = np.linspace(-0.22, 0.22, n_heads) if n_heads > 1 else np.zeros(1)
    for layer, axes in enumerate(panels):
        values = inside[layer]
        for station in range(values.shape[1]):
            axes.scatter(
                station + 1 + jitter,
                values[:, station],
                s=11,
                lw=0,
                color=style.COHORTS[(4, 4, 4, 0)[station % 4]],
            )
        axes.plot([0, 5, 6], along[2 * layer : 2 * layer + 3], "s", color=style.COHORTS[1], ms=5)
        middle = [along[2 * layer], *values.mean(axis=0), *along[2 * layer + 1 : 2 * layer + 3]]
        axes.plot(range(7), middle, color=style.FAINT, lw=0.9, zorder=0)
        axes.set_title(f"layer {summary.names('layer')[layer]}", loc="left")
        axes.set_xticks(range(7), steps, rotation=60, ha="right")
        axes.set(xlim=(-0.5, 6.5))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    figure.supylabel("mean cosine of token pairs", size=9)
    return figure
