"""Kernels that are compiled in a process beside this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertgeom.kernels import ahead


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an empty cache."""
    path = tmp_path / "mark"
    monkeypatch.setattr(ahead, "_mark", lambda: path)
    return path


def test_a_process_compiles_while_the_block_runs_and_ends_with_it(
    mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def start(command: list[str], **options: Any) -> Any:
        assert command == [sys.executable, "-m", "bertgeom.kernels.ahead"]
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[0]

    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    with ahead.compiling_beside():
        assert started[0].poll() is None
    assert started[0].returncode is not None


def test_no_process_is_started_for_code_that_is_there(
    mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead.main()
    assert mark.exists()
    monkeypatch.setattr(subprocess, "Popen", None)
    with ahead.compiling_beside():
        pass


def test_where_no_process_can_be_started_the_block_runs_alone(
    mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", fails)
    with ahead.compiling_beside():
        done = True
    assert done
