"""What every head does: gates, reach, maps, profiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.kernels.arrays import Float64Array
from bertgeom.pipelines.report.figures import style
from bertgeom.pipelines.report.summary import ALL, Summary
from bertgeom.variables import GATE_MIXED, GATES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Lower limit of attention maps, in times the uniform share, on a logarithmic scale.
MAP_LEAST = 1 / 8


@style.drawn
def gate_map(summary: Summary, cohort: str = ALL) -> Figure:
    """Gate spectrum of every layer and head as a strip of eight colours; reads `gate_mass`.

    A strip that begins with the name of a gate is dominated by it: half of the mass or more.
    """
    mass = summary.of("gate_mass", cohort)
    n_layers, n_heads, _ = mass.shape
    height = 0.42 if n_heads <= 8 else 0.34
    figure = style.new_figure(8.6, 1.25 + height * n_layers)
    axes = figure.subplots()
    left = np.arange(n_heads)[None, :] - 0.46 + np.zeros((n_layers, 1))
    y = np.repeat(np.arange(n_layers), n_heads)
    for i, gate in enumerate(GATES):
        width = 0.92 * np.nan_to_num(mass[..., i])
        axes.barh(
            y,
            width.ravel(),
            0.8,
            left=left.ravel(),
            color=style.GATE_COLOURS[gate],
            linewidth=0,
            label=gate,
        )
        left = left + width
    if n_heads <= 8:
        _name_gates(axes, mass)
    axes.set(xlim=(-0.55, n_heads - 0.45), ylim=(n_layers - 0.5, -0.5))
    axes.set(xlabel="head", ylabel="layer")
    style.ticks(axes, "x", summary.names("head"))
    style.ticks(axes, "y", summary.names("layer"))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _legend_of_gates(figure, axes)
    return figure


def _legend_of_gates(figure: Figure, axes: Axes) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=8,
        handlelength=1.0,
        columnspacing=1.2,
    )


def _name_gates(axes: Axes, mass: np.ndarray) -> None:
    for layer, head in np.ndindex(mass.shape[:2]):
        code = dominant(mass[layer, head])
        if code == GATE_MIXED:
            continue
        start = head - 0.46 + 0.92 * float(mass[layer, head, :code].sum())
        share = float(mass[layer, head, code])
        dark = GATES[code] in ("closed", "open", "directional", "forward")
        axes.text(
            start + 0.46 * share,
            layer,
            GATES[code],
            ha="center",
            va="center",
            size=7.5,
            color="#ffffff" if dark else "#101418",
        )


def dominant(mass: np.ndarray) -> int:
    """Code of the gate that holds half of a mean spectrum (8,), `GATE_MIXED` if none does."""
    if not np.isfinite(mass).all() or mass.max() < 0.5:
        return GATE_MIXED
    return int(mass.argmax())


@style.drawn
def gate_layers(summary: Summary) -> Figure:
    """Mean gate spectrum of every layer, and of every cohort; reads `gate_mass`."""
    rows = [
        (f"layer {name}", summary.of("gate_mass")[i].mean(axis=0))
        for i, name in enumerate(summary.names("layer"))
    ]
    rows += [
        (style.shown(c), summary.of("gate_mass", c).mean(axis=(0, 1))) for c in summary.cohorts[:20]
    ]
    figure = style.new_figure(8.6, 1.0 + 0.27 * len(rows))
    axes = figure.subplots()
    masses = np.nan_to_num(np.stack([mass for _, mass in rows]))
    left = np.zeros(len(rows))
    for i, gate in enumerate(GATES):
        axes.barh(
            range(len(rows)),
            masses[:, i],
            0.78,
            left=left,
            linewidth=0,
            color=style.GATE_COLOURS[gate],
            label=gate,
        )
        left = left + masses[:, i]
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="share of the attention mass")
    axes.tick_params(axis="y", length=0)
    _legend_of_gates(figure, axes)
    return figure


#: Maps of layer x head: array, label of the colour bar, format of a printed value, limits.
MAPS: tuple[tuple[str, str, str, tuple[float, float] | None], ...] = (
    ("attention_entropy", "entropy (nat)", "{:.1f}", None),
    ("attention_k90_median", "k90, median row (tokens)", "{:.0f}", None),
    ("attention_distance", "distance (tokens)", "{:.0f}", None),
    ("attention_special", "mass on special tokens", "{:.2f}", (0, 1)),
    ("attention_confident_mass", "confident mass", "{:.2f}", (0, 1)),
    ("attention_received_max", "largest share received", "{:.2f}", None),
    ("attention_asymmetry", "attention asymmetry", "{:.2f}", (0, 1)),
    ("logit_asymmetry", "logit asymmetry", "{:.2f}", None),
    ("logit_effective_rank", "logit effective rank", "{:.1f}", None),
)


@style.drawn
def head_maps(summary: Summary, cohort: str = ALL) -> Figure:
    """Layer x head maps of those statistics of `MAPS` that the store holds."""
    wanted = [entry for entry in MAPS if summary.has(entry[0])]
    rows = len(summary.names("layer"))
    figure, panels = style.panels(
        len(wanted), columns=3, width=3.0, height=max(2.0, min(0.62 + 0.22 * rows, 4.4))
    )
    for axes, (name, label, form, limits) in zip(panels, wanted, strict=True):
        values = summary.of(name, cohort)
        image = style.heat(figure, axes, values, label="", limits=limits)
        axes.set_title(label, loc="left")
        if values.shape[1] <= 6:
            style.write_numbers(axes, values, image, form)
        axes.set(xlabel="head", ylabel="layer")
        style.ticks(axes, "x", summary.names("head"), most=12)
        style.ticks(axes, "y", summary.names("layer"), most=12)
    return figure


@style.drawn
def k90_violins(summary: Summary) -> Figure:
    """k90 of every head over the sampled windows, with its median; `attention_k90_median`."""
    values = np.asarray(summary.sample["attention_k90_median"], dtype=np.float64)
    n_layers, n_heads = values.shape[1:]
    columns = 2 if n_heads <= 6 else 1
    figure, panels = style.panels(
        n_layers, columns=columns, width=8.6 / columns, height=1.75, sharey=True
    )
    for layer, axes in enumerate(panels):
        data = [_finite(values[:, layer, head]) for head in range(n_heads)]
        shown = [head for head in range(n_heads) if len(data[head])]
        if shown:
            parts: Any = axes.violinplot(
                [data[h] for h in shown], shown, points=48, widths=0.84, showextrema=False
            )
            for body in parts["bodies"]:
                body.set(facecolor="#56b4e9", edgecolor="none", alpha=0.75)
        for head in shown:
            median = float(np.median(data[head]))
            axes.plot([head - 0.3, head + 0.3], [median] * 2, color=style.TEXT, lw=1.4)
            if n_heads <= 12:
                axes.annotate(
                    f"{median:.0f}",
                    (head, median),
                    (0, 2),
                    size=7,
                    ha="center",
                    textcoords="offset points",
                )
        axes.set_title(f"layer {summary.names('layer')[layer]}", loc="left")
        style.ticks(axes, "x", summary.names("head"))
        axes.set(xlim=(-0.6, n_heads - 0.4), ylim=(0, None))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    figure.supxlabel("head", size=9)
    figure.supylabel("k90 (tokens)", size=9)
    return figure


def _finite(values: Float64Array) -> Float64Array:
    return values[np.isfinite(values)]


@style.drawn
def block_maps(summary: Summary, cohort: str = ALL) -> Figure:
    """Mean attention map of every head in 16 x 16 stretches; reads `block_map`.

    Query positions run down, key positions to the right; layers are rows, heads columns.
    """
    return _montage(summary.of("block_map", cohort), summary.names("layer"), summary.names("head"))


def _montage(maps: np.ndarray, layers: Sequence[str], heads: Sequence[str]) -> Figure:
    from matplotlib.colors import LogNorm

    n_layers, n_heads, g, _ = maps.shape
    limits = MAP_LEAST, upper_limit(maps * g * g)
    step = g + 2
    width = 8.6 if n_heads > 6 else min(8.6, 1.4 + 1.5 * n_heads)
    figure = style.new_figure(width, 0.6 + (width - 1.2) * n_layers / n_heads)
    axes = figure.subplots()
    for layer, head in np.ndindex(n_layers, n_heads):
        x, y = head * step, layer * step
        image = axes.imshow(
            np.clip(maps[layer, head] * g * g, *limits),
            cmap=style.SEQUENTIAL,
            norm=LogNorm(*limits),
            interpolation="none",
            extent=(x - 0.5, x + g - 0.5, y + g - 0.5, y - 0.5),
        )
    axes.set(xlim=(-0.5, n_heads * step - 2.5), ylim=(n_layers * step - 2.5, -0.5))
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    style.bar(figure, image, axes, "times the uniform share")
    axes.set_aspect("equal")
    axes.set_xticks(np.arange(n_heads) * step + g / 2 - 0.5, heads)
    axes.set_yticks(np.arange(n_layers) * step + g / 2 - 0.5, layers)
    axes.set(xlabel="head (key positions to the right)", ylabel="layer (query positions down)")
    # Equal scales change the place of the labels, which the layout sees when drawn once more.
    figure.draw_without_rendering()
    return figure


def upper_limit(times: np.ndarray) -> float:
    """The power of two, from 4 on, that holds all multiples of the uniform share."""
    largest = float(np.nanmax(times, initial=4.0))
    return float(2 ** np.ceil(np.log2(max(largest, 4.0))))


@style.drawn
def block_map_differences(summary: Summary, cohorts: Sequence[str], most: int = 3) -> Figure:
    """For every cohort, the heads whose mean map differs most from that of all windows.

    Differences of mean mass in thousandths; the `most` largest by sum of absolute values.
    """
    whole = summary.of("block_map")
    found = []
    for cohort in cohorts:
        difference = summary.of("block_map", cohort) - whole
        size = np.abs(difference).sum(axis=(-2, -1))
        for flat in np.argsort(-np.nan_to_num(size), axis=None, kind="stable")[:most]:
            layer, head = np.unravel_index(flat, size.shape)
            found.append((cohort, int(layer), int(head), 1000 * difference[layer, head]))
    limit = max((float(np.nanmax(np.abs(d))) for *_, d in found), default=1.0) or 1.0
    columns = most * (2 if most <= 3 else 1)
    figure, panels = style.panels(len(found), columns=columns, width=8.6 / columns, height=1.62)
    for axes, (cohort, layer, head, difference) in zip(panels, found, strict=True):
        image = axes.imshow(
            difference, cmap=style.DIVERGING, vmin=-limit, vmax=limit, interpolation="none"
        )
        axes.set_title(f"{style.shown(cohort, 12)}, {layer}.{head}", size=8)
        axes.set(xticks=[], yticks=[])
    style.bar(figure, image, panels, "difference of mass (1/1000)")
    return figure


@style.drawn
def offset_profiles(summary: Summary, cohort: str = ALL) -> Figure:
    """Attention mass by signed offset of every head; reads `attention_offset_profile`."""
    from matplotlib.colors import LogNorm

    profile = summary.of("attention_offset_profile", cohort)
    n_layers, n_heads, n_bins = profile.shape
    rows = np.clip(profile.reshape(n_layers * n_heads, n_bins), 1e-4, 1)
    figure = style.new_figure(8.6, max(2.6, min(9.0, 1.1 + 0.17 * len(rows))))
    axes = figure.subplots()
    style.heat(figure, axes, rows, label="share of the mass", norm=LogNorm(1e-4, 1))
    style.ticks(axes, "x", summary.names("offset"), rotation=60, ha="right")
    names = [
        f"{layer}.{head}" for layer in summary.names("layer") for head in summary.names("head")
    ]
    style.ticks(axes, "y", names, most=48 if len(names) <= 48 else 24)
    for layer in range(1, n_layers):
        axes.axhline(layer * n_heads - 0.5, color="#ffffff", lw=1.2)
    axes.set(xlabel="offset of the key from the query (tokens)", ylabel="layer.head")
    return figure
