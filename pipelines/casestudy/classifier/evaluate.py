"""How well a model classifies labelled genomes, simulated or real.

Three counts of the same predictions are given. `forced`: the most probable class, whatever
its probability. `decided`: with the answer `other`, which counts as wrong. `covered`: only
where a class was answered. Genomes without a usable spike are listed and count as wrong in
the first two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertgeom.analysis.labels import read_labels as read_table
from bertgeom.errors import InputError
from bertgeom.pipelines.casestudy.classifier.calibrate import OTHER
from bertgeom.pipelines.casestudy.classifier.classify import Prediction, VariantClassifier
from bertgeom.pipelines.casestudy.classifier.metrics import (
    agreement,
    calibration,
)
from bertgeom.pipelines.casestudy.genomes.spike import Sequence as Record
from bertgeom.pipelines.casestudy.genomes.spike import Skipped, Spike, extract_all


@dataclass(frozen=True)
class Outcome:
    """Truth and answer of one genome; `prediction` is None where there was no usable spike."""

    id: str
    truth: str
    prediction: Prediction | None
    reason: str


def read_labels(
    path: Path, classes: Sequence[str], relabel: Mapping[str, str] | None = None
) -> dict[str, str]:
    """record id -> class, from a table as `bertgeom.analysis.labels.read_labels` takes it.

    `relabel` gives labels another meaning. Without one, labels that start with `other_` are
    genomes outside the variants: `background`. A first row whose label is no class is a header.

    Raises:
        InputError: a label that is no class, or keys that are record indices.
    """
    table = read_table(path)
    if table.keys_are_indices:
        raise InputError("record ids as keys", "record indices", source=table.source)
    labels = {}
    for key, code in table.by_key.items():
        label = (relabel or {}).get(table.names[code], table.names[code])
        label = "background" if label.startswith("other_") else label
        if label in classes:
            labels[key] = label
        elif key != table.first_key:
            raise InputError(
                f"a class of {', '.join(classes)}",
                repr(label),
                source=table.source,
                line=(table.line or {}).get(key),
            )
    if not labels:
        raise InputError("at least one labelled record", "a header alone", source=table.source)
    return labels


def outcomes(
    classifier: VariantClassifier, records: Iterable[Record], labels: Mapping[str, str]
) -> list[Outcome]:
    """Extract and classify every labelled record; records without a label are left out."""
    found = extract_all(record for record in records if record.id in labels)
    usable: list[Spike] = []
    skipped: list[Outcome] = []
    for item in found:
        if isinstance(item, Skipped):
            skipped.append(Outcome(item.id, labels[item.id], None, item.reason))
        else:
            usable.append(item)
    answered = [Outcome(p.id, labels[p.id], p, p.reason) for p in classifier.classify(usable)]
    return answered + skipped


def evaluate(results: Sequence[Outcome], classes: Sequence[str]) -> dict[str, Any]:
    """All figures, JSON-able.

    Raises:
        InputError: no labelled genome at all.
    """
    if not results:
        raise InputError("labelled genomes", "none whose id is in the label table")
    truth = [one.truth for one in results]
    forced = [OTHER if one.prediction is None else one.prediction.best for one in results]
    decided = [OTHER if one.prediction is None else one.prediction.answer for one in results]
    covered = [i for i, answer in enumerate(decided) if answer != OTHER]
    answered = [(one, one.prediction) for one in results if one.prediction is not None]
    return {
        "n": len(results),
        "n_skipped": len(results) - len(answered),
        "skipped": [{"id": o.id, "reason": o.reason} for o in results if o.prediction is None],
        "forced": agreement(truth, forced, classes, [OTHER]),
        "decided": agreement(truth, decided, classes, [OTHER]),
        "covered": {
            "share": len(covered) / len(results),
            **agreement(
                [truth[i] for i in covered], [decided[i] for i in covered], classes, [OTHER]
            ),
        },
        "calibration": _calibration(answered),
        "wrong": [_wrong(one, p) for one, p in answered if p.answer != one.truth],
    }


def _calibration(answered: Sequence[tuple[Outcome, Prediction]]) -> dict[str, Any]:
    confidence = np.array([p.confidence for _, p in answered])
    correct = np.array([p.best == one.truth for one, p in answered], bool)
    return calibration(confidence, correct)


def _wrong(one: Outcome, p: Prediction) -> dict[str, Any]:
    return {
        "id": one.id,
        "truth": one.truth,
        "answer": p.answer,
        "best": p.best,
        "confidence": round(p.confidence, 4),
        "reason": one.reason,
    }
