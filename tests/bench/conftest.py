"""The benchmarks are not installed: their tests import them from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root))


@pytest.fixture(scope="session")
def json_of(root: Path) -> Callable[..., Any]:
    """What `python -m MODULE ARGUMENTS` prints, as JSON."""

    def run(*arguments: str, timeout: int = 500) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=root,
            env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run
