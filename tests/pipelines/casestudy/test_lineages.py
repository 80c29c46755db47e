from __future__ import annotations

import numpy as np
import pytest

from bertgeom import data
from bertgeom.errors import InputError
from bertgeom.pipelines.casestudy.genomes.lineages import (
    CLASSES,
    DELETED,
    SPIKE,
    Change,
    Genome,
    Lineage,
    _nearest_codon,
    apply,
    change,
    defining_changes,
    left_normalised,
    lineages,
    reference_genome,
    translate,
)

# Amino acids of the spike that name the lineage, by its own (reference) numbering; '-' deleted.
HALLMARKS = {
    "B.1.1.7": "69- 70- 144- 501Y 570D 614G 681H 716I 982A 1118H",
    "B.1.351": "80A 215G 417N 484K 501Y 614G 701V",
    "B.1.617.2": "19R 142D 452R 478K 614G 681R 950N",
    "P.1": "18F 20N 26S 138Y 190S 417T 484K 501Y 614G 655Y 1027I 1176F",
    "B.1.640.1": "9L 96Q 190S 346S 394S 449N 490R 501Y 614G 681H 859N 936H",
    "C.37": "75V 76I 452Q 490S 614G 859N",
    "B.1.621": "95I 346K 484K 501Y 614G 681H 950N",
    "BA.1": "67V 69- 70- 95I 339D 371L 373P 375F 417N 440K 446S 493R 496S 501Y 796Y 981F",
    "BA.2": "19I 142D 213G 339D 371F 376A 405N 408S 493R 501Y 505H 764K 969K",
    "BA.5": "69- 70- 371F 452R 486V 493Q 501Y 614G 655Y",
    "BQ.1.1": "346T 444T 452R 460K 486V",
    "XBB.1.5": "83A 146Q 183E 213E 252V 339H 346T 445P 460K 486P 490S 493Q",
    "JN.1": "50L 127F 157S 264D 332V 339H 403K 445H 450D 452W 455S 460K 481K 554K 621S 939F",
    "A": "614D",
    "B.1": "614G",
    "B.1+Q57H": "614G",
    "R.1": "152L 484K 614G 769V",
}


def spike_of(name: str) -> Genome:
    return next(one for one in lineages() if one.name == name).genome.cut(*SPIKE)


@pytest.mark.parametrize("one", lineages(), ids=lambda one: one.name)
def test_spike_translates_to_its_end(one: Lineage) -> None:
    bases = one.genome.cut(*SPIKE).sequence()
    protein = translate(bases)
    assert len(bases) % 3 == 0
    assert protein.startswith("MF")
    assert protein.index("*") == len(protein) - 1
    assert "X" not in protein


@pytest.mark.parametrize("name", HALLMARKS)
def test_lineage_has_its_hallmark_amino_acids(name: str) -> None:
    bases = spike_of(name).bases
    for hallmark in HALLMARKS[name].split():
        place, amino_acid = 3 * (int(hallmark[:-1]) - 1), hallmark[-1]
        codon = bases[place : place + 3]
        if amino_acid == "-":
            # Deletions are left-normalised, so a deleted codon may keep bases of the next one.
            assert (bases[place - 3 : place + 6] == DELETED).sum() >= 3, hallmark
        else:
            assert translate(codon) == amino_acid, hallmark


@pytest.mark.parametrize(
    ("name", "motif"),
    [
        ("B.1.1.7", "AISGTNG"),  # del 69-70
        ("B.1.1.7", "LGVYHK"),  # del 144
        ("B.1.351", "QTLHRSY"),  # del 241-243
        ("B.1.617.2", "ESGVYSS"),  # E156G, del 157-158
        ("C.37", "ALHNSSSGW"),  # del 246-252
        ("B.1.621", "VTSNHKN"),  # Y144T, Y145S, ins146N
        ("BA.1", "IVREPEDLP"),  # N211I, del 212, ins214EPE
        ("BA.1", "FLDHKN"),  # G142D, del 143-145
        ("BA.2", "QSYTNSFTR"),  # del 24-26, A27S
    ],
)
def test_indels_give_the_published_protein(name: str, motif: str) -> None:
    assert motif in translate(spike_of(name).sequence())


def test_every_class_has_a_lineage_and_every_parent_a_table_row() -> None:
    assert {one.label for one in lineages()} == set(CLASSES)
    assert all(one.weight > 0 for one in lineages())
    assert len({one.name for one in lineages()}) == len(lineages())


def test_background_has_no_lineage_of_the_variant_table() -> None:
    variants = [n for n in defining_changes() if not n.startswith(("B.1+", "20C"))]
    found = {one.name for one in lineages() if one.label == "background"}
    assert not found & set(variants)


def test_spike_of_the_reference_is_untouched() -> None:
    assert np.array_equal(spike_of("B").sequence(), data.reference()[21562:25384])


def test_insertion_and_deletion_move_only_what_follows() -> None:
    genome = apply(
        reference_genome(), [Change(21764, b"TACATG", b""), Change(22204 - 1, b"", b"GAGCCAGAA")]
    )
    reference = data.reference().tobytes()
    expected = reference[:21764] + reference[21770:22204] + b"GAGCCAGAA" + reference[22204:]
    assert genome.sequence().tobytes() == expected


def test_wrong_reference_base_is_refused() -> None:
    with pytest.raises(InputError, match=r"position 23403.*the reference base.*C, found A"):
        apply(reference_genome(), [Change(23402, b"C", b"G")])


@pytest.mark.parametrize("text", ["D614", "K484E", "nt:A23731T", "614G", "nt:dup5"])
def test_malformed_or_impossible_change_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        change(reference_genome(), text)


@pytest.mark.parametrize(
    ("codon", "amino_acid", "expected"),
    [
        ("GAA", "K", "AAA"),  # E484K: one transition
        ("AAC", "K", "AAA"),  # N439K: two transversions, the first in the alphabet
        ("GGT", "H", "CAT"),  # G339H: two bases, the third stays
        ("CTG", "R", "CGG"),  # L452R
    ],
)
def test_nearest_codon_changes_least(codon: str, amino_acid: str, expected: str) -> None:
    assert _nearest_codon(codon, amino_acid) == expected


def test_deletion_is_left_normalised() -> None:
    # ..TTTATTACC.. : deleting the second TTA equals deleting the first.
    start, stop = left_normalised(21990, 21993)
    assert stop - start == 3
    kept = np.delete(data.reference(), slice(start, stop))
    assert np.array_equal(kept, np.delete(data.reference(), slice(21990, 21993)))
    assert data.reference()[start - 1] != data.reference()[stop - 1]
