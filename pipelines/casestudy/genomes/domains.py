"""Protein domains of the spike, and where they lie in a spike gene with insertions and deletions.

Domains are given in amino acids of the reference spike (1-based, inclusive). A gene is laid
on the reference by exact matches of unique 21-mers; between two matches with another offset
the bases go with the match before them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bertgeom import data
from bertgeom.analysis.annotations import Alignment, Annotations, group_regions
from bertgeom.analysis.region_files import Region
from bertgeom.errors import InputError
from bertgeom.pipelines.casestudy.genomes.lineages import (
    DELETED,
    SPIKE,
    Genome,
    lineages,
    translate,
)
from bertgeom.pipelines.casestudy.genomes.spike import ANCHOR, anchors


@dataclass(frozen=True)
class Domain:
    """A stretch of the spike protein, amino acids first..last, 1-based."""

    name: str
    first: int
    last: int
    meaning: str


DOMAINS = (
    Domain("SP", 1, 13, "signal peptide"),
    Domain("NTD", 14, 305, "N-terminal domain"),
    Domain("RBD", 319, 541, "receptor-binding domain"),
    Domain("FP", 788, 806, "fusion peptide"),
    Domain("HR1", 912, 984, "heptad repeat 1"),
    Domain("HR2", 1163, 1213, "heptad repeat 2"),
    Domain("TM", 1213, 1237, "transmembrane segment"),
    Domain("CT", 1237, 1273, "cytoplasmic tail"),
    Domain("S1", 14, 685, "subunit that binds the receptor"),
    Domain("S2", 686, 1273, "subunit that fuses the membranes"),
)
N_AMINO = 1273


def domain_of(position: float) -> str:
    """Smallest domain around an amino acid, "" between domains."""
    around = [d for d in DOMAINS if d.first <= position <= d.last]
    return min(around, key=lambda d: d.last - d.first).name if around else ""


def spike_annotations(spikes: Iterable[tuple[str, np.ndarray]]) -> Annotations:
    """The domains in the coordinates of every spike gene, as token groups.

    Args:
        spikes: record id and bases (uint8 ASCII) of whole spike genes.

    Raises:
        InputError: if none of the sequences resembles the spike gene.
    """
    regions = []
    for name, bases in spikes:
        blocks = align(bases)
        for domain in DOMAINS:
            moved = blocks.lift(3 * (domain.first - 1), 3 * domain.last) if blocks else None
            if moved is not None and moved[0] < moved[1]:
                regions.append(Region(name, *moved, domain.name))
    if not regions:
        raise InputError(
            "spike genes",
            "no sequence that resembles the reference spike",
            remedy="give genomes or spikes of SARS-CoV-2 to bertgeom casestudy analyze",
        )
    order = {domain.name: i for i, domain in enumerate(DOMAINS)}
    # Groups are numbered by first appearance; the first spike may lack a domain.
    regions.sort(key=lambda region: order[region.name])
    return group_regions(regions, source="spike domains")


def align(bases: np.ndarray) -> Alignment | None:
    """Blocks of a spike gene on the reference spike, whole from end to end.

    Returns:
        None where no unique 21-mer of the reference is found.
    """
    text, known = bases.tobytes().upper(), anchors()
    hits = [
        (known[text[i : i + ANCHOR]], i)
        for i in range(len(text) - ANCHOR + 1)
        if text[i : i + ANCHOR] in known
    ]
    runs: list[list[int]] = []
    for reference, record in hits:
        if runs and reference - record == runs[-1][0] - runs[-1][1]:
            runs[-1][2] = reference + ANCHOR - runs[-1][0]
        elif not runs or (reference > runs[-1][0] and record > runs[-1][1]):
            runs.append([reference, record, ANCHOR])
    if not runs:
        return None
    back = min(runs[0][0], runs[0][1])
    runs[0] = [runs[0][0] - back, runs[0][1] - back, runs[0][2] + back]
    n_reference = SPIKE[1] - SPIKE[0]
    for i, run in enumerate(runs):
        end = (runs[i + 1][0], runs[i + 1][1]) if i + 1 < len(runs) else (n_reference, len(text))
        run[2] = min(end[0] - run[0], end[1] - run[1])
    columns = np.array(runs, dtype=np.int64).T
    return Alignment(*columns)


def reference_position(blocks: Alignment, record: np.ndarray) -> np.ndarray:
    """Reference bases (float, NaN where inserted) of bases of a record."""
    block = np.clip(np.searchsorted(blocks.record, record, side="right") - 1, 0, None)
    along = record - blocks.record[block]
    inside = (along >= 0) & (along < blocks.length[block])
    return np.where(inside, blocks.reference[block] + along, np.nan)


def defining_amino_acids(label: str, least: float = 0.25) -> dict[int, str]:
    """Spike changes of a class by amino acid: {982: "S982A", 69: "H69del", ...}.

    Args:
        label: a class of the case study; others have no changes.
        least: share of the class, by the weights of its lineages, that must have a change.
    """
    members = [one for one in lineages() if one.label == label]
    weight: dict[tuple[int, str], float] = {}
    for one in members:
        for position, name in _amino_changes(one.genome):
            weight[position, name] = weight.get((position, name), 0.0) + one.weight
    whole = sum(one.weight for one in members)
    found: dict[int, str] = {}
    for (position, name), w in sorted(weight.items(), key=lambda entry: (-entry[1], entry[0])):
        if w >= least * whole:
            found.setdefault(position, name)
    return dict(sorted(found.items()))


def _amino_changes(genome: Genome) -> list[tuple[int, str]]:
    spike = genome.cut(*SPIKE)
    old = translate(data.reference()[slice(*SPIKE)])
    found = []
    for i in range(N_AMINO):
        codon = spike.bases[3 * i : 3 * i + 3]
        gone = int((codon == DELETED).sum())
        if gone:
            found += [(i + 1, f"{old[i]}{i + 1}del")] if gone > 1 else []
        elif (new := translate(codon)) != old[i]:
            found.append((i + 1, f"{old[i]}{i + 1}{new}"))
    found += [(index // 3 + 1, f"ins{index // 3 + 1}") for index in spike.insertions]
    return found
