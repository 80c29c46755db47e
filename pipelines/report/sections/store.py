"""The store itself: key figures, and what its arrays are."""

from __future__ import annotations

from bertgeom import variables
from bertgeom.pipelines.report.page import (
    Html,
    codes,
    details,
    join,
    paragraph,
    table,
)
from bertgeom.pipelines.report.summary import Summary


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
