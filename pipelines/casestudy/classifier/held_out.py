"""A model on simulated sequences it never saw, by quality, by share of N, and on no spikes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bertgeom.pipelines.casestudy.classifier.calibrate import OTHER
from bertgeom.pipelines.casestudy.classifier.classify import VariantClassifier
from bertgeom.pipelines.casestudy.classifier.evaluate import Outcome, evaluate, outcomes
from bertgeom.pipelines.casestudy.classifier.stream import outlier
from bertgeom.pipelines.casestudy.genomes.simulate import PROFILES, Sample, Simulation, simulate
from bertgeom.pipelines.casestudy.genomes.spike import Spike

HELD_OUT_SEED = 2_000_001
"""A seed that no training run uses: streams are seeded by hashes of the run's own seed."""

_SHARES = (0.0, 0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)


def evaluate_held_out(
    classifier: VariantClassifier,
    *,
    n: int = 1800,
    seed: int = HELD_OUT_SEED,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Figures by quality profile, by share of N, and of sequences that are no spike.

    Args:
        n: sequences of every profile, as many of every class.
        report: called with the name of what comes next.
    """
    profiles: dict[str, Any] = {}
    everything: list[Outcome] = []
    drawn: list[Sample] = []
    for i, name in enumerate(PROFILES):
        report(name)
        samples = list(simulate(n, seed + i, Simulation(profiles=((name, 1.0),)), balanced=True))
        results = outcomes(classifier, samples, {one.id: one.label for one in samples})
        profiles[name] = evaluate(results, classifier.classes)
        everything += results
        drawn += samples
    report("no spikes")
    return {
        "seed": seed,
        "profiles": profiles,
        "by_share_of_n": _by_share_of_n(everything, drawn),
        "no_spike": _no_spikes(classifier, n // 6, seed),
    }


def _by_share_of_n(results: Sequence[Outcome], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Coverage and accuracy in bins of the share of bases that are N."""
    share = {one.id: float((one.bases == ord("N")).mean()) for one in samples}
    place = np.array([share[one.id] for one in results])
    answers = [OTHER if one.prediction is None else one.prediction.answer for one in results]
    given = np.array([answer != OTHER for answer in answers])
    right = np.array([answer == one.truth for answer, one in zip(answers, results, strict=True)])
    rows = []
    for low, high in zip(_SHARES, (*_SHARES[1:], 1.01), strict=True):
        inside = (place >= low) & (place < high)
        answered = int((inside & given).sum())
        rows.append(
            {
                "from": low,
                "to": min(high, 1.0),
                "n": int(inside.sum()),
                "answered": answered,
                "right": int((inside & right).sum()),
            }
        )
    return rows


def _no_spikes(classifier: VariantClassifier, n: int, seed: int) -> dict[str, Any]:
    """Random bases, other genes, the wrong strand, nearly empty: how many get `other`."""
    random = np.random.default_rng([seed, len(PROFILES)])
    spikes = [Spike(f"outlier-{i}", outlier(random), 0.0, 0, False) for i in range(n)]
    answers = [p.answer for p in classifier.classify(spikes)]
    return {"n": n, "other": sum(answer == OTHER for answer in answers)}
