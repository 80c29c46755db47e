"""Stores of format 1.0, written by version 0.1.0: read, checked, repaired, resumed.

`tests/data/make_old_stores.py` made them.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertgeom
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.run import stages
from bertgeom.pipelines.run.verify import verify

ARCHIVE = Path(__file__).parents[2] / "data" / "store-1.0.tar.xz"
FIXED: dict[str, Any] = {"window": 24, "partition_windows": 4, "threads": 1, "impl": "numba"}
#: Windows of a killed run that were measured before: those of three partitions.
KEPT = 12
WRITER = {"format_version": "1.0", "bertgeom_version": "0.1.0", "definitions_version": 1}

pytestmark = pytest.mark.filterwarnings("ignore::bertgeom.store.zarr_io.UnfinishedStoreWarning")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of the archive; not to be changed."""
    folder = tmp_path_factory.mktemp("old")
    # The first releases of Python 3.11 know no filters.
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(ARCHIVE) as file:
        file.extractall(folder, **options)
    return folder


@pytest.fixture
def copy(old: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of one of the stores."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(old / f"{name}.zarr", tmp_path / f"{name}.zarr"))

    return copied


def run(old: Path, out: Path) -> stages.Status:
    """The command that made a store, with the model and the inputs where they are now."""
    options: dict[str, Any] = {"labels": old / "labels.tsv", "tier": "core", "keep": "logits"}
    if out.name.startswith("reduced"):
        options = {"labels": old / "labels.tsv", "annotations": old / "regions.bed"}
        options |= {"spectra": 2, "reduce": True}
    return stages.run(old / "x.fa", model=old / "model", out=out, **FIXED, **options)


def attributes(store: Path) -> dict[str, Any]:
    return json.loads((store / "zarr.json").read_text())["attributes"]


def datasets(store: Path) -> dict[str, Any]:
    """Windows, sums and whatever else the run keeps."""
    groups = [name for name in ("cohorts", "records", "spectra") if (store / name).is_dir()]
    found = {"": bertgeom.open(store).load()}
    return found | {name: bertgeom.open(store, group=name).load() for name in groups}


def check_equal(found: Any, expected: Any, first: int = 0) -> None:
    """Equal values; those of windows from `first` on within what other sums of a CPU change."""
    assert set(found.variables) == set(expected.variables)
    for name, array in expected.variables.items():
        here, there = found.variables[name].values, array.values
        if array.dims[:1] == ("window",):
            np.testing.assert_array_equal(here[:first], there[:first], str(name))
            here, there = here[first:], there[first:]
        if str(name).endswith("_condition"):
            # The smallest singular value over the largest: known to the rounding of float32,
            # and some of the states that it is of have nothing but rounding there.
            np.testing.assert_allclose(1 / here, 1 / there, 1e-3, 2.0**-23, err_msg=str(name))
        elif there.dtype.kind == "f":
            np.testing.assert_allclose(here, there, 1e-3, 1e-4, err_msg=str(name))
        else:
            np.testing.assert_array_equal(here, there, str(name))


@pytest.mark.parametrize("name", ["core", "reduced"])
def test_a_finished_store_is_read_checked_and_repaired(
    name: str, old: Path, copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store = copy(name)
    before = datasets(store)
    assert main(["status", str(store)]) == 0
    assert "windows     15 of 15" in capsys.readouterr().out
    report = verify(store, model=str(old / "model"))
    assert report.agrees, report.problems
    (note,) = report.notes
    assert "a store of format 1.0 has no list of its files" in note
    if name == "core":
        assert main(["report", str(store), "-o", str(store.parent / "x.html")]) == 0
        assert main(["export", str(store), "-o", str(store.parent / "x.tsv")]) == 0
    for unit in ("window", "record"):
        assert main(["cohorts", str(store), "--unit", unit]) == 0
    assert main(["verify", str(store), "--repair", "--windows", "0"]) == 0
    assert "restored" not in capsys.readouterr().err
    assert verify(store, windows=0).agrees
    assert attributes(store).items() >= WRITER.items()
    assert attributes(store)["model"] == attributes(old / f"{name}.zarr")["model"]
    assert all(found.equals(before[key]) for key, found in datasets(store).items())


@pytest.mark.parametrize("name", ["core", "reduced"])
def test_a_damaged_store_is_repaired(
    name: str, old: Path, copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store = copy(name)
    before = datasets(store)
    (store / "n_tokens/c/1").write_bytes(b"")
    (store / "zarr.json").write_bytes(b"{")
    command = ["verify", str(store), "--repair", "--windows", "0", "--model", str(old / "model")]
    assert main(command) == 0, capsys.readouterr().err
    assert attributes(store).items() >= WRITER.items()
    for key, found in datasets(store).items():
        check_equal(found, before[key])


@pytest.mark.parametrize("name", ["core", "reduced"])
def test_the_command_of_a_finished_store_changes_no_value(
    name: str, old: Path, copy: Callable[[str], Path]
) -> None:
    store = copy(name)
    before = datasets(store)
    assert run(old, store).complete
    assert verify(store, windows=0).agrees
    assert attributes(store).items() >= WRITER.items()
    assert all(found.equals(before[key]) for key, found in datasets(store).items())


@pytest.mark.parametrize("name", ["core", "reduced"])
def test_a_killed_run_goes_on(
    name: str, old: Path, copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store = copy(f"{name}-killed")
    assert main(["status", str(store)]) == 0
    assert "windows     12 of 15" in capsys.readouterr().out
    assert verify(store, windows=0).problems == ("1 of 4 partitions are missing, the first 3",)
    for command in ("report", "cohorts", "export"):
        out = ["-o", str(store.parent / "x.html")] if command == "report" else []
        out = ["-o", str(store.parent / "x.tsv")] if command == "export" else out
        assert main([command, str(store), *out]) == 1
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert "bertgeom run command again" in line or "--reduce" in line or "not fin" in line
    assert run(old, store).complete
    assert attributes(store).items() >= WRITER.items()
    assert verify(store, model=str(old / "model")).agrees
    expected = datasets(old / f"{name}.zarr")
    for key, found in datasets(store).items():
        check_equal(found, expected[key], KEPT)


def test_numbers_that_were_spoiled_stay_named(old: Path, copy: Callable[[str], Path]) -> None:
    """The archive holds a store whose numbers are wrong indeed."""
    store = copy("spoiled")
    report = verify(store, model=str(old / "long-model"))
    assert any("1 windows of 702 to 702 tokens may be wrong" in line for line in report.problems)
    assert not all(c.agrees for c in report.comparisons)
    assert main(["verify", str(store), "--repair", "--windows", "0"]) == 1
    (problem,) = verify(store, windows=0).problems
    assert "bertgeom 0.1.0 wrote this store on the CPU" in problem
