"""`bertgeom casestudy report`: one HTML page that a virologist reads from top to bottom."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from bertgeom.errors import InputError, StoreError
from bertgeom.pipelines.casestudy.analyze import ARRAYS, RESULT, load
from bertgeom.pipelines.casestudy.classifier.calibrate import OTHER
from bertgeom.pipelines.casestudy.report_answers import answers, held_out
from bertgeom.pipelines.casestudy.report_spike import on_the_spike
from bertgeom.pipelines.report import sections
from bertgeom.pipelines.report.build import analysed, opened, writable
from bertgeom.pipelines.report.figures import casestudy as figures
from bertgeom.pipelines.report.figures import cones, heads
from bertgeom.pipelines.report.figures.cohorts import Plane, plane
from bertgeom.pipelines.report.page import (
    Html,
    Page,
    bullets,
    details,
    join,
    paragraph,
    table,
)
from bertgeom.pipelines.report.summary import Summary, summarise
from bertgeom.pipelines.run.progress import counts_of
from bertgeom.store.files import write_text

_OF_ARRAYS = f"in {ARRAYS}"


def report(
    folder: str | Path,
    out: str | Path,
    *,
    evaluation: Iterable[str | Path] = (),
    store: str | Path | None = None,
) -> dict[str, int]:
    """Write the report of an analysis.

    Args:
        folder: made by `bertgeom casestudy analyze`.
        out: HTML file to write.
        evaluation: JSON files written by `bertgeom casestudy evaluate --out`, of the labelled
            genomes, of held-out simulations, or one of each.
        store: where the analysed store is now, if it was moved.

    Returns:
        `figures` and `bytes` of the report.

    Raises:
        StoreError: no analysis there, or of another store.
        InputError: an evaluation that is none.
    """
    inputs = [*evaluation, *(Path(folder) / name for name in (RESULT, ARRAYS))]
    target = writable(out, inputs)
    result, arrays = load(folder)
    place = Path(store) if store is not None else Path(folder) / result["store"]
    dataset = opened(place)
    if dataset.attrs.get("fingerprint") != result["fingerprint"]:
        raise StoreError(
            f"{place}: expected the store that {folder} was made from, found another; "
            "run bertgeom casestudy analyze again"
        )
    judged = [read_evaluation(Path(path)) for path in evaluation]
    simulated = next((found for found in judged if "profiles" in found), None)
    labelled = next((found for found in judged if "forced" in found), None)
    summary = summarise(dataset, counts=counts_of(str(place)))
    page = build(summary, result, arrays, labelled, simulated)
    text = page.render()
    write_text(target, text, kind=".html", inputs=inputs)
    return {"figures": page.n_figures, "bytes": len(text.encode())}


def read_evaluation(path: Path) -> dict[str, Any]:
    """Figures of `bertgeom casestudy evaluate`.

    Raises:
        InputError: not such a file.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("JSON of casestudy evaluate", str(error), source=str(path)) from error
    labelled, simulated = {"forced", "decided", "covered"}, {"profiles", "by_share_of_n"}
    if not isinstance(found, dict) or not (labelled <= found.keys() or simulated <= found.keys()):
        raise InputError(
            "JSON of casestudy evaluate",
            "other contents",
            source=str(path),
            remedy="write it with bertgeom casestudy evaluate --out",
        )
    return found


def build(
    summary: Summary,
    result: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    evaluation: Mapping[str, Any] | None = None,
    simulated: Mapping[str, Any] | None = None,
) -> Page:
    """The page of an analysis, with what evaluations say of the model."""
    page = Page(
        "How a BERT tells SARS-CoV-2 variants apart",
        f"{summary.counts.measured:,} spike genes of {len(summary.cohorts)} classes, read by "
        f"{result['model']['id']}: what it answers, what its heads do, where they look on the "
        "spike, and how the cone of its token vectors opens and closes.",
    )
    page.add("findings", "In short", findings(summary, result, evaluation))
    page.add("analysed", "What was analysed", genomes(result), *analysed(summary))
    page.add(
        "answers",
        "How well it classifies",
        answers(page, result, evaluation),
        "" if simulated is None else held_out(simulated),
    )
    page.add(
        "heads",
        "What the heads do",
        sections.gates(page, summary),
        sections.reach(page, summary),
        exact(page, summary, arrays),
    )
    page.add("spike", "Where it looks on the spike", on_the_spike(page, summary, result, arrays))
    page.add(
        "cone",
        "How the cone opens and closes",
        sections.cone(page, summary),
        one_cone(page, summary),
    )
    page.add("classes", "Where the classes part", classes(page, summary, result))
    page.add("positions", "Are a few positions enough?", few(page, result))
    page.add(
        "stream",
        "The information stream",
        sections.information_stream(page, summary),
        sections.spectra(page, _spectra(summary, arrays)),
    )
    page.add("definitions", "Definitions", sections.definitions(summary))
    return page


def findings(
    summary: Summary, result: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> Html:
    """What the sections below say, in a few sentences."""
    own = result["classification"]
    said = [
        f"The most probable class is right for {own['accuracy']:.1%} of {own['n']:,} labelled "
        f"spikes (macro F1 {own['macro_f1']:.3f})."
    ]
    if evaluation:
        covered = evaluation["covered"]
        said.append(
            f"Where it answers with a class rather than “{OTHER}” ({covered['share']:.1%} "
            f"of the genomes), {covered['accuracy']:.1%} of the answers are right."
        )
    gates: dict[str, int] = {}
    for head in result["heads"]:
        gates[head["gate"]] = gates.get(head["gate"], 0) + 1
    most = sorted(gates.items(), key=lambda entry: -entry[1])
    said.append(
        f"Of {len(result['heads'])} heads, "
        + ", ".join(f"{n} {'is' if n == 1 else 'are'} {gate}" for gate, n in most)
        + "."
    )
    found = result["domains"]
    relative = np.asarray(found["mass"]).mean(axis=(0, 1)) / np.asarray(found["token_share"])
    order = np.argsort(-relative)
    said.append(
        "Over all heads, attention is densest on "
        + " and ".join(
            f"{found['names'][i]} ({relative[i]:.2f} times its share of the tokens)"
            for i in order[:2]
        )
        + f" and thinnest on {found['names'][order[-1]]} ({relative[order[-1]]:.2f})."
    )
    cosine = summary.of("cone_mean_cosine")
    said.append(
        f"The mean cosine between tokens goes from {cosine[0]:.2f} at the embedding to "
        f"{cosine[-1]:.2f} after the last layer: the cone "
        + ("closes." if cosine[-1] > cosine[0] else "opens.")
    )
    if result["clusters"]:
        good = [c for c in result["clusters"] if c["adjusted_rand"] >= 0.9]
        if good:
            said.append(
                "Clusters of the first token's vector match the classes (adjusted Rand index of "
                f"at least 0.9) for the first time {_station(good[0]['station'])}."
            )
    return bullets(said)


def genomes(result: Mapping[str, Any]) -> Html:
    """Numbers of genomes, and what was left out."""
    found = result["genomes"]
    skipped = found.get("skipped", [])
    parts: list[object] = [
        paragraph(
            "Genomes are aligned to NC_045512.2, the spike gene (21563..25384) is cut out, read as "
            "tokens, and given to the classifier; all numbers below are of that one pass."
        )
    ]
    if skipped:
        parts.append(
            details(
                f"{len(skipped)} genomes without a usable spike",
                table(
                    "Left out.",
                    ["genome", "reason"],
                    [(one["id"], one["reason"]) for one in skipped[:500]],
                    text=2,
                ),
            )
        )
    return join(parts)


def exact(page: Page, summary: Summary, arrays: Mapping[str, np.ndarray]) -> Html:
    """Class-mean maps, and the exact map of one genome."""
    parts: list[object] = []
    if summary.cohorts and summary.has("block_map"):
        maps = [
            page.figure(
                heads.block_maps(summary, cohort),
                f"Mean attention maps of {cohort}",
                f"As above, over the {summary.counts.cohorts[cohort]:,} spikes of the class.",
                ["block_map", "label"],
                f"Grid of mean attention maps of the class {cohort}, layers by heads.",
            )
            for cohort in summary.cohorts
            if summary.counts.cohorts[cohort]
        ]
        parts.append(details("Mean attention maps class by class", *maps))
    window = int(arrays["exact_map_window"][0])
    parts.append(
        page.figure(
            figures.exact_maps(arrays["exact_map"], arrays["exact_map_head"]),
            "Exact attention of one spike",
            f"Every weight of window {window} of the store, queries down, keys to the right, in "
            "multiples of the uniform weight (1); numbers above are layer.head. A pixel that "
            "stands "
            f"for several tokens shows the largest. {_OF_ARRAYS[0].upper()}{_OF_ARRAYS[1:]}.",
            ["exact_map"],
            f"Attention maps of {len(arrays['exact_map'])} heads for one spike gene.",
        )
    )
    return join(parts)


def one_cone(page: Page, summary: Summary) -> Html:
    """The cone of the first spike of the sample."""
    if not summary.sample.sizes.get("window"):
        return Html()
    window = int(summary.sample["window"].values[0])
    values = np.asarray(summary.sample["cone_index"][0])
    return page.figure(
        cones.cone_of_window(summary),
        "The cone of one spike",
        f"Cone index of window {window} of the store along the stations, the same spike as in "
        "the exact attention maps, between the two bounds of its number of tokens.",
        ["cone_index", "n_tokens"],
        f"Line plot of the cone index, from {values[0]:.0f} to {values[-1]:.0f}.",
    )


def classes(page: Page, summary: Summary, result: Mapping[str, Any]) -> Html:
    """PCA of [CLS] by layer, of logits and probabilities; what sets classes apart."""
    scores = {one["station"]: one for one in result["clusters"]}
    planes = [*_cls_planes(summary, scores), *_logit_planes(summary, scores)]
    return sections.cohorts(page, summary, planes, arrays=("cls", "logits", "label"))


def _cls_planes(summary: Summary, scores: Mapping[str, Any]) -> list[Plane]:
    vectors = np.nan_to_num(np.asarray(summary.sample["cls"], dtype=np.float64))
    names = summary.names("hidden_state")
    step = max(1, -(-len(names) // 7))
    return [
        plane(name, vectors[:, i], scores.get(name))
        for i, name in enumerate(names)
        if (len(names) - 1 - i) % step == 0
    ]


def _logit_planes(summary: Summary, scores: Mapping[str, Any]) -> list[Plane]:
    logits = np.nan_to_num(np.asarray(summary.sample["logits"], dtype=np.float64))
    return [
        plane("logits", logits, scores.get("logits")),
        plane("softmax", softmax(logits, axis=-1), scores.get("softmax")),
    ]


def few(page: Page, result: Mapping[str, Any]) -> Html:
    """One-versus-all classification from a few token positions."""
    found = result["few_positions"]
    if not found:
        return Html()
    best: dict[str, dict[str, Any]] = {}
    for one in found:
        if one["by"] == "tokens" and one["f1"] > best.get(one["name"], {"f1": -1.0})["f1"]:
            best[one["name"]] = one
    rows = [
        (
            name,
            ", ".join(_where(place) for place in one["places"]) or "none",
            f"{one['n']:,}",
            f"{one['splits']}",
            f"{one['f1']:.3f}",
            f"{one['mcc']:.3f}",
        )
        for name, one in best.items()
    ]
    return join(
        [
            paragraph(
                "For every class, a small decision tree may look at a few token positions only and "
                "has to tell the class from all others; it is judged on genomes it has not seen "
                "(five-fold cross-validation). On the right it may choose only among the ten "
                "positions where the attention received differs most between the class and "
                "the rest, "
                "chosen anew from the training genomes of every fold: where that works, the "
                "model's "
                "attention points at what makes the class."
            ),
            page.figure(
                figures.few_positions(found),
                "One class against all others",
                "F1 of the class in cross-validation, by the number of token positions at most. "
                "Positions count tokens as the model sees them, so that a deletion upstream, which "
                "shifts all that follows, is seen at any of them.",
                ["label", "attention_received"],
                "Line plots of F1 by number of positions. Best from any positions: "
                + ", ".join(f"{name} {one['f1']:.2f}" for name, one in best.items())
                + ".",
            ),
            table(
                "Positions of the best tree, as amino acids where the token begins in a spike "
                "without insertions or deletions.",
                ["class", "positions", "genomes", "splits", "F1", "MCC"],
                rows,
                text=2,
            ),
        ]
    )


def _where(place: Mapping[str, Any]) -> str:
    domain = f" ({place['domain']})" if place["domain"] else ""
    return f"{place['amino_acid']}{domain}"


def _spectra(summary: Summary, arrays: Mapping[str, np.ndarray]) -> Summary:
    """The summary with the spectra of the analysis among its arrays without windows."""
    from dataclasses import replace

    import xarray

    from bertgeom.variables import SPECTRUM_VARIABLES

    found = {
        v.name: (v.dims, arrays[f"spectra_{v.name}"])
        for v in SPECTRUM_VARIABLES
        if f"spectra_{v.name}" in arrays
    }
    return replace(summary, static=summary.static.merge(xarray.Dataset(found)))


def _station(name: str) -> str:
    return name.replace("output_", "after layer ")
