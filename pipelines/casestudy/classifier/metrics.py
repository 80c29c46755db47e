"""Figures of a classifier: accuracy, F1, MCC, confusion, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(
    truth: Sequence[str], answers: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> np.ndarray:
    """Counts int64 (rows, columns): row = true class, column = answer."""
    row, column = ({name: i for i, name in enumerate(names)} for names in (rows, columns))
    counts = np.zeros((len(rows), len(columns)), np.int64)
    for true, answer in zip(truth, answers, strict=True):
        counts[row[true], column[answer]] += 1
    return counts


def class_table(
    truth: Sequence[str], answers: Sequence[str], classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Class -> n, precision, recall, f1; 0 where a denominator is 0."""
    true, said = np.array(truth, object), np.array(answers, object)
    table = {}
    for name in classes:
        hits = int(((true == name) & (said == name)).sum())
        n, claimed = int((true == name).sum()), int((said == name).sum())
        table[name] = {
            "n": n,
            "precision": _ratio(hits, claimed),
            "recall": _ratio(hits, n),
            "f1": _ratio(2 * hits, n + claimed),
        }
    return table


def macro_f1(table: dict[str, dict[str, float]]) -> float:
    """Mean F1 over the classes that occur (n > 0)."""
    scores = [row["f1"] for row in table.values() if row["n"]]
    return float(np.mean(scores)) if scores else float("nan")


def matthews(confusion: np.ndarray) -> float:
    """Matthews' correlation for several classes (Gorodkin's R_K) of a square count matrix."""
    c = confusion.astype(np.float64)
    total, hits = c.sum(), np.trace(c)
    said, true = c.sum(axis=0), c.sum(axis=1)
    spread = (total**2 - said @ said) * (total**2 - true @ true)
    return float((hits * total - said @ true) / np.sqrt(spread)) if spread > 0 else 0.0


def agreement(
    truth: Sequence[str], answers: Sequence[str], classes: Sequence[str], other: Sequence[str] = ()
) -> dict[str, Any]:
    """Accuracy, macro F1, MCC, the table by class and the confusion matrix, JSON-able.

    Args:
        other: answers that are no class: they have a column, but no row.
    """
    columns = [*classes, *other]
    table = class_table(truth, answers, classes)
    confusion = confusion_matrix(truth, answers, columns, columns)
    hits = sum(a == b for a, b in zip(truth, answers, strict=True))
    rows = confusion[: len(classes)]
    return {
        "accuracy": hits / len(truth) if truth else float("nan"),
        "macro_f1": macro_f1(table),
        "mcc": matthews(confusion),
        "per_class": table,
        "confusion": {"columns": columns, "rows": list(classes), "counts": rows.tolist()},
    }


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Expected calibration error and the reliability table behind it.

    Args:
        confidence: probability of the answer (n,); correct: bool (n,).
        bins: equal-width bins on [0, 1]; a confidence of 1 falls into the last.

    Returns:
        `ece` = sum over bins of share * |accuracy - mean confidence|, and `reliability`, one
        row for each bin that is not empty.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for b in range(bins):
        inside = place == b
        n = int(inside.sum())
        if not n:
            continue
        accuracy, mean = float(correct[inside].mean()), float(confidence[inside].mean())
        rows.append(
            {
                "from": b / bins,
                "to": (b + 1) / bins,
                "n": n,
                "confidence": mean,
                "accuracy": accuracy,
            }
        )
        error += n / len(confidence) * abs(accuracy - mean)
    return {"ece": float(error), "reliability": rows}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
