"""Training batches: batch i is a pure function of (settings, i), so that nothing but the step
needs to be kept for a resumed run to see the same data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bertgeom import data
from bertgeom.kernels.arrays import UInt8Array
from bertgeom.kernels.kmers import kmer_keys, unpack_kmers
from bertgeom.pipelines.casestudy.classifier.settings import (
    CALIBRATION,
    TRAINING,
    VALIDATION,
    TrainSettings,
)
from bertgeom.pipelines.casestudy.genomes.lineages import CLASSES, SPIKE
from bertgeom.pipelines.casestudy.genomes.simulate import Sample, draw
from bertgeom.tokens.select import KmerTokenizer

_STREAM, _VALIDATION, _VOCABULARY, _AUGMENT, _CALIBRATION = range(5)
_CHUNK = 1000
_COMPLEMENT = np.zeros(256, np.uint8)
_COMPLEMENT[np.frombuffer(b"ACGTN", np.uint8)] = np.frombuffer(b"TGCAN", np.uint8)


@dataclass(frozen=True)
class Batch:
    """A batch to train on.

    Attributes:
        ids, mask, positions: int64 (B, N); a row may skip positions.
        targets: float32 (B, classes), rows sum to 1.
    """

    ids: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class LabelledSequences:
    """Sequences given by the user, instead of simulated ones.

    Attributes:
        bases: uint8 ASCII arrays; labels: class index of each.
    """

    bases: Sequence[np.ndarray]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.bases)

    def digest(self) -> str:
        """SHA-256 over labels and bases, in order."""
        total = hashlib.sha256()
        for label, bases in zip(self.labels, self.bases, strict=True):
            total.update(b"%d:%d:" % (label, len(bases)) + bases.tobytes())
        return total.hexdigest()


def stream_seed(settings: TrainSettings, purpose: int) -> int:
    """A seed of its own for every purpose, so that no stream repeats another's samples."""
    return int(np.random.SeedSequence([settings.seed, purpose]).generate_state(1)[0])


def training_batch(
    settings: TrainSettings,
    step: int,
    tokenizer: KmerTokenizer,
    given: LabelledSequences | None = None,
) -> Batch:
    """The batch of one step."""
    random = np.random.default_rng([stream_seed(settings, _AUGMENT), step])
    size = settings.samples if given is None else len(given)
    sequences, targets = [], np.zeros((settings.batch_size, len(CLASSES)), np.float32)
    for row in range(settings.batch_size):
        index = index_in_epoch(settings, step * settings.batch_size + row, size)
        if random.random() < settings.outliers:
            sequences.append(outlier(random))
            targets[row] = 1 / len(CLASSES)
        elif given is not None:
            sequences.append(given.bases[index])
            targets[row, given.labels[index]] = 1
        else:
            sample = draw(stream_seed(settings, _STREAM), index, TRAINING)
            sequences.append(sample.bases)
            targets[row, CLASSES.index(sample.label)] = 1
    ids, mask = encode(sequences, tokenizer)
    _hide_tokens(random, ids, mask, settings.unknown_rate, tokenizer.special_ids["unk"])
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    if settings.keep_tokens < 1 and step < (1 - settings.whole_share) * settings.steps:
        ids, mask, positions = _thin(random, ids, mask, settings.keep_tokens)
    return Batch(ids, mask, positions, targets)


def validation_samples(settings: TrainSettings) -> list[Sample]:
    """Simulated sequences for early stopping."""
    seed = stream_seed(settings, _VALIDATION)
    return [draw(seed, index, VALIDATION) for index in range(settings.n_validation)]


def calibration_samples(settings: TrainSettings) -> list[Sample]:
    """Simulated sequences that neither training nor early stopping has seen."""
    seed = stream_seed(settings, _CALIBRATION)
    return [draw(seed, index, CALIBRATION) for index in range(3 * settings.n_validation)]


def training_sequences(
    settings: TrainSettings, given: LabelledSequences | None = None
) -> Iterator[np.ndarray]:
    """The sequences whose k-mers make the vocabulary."""
    if given is not None:
        yield from given.bases
        return
    purpose = _VOCABULARY if settings.samples == 0 else _STREAM
    seed = stream_seed(settings, purpose)
    for index in range(settings.vocabulary_samples):
        yield draw(seed, index, TRAINING).bases


def vocabulary(sequences: Iterator[np.ndarray], settings: TrainSettings) -> list[str]:
    """The most frequent lower-case k-mers at the tokeniser's offsets, sorted.

    Ties at the cut go to the lexicographically smaller k-mer.
    """
    keys, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    for chunk in _chunks(sequences):
        new = np.concatenate([kmer_keys(s, settings.k, settings.stride, pad=True) for s in chunk])
        new, times = np.unique(new, return_counts=True)
        keys, place = np.unique(np.concatenate([keys, new]), return_inverse=True)
        merged = np.zeros(len(keys), np.int64)
        np.add.at(merged, place, np.concatenate([counts, times]))
        counts = merged
    often = counts >= settings.min_count
    names = [name.lower() for name in unpack_kmers(keys[often], settings.k)]
    order = sorted(zip(-counts[often], names, strict=True))
    return sorted(name for _, name in order[: settings.vocabulary_size] if "?" not in name)


def encode(
    sequences: Sequence[np.ndarray], tokenizer: KmerTokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """ids and mask, int64 (B, N)."""
    batch = tokenizer.encode_batch(sequences)
    mask = np.arange(batch.ids.shape[1]) < batch.lengths[:, None]
    return batch.ids.astype(np.int64), mask.astype(np.int64)


def outlier(random: np.random.Generator) -> UInt8Array:
    """A sequence that tells nothing: random bases, another gene, the wrong strand, mostly N."""
    start = SPIKE[0]
    kind = random.integers(4)
    if kind == 0:
        letters = np.frombuffer(b"AACGGTTT", np.uint8)
        return letters[random.integers(0, len(letters), random.integers(300, 4500))]
    if kind == 1:
        length = int(random.integers(300, 4000))
        first = int(random.integers(0, start - length))
        return data.reference()[first : first + length]
    spike = draw(int(random.integers(2**31)), 0, TRAINING).bases.copy()
    if kind == 2:
        other_strand: UInt8Array = _COMPLEMENT[spike[::-1]]
        return other_strand
    seen = int(random.integers(0, 100))
    first = int(random.integers(0, max(1, len(spike) - seen)))
    hidden = np.full_like(spike, ord("N"))
    hidden[first : first + seen] = spike[first : first + seen]
    return hidden


def index_in_epoch(settings: TrainSettings, position: int, size: int) -> int:
    """Which training sequence stands at a place of the stream."""
    if size == 0:
        return position
    epoch, place = divmod(position, size)
    return int(_order(stream_seed(settings, _AUGMENT), epoch, size)[place])


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    key = (seed, epoch, size)
    if key not in _orders:
        _orders.clear()
        _orders[key] = np.random.default_rng([seed, epoch, size]).permutation(size)
    return _orders[key]


def _hide_tokens(
    random: np.random.Generator, ids: np.ndarray, mask: np.ndarray, rate: float, unknown: int
) -> None:
    """[UNK] at single tokens, along a stretch, or to the end (a k-mer phase never seen)."""
    if rate <= 0:
        return
    lengths = mask.sum(axis=1)
    for row, length in enumerate(lengths):
        last = int(length) - 1
        hidden = np.zeros(ids.shape[1], bool)
        if random.random() < 0.5:
            hidden |= random.random(ids.shape[1]) < random.random() * rate
        kind = random.random()
        start = int(random.integers(1, max(2, last)))
        if kind < 0.10:
            hidden[start : start + int(random.integers(2, 100))] = True
        elif kind < 0.14:
            hidden[start:] = True
        hidden[0] = False
        hidden[last:] = False
        ids[row, hidden] = unknown


def _thin(
    random: np.random.Generator, ids: np.ndarray, mask: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random share of the tokens, in [least, 2 * least], the first and the last among them."""
    share = min(1.0, least * (1 + random.random()))
    lengths = mask.sum(axis=1)
    rows = []
    for length in lengths:
        inner = np.flatnonzero(random.random(int(length) - 2) < share) + 1
        rows.append(np.concatenate(([0], inner, [length - 1])))
    shape = (len(rows), max(map(len, rows)))
    thin, there, positions = (
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
    )
    for row, kept in enumerate(rows):
        thin[row, : len(kept)] = ids[row, kept]
        there[row, : len(kept)] = 1
        positions[row, : len(kept)] = kept
    return thin, there, positions


def _chunks(sequences: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    chunk: list[np.ndarray] = []
    for bases in sequences:
        chunk.append(bases)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
