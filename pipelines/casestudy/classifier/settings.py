"""Settings of a training run, and the two presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from bertgeom.errors import UsageError
from bertgeom.pipelines.casestudy.genomes.simulate import Simulation


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides what is trained; equal settings, threads and versions give
    equal weights.

    Attributes:
        seed: of the weights, the data stream, dropout and augmentation.
        steps: optimiser steps at most; early stopping may end sooner.
        batch_size: sequences a step.
        learning_rate: peak, after `warmup` (share of the steps), then cosine to zero.
        evaluate_every, patience: steps between validations; validations without a better
            loss before training stops.
        n_validation: simulated validation sequences.
        samples: size of the training set, visited in a new order every epoch; 0 draws
            fresh sequences for every step.
        outliers: share of sequences that are no spike, with a uniform target.
        unknown_rate: highest rate at which tokens are replaced by [UNK] in training.
        keep_tokens, whole_share: a random share of every sequence's tokens, of at least
            `keep_tokens` and at their own positions, is seen until the last `whole_share` of
            the steps sees all. It costs less, and no single site can be relied on.
        vocabulary_samples, vocabulary_size, min_count: k-mers met at least `min_count`
            times in that many training sequences, the most frequent ones.
        hidden, layers, heads, intermediate, dropout: shape of the BERT made from scratch.
        init: model folder or hub name to start from instead; its vocabulary is extended.
        half_file: whether the weights are written in float16.
        mixed_precision: bfloat16 autocast where the device is CUDA.
    """

    seed: int = 7
    steps: int = 1800
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.08
    weight_decay: float = 0.01
    clip: float = 1.0
    evaluate_every: int = 150
    patience: int = 6
    n_validation: int = 720
    samples: int = 0
    outliers: float = 0.03
    unknown_rate: float = 0.08
    keep_tokens: float = 0.3
    whole_share: float = 0.3
    k: int = 12
    stride: int = 9
    max_tokens: int = 512
    vocabulary_samples: int = 20_000
    vocabulary_size: int = 12_000
    min_count: int = 3
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 256
    dropout: float = 0.0
    init: str | None = None
    half_file: bool = True
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "patience", "n_validation"):
            if getattr(self, name) < 1:
                raise UsageError(f"expected {name} of at least 1, found {getattr(self, name)}")
        if self.hidden % self.heads:
            raise UsageError(f"expected heads that divide {self.hidden}, found {self.heads}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def changed(self, **changes: Any) -> TrainSettings:
        """These settings with other values where given (None: as they are)."""
        known = {f.name for f in fields(self)}
        unknown = set(changes) - known
        if unknown:
            raise UsageError(f"expected settings of {sorted(known)}, found {sorted(unknown)}")
        return replace(self, **{k: v for k, v in changes.items() if v is not None})


PRESETS = {
    "small": TrainSettings(),
    # 2 epochs over 33,000 sequences in batches of 4, as published; the hub's bert-base-cased
    # is given as `init` by whoever has it.
    "paper": TrainSettings(
        steps=16_500,
        batch_size=4,
        samples=33_000,
        learning_rate=2e-5,
        warmup=0.0,
        evaluate_every=1_000,
        outliers=0.0,
        unknown_rate=0.0,
        keep_tokens=1.0,
        vocabulary_samples=33_000,
        vocabulary_size=1_000_000,
        min_count=1,
        hidden=768,
        layers=12,
        heads=12,
        intermediate=3072,
        dropout=0.1,
        half_file=False,
    ),
}

TRAINING = Simulation(
    profiles=(
        ("clean", 0.05),
        ("typical", 0.45),
        ("poor", 0.25),
        ("sparse", 0.1),
        ("shifted", 0.15),
    ),
    weights=(("omicron", 1.6), ("background", 1.8), ("delta", 1.2)),
)
"""What the training stream draws: more of the classes that hold more lineages."""

VALIDATION = Simulation(
    profiles=(("typical", 0.6), ("poor", 0.2), ("sparse", 0.05), ("shifted", 0.15))
)
"""What early stopping looks at, with a seed of its own."""

CALIBRATION = Simulation(profiles=(("typical", 1.0), ("poor", 1.0), ("sparse", 1.0)))
"""What confidence is calibrated on: two thirds bad genomes, where it matters."""
