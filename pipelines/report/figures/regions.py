"""Attention on token groups: annotated regions, protein domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertgeom.kernels.arrays import Float64Array
from bertgeom.pipelines.report.figures import style
from bertgeom.pipelines.report.summary import ALL, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style.drawn
def group_mass(summary: Summary, share: np.ndarray | None = None, cohort: str = ALL) -> Figure:
    """Attention on every group by layer and head; reads `attention_group_mass`.

    Args:
        share: (groups,) share of the tokens in every group; masses are divided by it.
    """
    return heat_of_regions(
        summary.of("attention_group_mass", cohort),
        share,
        summary.names("group"),
        summary.names("layer"),
        summary.names("head"),
    )


@style.drawn
def heat_of_regions(
    mass: np.ndarray,
    share: np.ndarray | None,
    groups: Sequence[str],
    layers: Sequence[str],
    heads: Sequence[str],
) -> Figure:
    """Masses (layers, heads, groups), or their ratio to `share` (groups,), as a heat map."""
    rows = mass.reshape(-1, mass.shape[-1])
    names = [f"{a}.{b}" for a in layers for b in heads]
    figure = style.new_figure(8.6, max(2.6, min(9.0, 1.2 + 0.2 * len(rows))))
    axes = figure.subplots()
    if share is None:
        style.heat(figure, axes, rows, label="attention mass", limits=(0, None))
    else:
        with np.errstate(divide="ignore"):
            ratio = np.log2(rows / np.where(share > 0, share, np.nan))
        style.heat(
            figure,
            axes,
            ratio,
            label="mass / share of tokens (log2)",
            colours=style.DIVERGING,
            limits=(-3, 3),
        )
    style.ticks(axes, "x", [style.shown(g, 18) for g in groups], rotation=40, ha="right")
    style.ticks(axes, "y", names, most=48 if len(names) <= 48 else 24)
    for layer in range(1, len(layers)):
        axes.axhline(layer * len(heads) - 0.5, color="#ffffff", lw=1.2)
    axes.set(ylabel="layer.head")
    return figure


@style.drawn
def proportions(
    names: Sequence[str], values: Mapping[str, np.ndarray], share: np.ndarray
) -> Figure:
    """The paper's domain proportions over a region's share of tokens, one dot a head.

    Args:
        names: of the regions.
        values: by proportion, (layers, heads, regions).
        share: (regions,) share of the tokens.
    """
    figure = style.new_figure(8.6, 3.4)
    axes = figure.subplots()
    places = np.arange(len(names))
    width = 0.8 / max(1, len(values))
    for i, (label, array) in enumerate(values.items()):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = array.reshape(-1, len(names)) / share
        x = places - 0.4 + width * (i + 0.5)
        spread = np.linspace(-0.3, 0.3, len(ratio)) * width
        axes.scatter(
            (x + spread[:, None]).ravel(),
            ratio.ravel(),
            s=12,
            lw=0,
            alpha=0.75,
            color=style.COHORTS[i],
            marker=style.MARKERS[i],
            label=label,
        )
        middle = np.nanmedian(np.where(np.isfinite(ratio), ratio, np.nan), axis=0)
        axes.hlines(middle, x - 0.42 * width, x + 0.42 * width, color=style.TEXT, lw=1.4)
    axes.axhline(1, color=style.FAINT, ls="--", lw=1)
    axes.set_yscale("symlog", linthresh=0.5, base=2)
    axes.set_yticks([0, 0.25, 0.5, 1, 2, 4, 8, 16], ["0", "1/4", "1/2", "1", "2", "4", "8", "16"])
    axes.set_xticks(places, [style.shown(n, 14) for n in names])
    axes.set(ylabel="times its share of the tokens", ylim=(-0.08, None))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


@style.drawn
def track(
    position: np.ndarray,
    lines: Mapping[str, np.ndarray],
    regions: Sequence[tuple[str, float, float]],
    *,
    label: str,
    axis: str,
) -> Figure:
    """Values along a sequence, one line a panel, with named regions below.

    Args:
        position: (n,) places along the sequence.
        lines: by name, (n,).
        regions: name, first and last place.
    """
    figure = style.new_figure(8.6, 0.9 + 0.95 * len(lines))
    panels = figure.subplots(
        len(lines) + 1, 1, sharex=True, squeeze=False, height_ratios=[3] * len(lines) + [1.2]
    )[:, 0]
    top = max((float(np.nanmax(v)) for v in lines.values()), default=1.0)
    for i, (axes, (name, values)) in enumerate(zip(panels, lines.items(), strict=False)):
        axes.fill_between(position, values, color=style.COHORTS[i % 10], lw=0, alpha=0.85)
        axes.axhline(1, color=style.FAINT, lw=0.7, ls="--")
        axes.set_title(style.shown(name, 60), loc="left", size=8.5)
        axes.set_yscale("function", functions=(_root, np.square))
        axes.set(ylim=(0, top * 1.02), yticks=_root_ticks(top))
    band = panels[-1]
    for i, (name, first, last) in enumerate(regions):
        row = i % 2
        band.barh(
            row, last - first, 0.86, left=first, color=style.COHORTS[(i * 3) % 10], lw=0, alpha=0.55
        )
        band.text((first + last) / 2, row, name, ha="center", va="center", size=7)
    band.set(ylim=(1.6, -0.6), yticks=[], xlabel=axis)
    for spine in band.spines.values():
        spine.set_visible(False)
    figure.supylabel(label, size=9)
    return figure


def _root(values: Float64Array) -> Float64Array:
    return np.sqrt(np.maximum(values, 0.0))


def _root_ticks(top: float) -> list[float]:
    """0, 1 and two larger round values for a square root scale."""
    round_values = [k * 10.0**e for e in range(-1, 5) for k in (1, 2, 5)]
    most = max((v for v in round_values if v <= top), default=1.0)
    middle = max((v for v in round_values if v <= most / 3.5), default=1.0)
    return sorted({0.0, 1.0, middle, most})
