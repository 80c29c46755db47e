"""The token vectors along the stream: cone, moments, spectra; and the weights behind them."""

from __future__ import annotations

import numpy as np

from bertgeom.pipelines.report.figures import cones, stream
from bertgeom.pipelines.report.page import (
    Html,
    Page,
    join,
    paragraph,
)
from bertgeom.pipelines.report.summary import Summary


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
