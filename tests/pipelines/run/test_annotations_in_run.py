"""Annotated regions in a run: token groups, their masses, and what they are relative to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bertgeom
from bertgeom.errors import InputError, MismatchError
from bertgeom.pipelines.run import stages, verify

GENOME = "ACGTTGCAAGCTTAGCCATGAATTCGGCTAACGTAGCTAGGCATCGATTAC"


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    path = tmp_path / "regions.bed"
    path.write_text("one\t0\t10\thead\none\t40\t51\ttail\n")
    return path


@pytest.fixture
def genomes(tmp_path: Path) -> Path:
    path = tmp_path / "two.fa"
    path.write_text(f">one\n{GENOME}\n>two\n{GENOME[::-1]}\n")
    return path


@pytest.mark.parametrize("strand", ["+", "-"])
def test_masses_of_regions_follow_from_the_tracks(
    tiny_model: Path, genomes: Path, regions: Path, tmp_path: Path, strand: str
) -> None:
    out = tmp_path / "x.zarr"
    stages.run(
        genomes,
        model=tiny_model,
        out=out,
        annotations=regions,
        keep="tracks",
        strand=strand,
        threads=1,
    )
    ds = bertgeom.open(out)
    assert list(ds.group.values) == ["head", "tail"]
    start, stop = (ds[f"token_{end}"].values.astype(int) for end in ("start", "stop"))
    for row in range(ds.sizes["window"]):
        annotated = ds.record_id.values[row] == "one"
        for name, (low, high) in {"head": (0, 10), "tail": (40, 51)}.items():
            inside = annotated & (start[row] >= 0) & (start[row] < high) & (stop[row] > low)
            n = int(ds.n_tokens.values[row])
            assert ds.group_tokens.sel(group=name).values[row] == inside[:n].sum()
            received = np.nan_to_num(ds.attention_received.values[row].astype(np.float64))
            expected = (received * inside).sum(-1) / n
            found = ds.attention_group_mass.sel(group=name).values[row]
            np.testing.assert_allclose(found, expected, atol=2e-3)
    assert verify.verify(out, windows=2).agrees


def test_other_regions_are_another_run(
    tiny_model: Path, genomes: Path, regions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.zarr"
    stages.run(genomes, model=tiny_model, out=out, annotations=regions, threads=1)
    regions.write_text("one\t0\t12\thead\none\t40\t51\ttail\n")
    with pytest.raises(MismatchError, match="annotations"):
        stages.run(genomes, model=tiny_model, out=out, annotations=regions, threads=1)


def test_regions_of_other_records_stop_before_any_compute(
    tiny_model: Path, genomes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "chr.bed"
    path.write_text("chr1\t0\t10\texon\n")
    with pytest.raises(InputError, match="chr1"):
        stages.run(genomes, model=tiny_model, out=tmp_path / "x", annotations=path, threads=1)
    assert not (tmp_path / "x").exists()


GENES = "".join(
    f"one\tx\t{kind}\t{first}\t{first + 1}\t.\t+\t.\tID={kind}{first}\n"
    for first in range(1, 40, 2)
    for kind in ("gene", "exon")
)


def test_regions_are_grouped_by_type(
    tiny_model: Path, genomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bertgeom.pipelines.cli.main import main

    path = tmp_path / "genes.gff3"
    path.write_text("##gff-version 3\n" + GENES)
    given = [str(genomes), "--model", str(tiny_model)]
    regions = ["--annotations", str(path)]
    out = ["--out", str(tmp_path / "x.zarr"), "--allow-unknown", "--threads", "1"]
    assert main(["run", *given, *regions, *out]) == 1
    assert "--group-by type" in capsys.readouterr().err
    assert main(["run", *given, *regions, *out, "--group-by", "type"]) == 0
    assert list(bertgeom.open(tmp_path / "x.zarr").group.values) == ["gene", "exon"]
    assert main(["plan", *given, *regions, "--no-measure", "--group-by", "type"]) == 0
    for wrong in (["--group-by", "type"], [*regions, "--group-by", "colour"]):
        assert main(["plan", *given, "--no-measure", *wrong]) == 2


CIRCULAR = "one\tx\tregion\t1\t51\t.\t+\t.\tID=r;Is_circular=true\n"
GENE = "one\tx\tgene\t{}\t{}\t.\t+\t.\tID=g\n"


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        (
            CIRCULAR + GENE.format(41, 61),
            CIRCULAR + GENE.format(41, 51) + GENE.format(1, 10),
        ),
        (
            "one\t5\t45\tg\t0\t+\t5\t45\t0\t2\t6,8,\t0,32,\n",
            "one\t5\t11\tg\none\t37\t45\tg\n",
        ),
    ],
    ids=["circular origin", "BED12 blocks"],
)
def test_a_region_in_parts_gives_the_values_of_its_parts(
    tiny_model: Path, genomes: Path, tmp_path: Path, whole: str, parts: str
) -> None:
    found = []
    for name, text in (("whole", whole), ("parts", parts)):
        path = tmp_path / name
        path.write_text(text)
        out = tmp_path / f"{name}.zarr"
        stages.run(genomes, model=tiny_model, out=out, annotations=path, threads=1)
        found.append(bertgeom.open(out).sel(group="g"))
    for array in ("group_tokens", "attention_group_mass"):
        np.testing.assert_array_equal(*(ds[array].values for ds in found))
    inside = found[0].group_tokens.values[0]
    assert 0 < inside < found[0].n_tokens.values[0] - 2
