"""Regions become token groups by overlap, and masses follow their definition."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertgeom.analysis.annotations import (
    Annotations,
    Region,
    alignment_of_cigar,
    group_regions,
    read_annotations,
    record_intervals,
    region_attention,
    token_share,
)
from bertgeom.analysis.region_placement import AnnotationSummary, place_regions
from bertgeom.errors import InputError, UsageError

BED = b"""track name=x
# domains of a spike
r1\t10\t20\tNTD\t0\t+
r1\t30\t40\tRBD
r2\t5\t9
r1\t18\t25\tNTD
"""
GFF = b"""##gff-version 3
r1\tsrc\tgene\t11\t20\t.\t+\t.\tID=gene1;Name=spike%20gene
r1\tsrc\texon\t15\t18\t.\t+\t0\tParent=gene1
r%202\tsrc\texon\t1\t1\t.\t-\t.\t.
##FASTA
>r1
ACGT
"""


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_bed_regions_become_groups_in_order(tmp_path: Path) -> None:
    found = read_annotations(write(tmp_path / "a.bed", BED))
    assert found.names == ("NTD", "RBD", "r2:5-9")
    ntd = found.by_sequence["r1"][0]
    assert (ntd.start.tolist(), ntd.stop.tolist()) == ([10], [25])
    assert found.by_sequence["r2"][2].start.tolist() == [5]


def test_gff_is_one_based_inclusive_and_percent_coded(tmp_path: Path) -> None:
    path = tmp_path / "a.gff3.gz"
    path.write_bytes(gzip.compress(GFF))
    found = read_annotations(path)
    assert found.names == ("spike gene", "gene1", "exon")
    gene = found.by_sequence["r1"][0]
    assert (gene.start.tolist(), gene.stop.tolist()) == ([10], [20])
    assert found.by_sequence["r 2"][2].stop.tolist() == [1]
    by_type = read_annotations(path, group_by="type")
    assert by_type.names == ("gene", "exon")
    assert by_type.by_sequence["r1"][1].start.tolist() == [14]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"r1\t10\n", "line 1: expected sequence, start < stop"),
        (b"r1\t10\t10\n", "line 1: expected sequence, start < stop"),
        (b"r1\t-1\t10\n", "line 1: expected sequence, start < stop"),
        (b"##gff-version 3\nr1\ts\tt\t5\t4\t.\t.\t.\t.\n", "line 2: expected nine GFF3 columns"),
        (b"##gff-version 3\nr1\ts\tt\tx\t4\t.\t.\t.\t.\n", "line 2: expected nine GFF3 columns"),
        (b"# nothing\n", "expected at least one region, found none"),
        (b"".join(b"r\t1\t2\tg%d\n" % i for i in range(17)), "at most 16 groups"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_annotations(write(tmp_path / "a.bed", data))


def test_grouping_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bed", BED)
    with pytest.raises(UsageError, match="'name' or 'type'"):
        read_annotations(path, group_by="colour")
    with pytest.raises(UsageError, match="expected GFF3 or GTF for groups by type, found BED"):
        read_annotations(path, group_by="type")


def test_annotations_of_another_database_are_refused(tmp_path: Path) -> None:
    found = read_annotations(write(tmp_path / "a.bed", BED))
    found.require(["x", "r2"])
    with pytest.raises(InputError, match="sequences such as 'r1'"):
        found.require(["x", "y"])


@given(
    regions=st.lists(
        st.tuples(st.integers(0, 60), st.integers(1, 12), st.integers(0, 15)), min_size=1
    ),
    tokens=st.lists(st.tuples(st.integers(-1, 70), st.integers(0, 9)), max_size=30),
)
def test_a_token_is_in_a_group_iff_a_base_is(
    regions: list[tuple[int, int, int]], tokens: list[tuple[int, int]]
) -> None:
    found = group_regions([Region("r", s, s + n, f"g{g}") for s, n, g in regions])
    start = np.array([s for s, _ in tokens], dtype=np.int64)
    stop = np.array([s + n if s >= 0 else -1 for s, n in tokens], dtype=np.int64)
    bits = found.groups("r", start, stop)
    for (s, n), bit in zip(tokens, bits, strict=True):
        bases = set(range(s, s + n)) if s >= 0 else set()
        expected = 0
        for region_start, length, group in regions:
            if bases & set(range(region_start, region_start + length)):
                expected |= 1 << found.names.index(f"g{group}")
        assert bit == expected
    assert not found.groups("other", start, stop).any()


def test_all_sixteen_bits_can_be_used() -> None:
    found = group_regions([Region("r", i, i + 1, str(i)) for i in range(16)])
    bits = found.groups("r", np.array([15, 0]), np.array([16, 16]))
    assert bits.tolist() == [1 << 15, (1 << 16) - 1]


def test_cigars_map_reference_to_record() -> None:
    #  reference 100: MMMM--DDMMM   record 2: MMMMII..MMM
    alignment = alignment_of_cigar("2S4M2I2D3=5S", reference_start=100)
    assert alignment.lift(100, 104) == (2, 6)
    assert alignment.lift(102, 107) == (4, 9)
    assert alignment.lift(104, 106) is None
    assert alignment.lift(105, 200) == (8, 11)
    assert alignment.lift(0, 100) is None
    with pytest.raises(InputError, match="expected a CIGAR string"):
        alignment_of_cigar("4M?", reference_start=0)


def test_reference_regions_are_lifted_to_a_record() -> None:
    reference = group_regions([Region("ref", 100, 104, "a"), Region("ref", 104, 106, "b")])
    alignment = alignment_of_cigar("4M2D3M", reference_start=100, record_start=7)
    lifted = reference.lifted("record", alignment)
    assert lifted.groups("record", np.array([7, 10, 11]), np.array([8, 11, 12])).tolist() == [
        1,
        1,
        0,
    ]
    both = group_regions([Region("x", 1, 2, "a"), Region("y", 1, 2, "a")])
    with pytest.raises(UsageError, match="name the reference"):
        both.lifted("record", alignment)


def test_tokens_of_the_reverse_strand_count_from_the_end() -> None:
    start, stop = np.array([-1, 0, 3, 6]), np.array([-1, 3, 6, 12])
    forward = record_intervals(start, stop, 100, 110)
    assert forward[0].tolist() == [-1, 100, 103, 106]
    assert forward[1].tolist() == [-1, 103, 106, 110]
    reverse = record_intervals(start, stop, 100, 110, -1)
    assert reverse[0].tolist() == [-1, 107, 104, 100]
    assert reverse[1].tolist() == [-1, 110, 107, 104]


def test_token_shares_count_special_tokens() -> None:
    groups = np.array([0, 1, 3, 0], dtype=np.int32)
    assert token_share(groups, 3).tolist() == [0.5, 0.25, 0]


@pytest.mark.parametrize("window", [None, 4])
def test_region_attention_equals_its_definition(window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q = 2 * torch.randn(4, 30, 8, generator=generator).double()
    k = torch.randn(2, 30, 8, generator=generator).double()
    groups = torch.randint(0, 8, (30,), generator=generator, dtype=torch.int32)
    found = region_attention(q, k, groups, 3, theta=0.2, window=window, block=7)
    member = ((groups[:, None] >> torch.arange(3)) & 1).numpy().astype(float)
    far = np.abs(np.arange(30)[:, None] - np.arange(30)) > (30 if window is None else window)
    for head in range(4):
        logits = (q[head] @ k[head // 2].T).numpy() / np.sqrt(8)
        weights = np.where(far, 0, np.exp(logits))
        weights /= weights.sum(1, keepdims=True)
        strong = weights >= 0.2
        expected = {
            "mass": (weights @ member).mean(0),
            "relative_mass": (weights @ member).mean(0) / member.mean(0),
            "confident_mass": ((weights * strong) @ member).mean(0),
            "confident_count": (strong @ member).mean(0),
            "confident_share": ((weights * strong) @ member).sum(0) / (weights * strong).sum(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][head], value, rtol=1e-12)


def test_weights_at_the_threshold_are_confident() -> None:
    q, k = torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    found = region_attention(q, k, torch.tensor([1, 1, 0, 0], dtype=torch.int32), 1, theta=0.25)
    assert found["confident_count"].item() == 2
    assert found["confident_share"].item() == pytest.approx(0.5)


def test_regions_without_tokens_have_no_relative_mass() -> None:
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    found = region_attention(x, x, torch.zeros(5, dtype=torch.int32), 1, theta=0.999)
    assert (found["mass"] == 0).all()
    assert torch.isnan(found["relative_mass"]).all()
    assert torch.isnan(found["confident_share"]).all()


def placed(path: Path, records: dict[str, int]) -> tuple[Annotations, AnnotationSummary]:
    lengths = np.array(list(records.values()))
    return place_regions(read_annotations(path), list(records), lengths)


def intervals(found: Annotations, sequence: str, group: str) -> list[tuple[int, int]]:
    one = found.by_sequence[sequence][found.names.index(group)]
    return list(zip(one.start.tolist(), one.stop.tolist(), strict=True))


CIRCULAR = (
    b"##gff-version 3\n##sequence-region c 1 3000\n"
    b"c\tx\tregion\t1\t3000\t.\t+\t.\tID=c;Is_circular=true\n"
    b"c\tx\tgene\t2801\t3200\t.\t-\t.\tID=geneO;Name=geneO\n"
)


def test_a_gene_across_a_circular_origin_is_wrapped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gff3", CIRCULAR)
    found, summary = placed(path, {"c": 3000, "bare": 5})
    assert intervals(found, "c", "geneO") == [(0, 200), (2800, 3000)]
    assert (summary.wrapped, summary.cut, summary.bare_records) == (1, 0, 1)
    assert "1 regions cross the origin" in " ".join(summary.lines())
    with pytest.raises(InputError, match=r"expected a sequence of 2900 bases.*landmark of 3000"):
        placed(path, {"c": 2900})


def test_blocks_of_bed12_are_regions_and_the_span_is_not(tmp_path: Path) -> None:
    line = b"c\t500\t2500\ttx\t0\t+\t500\t2500\t0\t2\t100,100,\t0,1900,\n"
    found = read_annotations(write(tmp_path / "a.bed", line))
    assert intervals(found, "c", "tx") == [(500, 600), (2400, 2500)]


GTF = (
    b'c\th\tgene\t11\t20\t.\t+\t.\tgene_id "g1"; gene_name "spike; S";\r\n'
    b'c\th\texon\t15\t18\t.\t+\t0\tgene_id "g1"; transcript_id "t1"; gene_name "spike; S";\r\n'
    b'c\th\texon\t31\t40\t.\t-\t0\tgene_id "g2"; transcript_id "";  # second\r\n'
)


def test_gtf_is_told_by_content_and_grouped_by_gene_or_type(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"#!genome-build x\n" + GTF)
    found = read_annotations(path)
    assert found.names == ("spike; S", "g2")
    assert intervals(found, "c", "g2") == [(30, 40)]
    assert read_annotations(path, group_by="type").names == ("gene", "exon")


def test_parts_with_one_id_are_one_feature_and_parents_count_each(tmp_path: Path) -> None:
    data = (
        b"##gff-version 3\n"
        b"c\tx\tCDS\t1\t5\t.\t+\t0\tID=p;Name=protein\n"
        b"c\tx\tCDS\t11\t15\t.\t+\t0\tID=p\n"
        b"c\tx\texon\t21\t25\t.\t+\t.\tParent=t1,t%2C2\n"
        b">c\nACGT\n"
    )
    found = read_annotations(write(tmp_path / "a", data))
    assert found.names == ("protein", "t1", "t,2")
    assert intervals(found, "c", "protein") == [(0, 5), (10, 15)]


def test_what_lies_outside_is_refused_or_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bed", b"c\t0\t9\ta\nc\t5\t12\tb\nc\t1\t2\tb\nx\t1\t2\tb\n")
    _, summary = placed(path, {"c": 10})
    assert (summary.placed, summary.cut) == (3, 1)
    assert (summary.absent_regions, summary.absent_records) == (1, 1)
    with pytest.raises(InputError, match=r"line 2: expected regions inside the 5 bases.*'b'"):
        placed(path, {"c": 5})
    with pytest.raises(InputError, match="2 of 3 that end beyond"):
        placed(path, {"c": 8})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"c\t1\t99999999999999999999999\n", "line 1: expected sequence, start < stop"),
        (b"c\t1_0\t20\n", "line 1: expected sequence, start < stop"),
        (b"chrom\tstart\tend\n", "line 1: expected sequence"),
        (b"c\t0\t9\ta\t0\t+\t0\t9\t0\t2\t3,3\t0,1\n", "line 1: expected BED12 blocks"),
        (b"c\t0\t9\ta\t0\t+\t0\t9\t0\t2\t3,3\t0\n", "line 1: expected BED12 blocks"),
        (b"##gff-version 3\nc\ts\tt\t1\t4\t.\t.\t.\tgene g\n", "line 2: expected GFF3 attributes"),
        (b'c\ts\tt\t1\t4\t.\t.\t.\tgene_id "x\n', "line 1: expected G"),
        (b"c\t1\t2\tn\xe9\n", "line 1: expected regions .* UTF-8"),
        (b"\xff\xfec\0\t\0", "UTF-16"),
        (b"\x89PNG\0\0\1", "binary"),
        (b"", "an empty file"),
        (b"\x1f\x8b\x08\x00", "damaged or truncated"),
    ],
)
def test_more_bad_files(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_annotations(write(tmp_path / "a", data))


def test_records_called_track_and_old_line_ends_are_read(tmp_path: Path) -> None:
    data = b"track name=x\rtrack\t1\t5\ta\rtracker\t1\t5\ta\r\r"
    found = read_annotations(write(tmp_path / "a.bed", data))
    assert sorted(found.by_sequence) == ["track", "tracker"]
