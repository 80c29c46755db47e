"""The nine classes of the case study and the genomes that stand for them.

A genome is built in reference coordinates: one base per reference position, zero where it
is deleted, plus insertions keyed by the position they follow. So changes can be applied in
any order and a gene can be cut out by its reference coordinates.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from bertgeom import data
from bertgeom.errors import InputError
from bertgeom.kernels.arrays import UInt8Array

CLASSES = (
    "alpha",
    "beta",
    "delta",
    "gamma",
    "gh",
    "lambda",
    "mu",
    "omicron",
    "background",
)
"""Class names in the order of the model's labels; `gh` is GH/490R, B.1.640.1."""

SPIKE = (21562, 25384)
"""The spike gene in NC_045512.2, 0-based and half-open (21563..25384 in GenBank's count)."""

DELETED = 0
"""What stands in a genome's `bases` where the reference base is deleted."""

_TRANSITIONS = {frozenset("AG"), frozenset("CT")}
_CODONS = dict(
    zip(
        map("".join, itertools.product("TCAG", repeat=3)),
        "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
        strict=True,
    )
)
_AMINO = re.compile(r"^([A-Z*])(\d+)([A-Z*])$")
_SUBSTITUTION = re.compile(r"^nt:([ACGT])(\d+)([ACGT])$")
_DELETION = re.compile(r"^nt:del(\d+)-(\d+)$")
_INSERTION = re.compile(r"^nt:ins(\d+)([ACGT]+)$")


@dataclass(frozen=True)
class Change:
    """One nucleotide change relative to the reference.

    Attributes:
        position: 0-based index of the first reference base touched; for an insertion the
            index of the base that it follows.
        ref: reference bases, empty for an insertion.
        alt: new bases, empty for a deletion.
    """

    position: int
    ref: bytes
    alt: bytes


@dataclass
class Genome:
    """A genome, or a stretch of one, in reference coordinates.

    Attributes:
        bases: (n,) uint8 ASCII, `DELETED` where the reference base is missing.
        insertions: bases that follow index i, keyed by i.
        offset: reference index of `bases[0]`.
    """

    bases: UInt8Array
    insertions: dict[int, bytes] = field(default_factory=dict)
    offset: int = 0

    def copy(self) -> Genome:
        return Genome(self.bases.copy(), dict(self.insertions), self.offset)

    def cut(self, start: int, stop: int) -> Genome:
        """The stretch [start, stop) of the reference; an insertion after `stop - 1` is left."""
        first, last = start - self.offset, stop - self.offset
        inside = {i - first: b for i, b in self.insertions.items() if first <= i < last - 1}
        return Genome(self.bases[first:last].copy(), inside, start)

    def sequence(self) -> UInt8Array:
        """The bases as they would be sequenced: (m,) uint8 ASCII."""
        if not self.insertions:
            return _present(self.bases)
        pieces, start = [], 0
        for index in sorted(self.insertions):
            pieces.append(self.bases[start : index + 1])
            pieces.append(np.frombuffer(self.insertions[index], np.uint8))
            start = index + 1
        pieces.append(self.bases[start:])
        return _present(np.concatenate(pieces))


def _present(bases: UInt8Array) -> UInt8Array:
    kept: UInt8Array = bases[bases != DELETED]
    return kept


@dataclass(frozen=True)
class Lineage:
    """A lineage, the class it belongs to, and its share `weight` within the class."""

    name: str
    label: str
    weight: float
    genome: Genome


def reference_genome() -> Genome:
    """The whole reference, free to be changed."""
    return Genome(data.reference().copy())


@cache
def defining_changes() -> Mapping[str, tuple[Change, ...]]:
    """Lineage name -> its changes from the table of lineage-defining mutations."""
    found: dict[str, list[Change]] = {}
    with data.lineage_mutations().open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            change = Change(
                int(row["position"]) - 1,
                b"" if row["ref"] == "-" else row["ref"].encode(),
                b"" if row["alt"] == "-" else row["alt"].encode(),
            )
            found.setdefault(row["lineage"], []).append(change)
    return {name: tuple(changes) for name, changes in found.items()}


@cache
def lineages() -> tuple[Lineage, ...]:
    """All lineages of all classes, in the order of the table that lists them."""
    genomes = {name: apply(reference_genome(), c) for name, c in defining_changes().items()}
    found = []
    with data.sublineages().open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            parent = reference_genome() if row["parent"] == "-" else genomes[row["parent"]].copy()
            for text in (row["changes"] or "").split():
                change(parent, text)
            genomes[row["lineage"]] = parent
            found.append(Lineage(row["lineage"], row["class"], float(row["weight"]), parent))
    return tuple(found)


def apply(genome: Genome, changes: Iterable[Change]) -> Genome:
    """Apply nucleotide changes in place and return the genome.

    Raises:
        InputError: a change whose reference bases are not those of the reference genome.
    """
    for item in changes:
        i = item.position
        span = slice(i, i + len(item.ref))
        found = data.reference()[span].tobytes()
        if found != item.ref:
            raise InputError(
                f"the reference base(s) {item.ref.decode()}",
                found.decode(),
                source="lineage changes",
                record=f"position {i + 1}",
            )
        if not item.ref:
            genome.insertions[i] = item.alt
        elif not item.alt:
            genome.bases[span] = DELETED
        else:
            genome.bases[span] = np.frombuffer(item.alt, np.uint8)
    return genome


def change(genome: Genome, text: str) -> None:
    """Apply one written change, in place, to a whole genome.

    Written forms: `E484K` (spike amino acid, by the nearest codon), `nt:C23731T`,
    `nt:del21765-21770`, `nt:ins22204GAGCCAGAA`; nucleotide positions are 1-based. An
    amino acid or base on the left must be the one the genome has.

    Raises:
        InputError: an unknown form, or a left-hand side that the genome does not have.
    """
    if match := _AMINO.match(text):
        _change_amino_acid(genome, *match.groups())
    elif match := _SUBSTITUTION.match(text):
        old, position, new = match.groups()
        i = int(position) - 1
        if chr(genome.bases[i]) != old:
            raise InputError(text, chr(genome.bases[i]), source="lineage changes")
        genome.bases[i] = ord(new)
    elif match := _DELETION.match(text):
        start, stop = left_normalised(int(match[1]) - 1, int(match[2]))
        genome.bases[start:stop] = DELETED
    elif match := _INSERTION.match(text):
        genome.insertions[int(match[1]) - 1] = match[2].encode()
    else:
        raise InputError("a change like E484K or nt:C23731T", repr(text), source="lineage changes")


def left_normalised(start: int, stop: int) -> tuple[int, int]:
    """The leftmost deletion [start, stop) that gives the same sequence from the reference."""
    reference = data.reference()
    while start > 0 and reference[start - 1] == reference[stop - 1]:
        start, stop = start - 1, stop - 1
    return start, stop


def translate(bases: np.ndarray) -> str:
    """Amino acids of whole codons from index 0; `X` where a codon is not four letters' own."""
    text = bases.tobytes().decode("ascii")
    whole = len(text) - len(text) % 3
    return "".join(_CODONS.get(text[i : i + 3], "X") for i in range(0, whole, 3))


def _change_amino_acid(genome: Genome, old: str, number: str, new: str) -> None:
    start = SPIKE[0] + 3 * (int(number) - 1)
    codon = genome.bases[start : start + 3].tobytes().decode("ascii")
    if _CODONS.get(codon) != old:
        raise InputError(
            f"{old} at spike position {number}",
            f"codon {codon!r} = {_CODONS.get(codon)}",
            source="lineage changes",
        )
    genome.bases[start : start + 3] = np.frombuffer(_nearest_codon(codon, new).encode(), np.uint8)


def _nearest_codon(codon: str, amino_acid: str) -> str:
    def distance(other: str) -> tuple[int, int, str]:
        pairs = [frozenset(pair) for pair in zip(codon, other, strict=True) if len(set(pair)) == 2]
        return len(pairs), sum(pair not in _TRANSITIONS for pair in pairs), other

    return min((c for c, letter in _CODONS.items() if letter == amino_acid), key=distance)
