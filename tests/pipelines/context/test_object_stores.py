"""Object stores that fail: for a moment, for good, before and after what they were asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flaky_files as flaky
import pytest

import bertgeom
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.context import leases
from bertgeom.store import storage as storage_module

Command = Callable[[str], list[str]]


@pytest.fixture(autouse=True)
def quick(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short pauses, and no faults but those that a test asks for."""
    monkeypatch.setattr(storage_module, "_FIRST_PAUSE", 0.0005)
    monkeypatch.setattr(storage_module, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(leases, "_SETTLE_SECONDS", 0.01)
    flaky.FAULTS.reset()
    yield
    flaky.FAULTS.reset()
    flaky.FlakyFileSystem.store.clear()


@pytest.fixture
def command(fasta: Path) -> Command:
    """The run of a small database into a place."""

    def words(out: str) -> list[str]:
        fixed = ["--window", "20", "--partition-windows", "4", "--threads", "1"]
        return ["run", str(fasta), "--model", "fake", "--out", out, *fixed]

    return words


@pytest.fixture
def undisturbed(whole: Path, fake: Any) -> dict[str, bytes]:
    """Files of the same run in a folder."""
    found = fake.contents(whole)
    return {key: data for key, data in found.items() if key != "run/lock"}


@pytest.mark.parametrize("seed", range(3))
def test_calls_that_fail_now_and_then_change_nothing(
    seed: int, command: Command, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    place = "flaky://bucket/x.zarr"
    flaky.FAULTS.reset(share=0.2, seed=seed)
    assert main(command(place)) == 0
    assert main(["status", place]) == 0
    assert main(["verify", place]) == 0
    assert main(["verify", place, "--repair"]) == 0
    assert main(["cohorts", place]) == 0
    assert main(["export", place, "-o", str(tmp_path / "x.tsv")]) == 0
    if seed == 0:
        assert main(["report", place, "-o", str(tmp_path / "x.html")]) == 0
    assert flaky.FAULTS.failed > 100
    assert flaky.contents(place) == undisturbed


def test_a_place_that_fails_for_good_is_one_line_and_the_run_goes_on_later(
    command: Command,
    undisturbed: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = "flaky://bucket/x.zarr"
    assert main(command(place)) == 0
    n_calls = flaky.FAULTS.calls.total()
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", 0.05)
    for sound in (0, 3, *(n_calls * i // 4 for i in range(1, 4)), n_calls - 40):
        flaky.FlakyFileSystem.store.clear()
        flaky.FAULTS.reset(sound=sound)
        capsys.readouterr()
        assert main(command(place)) == 1, sound
        said = capsys.readouterr().err
        last = said.splitlines()[-1]
        assert last.startswith("error: "), said
        assert place in last, last
        assert "give the same command again" in last, last
        assert "s3cr3t" not in said
        assert "Traceback" not in said
        flaky.FAULTS.reset()
        assert main(command(place)) == 0, (sound, capsys.readouterr().err)
        assert flaky.contents(place) == undisturbed, sound


def test_readers_of_a_place_that_fails_for_good_are_one_line(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    place = "flaky://bucket/x.zarr"
    assert main(command(place)) == 0
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", 0.02)
    for words in (
        ["status", place],
        ["verify", place],
        ["verify", place, "--repair"],
        ["cohorts", place],
        ["export", place, "-o", str(tmp_path / "x.tsv")],
        ["report", place, "-o", str(tmp_path / "x.html")],
    ):
        flaky.FAULTS.reset()
        assert main(words) == 0
        n_calls = flaky.FAULTS.calls.total()
        for sound in (0, n_calls // 2, n_calls - 1):
            flaky.FAULTS.reset(sound=sound)
            capsys.readouterr()
            assert main(words) == 1, (words, sound)
            said = capsys.readouterr().err
            assert said.splitlines()[-1].startswith(f"error: {place}"), (words, sound, said)
            assert "Traceback" not in said
            assert not (tmp_path / "x.partial").exists()


def test_a_run_asks_an_object_store_no_more_than_it_needs(command: Command) -> None:
    place = "flaky://bucket/x.zarr"
    assert main(command(place)) == 0
    calls, n_files = flaky.FAULTS.calls.copy(), len(flaky.contents(place))
    # Every file is written once, and before that zarr looks for it; results wait in spools.
    assert calls["pipe_file"] < 1.2 * n_files
    assert calls["cat_file"] < 3.7 * n_files
    assert calls.total() < 5.5 * n_files
    flaky.FAULTS.reset()
    assert main(command(place)) == 0
    assert flaky.FAULTS.calls["pipe_file"] < 10
    assert flaky.FAULTS.calls.total() < 1.3 * n_files


def test_sources_in_a_place_that_fails_now_and_then_are_read_whole(
    fasta: Path,
    whole: Path,
    fake: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = "flaky://me:s3cr3t@bucket/x.fa"
    flaky.FlakyFileSystem().pipe_file(place, fasta.read_bytes())
    fixed = ["--model", "fake", "--window", "20", "--partition-windows", "4", "--threads", "1"]
    command = ["run", place, "--out", str(tmp_path / "x.zarr"), *fixed]
    flaky.FAULTS.reset(share=0.7, seed=3)
    assert main(command) == 0
    assert flaky.FAULTS.failed > 1
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(whole)
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", 0.05)
    for sound in (0, 1, 2):
        flaky.FAULTS.reset(sound=sound)
        capsys.readouterr()
        assert main([*command[:3], str(tmp_path / "y.zarr"), *command[4:]]) == 1
        said = capsys.readouterr().err
        assert "error: flaky://bucket/x.fa: expected a file that can be opened, found" in said
        assert "s3cr3t" not in said
        assert not (tmp_path / "y.zarr").exists()


@pytest.mark.parametrize(
    "place", ["flaky://me:s3cr3t@bucket/x", "flaky://bucket/x?token=s3cr3t&X-Amz-Signature=s3cr3t"]
)
def test_secrets_of_urls_are_neither_stored_nor_shown(
    place: str,
    fasta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system, out, source = flaky.FlakyFileSystem(), f"{place}.zarr", f"{place}.fa"
    said, codes = "", []
    system.pipe_file(source, fasta.read_bytes())

    def tell(*words: str) -> None:
        nonlocal said
        codes.append(main(list(words)))
        said += " ".join(capsys.readouterr())

    fixed = ["--model", "fake", "--window", "20", "--partition-windows", "4", "--threads", "1"]
    run = ["run", source, "--out", out, *fixed]
    with monkeypatch.context() as patch:
        patch.setattr(storage_module, "RETRY_SECONDS", 0.0)
        flaky.FAULTS.reset(sound=1200)
        tell(*run)
        flaky.FAULTS.reset()
    tell("cohorts", out)
    bertgeom.open(out)
    tell(*run)
    assert codes[0] == 1
    assert codes[2] == 0, said
    tell(*run, "--tier", "core")
    tell("status", out)
    tell("status", out, "--json")
    tell("verify", out, "--windows", "0")
    for damaged in ("cone_index/c/0/0", "run/labels.i4", "run/run.json", "layer/c/0"):
        system.pipe_file(f"{out}/{damaged}", b"{")
        tell("verify", out, "--windows", "0")
        tell("cohorts", out)
        tell("verify", out, "--windows", "0", "--repair")
        tell(*run)
    system.pipe_file(f"{out}/sequences/bases/c/0", b"{")
    tell("verify", out, "--repair")
    tell(*run)
    tell("plan", source, *fixed)
    tell("plan", source, *fixed, "--json")
    tell("cohorts", out, "--json")
    tell("export", out, "-o", str(tmp_path / "x.tsv"))
    tell("report", out, "-o", str(tmp_path / "x.html"))
    tell("ingest", source, "--out", f"{place}-shards")
    tell("run", f"{place}-shards", "--out", str(tmp_path / "z.zarr"), *fixed)
    said += " ".join(str(warning.message) for warning in recwarn)
    assert "s3cr3t" not in said, [line for line in said.splitlines() if "s3cr3t" in line]
    kept = {path: file.getvalue() for path, file in system.store.items()}
    kept |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(kept) > 400
    assert [path for path, data in kept.items() if b"s3cr3t" in data] == []
