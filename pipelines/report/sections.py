"""Sections of a report: figures with captions, and sentences computed from the means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertgeom import variables
from bertgeom.pipelines.report.figures import cohorts as cohort_figures
from bertgeom.pipelines.report.figures import cones, heads, regions, stream
from bertgeom.pipelines.report.figures.cohorts import Plane
from bertgeom.pipelines.report.page import (
    Html,
    Page,
    bullets,
    codes,
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


def cone(page: Page, summary: Summary) -> Html:
    """How the cone of token vectors opens and closes."""
    if not summary.has("cone_index", "cone_mean_cosine"):
        return Html()
    parts: list[object] = [
        paragraph(
            "The vectors of a window's tokens fill a cone. The cone index is the length of the "
            "sum of the unit vectors: n if all are parallel, about the square root of n if they "
            "point anywhere. " + _cone_sentence(summary)
        ),
        page.figure(
            cones.cone_stations(summary),
            "The cone along the stream",
            "Mean over windows at the embedding and after the attention (att) and the output "
            "(out) of every layer; the band is one standard deviation. A high index and small "
            "angles mean a narrow cone: tokens look alike. The baselines are those of the median "
            "window.",
            ["cone_index", "cone_axis_angle_mean", "cone_axis_angle_max", "n_tokens"],
            "Line plots along the stations. " + _cone_sentence(summary),
        ),
    ]
    if summary.has("angle_histogram", "angle_mean"):
        mean = summary.of("angle_mean")
        parts.append(
            page.figure(
                cones.angle_histograms(summary),
                "Angles between all pairs of tokens",
                "Share of token pairs by angle, station by station, over all pairs of all windows; "
                "dots mark the mean angle. Isotropic vectors would gather at 90 degrees.",
                ["angle_histogram", "angle_mean"],
                f"Heat map of angle by station; the mean angle goes from {mean[0]:.0f} "
                "degrees at the "
                f"embedding to {mean[-1]:.0f} degrees at the last layer.",
            )
        )
    if summary.has("head_cone_mean_cosine"):
        parts.append(
            page.figure(
                cones.head_cones(summary),
                "Each step of a layer opens or closes the cone",
                "Mean cosine over token pairs, from the layer's input (in) through query, key and "
                "value (blue dots, one a head), the head's result (orange dots), and the "
                "stream after "
                "attention (att) and output (out) (squares). The line joins the means: where it "
                "rises, the cone closes.",
                ["head_cone_mean_cosine", "cone_mean_cosine"],
                "Dot plots of the mean cosine at seven steps of every layer.",
            )
        )
    return join(parts)


def _cone_sentence(summary: Summary) -> str:
    cosine = summary.of("cone_mean_cosine")
    if not np.isfinite(cosine).all():
        return ""
    names = [n.replace("_", " of layer ") for n in summary.names("station")]
    high, low = int(cosine.argmax()), int(cosine.argmin())
    return (
        f"Here the cone is narrowest at the {names[high]} (mean cosine {cosine[high]:.2f}) and "
        f"widest at the {names[low]} ({cosine[low]:.2f})."
    )


def information_stream(page: Page, summary: Summary) -> Html:
    """Moments of the residual stream."""
    parts: list[object] = []
    sums = [f"stream_rowsum_{m}" for m in ("mean", "variance", "skewness", "kurtosis")]
    if summary.has(*sums):
        kurtosis = summary.of(sums[-1])
        parts.append(
            page.figure(
                stream.row_sums(summary),
                "Distribution of summed rows",
                "Moments of the D entries of the sum of all token vectors, at every station; mean "
                "and one standard deviation over windows. A large excess kurtosis means that few "
                "dimensions carry most of the sum; a normal distribution has 0.",
                sums,
                f"Four line plots along the stations; excess kurtosis from {kurtosis.min():.1f} to "
                f"{kurtosis.max():.1f}.",
            )
        )
    rest = [
        "stream_norm_mean",
        "stream_norm_max",
        "stream_outlier_dims",
        "stream_participation_ratio",
    ]
    if summary.has(*rest):
        ratio = summary.of(rest[-1])
        parts.append(
            page.figure(
                stream.stream(summary),
                "Norms and dimensions in use",
                "Length of token vectors, number of dimensions whose mean stands out beyond six "
                "standard deviations, and the participation ratio: how many dimensions the "
                "tokens of "
                "a window effectively span.",
                rest,
                "Four line plots along the stations; participation ratio from "
                f"{ratio.min():.1f} to "
                f"{ratio.max():.1f}.",
            )
        )
    return join(parts)


def spectra(page: Page, summary: Summary) -> Html:
    """Spectra of sampled windows."""
    static = summary.static
    if "attention_singular_values" not in static or not static.sizes.get("sample", 0):
        return Html()
    n = static.sizes["sample"]
    parts = [
        page.figure(
            stream.spectra(summary),
            "Singular values by layer",
            f"Mean over heads and {n} sampled windows, over the largest value; from dark to bright "
            "as layers go up. A steep fall means that few directions matter.",
            [str(v) for v in static if str(v).endswith("_singular_values")],
            "Line plots of falling singular values on a logarithmic scale, one line a layer.",
        )
    ]
    if "spectral_entropy" in static:
        parts.append(
            page.figure(
                stream.spectral_entropies(summary),
                "Entropies of the spectra",
                f"Mean over heads and {n} sampled windows: on the left by the usual "
                "normalisation, on "
                "the right the two entropies of Bonino et al. 2025.",
                ["spectral_entropy", "paper_von_neumann_entropy", "paper_shannon_entropy"],
                "Line plots of entropy by layer.",
            )
        )
    return join(parts)


def weights(page: Page, summary: Summary) -> Html:
    """What the weights alone say, where the store holds them."""
    shown = [name for name, *_ in stream.WEIGHT_MAPS if name in summary.static]
    if not shown:
        return Html()
    if "weight_subspace_cosines" in summary.static:
        shown.append("weight_subspace_cosines")
    return page.figure(
        stream.weights(summary),
        "Weights of the heads",
        "Of the product of query and key weights: 1 symmetric, -1 skew; directionality compares "
        "what is looked at with what looks; the effective rank counts the directions in use. "
        "Principal angles between what a head asks with and what it is asked by (from dark to "
        "bright as layers go up): 0 degrees where both select the same subspace, 90 degrees "
        "where they share nothing.",
        shown,
        "Heat maps of weight statistics by layer and head, and principal angles by layer.",
    )


def cohorts(
    page: Page,
    summary: Summary,
    planes: Sequence[Plane] = (),
    arrays: Sequence[str] = ("cls", "label"),
) -> Html:
    """What sets cohorts apart."""
    if not summary.cohorts:
        return Html()
    parts: list[object] = []
    if planes:
        last = planes[-1]
        extra = f" ARI {last.scores['adjusted_rand']:.2f} at the last." if last.scores else ""
        scored = any(one.scores for one in planes)
        parts.append(
            page.figure(
                cohort_figures.planes(planes, summary.codes, summary.cohorts),
                "Windows by layer",
                "Vectors of the first token"
                + (", and logits and probabilities," if "logits" in arrays else "")
                + " on their two principal axes, with the share of the "
                f"variance; one dot a window, coloured by cohort. From {summary.sampled}."
                + (
                    " Homogeneity (h), completeness (c) and adjusted Rand index (ARI) compare "
                    "k-means clusters, as many as cohorts, with the labels."
                    if scored
                    else ""
                ),
                arrays,
                f"Scatter plots of windows, one for each of {len(planes)} stations." + extra,
            )
        )
        if scored:
            parts.append(
                page.figure(
                    cohort_figures.scores(planes),
                    "Where cohorts become separate",
                    "Agreement of k-means clusters with the labels along the stations: 1 is "
                    "agreement, an adjusted Rand index of 0 is chance.",
                    arrays,
                    "Line plot of three scores by station: adjusted Rand index from "
                    + " to ".join(
                        f"{one.scores['adjusted_rand']:.2f}"
                        for one in (planes[0], planes[-1])
                        if one.scores
                    )
                    + ".",
                )
            )
    if len(summary.cohorts) > 1 and "attention_entropy" in summary.effects:
        units = f"{summary.unit}s"
        parts.append(
            page.figure(
                cohort_figures.effects(summary),
                "Heads that tell cohorts apart",
                "Effect size (Cohen's d) of the attention entropy, a cohort against all other "
                f"labelled {units}: +1 means broader attention by one standard deviation. Nothing "
                f"is shown where a side has fewer than two {units} or nothing varies.",
                ["attention_entropy", "label"],
                "Heat map of cohorts by heads. " + _largest_effect(summary),
            )
        )
    if len(summary.cohorts) > 1 and summary.has("block_map"):
        names = summary.cohorts[:12]
        parts.append(
            page.figure(
                heads.block_map_differences(summary, names),
                "Where cohorts look differently",
                "Difference of the mean attention map from that of all windows, in the three heads "
                "(layer.head) where it is largest; axes as in the mean attention maps.",
                ["block_map", "label"],
                f"Difference maps of three heads for {len(names)} cohorts.",
            )
        )
    return join(parts)


def _largest_effect(summary: Summary) -> str:
    d = np.nan_to_num(cohort_figures.cohens_d(summary, "attention_entropy"))
    if not d.any():
        return "None can be told: too few records, or no spread."
    cohort, layer, head = np.unravel_index(np.abs(d).argmax(), d.shape)
    return (
        f"The largest is {d[cohort, layer, head]:+.1f}, {summary.cohorts[cohort]} in head "
        f"{layer}.{head}."
    )


def definitions(summary: Summary) -> Html:
    """One sentence for every array of the store."""
    rows = []
    everything = [*summary.mean.data_vars, *summary.static.data_vars]
    declared = {
        v.name: v
        for v in (
            *variables.VARIABLES.values(),
            *variables.WEIGHT_VARIABLES,
            *variables.SPECTRUM_VARIABLES,
        )
    }
    for name in everything:
        if str(name) in declared:
            one = declared[str(name)]
            rows.append([codes([one.name]), one.description, one.unit, one.source])
    return join(
        [
            paragraph(
                "Reductions run over valid tokens; padding never counts. Means over rows are "
                "over all query rows, special tokens included. Entropies are in nats."
            ),
            details(
                f"All {len(rows)} arrays",
                table(
                    "Arrays of the store.",
                    ["array", "what a number is", "unit", "source"],
                    rows,
                    text=4,
                ),
            ),
        ]
    )


def overview(summary: Summary) -> list[tuple[str, str]]:
    """Key figures of a store."""
    counts = summary.counts
    sizes = summary.mean.sizes
    found = [
        ("records", f"{counts.records:,}"),
        ("windows", f"{counts.windows:,}"),
        ("tokens", f"{counts.tokens:,}"),
        ("layers × heads", f"{sizes.get('layer', 0)} × {sizes.get('head', 0)}"),
    ]
    if summary.cohorts:
        found.append(("labelled cohorts", f"{len(summary.cohorts)}"))
    without = counts.windows - counts.measured - counts.excluded
    found.append(("windows without statistics", f"{without:,}"))
    if summary.excluded:
        found.append((f"left out: {', '.join(summary.excluded)}", f"{counts.excluded:,}"))
    return found
