"""kill -9 at any moment, then the same command: the store of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sweeps import sample

from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.run import prepare, stages
from bertgeom.pipelines.run.progress import status

#: Writes at which a run is killed, spread over all of them, the three ways to die in turn; half as
#: many of a repair.
POINTS = len(sample(range(9), 6))


def test_a_run_killed_at_any_write_ends_as_if_undisturbed(root: Path, tmp_path: Path) -> None:
    script = root / "tests" / "helpers" / "kill_points.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(POINTS)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == POINTS + POINTS // 2
    assert {entry["mode"] for entry in found} == {"before", "torn", "after"}
    for entry in found:
        assert entry["killed"], entry
        assert entry["resumed"], entry
        assert entry["different"] == [], entry
        # The first writes of a repair are the log and the root that says unfinished.
        early = entry["repaired"] and entry["kill_at"] < 4
        late = entry["of"] - entry["kill_at"] < 5
        assert early or late or not entry["looked_finished"], entry


@pytest.mark.slow
def test_the_command_itself_killed_and_repeated(
    tiny_model: Path, fake: ModuleType, tmp_path: Path
) -> None:
    fake.write_fasta(tmp_path / "x.fa", (400, 300, 500, 9))

    def command(out: Path) -> list[str]:
        options = ["--window", "50", "--partition-windows", "2", "--threads", "1"]
        module = "bertgeom.pipelines.cli.main"
        program = [sys.executable, "-m", module, "run", str(tmp_path / "x.fa")]
        return [*program, "--model", str(tiny_model), "--out", str(out), *options]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet: dict[str, Any] = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "env": environment,
    }
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    assert main(command(whole)[3:]) == 0
    process = subprocess.Popen(command(killed), **quiet)
    history = killed / "run" / "history.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if history.exists() and "PartitionDone" in history.read_text():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    attributes = json.loads((killed / "zarr.json").read_text())["attributes"]
    assert attributes["complete"] is False
    again = subprocess.run(command(killed), **quiet)
    assert again.returncode == 0, again.stderr.decode()
    assert fake.contents(killed) == fake.contents(whole)


_WORKERS = """
import os, signal, sys
from bertgeom.pipelines.run import prepare, stages
from bertgeom.pipelines.context.events import PartitionDone

# Row groups of two partitions; the workers find their size in run.json.
prepare.row_group = lambda shape, size, n: 2 * size
killed = []

def kill_a_worker(event):
    if isinstance(event, PartitionDone) and not killed and event.process != os.getpid():
        killed.append(event.process)
        os.kill(event.process, signal.SIGKILL)

if __name__ == "__main__":
    source, model, out, lose = sys.argv[1:]
    stages.run(source, model=model, out=out, window=50, partition_windows=2, threads=1,
               tier="core", workers=2, subscribers=[kill_a_worker] * (lose == "lose"))
    assert bool(killed) == (lose == "lose")
"""


@pytest.mark.slow
def test_a_run_of_several_workers_killed_and_repeated(
    tiny_model: Path, fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed, its workers live on for a moment; then a worker is killed alone."""
    fake.write_fasta(tmp_path / "x.fa", (400, 300, 500, 9, 600))
    script = tmp_path / "script.py"
    script.write_text(_WORKERS)
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(lose: str) -> subprocess.Popen[bytes]:
        arguments = [tmp_path / "x.fa", tiny_model, killed, lose]
        command = [sys.executable, str(script), *map(str, arguments)]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, **quiet)

    monkeypatch.setattr(prepare, "row_group", lambda shape, size, n: 2 * size)
    options: dict[str, Any] = {"window": 50, "partition_windows": 2, "threads": 1, "tier": "core"}
    stages.run(tmp_path / "x.fa", model=tiny_model, out=whole, **options)
    history = killed / "run" / "history.jsonl"
    wanted = random.Random(4).randint(2, 6)
    process = start("keep")
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if history.exists() and history.read_text().count('"PartitionDone"') >= wanted:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert status(str(killed)).partitions_done < status(str(killed)).partitions
    last = start("lose")
    said = last.communicate(timeout=300)
    assert last.returncode == 0, said
    assert fake.contents(killed) == fake.contents(whole)
    assert status(str(killed)).groups > 5
