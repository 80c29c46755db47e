"""Seeded simulation of real-looking diversity around the lineages' consensus genomes.

Sample i of a seed is a pure function of (seed, i, settings): samples can be drawn in any
order, on any machine, and a training stream needs no state to be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from bertgeom.errors import UsageError
from bertgeom.pipelines.casestudy.genomes.fasta import open_fasta, write_record
from bertgeom.pipelines.casestudy.genomes.lineages import (
    CLASSES,
    DELETED,
    SPIKE,
    Change,
    Genome,
    Lineage,
    change,
    defining_changes,
    lineages,
    reference_genome,
)
from bertgeom.store.files import replacing

RECURRENT = (
    "L5F S13I L18F T19I T20I T22I P26S P26L A27S T29I H49Y S50L Q52R A67V A67S H69Y V70F "
    "G75V T76I D80Y D80G T95I S98F D111N S112L G142D Y145H H146Y W152C W152L W152R M153I "
    "M153T E154K E156D F157L F157S G181V Q183H D215G D215H A222V D228H S247N Y248H D253G "
    "D253N S254F S255F W258L G261V A262S Q314K P330S V341I A344S R346K R346S R346T V367F "
    "P384L E406Q K417N K417T N439K N440K L452R L452M L452Q Y453F S459F N460K S477N S477G "
    "S477R T478K P479S E484K E484Q F486L F490S F490L S494P S494L N501Y N501T A520S P521S "
    "E554D A570D A570S T572I D574Y E583D Q613H V622F S640F A647S A653V E654Q H655Y A684V "
    "Q675H Q675R Q677H Q677P N679K S680F P681H P681R A688V A701V T716I T719I T723I T732A T732S "
    "L754F G769V T778I E780Q D796H D796Y P812S A845S A846V T859I T859N S884F A899S A930V "
    "S929I D936Y S939F S940F T941A D950N D950H L981F S982A A1020S T1027I A1070S Q1071H A1078S "
    "E1092K V1104L H1101Y D1118H T1117I N1125S D1146H D1153Y P1162L P1162S D1163Y G1167V "
    "I1169F V1176F K1191N E1195Q E1202Q D1199N G1219V G1219C V1228L M1229I M1237I C1235F C1236F "
    "C1243F C1247F C1250F G1251V D1259H D1259Y P1263L V1264L "
    "nt:C21575T nt:C21614T nt:C21621T nt:C21627T nt:C21658T nt:C21691T nt:C21707T nt:C21711T "
    "nt:C21742T nt:C21789T nt:C21855T nt:C21859T nt:C22033T nt:C22088T nt:C22227T "
    "nt:C22264T nt:C22388T nt:C22444T nt:C22570T nt:C22792T nt:C22995T nt:C23191T nt:C23202T "
    "nt:C23271T nt:C23277T nt:C23380T nt:C23481T nt:C23525T nt:C23604T nt:C23613T nt:C23625T "
    "nt:C23664T nt:C23679T nt:C23707T nt:C23709T nt:C23731T nt:C23854T nt:C23929T nt:C24023T "
    "nt:C24034T nt:C24138T nt:C24213T nt:C24334T nt:C24358T nt:C24378T nt:C24382T nt:C24418T "
    "nt:C24442T nt:C24503T nt:C24642T nt:C24718T nt:C24748T nt:C24863T nt:C24865T "
    "nt:C24904T nt:T24910C nt:C25000T nt:C25046T nt:C25047T nt:C25207T "
    "nt:C25317T nt:C25324T nt:C25350T nt:C25357T nt:C25378T"
)
"""Spike changes that arise again and again on any background; none makes a class."""

_RECURRENT_DELETIONS = ((21764, 6), (21990, 3), (21982, 9), (22193, 3), (22280, 9), (22028, 6))
_SUBSTITUTION_WEIGHTS = {
    "A": (0.0, 0.03, 0.12, 0.03),
    "C": (0.03, 0.0, 0.02, 0.42),
    "G": (0.08, 0.02, 0.0, 0.14),
    "T": (0.02, 0.10, 0.02, 0.0),
}
Option = TypeVar("Option")
_LETTERS = np.frombuffer(b"ACGT", np.uint8)
_N = ord("N")
_IUPAC = {"R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC"}


@dataclass(frozen=True)
class Diversity:
    """How far and how badly sampled genomes stray from their lineage's consensus.

    Rates are per genome or, where said, per kilobase; probabilities are per genome unless
    said otherwise. Private substitutions follow a gamma-mixed Poisson law (shape 2).
    """

    private_per_kb: float = 0.5
    recurrent: float = 0.7
    convergent: float = 0.10
    site_loss: float = 0.015
    reference_fill: float = 0.03
    insertion_loss: float = 0.25
    deletion_as_n: float = 0.08
    amplicon_loss: float = 0.25
    short_n_runs: float = 0.3
    scattered_n: float = 0.1
    iupac: float = 0.3
    frame_indel: float = 0.05
    off_frame_indel: float = 0.03
    end_n: float = 0.05
    truncation: float = 0.01


_POOR = Diversity(
    private_per_kb=1.2,
    recurrent=1.5,
    convergent=0.25,
    site_loss=0.06,
    reference_fill=0.15,
    deletion_as_n=0.2,
    amplicon_loss=3.0,
    short_n_runs=1.5,
    scattered_n=1.0,
    iupac=2.0,
    frame_indel=0.15,
    off_frame_indel=0.20,
    end_n=0.3,
    truncation=0.15,
)

PROFILES = {
    "clean": Diversity(
        convergent=0.0,
        site_loss=0.0,
        reference_fill=0.0,
        deletion_as_n=0.0,
        amplicon_loss=0.0,
        short_n_runs=0.0,
        scattered_n=0.0,
        iupac=0.0,
        off_frame_indel=0.0,
        end_n=0.0,
        truncation=0.0,
    ),
    "typical": Diversity(),
    "poor": _POOR,
    "sparse": replace(_POOR, amplicon_loss=9.0, end_n=0.5),
    "shifted": replace(Diversity(), frame_indel=0.7, off_frame_indel=0.4),
}
"""`clean` assemblies, `typical` surveillance genomes, `poor` ones that a curator would reject,
`sparse` ones of which about half is N, and `shifted` ones whose private indels move the k-mer
phase of what follows."""


@dataclass(frozen=True)
class Simulation:
    """What to draw: region, mixture of quality profiles, share of each class.

    Attributes:
        region: "spike" or "genome".
        profiles: (profile name, share) pairs.
        weights: class name -> relative share; equal where not given.
    """

    region: str = "spike"
    profiles: tuple[tuple[str, float], ...] = (("typical", 1.0),)
    weights: tuple[tuple[str, float], ...] = field(default=())

    def __post_init__(self) -> None:
        if self.region not in ("spike", "genome"):
            raise UsageError(f"expected region 'spike' or 'genome', found {self.region!r}")
        for name, _ in self.profiles:
            if name not in PROFILES:
                raise UsageError(f"expected a profile of {sorted(PROFILES)}, found {name!r}")
        for name, _ in self.weights:
            if name not in CLASSES:
                raise UsageError(f"expected a class of {CLASSES}, found {name!r}")


@dataclass(frozen=True)
class Sample:
    """One simulated sequence: upper-case ASCII bases (uint8) and the truth about it."""

    id: str
    label: str
    lineage: str
    profile: str
    bases: np.ndarray


def draw(seed: int, index: int, simulation: Simulation = Simulation()) -> Sample:
    """Sample `index` of the stream of `seed`."""
    random = np.random.default_rng([seed, index])
    profile = _choose(random, simulation.profiles)
    shares = dict(simulation.weights)
    label = _choose(random, [(name, shares.get(name, 1.0)) for name in CLASSES])
    lineage = _choose(random, [(one, one.weight) for one in _of_class(label)])
    bases = _sample_bases(random, lineage, simulation.region, PROFILES[profile])
    return Sample(
        f"sim-{seed}-{index:06d}-{label}-{lineage.name}", label, lineage.name, profile, bases
    )


def simulate(
    n: int,
    seed: int,
    simulation: Simulation = Simulation(),
    *,
    balanced: bool = False,
) -> Iterator[Sample]:
    """The first `n` samples; `balanced` takes the first n / 9 (rounded up) of every class."""
    if not balanced:
        for index in range(n):
            yield draw(seed, index, simulation)
        return
    quota = dict.fromkeys(CLASSES, -(-n // len(CLASSES)))
    index = 0
    while any(quota.values()):
        sample = draw(seed, index, simulation)
        index += 1
        if quota[sample.label]:
            quota[sample.label] -= 1
            yield sample


def write(
    samples: Sequence[Sample] | Iterator[Sample],
    fasta: Path,
    labels: Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write FASTA (compressed by its suffix) and a label TSV; returns the number written."""
    count = 0
    with (
        replacing(fasta) as fasta_draft,
        replacing(labels, inputs=[fasta]) as labels_draft,
        open_fasta(fasta_draft) as sequences,
        labels_draft.open("w", encoding="utf-8") as table,
    ):
        table.write("record_id\tclass\tlineage\tprofile\n")
        for sample in samples:
            write_record(sequences, sample.id, sample.bases)
            table.write(f"{sample.id}\t{sample.label}\t{sample.lineage}\t{sample.profile}\n")
            count += 1
            if progress is not None:
                progress(count)
    return count


def _choose(random: np.random.Generator, options: Sequence[tuple[Option, float]]) -> Option:
    weights = np.array([weight for _, weight in options], float)
    edges = np.cumsum(weights)
    return options[int(np.searchsorted(edges, random.random() * edges[-1], side="right"))][0]


@cache
def _of_class(label: str) -> tuple[Lineage, ...]:
    return tuple(one for one in lineages() if one.label == label)


@cache
def _consensus(name: str, region: str) -> Genome:
    genome = next(one.genome for one in lineages() if one.name == name)
    return genome.cut(*SPIKE) if region == "spike" else genome


@cache
def _ancestor(region: str) -> Genome:
    return reference_genome().cut(*SPIKE) if region == "spike" else reference_genome()


@cache
def _recurrent_changes() -> tuple[tuple[int, bytes, bytes], ...]:
    """(reference index, reference bases, new bases) of every recurrent change."""
    found = []
    for text in RECURRENT.split():
        genome = reference_genome()
        before = genome.bases.copy()
        change(genome, text)
        touched = np.flatnonzero(genome.bases != before)
        start, stop = int(touched[0]), int(touched[-1]) + 1
        found.append((start, before[start:stop].tobytes(), genome.bases[start:stop].tobytes()))
    return tuple(found)


@cache
def _foreign_changes() -> tuple[Change, ...]:
    """Substitutions in the spike that define some lineage of the table, in order."""
    start, stop = SPIKE
    found = {
        one
        for changes in defining_changes().values()
        for one in changes
        if start <= one.position < stop and one.ref and one.alt
    }
    return tuple(sorted(found, key=lambda one: (one.position, one.alt)))


def _sample_bases(
    random: np.random.Generator, lineage: Lineage, region: str, diversity: Diversity
) -> np.ndarray:
    genome = _consensus(lineage.name, region).copy()
    ancestor = _ancestor(region)
    _lose_sites(random, genome, ancestor, diversity)
    _mutate(random, genome, diversity)
    _indels(random, genome, diversity)
    _mask(random, genome, diversity)
    return _ends(random, genome.sequence(), region, diversity)


def _lose_sites(
    random: np.random.Generator, genome: Genome, ancestor: Genome, diversity: Diversity
) -> None:
    """Reversions, uncalled insertions, masked deletions, reference-filled stretches."""
    starts, stops = _runs(genome.bases != ancestor.bases)
    for start, stop in zip(starts, stops, strict=True):
        deletion = genome.bases[start] == DELETED
        if deletion and random.random() < diversity.deletion_as_n:
            # Some callers mask a deletion as a whole, some a part of it.
            genome.bases[start : int(random.integers(start, stop)) + 1] = _N
        elif random.random() < diversity.site_loss:
            genome.bases[start:stop] = ancestor.bases[start:stop]
    for index in list(genome.insertions):
        if random.random() < diversity.insertion_loss:
            del genome.insertions[index]
    if random.random() < diversity.reference_fill:
        start, stop = _stretch(random, len(genome.bases), 150, 400)
        genome.bases[start:stop] = ancestor.bases[start:stop]
        for index in [i for i in genome.insertions if start <= i < stop]:
            del genome.insertions[index]


def _mutate(random: np.random.Generator, genome: Genome, diversity: Diversity) -> None:
    """Private, recurrent and convergent substitutions."""
    mean = diversity.private_per_kb * len(genome.bases) / 1000 * random.gamma(2.0, 0.5)
    for _ in range(random.poisson(mean)):
        _substitute(random, genome)
    recurrent = _recurrent_changes()
    for _ in range(random.poisson(diversity.recurrent)):
        position, old, new = recurrent[random.integers(len(recurrent))]
        _exchange(genome, position, old, new)
    if random.random() < diversity.convergent:
        foreign = _foreign_changes()
        for _ in range(random.integers(1, 4)):
            one = foreign[random.integers(len(foreign))]
            _exchange(genome, one.position, one.ref, one.alt)


def _substitute(random: np.random.Generator, genome: Genome) -> None:
    """One substitution: C>T and the other transitions first, then G>T (rejection sampling)."""
    while True:
        index = int(random.integers(len(genome.bases)))
        weights = _SUBSTITUTION_WEIGHTS.get(chr(genome.bases[index]))
        if weights is None:
            return
        level = random.random() * 0.5
        for letter, weight in zip(_LETTERS, weights, strict=True):
            if level < weight:
                genome.bases[index] = letter
                return
            level -= weight


def _exchange(genome: Genome, position: int, old: bytes, new: bytes) -> None:
    start = position - genome.offset
    if genome.bases[start : start + len(old)].tobytes() == old:
        genome.bases[start : start + len(new)] = np.frombuffer(new, np.uint8)


def _indels(random: np.random.Generator, genome: Genome, diversity: Diversity) -> None:
    """Private indels: whole codons (half of them in the known hot spots), and sequencing errors."""
    n = len(genome.bases)
    if random.random() < diversity.frame_indel:
        kind = random.random()
        if kind < 0.5:
            position, length = _RECURRENT_DELETIONS[random.integers(len(_RECURRENT_DELETIONS))]
            start = position - genome.offset
            genome.bases[start : start + length] = DELETED
        elif kind < 0.85:
            length = 3 * int(random.integers(1, 4))
            start = int(random.integers(n - length))
            genome.bases[start : start + length] = DELETED
        else:
            letters = _LETTERS[random.integers(0, 4, 3 * int(random.integers(1, 3)))]
            genome.insertions[int(random.integers(n - 1))] = letters.tobytes()
    if random.random() < diversity.off_frame_indel:
        start, length = int(random.integers(n - 8)), 1 + min(7, int(random.exponential(1.5)))
        if random.random() < 0.6:
            genome.bases[start : start + length] = DELETED
        else:
            genome.insertions[start] = _LETTERS[random.integers(0, 4, length)].tobytes()


def _mask(random: np.random.Generator, genome: Genome, diversity: Diversity) -> None:
    """N runs of lost amplicons, short runs, scattered N, IUPAC codes; deletions stay deleted."""
    n = len(genome.bases)
    scale = max(1.0, n / 8000)
    hidden = np.zeros(n, bool)
    for _ in range(random.poisson(diversity.amplicon_loss * scale)):
        start, stop = _stretch(random, n, 120, 420)
        hidden[start:stop] = True
    for _ in range(random.poisson(diversity.short_n_runs * scale)):
        start, stop = _stretch(random, n, 1, 60)
        hidden[start:stop] = True
    if random.random() < diversity.scattered_n:
        hidden[random.integers(0, n, random.integers(1, 30))] = True
    for index in random.integers(0, n, random.poisson(diversity.iupac * scale)):
        _make_ambiguous(random, genome.bases, int(index))
    starts, stops = _runs(hidden)
    for start, stop in zip(starts, stops, strict=True):
        if stop - start > 100:
            # A lost amplicon hides its indels too: consensus callers write N per reference base.
            genome.bases[start:stop] = _N
            for index in [i for i in genome.insertions if start <= i < stop]:
                del genome.insertions[index]
        else:
            part = genome.bases[start:stop]
            part[part != DELETED] = _N


def _make_ambiguous(random: np.random.Generator, bases: np.ndarray, index: int) -> None:
    codes = [code for code, letters in _IUPAC.items() if chr(bases[index]) in letters]
    if codes:
        bases[index] = ord(codes[random.integers(len(codes))])


def _ends(
    random: np.random.Generator, bases: np.ndarray, region: str, diversity: Diversity
) -> np.ndarray:
    """Loss at the ends: as N (the usual way), or cut off altogether."""
    n = len(bases)
    if region == "genome":
        first, last = (int(random.integers(0, limit)) for limit in (60, 120))
        bases = bases[first : n - last].copy()
        n = len(bases)
    longest = max(2, n // 8)
    if random.random() < diversity.end_n:
        bases[: int(random.integers(1, longest))] = _N
    if random.random() < diversity.end_n:
        bases[n - int(random.integers(1, longest)) :] = _N
    if random.random() < diversity.truncation:
        bases = bases[: n - int(random.integers(1, 6 * longest))]
    if random.random() < diversity.truncation / 3:
        bases = bases[int(random.integers(1, longest)) :]
    return bases


def _stretch(random: np.random.Generator, n: int, low: int, high: int) -> tuple[int, int]:
    length = int(random.integers(low, high))
    start = int(random.integers(-length // 2, n - length // 2))
    return max(0, start), min(n, start + length)


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops (half-open) of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.view(np.int8), [0]))))
    return edges[::2], edges[1::2]
