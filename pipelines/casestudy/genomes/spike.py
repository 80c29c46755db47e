"""Cut the spike gene out of SARS-CoV-2 genomes.

Whole genomes are aligned to NC_045512.2 with minimap2 (mappy, the extra `casestudy`); only
the two ends of the gene are looked up in the alignment, so that everything between them,
deletions, insertions, runs of N, ambiguity codes, stays as it was sequenced. Sequences that
already are spikes are recognised by exact matches and need no aligner. Bases lost at either
end of the gene are written as N, which keeps the k-mer phase of what follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from bertgeom import data
from bertgeom.errors import ImplementationUnavailableError
from bertgeom.kernels.kmers import reverse_complement
from bertgeom.pipelines.casestudy.genomes.lineages import SPIKE

MIN_KNOWN = 0.3
"""Least share of the gene's 3,822 positions that must be A, C, G or T."""

_LENGTH = SPIKE[1] - SPIKE[0]
ANCHOR = 21
_LONGEST_SPIKE = 4200
_KNOWN = np.zeros(256, bool)
_KNOWN[np.frombuffer(b"ACGTU", np.uint8)] = True
_GAPS = np.frombuffer(b"-.", np.uint8)


class Sequence(Protocol):
    """What is read of a FASTA record."""

    @property
    def id(self) -> str: ...
    @property
    def bases(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Spike:
    """A usable spike gene.

    Attributes:
        id: of the genome.
        bases: uint8 upper-case ASCII, in the direction of the gene.
        known: share of the gene's 3,822 positions that are A, C, G or T.
        padded: bases written as N because the genome does not reach that far.
        aligned: False if the sequence was recognised as a spike already.
    """

    id: str
    bases: np.ndarray
    known: float
    padded: int
    aligned: bool


@dataclass(frozen=True)
class Skipped:
    """A genome without a usable spike, and why."""

    id: str
    reason: str


def extract_all(
    records: Iterable[Sequence], *, min_known: float = MIN_KNOWN
) -> Iterator[Spike | Skipped]:
    """The spike of every record, or why there is none; in the order of the records."""
    for record in records:
        yield extract(record.id, record.bases, min_known=min_known)


def extract(name: str, bases: np.ndarray, *, min_known: float = MIN_KNOWN) -> Spike | Skipped:
    """The spike gene of one genome.

    Args:
        name: id of the genome.
        bases: uint8 ASCII (n,), any case, U or T; gap characters are taken out.
        min_known: least share of known positions.

    Returns:
        The spike, or the reason why the genome is skipped.

    Raises:
        ImplementationUnavailableError: the sequence is not a ready spike and mappy is missing.
    """
    bases = _tidy(bases)
    if not _KNOWN[bases].any():
        return Skipped(name, "no base is known (A, C, G or T)" if len(bases) else "empty sequence")
    ready = _ready_spike(bases)
    found = (*ready, False) if ready is not None else _aligned_spike(bases)
    if found is None:
        return Skipped(name, f"no part of the spike aligns to {data.REFERENCE_ID}")
    spike, padded, aligned = found
    known = float(_KNOWN[spike].sum()) / _LENGTH
    if known < min_known:
        return Skipped(
            name, f"{known:.0%} of the spike's bases are known, at least {min_known:.0%} needed"
        )
    return Spike(name, spike, min(known, 1.0), padded, aligned)


def _tidy(bases: np.ndarray) -> np.ndarray:
    upper = np.where((bases >= ord("a")) & (bases <= ord("z")), bases - 32, bases).astype(np.uint8)
    upper[upper == ord("U")] = ord("T")
    return upper[~np.isin(upper, _GAPS)]


def _ready_spike(bases: np.ndarray) -> tuple[np.ndarray, int] | None:
    """The sequence itself if exact matches say that it is a spike from near its start on."""
    if not _LENGTH // 5 <= len(bases) <= _LONGEST_SPIKE:
        return None
    text, known = bases.tobytes(), anchors()
    starts = range(0, len(text) - ANCHOR, 7)
    places = [(i, known[piece]) for i in starts if (piece := text[i : i + ANCHOR]) in known]
    readable = sum(b"N" not in text[i : i + ANCHOR] for i in starts)
    if len(places) < max(3, 0.3 * readable):
        return None
    missing = places[0][1] - places[0][0]
    beyond = (len(bases) - places[-1][0]) - (_LENGTH - places[-1][1])
    if missing < 0 and _opens_with_insertion(bases):
        missing = 0
    if missing < 0 or beyond > 30:
        return None
    pads = missing, max(0, -beyond)
    return _pad(bases, *pads), sum(pads)


def _opens_with_insertion(bases: np.ndarray) -> bool:
    """Whether a sequence longer than its first match tells still begins as the gene does."""
    return bases[:9].tobytes() == data.reference()[SPIKE[0] : SPIKE[0] + 9].tobytes()


@cache
def anchors() -> dict[bytes, int]:
    """21-mers of the reference spike -> their place; those that occur twice are left out."""
    text = data.reference()[slice(*SPIKE)].tobytes()
    found: dict[bytes, int] = {}
    twice = set()
    for i in range(len(text) - ANCHOR + 1):
        piece = text[i : i + ANCHOR]
        twice.update([piece] if piece in found else [])
        found[piece] = i
    return {piece: i for piece, i in found.items() if piece not in twice}


@cache
def aligner() -> Any:
    try:
        import mappy
    except ImportError as error:
        raise ImplementationUnavailableError(
            "whole genomes are aligned with mappy, which is not installed: "
            "pip install 'bertgeom[casestudy]', or give spike sequences"
        ) from error
    return mappy.Aligner(seq=data.reference().tobytes().decode(), preset="asm20", best_n=20)


def _aligned_spike(bases: np.ndarray) -> tuple[np.ndarray, int, bool] | None:
    hits = list(aligner().map(bases.tobytes().decode("ascii", "replace")))
    if not hits:
        return None
    forward = sum(hit.strand * hit.mlen for hit in hits) >= 0
    if not forward:
        bases = reverse_complement(bases)
    blocks = _colinear([_block(hit, len(bases)) for hit in hits if (hit.strand > 0) == forward])
    if not any(b.r_start < SPIKE[1] and b.r_stop > SPIKE[0] for b in blocks):
        return None
    start, stop = _query_position(blocks, SPIKE[0]), _query_position(blocks, SPIKE[1])
    before, after = max(0, -start), max(0, stop - len(bases))
    cut = bases[max(0, start) : min(len(bases), stop)]
    return _pad(cut, before, after), before + after, True


@dataclass(frozen=True)
class _Block:
    """An alignment in the direction of the reference; cigar as (length, op) pairs."""

    r_start: int
    r_stop: int
    q_start: int
    q_stop: int
    cigar: tuple[tuple[int, int], ...]


def _block(hit: Any, length: int) -> _Block:
    """A mappy hit; its cigar runs along the reference on either strand."""
    start, stop = hit.q_st, hit.q_en
    if hit.strand < 0:
        start, stop = length - hit.q_en, length - hit.q_st
    return _Block(hit.r_st, hit.r_en, start, stop, tuple(map(tuple, hit.cigar)))


def _colinear(blocks: list[_Block]) -> list[_Block]:
    """Blocks in order along the reference; of two that conflict the longer one stays."""
    kept: list[_Block] = []
    for block in sorted(blocks, key=lambda b: b.r_start - b.r_stop):
        if all(_compatible(block, other) for other in kept):
            kept.append(block)
    return sorted(kept, key=lambda b: b.r_start)


def _compatible(a: _Block, b: _Block) -> bool:
    first, second = (a, b) if a.r_start < b.r_start else (b, a)
    return first.r_stop <= second.r_start and first.q_stop <= second.q_start


def _query_position(blocks: list[_Block], position: int) -> int:
    """Query index of a reference index; beyond the alignments by the nearest one's offset."""
    for block in blocks:
        if block.r_start <= position <= block.r_stop:
            return _walk(block, position)
    nearest = min(blocks, key=lambda b: max(b.r_start - position, position - b.r_stop))
    if position < nearest.r_start:
        return nearest.q_start - (nearest.r_start - position)
    return nearest.q_stop + (position - nearest.r_stop)


def _walk(block: _Block, position: int) -> int:
    """Inside an alignment; a deleted position stands for the base after the deletion."""
    reference, query = block.r_start, block.q_start
    for length, op in block.cigar:
        along_reference, along_query = op in (0, 2, 3, 7, 8), op in (0, 1, 4, 7, 8)
        if along_reference and position < reference + length:
            return query + (position - reference if along_query else 0)
        reference += length if along_reference else 0
        query += length if along_query else 0
    return query


def _pad(bases: np.ndarray, before: int, after: int) -> np.ndarray:
    if not before and not after:
        return bases
    n = ord("N")
    return np.pad(bases, (before, after), constant_values=n)
