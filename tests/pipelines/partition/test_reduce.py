"""`run --reduce`: no statistics of windows, but their means by record and sums by cohort."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertgeom
from bertgeom.analysis.cohorts import statistics_of
from bertgeom.errors import StoreError
from bertgeom.pipelines.catalogue.export import export
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.run import stages
from bertgeom.pipelines.run.estimate import preview
from bertgeom.pipelines.run.verify import verify

Run = Callable[..., Any]


@pytest.fixture
def labels(tmp_path: Path, fasta: Path) -> Path:
    ids = [line[1:].split()[0] for line in fasta.read_text().splitlines() if line[0] == ">"]
    path = tmp_path / "labels.tsv"
    path.write_text(
        "record_id\tlabel\n" + "".join(f"{x}\t{'ab'[i % 2]}\n" for i, x in enumerate(ids))
    )
    return path


@pytest.mark.parametrize("group", [1, 2, None])
def test_means_of_records_are_those_of_their_windows(
    group: int | None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row groups of 4 or 8 windows cut the record of 13 in several."""
    run("whole.zarr")
    if group is not None:
        from bertgeom.pipelines.run import prepare

        monkeypatch.setattr(prepare, "row_group", lambda shape, size, n: size * group)
    run(reduce=True)
    whole = bertgeom.open(tmp_path / "whole.zarr").load()
    found = bertgeom.open(tmp_path / "x.zarr", group="records").load()
    record = whole["record_index"].values
    measured = [n for n in statistics_of(list(whole.data_vars)) if n in whole.data_vars]
    assert len(measured) > 30
    for name in measured:
        values = whole[name].values.astype(np.float64)
        for i in range(found.sizes["record"]):
            mine = values[record == i]
            expected = mine.mean(0) if len(mine) else np.full(values.shape[1:], np.nan)
            np.testing.assert_allclose(
                found[f"{name}_mean"].values[i], expected, rtol=1e-6, atol=1e-7, err_msg=name
            )
        assert found[f"{name}_mean"].dims == ("record", *whole[name].dims[1:])
    assert found["gate_share_mean"].dims == ("record", "layer", "head", "gate_label")
    there = whole["flags"].values & 4 == 0
    windows = np.bincount(record[there], minlength=found.sizes["record"])
    np.testing.assert_array_equal(found["n_windows"].values, windows)
    assert found["record_id"].values[record].tolist() == whole["record_id"].values.tolist()


def test_windows_keep_their_places_and_cohorts_their_sums(
    run: Run, labels: Path, tmp_path: Path
) -> None:
    run("whole.zarr", labels=labels)
    run(reduce=True, labels=labels, keep="cls")
    whole, reduced = (bertgeom.open(tmp_path / f"{n}.zarr").load() for n in ("whole", "x"))
    assert set(reduced.data_vars) < set(whole.data_vars) | {"cls"}
    assert {"n_tokens", "flags", "label", "cls"} <= set(reduced.data_vars)
    assert "attention_entropy" not in reduced
    for name in ("record_index", "start", "stop", "n_tokens", "flags"):
        np.testing.assert_array_equal(reduced[name].values, whole[name].values)
    sums = [bertgeom.open(tmp_path / f"{n}.zarr", group="cohorts").load() for n in ("whole", "x")]
    for name in sums[0].data_vars:
        np.testing.assert_array_equal(sums[0][name].values, sums[1][name].values, err_msg=name)


def test_a_reduced_store_is_smaller_and_verifiable(
    tiny_model: Path, fake: Any, tmp_path: Path
) -> None:
    source = fake.write_fasta(tmp_path / "y.fa", (900, 700))
    asked: dict[str, Any] = {"model": tiny_model, "window": 20, "threads": 1}
    sizes = []
    for reduce in (False, True):
        out = tmp_path / f"{reduce}.zarr"
        assert stages.run(source, out=out, reduce=reduce, **asked).complete
        report = verify(out, windows=2)
        assert report.agrees
        projected = preview(source, reduce=reduce, measure=False, **asked)
        kept = [p for p in out.rglob("*") if p.is_file() and "run" not in p.relative_to(out).parts]
        sizes.append((sum(p.stat().st_size for p in kept), projected.store_bytes))
    assert sizes[1][0] < sizes[0][0]
    assert sizes[1][1] < 0.2 * sizes[0][1]
    file = tmp_path / "True.zarr" / "run" / "groups" / "00000000.records"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert any(".records" in p for p in verify(tmp_path / "True.zarr", windows=0).problems)


@pytest.mark.parametrize(("unit", "rtol"), [("window", 1e-6), ("record", 1e-4)])
def test_contrasts_come_from_the_stored_sums(
    unit: str,
    rtol: float,
    run: Run,
    labels: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("whole.zarr", labels=labels)
    run(reduce=True, labels=labels)
    whole, reduced = tmp_path / "whole.zarr", tmp_path / "x.zarr"
    asked = ["--contrast", "a,b", "--statistics", "attention_entropy", "--json", "--unit", unit]
    tables = []
    for path in (whole, reduced):
        assert main(["cohorts", str(path), *asked]) == 0
        tables.append(json.loads(capsys.readouterr().out)["data_vars"])
    assert tables[0].keys() == tables[1].keys()
    for name, found in tables[0].items():
        one, other = (np.array(t[name]["data"], float) for t in tables)
        np.testing.assert_allclose(one, other, rtol=rtol, err_msg=name)
        assert found["dims"] == tables[1][name]["dims"]


def test_what_needs_windows_says_so(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(reduce=True)
    path = str(tmp_path / "x.zarr")
    with pytest.raises(StoreError, match="--reduce"):
        export(path, tmp_path / "x.tsv")
    labels = tmp_path / "l.tsv"
    labels.write_text("r0\ta\nr2\tb\n")
    assert main(["cohorts", path, "--labels", str(labels), "--unit", "window"]) == 2
    assert "--reduce" in capsys.readouterr().err
