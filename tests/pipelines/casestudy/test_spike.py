from __future__ import annotations

from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from bertgeom import data
from bertgeom.errors import ImplementationUnavailableError
from bertgeom.kernels.kmers import reverse_complement
from bertgeom.pipelines.casestudy.genomes import spike as module
from bertgeom.pipelines.casestudy.genomes.lineages import SPIKE, Lineage, lineages
from bertgeom.pipelines.casestudy.genomes.simulate import Simulation, draw
from bertgeom.pipelines.casestudy.genomes.spike import Skipped, Spike, extract, extract_all

START, STOP = SPIKE
N = ord("N")


def spike_in(genome: np.ndarray) -> Spike:
    """The spike gene of a genome that has one."""
    found = extract("x", genome)
    assert isinstance(found, Spike), found
    return found


@pytest.fixture
def mappy() -> ModuleType:
    return pytest.importorskip("mappy", reason="needs the extra 'casestudy'")


@pytest.mark.parametrize("one", lineages(), ids=lambda one: one.name)
def test_spike_of_a_consensus_genome_is_exact(one: Lineage, mappy: ModuleType) -> None:
    found = extract("x", one.genome.sequence())
    assert isinstance(found, Spike)
    assert found.aligned
    assert found.padded == 0
    assert np.array_equal(found.bases, one.genome.cut(*SPIKE).sequence())


def test_runs_of_n_over_either_end_of_the_gene_do_not_move_it(mappy: ModuleType) -> None:
    for start, stop in ((START - 200, START + 300), (STOP - 250, STOP + 400), (22000, 23500)):
        genome = data.reference().copy()
        genome[start:stop] = N
        found = spike_in(genome)
        assert np.array_equal(found.bases, genome[START:STOP])


def test_indel_next_to_a_run_of_n(mappy: ModuleType) -> None:
    genome = data.reference().copy()
    genome[START - 100 : START + 100] = N
    cut = np.delete(genome, slice(START + 400, START + 406))
    assert np.array_equal(spike_in(cut).bases, cut[START : STOP - 6])


def test_bases_lost_at_the_ends_are_written_as_n(mappy: ModuleType) -> None:
    piece = data.reference()[START + 500 : STOP - 300]
    flanked = data.reference()[START + 500 :]
    found = spike_in(flanked)
    assert found.padded == 500
    assert (found.bases[:500] == N).all()
    assert np.array_equal(found.bases[500:], data.reference()[START + 500 : STOP])
    both = spike_in(piece)
    assert both.padded == 800
    assert np.array_equal(both.bases[500:-300], piece)


def test_other_strand_lower_case_rna_and_gaps(mappy: ModuleType) -> None:
    bases = data.reference()
    expected = bases[START:STOP]
    text = bases.tobytes().lower().replace(b"t", b"u")
    gapped = text[:5000] + b"----" + text[5000:]
    for other in (reverse_complement(bases), np.frombuffer(gapped, np.uint8)):
        assert np.array_equal(spike_in(other).bases, expected)


def test_simulated_poor_genomes_give_the_simulated_spike(mappy: ModuleType) -> None:
    settings = Simulation(region="genome", profiles=(("poor", 1.0),))
    found = [extract(s.id, s.bases) for s in (draw(11, i, settings) for i in range(25))]
    spikes = [one for one in found if isinstance(one, Spike)]
    assert len(spikes) >= 20
    assert all(3300 < len(one.bases) < 4000 for one in spikes)


def test_ready_spikes_need_no_aligner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "aligner", lambda: pytest.fail("aligned a ready spike"))
    for one in lineages():
        bases = one.genome.cut(*SPIKE).sequence()
        found = spike_in(bases)
        assert not found.aligned
        assert np.array_equal(found.bases, bases)


def test_ready_spike_that_lost_its_start_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "aligner", lambda: pytest.fail("aligned a ready spike"))
    found = spike_in(data.reference()[START + 333 : STOP])
    assert found.padded == 333
    assert len(found.bases) == STOP - START


def test_genome_without_mappy_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mappy", None)
    module.aligner.cache_clear()
    with pytest.raises(ImplementationUnavailableError, match=r"bertgeom\[casestudy\]"):
        extract("x", data.reference())
    module.aligner.cache_clear()


@pytest.mark.parametrize(
    ("bases", "reason"),
    [
        (b"", "empty"),
        (b"N" * 29903, "no base is known"),
        (bytes(np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 9000)), "aligns"),
        (b"ORF1a", "part"),
    ],
)
def test_unusable_genomes_are_skipped_with_a_reason(
    bases: bytes, reason: str, mappy: ModuleType
) -> None:
    if bases == b"ORF1a":
        bases = data.reference()[:9000].tobytes()
    found = extract("x", np.frombuffer(bases, np.uint8))
    assert isinstance(found, Skipped)
    assert reason in found.reason


def test_genome_with_too_little_of_the_spike_is_skipped_with_numbers(mappy: ModuleType) -> None:
    genome = data.reference().copy()
    genome[START + 800 : STOP] = N
    (found,) = extract_all([SimpleNamespace(id="x", bases=genome)])
    assert found == Skipped("x", "21% of the spike's bases are known, at least 30% needed")
    assert isinstance(extract("x", genome, min_known=0.2), Spike)
