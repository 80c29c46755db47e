"""Report of the case study: where the model looks on the spike gene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bertgeom.pipelines.casestudy.along import STEP
from bertgeom.pipelines.casestudy.genomes.domains import (
    DOMAINS,
    N_AMINO,
    defining_amino_acids,
    domain_of,
)
from bertgeom.pipelines.report.figures import regions
from bertgeom.pipelines.report.page import Html, Page, bold, details, join, paragraph, table
from bertgeom.pipelines.report.summary import Summary

#: Amino acids from the middle of a step within which a change lies in an attended token.
_REACH = 5


def on_the_spike(
    page: Page, summary: Summary, result: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Html:
    """Attention along the gene and on its domains."""
    position = (np.arange(arrays["received_class"].shape[1]) + 0.5) * STEP
    drawn = [(d.name, d.first, d.last) for d in DOMAINS if d.name not in ("S1", "S2")]
    names = ["all classes", *summary.cohorts]
    lines = {
        n: v for n, v in zip(names, arrays["received_class"], strict=True) if np.isfinite(v).any()
    }
    layers = {
        f"layer {name}": v
        for name, v in zip(summary.names("layer"), arrays["received_layer"], strict=True)
    }
    peak = ", ".join(f"{position[i]:.0f}" for i in peaks(lines["all classes"], position, 3))
    found = result["domains"]
    share = np.asarray(found["token_share"])
    values = proportions(found)
    inside = [i for i, n in enumerate(found["names"]) if n not in ("S1", "S2")]
    whole = [i for i, n in enumerate(found["names"]) if n in ("S1", "S2")]
    label, axis = "attention received (1: the average token)", "amino acid of the spike"
    return join(
        [
            paragraph(
                "Each token stands for twelve bases, four amino acids. How much attention a token "
                "receives, from all queries, says how much of its content flows on. Most is "
                f"received around amino acids {peak}."
            ),
            page.figure(
                regions.track(position, lines, drawn, label=label, axis=axis),
                "Attention along the spike, by class",
                "Attention received by the tokens of a place, in multiples of the average token, "
                f"mean over layers, heads and the genomes of a class, in steps of {STEP} "
                "amino acids "
                "of the reference; below, the domains.",
                ["attention_received", "token_start", "token_stop", "label"],
                f"Profiles along {N_AMINO} amino acids for all classes; peaks around {peak}.",
            ),
            _peak_table({n: v for n, v in lines.items() if n != "all classes"}, position),
            page.figure(
                regions.track(position, layers, drawn, label=label, axis=axis),
                "Attention along the spike, by layer",
                "As above, for every layer, over all genomes.",
                ["attention_received", "token_start", "token_stop"],
                "Profiles along the spike, one for each layer.",
            ),
            page.figure(
                regions.proportions(
                    [found["names"][i] for i in inside],
                    {k: v[..., inside] for k, v in values.items()},
                    share[inside],
                ),
                "Attention on domains",
                "Three proportions of every head (dots; bars are medians over heads), over the "
                "domain's share of the tokens: of all attention, of the attention in confident "
                f"weights (at least {found['theta']:g}), and of the number of confident weights. 1 "
                "means that the domain gets what its length would give. From "
                f"{found['windows']:,} genomes, measured once more. {_domain_legend()}",
                ["attention_confident_mass", "attention_confident_count"],
                "Dot plot of three proportions for each domain. " + _domain_sentence(found),
            ),
            _domain_table(found, values, [*inside, *whole]),
            details(
                "Every head and domain",
                page.figure(
                    _domain_heat(summary, found),
                    "Attention on domains, head by head",
                    "Attention on a domain over the domain's share of the tokens, on a "
                    "logarithmic scale: "
                    "+1 is twice, -1 half of what its length would give. From the same genomes.",
                    ["attention_confident_mass"],
                    "Heat map of heads by domains. " + _domain_sentence(found),
                ),
            ),
        ]
    )


def proportions(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The paper's three domain proportions, (layers, heads, domains) each.

    Of the attention; of the attention in confident weights; of the number of these weights.
    NaN where a head has no confident weight.
    """
    parts = {"of all attention": np.asarray(found["mass"], dtype=np.float64)}
    for key, label in (
        ("confident_mass", "of confident attention"),
        ("confident_count", "of confident weights"),
    ):
        total = np.asarray(found[f"{key}_total"], dtype=np.float64)[..., None]
        parts[label] = np.asarray(found[key]) / np.where(total > 0, total, np.nan)
    return parts


def peaks(values: np.ndarray, position: np.ndarray, n: int, apart: float = 7.0) -> list[int]:
    """Bins of the n highest values, at least `apart` amino acids from each other."""
    found: list[int] = []
    for i in np.argsort(-np.nan_to_num(values), kind="stable"):
        if len(found) < n and all(abs(position[i] - position[j]) >= apart for j in found):
            found.append(int(i))
    return found


def _peak_table(lines: Mapping[str, np.ndarray], position: np.ndarray, n: int = 5) -> Html:
    """The most attended places of every class, with the changes that define the class there."""
    rows, met, total, chance = [], 0, 0, 0.0
    for name, values in lines.items():
        changes = {} if name == "background" else defining_amino_acids(name)
        near = np.abs(position[:, None] - np.array([*changes, np.inf])) <= _REACH
        chance += n * float(near.any(axis=1).mean())
        cells = []
        for i in peaks(values, position, n):
            here = [c for at, c in changes.items() if abs(at - position[i]) <= _REACH]
            met, total = met + bool(here), total + bool(changes)
            known = ", ".join(here) or domain_of(position[i]) or "-"
            cells.append(
                join(
                    [
                        f"{position[i]:.0f} ",
                        bold(known) if here else known,
                        f" {values[i]:.0f}\u00d7",
                    ]
                )
            )
        rows.append([name, *cells])
    said = (
        f"{met} of the {total} most attended places of the variant classes hold a change that "
        f"defines the class (bold; within {_REACH} amino acids); places at random would "
        f"meet {chance:.0f}."
        if total
        else ""
    )
    return join(
        [
            paragraph(said) if said else "",
            table(
                "Most attended places: amino acid, change or domain, attention received.",
                ["class", *(str(i + 1) for i in range(n))],
                rows,
                text=n + 1,
            ),
        ]
    )


def _domain_legend() -> str:
    named = "; ".join(f"{d.name} {d.meaning}" for d in DOMAINS if d.name not in ("S1", "S2"))
    return f"Domains: {named}."


def _domain_sentence(found: Mapping[str, Any]) -> str:
    mean = np.asarray(found["mass"]).mean(axis=(0, 1)) / np.asarray(found["token_share"])
    return (
        "Attention over share of tokens: "
        + ", ".join(f"{name} {value:.2f}" for name, value in zip(found["names"], mean, strict=True))
        + "."
    )


def _domain_table(
    found: Mapping[str, Any], values: Mapping[str, np.ndarray], order: list[int]
) -> Html:
    rows = []
    for i in order:
        name, share = found["names"][i], found["token_share"][i]
        first, last = found["amino_acids"][name]
        rows.append(
            [
                name,
                f"{first}..{last}",
                f"{100 * share:.2f}",
                *(f"{100 * float(np.nanmean(v[..., i])):.2f}" for v in values.values()),
                f"{float(np.nanmean(values['of all attention'][..., i])) / share:.2f}",
            ]
        )
    return table(
        "Domains in numbers, means over heads; the last column is attention over tokens.",
        ["domain", "amino acids", "% of tokens", *(f"% {label}" for label in values), "ratio"],
        rows,
        text=2,
    )


def _domain_heat(summary: Summary, found: Mapping[str, Any]) -> Any:
    return regions.heat_of_regions(
        np.asarray(found["mass"]),
        np.asarray(found["token_share"]),
        found["names"],
        summary.names("layer"),
        summary.names("head"),
    )
