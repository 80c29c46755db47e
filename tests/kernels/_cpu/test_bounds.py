"""Every index of the CPU kernels is inside its array, on mixed lengths.

One process compiles all kernels with checks (`_cpu.CHECKED`), without optimisation, which halves
the time; `checked_kernels.py` is what it runs. It shares no compiled code with other processes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "helpers" / "checked_kernels.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What was wrong, by check; empty where nothing was."""
    environment = os.environ | {
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_OPT": "0",
        "NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("checked")),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", re.findall(r"@check\ndef (\w+)", SCRIPT.read_text()))
def test_no_index_is_out_of_bounds_and_one_that_is_is_noticed(
    name: str, faults: dict[str, str]
) -> None:
    assert faults[name] == ""
