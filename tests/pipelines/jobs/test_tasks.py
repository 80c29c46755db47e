"""A run in tasks: any order, any number, killed, doubled, and always the same bytes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fake_encoder as fakes
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bertgeom
from bertgeom.errors import MismatchError, StoreError, UsageError
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.context.claims import claimed, row_group_claim, shared_lock
from bertgeom.pipelines.jobs import tasks
from bertgeom.pipelines.plan.partitions import Pieces
from bertgeom.pipelines.run import prepare, stages
from bertgeom.pipelines.run.progress import status
from bertgeom.store import root_file
from bertgeom.store.storage import Storage

#: Few arrays and partitions: every file is flushed to the disk.
SMALL: dict[str, Any] = {"window": 20, "partition_windows": 4, "tier": "core"}


@pytest.fixture(params=[2, 1], ids=["pairs", "singles"])
def per_group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Partitions of a row group; there are several of these."""
    monkeypatch.setattr(prepare, "row_group", lambda shape, size, n: request.param * size)
    return int(request.param)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The store of one `run`, by partitions of a row group; made once."""

    @cache
    def make(per_group: int) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed")
        with pytest.MonkeyPatch.context() as patch:
            fakes.take_the_place_of_models(patch, fakes.FakeEncoder())
            patch.setattr(prepare, "row_group", lambda shape, size, n: per_group * size)
            source = fakes.write_fasta(folder / "x.fa")
            stages.run(source, model="fake", out=folder / "x.zarr", threads=1, **SMALL)
        return folder / "x.zarr"

    return make


@pytest.fixture
def undisturbed(made: Callable[[int], Path], per_group: int) -> Path:
    """The store of one `run`."""
    return made(per_group)


@pytest.fixture
def begun(encoder: Any, fasta: Path, tmp_path: Path, per_group: int) -> str:
    """A run that was set up for tasks."""
    out = tmp_path / "x.zarr"
    found = stages.init(fasta, model="fake", out=out, threads=1, **SMALL)
    assert (found.windows, found.partitions) == (27, 7)
    assert found.groups in (4, 7)
    assert not found.windows_done
    assert not encoder.batches
    return str(out)


@given(n_windows=st.integers(1, 500), size=st.integers(1, 20), of=st.integers(1, 40))
def test_every_partition_has_one_task(n_windows: int, size: int, of: int) -> None:
    pieces = Pieces(n_windows, size, 3 * size)
    shares = [tasks.partitions_of_task(pieces, task, of) for task in range(of)]
    assert [p for share in shares for p in share] == list(range(pieces.n_partitions))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("of", [3, 20])
def test_tasks_in_any_order_give_the_bytes_of_a_run(
    of: int, begun: str, undisturbed: Path, fake: Any
) -> None:
    order = list(range(of))
    random.Random(of).shuffle(order)
    for task in order:
        tasks.run_partitions(begun, task=task, of=of, threads=1)
    found = status(begun)
    assert found.groups_written == found.groups
    assert tasks.finalise(begun).complete
    assert fake.contents(Path(begun)) == fake.contents(undisturbed)
    assert bertgeom.open(begun).sizes["window"] == 27


def test_ranges_of_partitions_give_the_bytes_of_a_run(
    begun: str, undisturbed: Path, fake: Any
) -> None:
    for first, last in ((5, 6), (0, 2), (3, 4)):
        tasks.run_partitions(begun, partitions=(first, last), threads=1)
    assert tasks.finalise(begun).complete
    assert fake.contents(Path(begun)) == fake.contents(undisturbed)


def test_a_task_given_again_measures_nothing(begun: str, encoder: Any) -> None:
    tasks.run_partitions(begun, task=1, of=3, threads=1)
    before = list(encoder.batches)
    found = tasks.run_partitions(begun, task=1, of=3, threads=1)
    assert encoder.batches == before
    assert found.partitions_done == 2
    assert not list(Path(begun, "run", "tasks").iterdir())


def test_a_task_that_died_goes_on_where_it_was(
    begun: str, encoder: Any, undisturbed: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls = encoder.start, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(encoder, "start", dies)
    with pytest.raises(KeyboardInterrupt):
        tasks.run_partitions(begun, task=0, of=1, threads=1)
    assert 0 < status(begun).partitions_done < 7
    tasks.run_partitions(begun, task=0, of=1, threads=1)
    tasks.finalise(begun)
    assert fake.contents(Path(begun)) == fake.contents(undisturbed)


def test_what_another_task_holds_is_left_to_it(
    begun: str, undisturbed: Path, fake: Any, per_group: int
) -> None:
    group = 4 // per_group
    with row_group_claim(Storage(begun), group) as mine:
        assert mine
        with row_group_claim(Storage(begun), group) as theirs:
            assert not theirs
        tasks.run_partitions(begun, task=0, of=1, threads=1)
        found = status(begun)
        assert found.groups_written == found.groups - 1
        # Partitions of a row group of several are measured, only not written.
        assert found.missing == (() if per_group > 1 else (4,))
    if per_group == 1:
        with pytest.raises(StoreError, match="all 7 partitions, found 1 missing, the first 4"):
            tasks.finalise(begun)
        tasks.run_partitions(begun, task=0, of=1, threads=1)
    tasks.finalise(begun)
    assert fake.contents(Path(begun)) == fake.contents(undisturbed)


def test_a_damaged_spool_is_measured_again(
    begun: str, undisturbed: Path, fake: Any, per_group: int
) -> None:
    tasks.run_partitions(begun, partitions=(0, 0), threads=1)
    spool = Path(begun, "run", "partitions", "00000001.spool")
    spool.parent.mkdir(exist_ok=True)
    spool.write_bytes(b"half of it")
    # The other task looks at its own partitions only; it sees that the row group is not whole.
    tasks.run_partitions(begun, partitions=(0, 0), threads=1)
    assert status(begun).groups_written == (1 if per_group == 1 else 0)
    tasks.run_partitions(begun, task=0, of=1, threads=1)
    tasks.finalise(begun)
    assert fake.contents(Path(begun)) == fake.contents(undisturbed)


def test_commands_that_need_the_store_alone_wait_for_tasks(
    begun: str, run: Callable[..., Any]
) -> None:
    with shared_lock(Storage(begun)), shared_lock(Storage(begun)):
        for command in (lambda: tasks.finalise(begun), lambda: run("x.zarr", **SMALL)):
            with pytest.raises(StoreError, match="found another one at work"):
                command()
    with (
        claimed(Storage(begun), root_file.FORMAT),
        pytest.raises(StoreError, match="found another one at work"),
    ):
        tasks.run_partitions(begun, task=0, of=1, threads=1)


def test_a_run_goes_on_where_tasks_stopped(
    begun: str, run: Callable[..., Any], undisturbed: Path, fake: Any
) -> None:
    tasks.run_partitions(begun, task=2, of=3, threads=1)
    # As a killed task leaves it.
    lock = Path(begun, "run", "tasks", "00000000.lock")
    lock.parent.mkdir(exist_ok=True)
    lock.write_text("")
    run("x.zarr", **SMALL)
    assert fake.contents(Path(begun)) == fake.contents(undisturbed)


def test_another_model_is_refused(begun: str, encoder: Any) -> None:
    encoder.fingerprint = "another"
    with pytest.raises(MismatchError):
        tasks.run_partitions(begun, task=0, of=1, threads=1)


def test_an_impossible_share_is_one_line(begun: str) -> None:
    shares: list[tuple[dict[str, Any], str]] = [
        ({"task": 3, "of": 3}, "a task of 0 to 2"),
        ({"task": -1, "of": 3}, "a task of 0 to 2"),
        ({"task": 0, "of": 0}, "at least 1"),
        ({"task": 0}, "expected --task and --of"),
        ({}, "expected --task and --of"),
        ({"partitions": (0, 7)}, "partitions of 0 to 6"),
        ({"partitions": (5, 4)}, "partitions of 0 to 6"),
        ({"partitions": (0, 1), "task": 0, "of": 1}, "found both"),
    ]
    for share, says in shares:
        with pytest.raises(UsageError, match=says):
            tasks.run_partitions(begun, **share)


def test_the_commands(
    fasta: Path, encoder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "by-command.zarr")
    options = ["--window", "20", "--partition-windows", "4", "--tier", "core"]
    assert main(["init", str(fasta), "--model", "fake", "--out", out, *options]) == 0
    printed = capsys.readouterr().out
    assert "7 partitions: at most as many tasks" in printed
    assert f"bertgeom finalise {out}" in printed
    assert main(["finalise", out]) == 1
    assert main(["run-partitions", out, "--task", "0", "--of", "2"]) == 0
    assert "3 of 7 partitions are done" in capsys.readouterr().out
    for wrong in ("7-", "a-b", "-3", ""):
        assert main(["run-partitions", out, f"--partitions={wrong}"]) == 2
    assert main(["run-partitions", out, "--partitions", "3-6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["partitions_done"] == 7
    assert main(["finalise", out]) == 0
    assert main(["verify", out, "--windows", "0"]) == 0


def test_a_slurm_array_runs_from_the_script_that_is_shipped(
    begun: str, undisturbed: Path, fake: Any, root: Path, tmp_path: Path
) -> None:
    # In the place of the command: what it was called with, run here with the fake encoder.
    command = tmp_path / "bin" / "bertgeom"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$CALLED"\n')
    command.chmod(0o755)
    for task in (2, 0, 1):
        called = tmp_path / f"called-{task}"
        slurm = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": 3, "SLURM_CPUS_PER_TASK": 1}
        environment = {k: str(v) for k, v in slurm.items()} | {"CALLED": str(called)}
        environment["PATH"] = f"{command.parent}:{os.environ['PATH']}"
        script = root / "docs" / "examples" / "slurm-array.sh"
        subprocess.run(["sh", str(script), begun], env=environment, check=True)
        assert main(called.read_text().splitlines()) == 0
    assert main(["finalise", begun]) == 0
    assert fake.contents(Path(begun)) == fake.contents(undisturbed)


#: Tasks as processes, which a seed kills; each is given again until it ends.
RACE = """
import multiprocessing, random, signal, sys, time
from unittest import mock
import fake_encoder as fakes
from bertgeom.pipelines.context import run_context
from bertgeom.pipelines.jobs import tasks

def work(store, task):
    mock.patch.object(run_context, "load_model", lambda *a, **k: fakes.FakeEncoder()).start()
    tasks.run_partitions(store, task=task, of=2, threads=1)

store, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
context = multiprocessing.get_context("fork")
for _ in range(4):
    team = [context.Process(target=work, args=(store, task)) for task in (0, 1, rng.randrange(2))]
    for process in team:
        process.start()
    time.sleep(rng.uniform(0.02, 0.5))
    team[rng.randrange(3)].kill()
    for process in team:
        process.join()
    assert all(process.exitcode in (0, -signal.SIGKILL) for process in team)
for task in (0, 1):
    last = context.Process(target=work, args=(store, task))
    last.start()
    last.join()
    assert last.exitcode == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_killed_and_doubled_tasks_lose_nothing(
    seed: int, begun: str, undisturbed: Path, fake: Any, root: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RACE, begun, str(seed)],
        capture_output=True,
        text=True,
        cwd=root / "tests" / "helpers",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert tasks.finalise(begun).complete
    assert fake.contents(Path(begun)) == fake.contents(undisturbed)
