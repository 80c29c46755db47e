"""Annotated regions in a run: token groups, their masses, and what they are relative to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bertgeom
from bertgeom.errors import InputError, MismatchError
from bertgeom.pipelines import stages, verify

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
