"""Report of the case study: how well the model classifies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertgeom.pipelines.casestudy.classifier.calibrate import OTHER
from bertgeom.pipelines.report.figures import casestudy as figures
from bertgeom.pipelines.report.page import Html, Page, details, join, table, tiles


def answers(page: Page, result: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> Html:
    """Confusion, per-class table, calibration."""
    if evaluation is None:
        return _judgement(
            page,
            result["classification"],
            "The most probable class of every spike, from the logits of the store.",
            ["logits", "label"],
        )
    return join(
        [
            *_three_counts(page, evaluation),
            _calibration(page, evaluation.get("calibration", {})),
            _wrong(evaluation.get("wrong", [])),
        ]
    )


def _three_counts(page: Page, evaluation: Mapping[str, Any]) -> list[Html]:
    """Accuracy of all answers, of the sure ones, and the confusion matrix."""
    rows = [
        (name, f"{one['accuracy']:.4f}", f"{one['macro_f1']:.4f}", f"{one['mcc']:.4f}")
        for name, one in (
            ("most probable class, always", evaluation["forced"]),
            (f"with the answer “{OTHER}” counted as wrong", evaluation["decided"]),
            (
                f"where a class was answered ({evaluation['covered']['share']:.1%})",
                evaluation["covered"],
            ),
        )
    ]
    return [
        tiles(
            [
                ("genomes", f"{evaluation['n']:,}"),
                ("accuracy", f"{evaluation['forced']['accuracy']:.2%}"),
                ("macro F1", f"{evaluation['forced']['macro_f1']:.4f}"),
                ("without a usable spike", f"{evaluation['n_skipped']:,}"),
            ]
        ),
        table("Three counts of the same answers.", ["count", "accuracy", "macro F1", "MCC"], rows),
        _judgement(
            page,
            evaluation["decided"],
            "Answers with their confidence rule; "
            f"“{OTHER}” is answered where the model is not sure or reads too "
            "little.",
            ["logits"],
        ),
    ]


def _calibration(page: Page, calibration: Mapping[str, Any]) -> Html:
    """How often answers of a confidence are right."""
    rows = calibration.get("reliability")
    if not rows:
        return Html()
    return page.figure(
        figures.reliability(rows),
        "Is it as sure as it is right?",
        "Share of correct answers among genomes of like confidence; on the dashed line, "
        "confidence can be taken at its word. The number and area of a dot tell how many "
        f"genomes there are. Expected calibration error {calibration['ece']:.4f}.",
        ["logits"],
        "Reliability diagram; "
        + "; ".join(
            f"confidence {row['confidence']:.2f} is right in {row['accuracy']:.0%} of "
            f"{row['n']:.0f}"
            for row in rows
        )
        + ".",
    )


def _wrong(wrong: Sequence[Mapping[str, Any]]) -> Html:
    """The answers that differ from the label."""
    if not wrong:
        return Html()
    rows = [
        (w["id"], w["truth"], w["answer"], w["best"], w["reason"], f"{w['confidence']:.3f}")
        for w in wrong[:500]
    ]
    names = ["genome", "label", "answer", "most probable", "reason", "confidence"]
    return details(
        f"{len(wrong)} answers that differ from the label",
        table("Answers that differ.", names, rows, text=5),
    )


def held_out(simulated: Mapping[str, Any]) -> Html:
    """What becomes of simulated spikes that the model never saw, good ones and bad ones."""
    nothing = simulated["no_spike"]
    return join(
        [
            table(
                "Simulated spikes that the model was never trained on, by quality. Those without a "
                f"usable spike count as wrong; answered means a class rather than “{OTHER}”.",
                ["quality", "spikes", "accuracy", "macro F1", "answered", "of them right"],
                [
                    (
                        name,
                        f"{one['n']:,}",
                        f"{one['forced']['accuracy']:.4f}",
                        f"{one['forced']['macro_f1']:.4f}",
                        f"{one['covered']['share']:.1%}",
                        f"{one['covered']['accuracy']:.1%}",
                    )
                    for name, one in simulated["profiles"].items()
                ],
            ),
            table(
                "The same spikes by their share of N: what is not readable is not guessed.",
                ["share of N", "spikes", "answered", "of them right"],
                [
                    (
                        f"{row['from']:.0%} to {row['to']:.0%}",
                        f"{row['n']:,}",
                        f"{row['answered'] / max(row['n'], 1):.1%}",
                        f"{row['right'] / row['answered']:.1%}" if row["answered"] else "",
                    )
                    for row in simulated["by_share_of_n"]
                ],
            ),
            table(
                "Sequences that are no spike: random bases, other genes, the wrong strand.",
                ["sequences", f"answered “{OTHER}”"],
                [(f"{nothing['n']:,}", f"{nothing['other']:,}")],
            ),
        ]
    )


def _judgement(page: Page, one: Mapping[str, Any], caption: str, arrays: list[str]) -> Html:
    confusion = one["confusion"]
    counts = np.asarray(confusion["counts"])
    present = [i for i in range(counts.shape[0]) if counts[i].sum()]
    used = [j for j in range(counts.shape[1]) if counts[:, j].sum() or j in present]
    rows = [
        (
            name,
            f"{int(row['n']):,}",
            f"{row['precision']:.4f}",
            f"{row['recall']:.4f}",
            f"{row['f1']:.4f}",
        )
        for name, row in one["per_class"].items()
        if row["n"]
    ]
    return join(
        [
            page.figure(
                figures.confusion(
                    counts[np.ix_(present, used)],
                    [confusion["rows"][i] for i in present],
                    [confusion["columns"][j] for j in used],
                ),
                "Labels and answers",
                caption + " Rows are true classes, columns answers; off the diagonal are mistakes.",
                arrays,
                f"Confusion matrix of {int(counts.sum())} genomes, "
                f"{_hits(confusion, counts)} on the diagonal.",
            ),
            table("By class.", ["class", "genomes", "precision", "recall", "F1"], rows),
        ]
    )


def _hits(confusion: Mapping[str, Any], counts: np.ndarray) -> int:
    return sum(
        int(counts[i, confusion["columns"].index(name)])
        for i, name in enumerate(confusion["rows"])
        if name in confusion["columns"]
    )
