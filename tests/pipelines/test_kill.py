"""kill -9 at any moment, then the same command: the store of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from bertgeom.pipelines.cli import main

POINTS = 9


def test_a_run_killed_at_any_write_ends_as_if_undisturbed(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_points.py")
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
        program = [sys.executable, "-m", "bertgeom.pipelines.cli", "run", str(tmp_path / "x.fa")]
        return [*program, "--model", str(tiny_model), "--out", str(out), *options]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": environment}
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
