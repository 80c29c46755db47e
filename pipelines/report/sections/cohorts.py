"""What sets cohorts apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertgeom.pipelines.report.figures import cohorts as figures
from bertgeom.pipelines.report.figures import heads
from bertgeom.pipelines.report.figures.cohorts import Plane
from bertgeom.pipelines.report.page import (
    Html,
    Page,
    join,
)
from bertgeom.pipelines.report.summary import Summary


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
                figures.planes(planes, summary.codes, summary.cohorts),
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
                    figures.scores(planes),
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
                figures.effects(summary),
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
    d = np.nan_to_num(figures.cohens_d(summary, "attention_entropy"))
    if not d.any():
        return "No difference can be tested: too few records, or no spread."
    cohort, layer, head = np.unravel_index(np.abs(d).argmax(), d.shape)
    return (
        f"The largest is {d[cohort, layer, head]:+.1f}, {summary.cohorts[cohort]} in head "
        f"{layer}.{head}."
    )
