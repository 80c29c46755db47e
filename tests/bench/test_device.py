"""The benchmark of a GPU runs from a bare checkout, every step of it, before there is a GPU."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

#: What the image of a GPU lacks, and what must not be needed there.
MISSING = ("zarr", "xarray", "dask", "distributed", "dnaio")


@pytest.fixture(scope="module")
def dry_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a dry run without git and without the packages of MISSING."""
    work = tmp_path_factory.mktemp("device")
    (work / "missing").mkdir()
    for name in MISSING:
        text = f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n"
        (work / "missing" / f"{name}.py").write_text(text)
    (work / "bin").mkdir()
    compiler = [p for p in ("/usr/bin/gcc", "/usr/bin/cc") if Path(p).exists()]
    environment = os.environ | {
        "PYTHONPATH": str(work / "missing"),
        "PATH": str(work / "bin"),
        "CC": compiler[0] if compiler else "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.device", "--dry-run", "--minutes", "9", "--out", str(work)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    return work


@pytest.mark.slow
def test_every_step_runs_without_a_gpu_and_without_an_installation(dry_run: Path) -> None:
    results = json.loads((dry_run / "device.json").read_text())
    steps = results["steps"]
    assert list(steps) == list(importlib.import_module("bench.device.__main__").NAMES)
    assert {k: v for k, v in steps.items() if {"error", "skipped", "stopped"} & set(v)} == {}
    assert results["dry"]
    assert steps["machine"]["environment"]["commit"] is None
    assert steps["right"]["agrees"]
    assert steps["tests"]["passed"] > 0
    for name in ("compile_first", "compile_tables"):
        assert steps[name]["kernels"] > 0
        assert steps[name]["failed"] == {}
    assert set(steps["launches"]["launches"]) == {"core", "full", "station", "station, angles"}
    tables = [*steps["kernels"]["table"]]
    for row in steps["forwards"]["table"]:
        tables += [row["eager"], row["graph"]]
        assert row["oracle"]["first_layer"] < 1e-4
    for table in tables:
        assert table["failed"] == {}
        assert all(row["ratio_median"] > 0 for row in table["variants"].values())
    assert {row["name"].split(",")[0] for row in steps["forwards"]["table"]} == {"bert-base", "esm"}
    assert 0 < steps["stream"]["share_of_bare_loop"] < math.inf


@pytest.mark.slow
def test_results_are_kept_and_drawn(root: Path, dry_run: Path) -> None:
    before = (dry_run / "device.json").read_text()
    command = [sys.executable, "-m", "bench.device", "--plot", "--out", str(dry_run)]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "its times mean nothing" in done.stdout
    assert (dry_run / "device.svg").read_text().startswith("<?xml")
    assert (dry_run / "device.json").read_text() == before


def setup_of(folder: Path, **changes: Any) -> Any:
    """A setup of the steps, for the machinery alone."""
    steps = importlib.import_module("bench.device.steps")
    given = {"device": "cpu", "dry": True, "out": folder, "links": folder, "sizes": steps.DRY}
    given |= {"deadline": math.inf, "results": {"steps": {}}}
    return steps.Setup(**(given | changes))


def test_a_step_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    steps = importlib.import_module("bench.device.steps")
    calls: list[str] = []

    def good(_: Any) -> dict[str, Any]:
        calls.append("good")
        return {"figure": 1}

    def bad(_: Any) -> dict[str, Any]:
        calls.append("bad")
        raise ValueError("no such thing")

    setup = setup_of(tmp_path)
    assert steps.run(setup, {"bad": bad, "good": good}) == 1
    saved = json.loads((tmp_path / "device.json").read_text())["steps"]
    assert saved["bad"]["error"] == "ValueError: no such thing"
    assert saved["good"]["figure"] == 1
    again = setup_of(tmp_path, results={"steps": saved})
    assert steps.run(again, {"bad": bad, "good": good}) == 1
    assert calls == ["bad", "good", "bad"]


def test_no_step_begins_after_the_deadline(tmp_path: Path) -> None:
    steps = importlib.import_module("bench.device.steps")
    setup = setup_of(tmp_path, deadline=-1.0)
    assert steps.run(setup, {"late": lambda _: pytest.fail("must not begin")}) == 0
    assert "no time left" in setup.results["steps"]["late"]["skipped"]


def test_nothing_is_timed_before_the_oracle_agrees(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="oracle has not agreed"):
        setup_of(tmp_path).require_oracle()
    with pytest.raises(RuntimeError, match="oracle has not agreed"):
        setup_of(tmp_path, results={"steps": {"right": {"agrees": False}}}).require_oracle()
    setup_of(tmp_path, results={"steps": {"right": {"agrees": True}}}).require_oracle()
    setup_of(tmp_path, ungated=True).require_oracle()


def test_an_error_of_missing_values_is_infinite() -> None:
    import torch

    smoke = importlib.import_module("bench.device.smoke")
    x = torch.tensor([1.0, 100.0, math.nan])
    assert smoke.error(x, torch.tensor([1.0, 101.0, math.nan])) == pytest.approx(1 / 101)
    assert smoke.error(x, torch.tensor([1.0, 100.0, 3.0])) == math.inf


def test_a_table_that_time_cut_off_goes_on_behind_its_last_row(tmp_path: Path) -> None:
    steps = importlib.import_module("bench.device.steps")

    def table(setup: Any) -> dict[str, Any]:
        for n in (1, 2):
            rows, done = setup.rows("table", tokens=n)
            if not done:
                setup.note("table", table=[*rows, {"tokens": n}])
                if len(rows) == 0:
                    return {"stopped": "no time left"}
        return {}

    first = setup_of(tmp_path)
    steps.run(first, {"table": table})
    assert first.results["steps"]["table"]["table"] == [{"tokens": 1}]
    again = setup_of(tmp_path, results=first.results)
    steps.run(again, {"table": table})
    found = again.results["steps"]["table"]
    assert found["table"] == [{"tokens": 1}, {"tokens": 2}]
    assert "stopped" not in found
