"""Classes of spike genes, with a confidence, or `other` with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from transformers import AutoModelForSequenceClassification

from bertgeom.errors import ModelError
from bertgeom.pipelines.casestudy.classifier.calibrate import OTHER, Decision
from bertgeom.pipelines.casestudy.classifier.quiet import no_progress_bars
from bertgeom.pipelines.casestudy.genomes import spike
from bertgeom.tokens.select import KmerTokenizer, load_kmer_tokenizer


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one spike.

    Attributes:
        id: of the record.
        answer: a class name or "other".
        best: the most probable class, whatever its probability.
        probabilities: float64 (classes,), calibrated.
        reason: why the answer is "other"; empty otherwise.
    """

    id: str
    answer: str
    best: str
    probabilities: np.ndarray
    reason: str = ""

    @property
    def confidence(self) -> float:
        return float(self.probabilities.max())


@dataclass(frozen=True)
class VariantClassifier:
    """A trained model folder, ready to answer."""

    model: torch.nn.Module
    tokenizer: KmerTokenizer
    classes: tuple[str, ...]
    decision: Decision

    def classify(
        self, spikes: Iterable[spike.Sequence], *, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """A prediction for every spike, in order."""
        waiting = iter(spikes)
        while chunk := list(islice(waiting, batch_size)):
            yield from self._classify_batch(chunk)

    def _classify_batch(self, spikes: Sequence[spike.Sequence]) -> Iterator[Prediction]:
        batch = self.tokenizer.encode_batch([one.bases for one in spikes])
        mask = np.arange(batch.ids.shape[1]) < batch.lengths[:, None]
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(batch.ids.astype(np.int64)),
                attention_mask=torch.from_numpy(mask.astype(np.int64)),
            )
        probabilities = softmax(output.logits.double().numpy(), axis=-1)
        known, unknown = self._readable(batch.ids, mask & ~batch.special)
        for row, one in enumerate(spikes):
            reason = self._doubt(probabilities[row], int(known[row]), int(unknown[row]))
            best = self.classes[int(probabilities[row].argmax())]
            yield Prediction(one.id, OTHER if reason else best, best, probabilities[row], reason)

    def _readable(self, ids: np.ndarray, content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of every row that are k-mers of the vocabulary with bases in them, and [UNK]s."""
        unknown = (ids == self.tokenizer.special_ids["unk"]) & content
        empty = self.tokenizer.vocabulary.get("n" * self.tokenizer.k, -1)
        known = content & ~unknown & (ids != empty)
        return known.sum(axis=1), unknown.sum(axis=1)

    def _doubt(self, probabilities: np.ndarray, known: int, unknown: int) -> str:
        """Why no class is answered; empty if one is."""
        rule = self.decision
        if known < rule.min_known_tokens:
            return f"only {known} known k-mers, at least {rule.min_known_tokens} needed"
        if unknown > rule.max_unknown * (known + unknown):
            share = unknown / (known + unknown)
            return f"{share:.0%} of the k-mers are unknown, at most {rule.max_unknown:.0%} allowed"
        if probabilities.max() < rule.min_confidence:
            return (
                f"confidence {probabilities.max():.2f}, at least {rule.min_confidence:.2f} needed"
            )
        return ""


def load_classifier(folder: Path) -> VariantClassifier:
    """The classifier of a model folder, float32 on the CPU.

    Raises:
        ModelError: the folder holds no classifier with class names and a k-mer vocabulary.
    """
    try:
        with no_progress_bars():
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, local_files_only=True
            ).eval()
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: expected a sequence classifier: {error}") from error
    labels = model.config.id2label
    classes = tuple(labels[i] for i in range(model.config.num_labels))
    decision = Decision(**getattr(model.config, "bertgeom_decision", {}))
    return VariantClassifier(model, load_kmer_tokenizer(folder), classes, decision)
