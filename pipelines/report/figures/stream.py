"""The information stream: summed rows, norms, dimensions, spectra."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bertgeom.pipelines.report.figures import style
from bertgeom.pipelines.report.figures.cones import station_labels
from bertgeom.pipelines.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style.drawn
def row_sums(summary: Summary) -> Figure:
    """Moments of the entries of sum_i x_i along the stations; reads `stream_rowsum_*`."""
    return _along(
        summary,
        (
            ("stream_rowsum_mean", "mean"),
            ("stream_rowsum_variance", "variance"),
            ("stream_rowsum_skewness", "skewness"),
            ("stream_rowsum_kurtosis", "excess kurtosis"),
        ),
    )


@style.drawn
def stream(summary: Summary) -> Figure:
    """Norms, outlier dimensions and participation ratio along the stations."""
    return _along(
        summary,
        (
            ("stream_norm_mean", "mean norm of a token"),
            ("stream_norm_max", "largest norm"),
            ("stream_outlier_dims", "outlier dimensions"),
            ("stream_participation_ratio", "participation ratio"),
        ),
    )


def _along(summary: Summary, wanted: tuple[tuple[str, str], ...]) -> Figure:
    figure = style.new_figure(8.6, 4.6)
    panels = list(figure.subplots(2, 2, sharex=True).flat)
    for axes, (name, label) in zip(panels, wanted, strict=True):
        mean, spread = summary.of(name), np.sqrt(summary.variance[name].values[0])
        x = np.arange(len(mean))
        axes.fill_between(x, mean - spread, mean + spread, color="#56b4e9", alpha=0.3, lw=0)
        axes.plot(x, mean, color=style.COHORTS[1], lw=1.6, marker="o", ms=3.5)
        axes.set_ylabel(label)
        if np.isfinite(mean).all() and np.ptp(mean) == 0 and not spread.any():
            axes.set_ylim(mean[0] - 0.5, mean[0] + 1)
        axes.grid(axis="y")
        names = station_labels(summary.names("station"))
        style.ticks(axes, "x", names, most=14, rotation=60, ha="right")
    return figure


@style.drawn
def spectra(summary: Summary) -> Figure:
    """Singular values of A, V, Z and Q K^T by layer, means over heads and sampled windows."""
    wanted = [
        ("attention_singular_values", "attention A"),
        ("value_singular_values", "values V"),
        ("head_singular_values", "head Z = A V"),
        ("logit_singular_values", "logits Q K^T"),
        ("output_singular_values", "layer output"),
    ]
    wanted = [entry for entry in wanted if entry[0] in summary.static]
    figure, panels = style.panels(len(wanted), columns=3, width=2.87, height=2.5)
    for axes, (name, label) in zip(panels, wanted, strict=True):
        array = summary.static[name]
        over = [d for d in ("sample", "head") if d in array.dims]
        values = np.asarray(array.mean(over, skipna=True))
        for layer, row in enumerate(values):
            share = row / row[0] if row[0] > 0 else row
            axes.semilogy(
                np.arange(1, len(row) + 1),
                np.clip(share, 1e-9, None),
                lw=1.1,
                color=_shade(layer, len(values)),
            )
        axes.set_title(label, loc="left")
        axes.set_xlabel("component")
        axes.grid(axis="y")
    figure.supylabel("singular value / largest", size=9)
    return figure


@style.drawn
def spectral_entropies(summary: Summary) -> Figure:
    """Entropies of spectra by layer: standard and the paper's; means over heads, windows."""
    static = summary.static
    figure = style.new_figure(8.6, 2.8)
    left, right = figure.subplots(1, 2)
    entropy = static["spectral_entropy"]
    names = (
        [str(n) for n in entropy.coords["spectrum"].values]
        if "spectrum" in entropy.coords
        else ["attention", "value", "head", "logit"]
    )
    values = np.asarray(entropy.mean(["sample", "head"], skipna=True))
    for i, name in enumerate(names):
        left.plot(values[:, i], color=style.COHORTS[i], marker=style.MARKERS[i], ms=4, label=name)
    left.set(ylabel="spectral entropy (nat)", xlabel="layer")
    for i, (name, label) in enumerate(
        (
            ("paper_von_neumann_entropy", "von Neumann, of Q K^T"),
            ("paper_shannon_entropy", "Shannon, of the weights"),
        )
    ):
        if name in static:
            mean = np.asarray(static[name].mean(["sample", "head"], skipna=True))
            right.plot(mean, color=style.COHORTS[i + 3], marker=style.MARKERS[i], label=label)
    right.set(ylabel="paper's entropies (nat)", xlabel="layer")
    for axes in (left, right):
        axes.legend()
        axes.grid(axis="y")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


#: Maps of the weights: array, label, limits, palette.
WEIGHT_MAPS: tuple[tuple[str, str, tuple[float, float] | None, str], ...] = (
    ("weight_symmetry", "symmetry", (-1, 1), style.DIVERGING),
    ("weight_directionality", "directionality", (-1, 1), style.DIVERGING),
    ("weight_effective_rank", "effective rank", None, style.SEQUENTIAL),
)


@style.drawn
def weights(summary: Summary) -> Figure:
    """Weights of every head: maps of `WEIGHT_MAPS`, and principal angles of its subspaces."""
    static = summary.static
    wanted = [entry for entry in WEIGHT_MAPS if entry[0] in static]
    cosines = "weight_subspace_cosines" in static
    figure, panels = style.panels(len(wanted) + cosines, columns=2, width=4.3, height=2.5)
    for axes, (name, label, limits, colours) in zip(panels, wanted, strict=False):
        values = np.asarray(static[name], dtype=np.float64)
        image = style.heat(figure, axes, values, label="", limits=limits, colours=colours)
        if values.shape[1] <= 6:
            style.write_numbers(axes, values, image)
        axes.set_title(label, loc="left")
        axes.set(xlabel="head", ylabel="layer")
    if cosines:
        angles = np.degrees(np.arccos(np.clip(np.asarray(static["weight_subspace_cosines"]), 0, 1)))
        for layer, rows in enumerate(angles):
            panels[-1].plot(
                np.arange(1, rows.shape[1] + 1),
                rows.mean(axis=0),
                color=_shade(layer, len(angles)),
                lw=1.2,
            )
        panels[-1].set_title("principal angles, mean over heads", loc="left")
        panels[-1].set(xlabel="component", ylabel="degrees", ylim=(0, 92))
        panels[-1].grid(axis="y")
    return figure


def _shade(i: int, n: int) -> tuple[float, ...]:
    from matplotlib import colormaps

    return colormaps["viridis"](0.12 + 0.76 * i / max(1, n - 1))
