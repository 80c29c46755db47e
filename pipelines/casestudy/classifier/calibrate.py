"""Confidence that means something, and when to say "other".

Temperature scaling (one number, fitted on validation data) makes the largest probability an
estimate of the chance to be right. Below a confidence, or with too few readable tokens, the
answer is `other` rather than a class.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

OTHER = "other"
"""What is answered instead of a class."""


@dataclass(frozen=True)
class Decision:
    """When a prediction stands; kept in the model's config as `bertgeom_decision`.

    Attributes:
        min_confidence: least probability of the most probable class.
        min_known_tokens: least number of k-mers that are in the vocabulary and not all N.
        max_unknown: largest share of [UNK] among the tokens that are not all N.
    """

    min_confidence: float = 0.5
    min_known_tokens: int = 60
    max_unknown: float = 0.5

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The t that minimises the negative log likelihood of softmax(logits / t).

    Args:
        logits: float (n, classes); truth: class indices (n,).
    """
    rows = np.arange(len(truth))

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        top = scaled.max(axis=1)
        normaliser = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((normaliser - scaled[rows, truth]).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))


def choose_threshold(
    logits: np.ndarray,
    truth: np.ndarray,
    *,
    risk: float = 0.01,
    bounds: tuple[float, float] = (0.5, 0.9),
) -> float:
    """The least confidence above which at most `risk` of the answers are wrong.

    Kept within `bounds`: with calibrated probabilities an answer of more than 0.9 is good
    enough by itself, and one below 0.5 never is.
    """
    probabilities = softmax(logits, axis=-1)
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence)
    wrong = (probabilities.argmax(axis=1) != truth)[order]
    rates = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    kept = np.flatnonzero(rates <= risk)
    least = confidence[order][kept[-1]] if len(kept) else 1.0
    return round(float(np.clip(least, *bounds)), 4)
