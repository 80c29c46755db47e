"""What the heads do: gates, reach, attention on regions."""

from __future__ import annotations

import numpy as np

from bertgeom.pipelines.report.figures import heads, regions
from bertgeom.pipelines.report.page import (
    Html,
    Page,
    bullets,
    details,
    join,
    paragraph,
    table,
)
from bertgeom.pipelines.report.summary import Summary
from bertgeom.variables import GATE_MIXED, GATES

GATE_MEANING = {
    "closed": "special tokens: the head does nothing here",
    "open": "the token itself: content passes as it is",
    "backward": "a few tokens back",
    "forward": "a few tokens ahead",
    "directional": "a few far tokens that everybody looks at",
    "instance": "single far tokens, with a weight of theta or more",
    "cluster": "far tokens in the same stretch of the sequence",
    "diffuse": "the rest, spread out",
}


def gates(page: Page, summary: Summary) -> Html:
    """What kind of pattern every head has."""
    if not summary.has("gate_mass"):
        return Html()
    mass = summary.of("gate_mass")
    n = mass.shape[0] * mass.shape[1]
    found = [heads.dominant(one) for one in mass.reshape(n, -1)]
    counts = [
        f"{found.count(code)} {name}"
        for code, name in enumerate((*GATES, "mixed"))
        if code in found
    ]
    spoken = ", ".join(counts)
    parts: list[object] = [
        paragraph(
            "A head is described by where its attention goes: eight shares that sum to 1, the "
            "gate spectrum. One gate dominates where it holds half of the mass. "
            + (f"Of {n} heads: {spoken}." if np.isfinite(mass).any() else "Nothing was measured.")
        ),
        bullets(join([Html(f"<b>{gate}</b>: "), GATE_MEANING[gate]]) for gate in GATES),
        page.figure(
            heads.gate_map(summary),
            "Gate map",
            "One strip for every head; the length of a colour is the mean share of the attention "
            "mass that goes through this gate, over all windows.",
            ["gate_mass"],
            f"Grid of layers by heads with the mean gate spectrum of each head; {spoken}.",
        ),
        page.figure(
            heads.gate_layers(summary),
            "Gates by layer" + (" and cohort" if summary.cohorts else ""),
            "Mean gate spectrum over the heads of a layer"
            + (", and over all heads for the windows of a cohort." if summary.cohorts else "."),
            ["gate_mass"],
            "Stacked bars of the eight gate shares, one for each layer: "
            + "; ".join(_layer_gate(summary, i) for i in range(mass.shape[0]))
            + ".",
        ),
        details("All heads in numbers", head_table(summary)),
    ]
    return join(parts)


def _layer_gate(summary: Summary, layer: int) -> str:
    mean = summary.of("gate_mass")[layer].mean(axis=0)
    code = int(np.nan_to_num(mean).argmax())
    return f"layer {summary.names('layer')[layer]} mostly {GATES[code]} ({mean[code]:.0%})"


def head_table(summary: Summary) -> Html:
    """One row a head: gate and key statistics."""
    columns = [
        ("attention_entropy", "entropy (nat)", "{:.3f}"),
        ("attention_k90_median", "k90 (tokens)", "{:.1f}"),
        ("attention_distance", "distance (tokens)", "{:.1f}"),
        ("attention_special", "on special tokens", "{:.3f}"),
        ("attention_received_max", "largest share received", "{:.3f}"),
        ("logit_effective_rank", "logit effective rank", "{:.2f}"),
    ]
    columns = [entry for entry in columns if summary.has(entry[0])]
    mass = summary.of("gate_mass")
    values = {name: summary.of(name) for name, _, _ in columns}
    rows = []
    for layer, head in np.ndindex(mass.shape[:2]):
        top = int(np.nan_to_num(mass[layer, head]).argmax())
        code = heads.dominant(mass[layer, head])
        label = "mixed" if code == GATE_MIXED else GATES[code]
        rows.append(
            [
                f"{summary.names('layer')[layer]}.{summary.names('head')[head]}",
                label,
                f"{GATES[top]} {mass[layer, head, top]:.1%}",
                *(form.format(values[name][layer, head]) for name, _, form in columns),
            ]
        )
    return table(
        "Means over all windows, by layer and head.",
        ["layer.head", "gate", "largest share", *(label for _, label, _ in columns)],
        rows,
        text=3,
    )


def reach(page: Page, summary: Summary) -> Html:
    """How far and how broadly heads look."""
    if not summary.has("attention_entropy"):
        return Html()
    parts: list[object] = [paragraph(_reach_sentence(summary))]
    shown = [name for name, *_ in heads.MAPS if summary.has(name)]
    parts.append(
        page.figure(
            heads.head_maps(summary),
            "Heads by layer",
            "Means over all windows. Entropy and k90 say how broadly a head looks, distance "
            "how far, "
            "special-token mass how often it does nothing; asymmetry 0 means that tokens look at "
            "each other mutually, 1 that looks are not returned.",
            shown,
            "Heat maps of layer by head: "
            + "; ".join(_extremes(summary, name) for name in shown)
            + ".",
        )
    )
    if "attention_k90_median" in summary.sample:
        parts.append(
            page.figure(
                heads.k90_violins(summary),
                "How many keys hold 90 % of the attention",
                "Distribution over windows of k90: the least number of largest weights of a query "
                "row whose sum reaches 0.9, in the median row of the window. The bar and the "
                "number "
                f"are the median over windows. From {summary.sampled}.",
                ["attention_k90_median"],
                "Violin plots of k90 for every head by layer; "
                f"{_extremes(summary, 'attention_k90_median')}.",
            )
        )
    if summary.has("attention_offset_profile"):
        parts.append(
            page.figure(
                heads.offset_profiles(summary),
                "Where keys lie relative to the query",
                "Mean share of the attention by signed offset of the key, in bins that double "
                "outwards; to the left earlier tokens, to the right later ones. The scale is "
                "logarithmic; shares below 0.0001 are drawn as 0.0001.",
                ["attention_offset_profile"],
                "Heat map of heads by offset bins with the share of attention in each.",
            )
        )
    if summary.has("block_map"):
        parts.append(
            page.figure(
                heads.block_maps(summary),
                "Mean attention map of every head",
                "Attention mass between 16 equal stretches of the sequence, query stretches "
                "from top "
                "to bottom, key stretches from left to right, as multiples of uniform attention "
                "(1). A bright column is a place that everybody looks at, a bright diagonal is "
                "attention to the neighbourhood.",
                ["block_map"],
                "Grid of 16 by 16 attention maps, layers as rows and heads as columns.",
            )
        )
    return join(parts)


def _reach_sentence(summary: Summary) -> str:
    text = "Attention can be narrow or broad, near or far. "
    for name, what, unit in (
        ("attention_distance", "reaches farthest", "tokens on average"),
        ("attention_entropy", "is broadest", "nat of entropy"),
    ):
        values = summary.of(name).mean(axis=1)
        if np.isfinite(values).all():
            high, low = int(values.argmax()), int(values.argmin())
            names = summary.names("layer")
            text += (
                f"It {what} in layer {names[high]} ({values[high]:.1f} {unit}) and least so in "
                f"layer {names[low]} ({values[low]:.1f}). "
            )
    return text


def _extremes(summary: Summary, name: str) -> str:
    values = summary.of(name)
    if not np.isfinite(values).any():
        return f"{name} is missing"
    places = [np.unravel_index(f(values), values.shape) for f in (np.nanargmin, np.nanargmax)]
    text = [f"{values[p]:.3g} in head {p[0]}.{p[1]}" for p in places]
    return f"{name} from {text[0]} to {text[1]}"


def groups(page: Page, summary: Summary, share: np.ndarray | None = None) -> Html:
    """Attention on annotated regions."""
    if not summary.has("attention_group_mass"):
        return Html()
    names = summary.names("group")
    mean = summary.of("attention_group_mass").mean(axis=(0, 1))
    rows = [[name, f"{100 * m:.2f}"] for name, m in zip(names, mean, strict=True)]
    if share is not None:
        for row, m, s in zip(rows, mean, share, strict=True):
            row += [f"{100 * s:.2f}", f"{m / s:.2f}" if s else ""]
    return join(
        [
            page.figure(
                regions.group_mass(summary, share),
                "Attention on regions",
                "Mean share of the attention that falls on the tokens of a region"
                + (
                    ", over the region's share of the tokens: 0 on the scale means that attention "
                    "ignores where the region is."
                    if share is not None
                    else "."
                ),
                ["attention_group_mass"],
                "Heat map of heads by regions; over all heads "
                + ", ".join(f"{n} {m:.1%}" for n, m in zip(names, mean, strict=True))
                + ".",
            ),
            table(
                "Attention on regions, mean over all heads.",
                ["region", "attention (%)"]
                + (["tokens (%)", "ratio"] if share is not None else []),
                rows,
            ),
        ]
    )
