"""The tests of the Triton kernels, alone: no package that only the rest of the project needs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from typing import Any

from bench.device.steps import Setup

FILES = (
    "tests/kernels/attention_stats/test_attention_gpu.py",
    "tests/kernels/cone_angles/test_cone_angles_gpu.py",
)
#: Own settings: those of the project name plugins that may be missing.
SETTINGS = """[pytest]
addopts = --import-mode=importlib
pythonpath = .
markers =
  gpu: needs a CUDA device
  slow: takes more than ten seconds on two cores
"""
#: In a dry run: one comparison by the interpreter.
ONE = "interpreter and equal_weights"
MOST_SECONDS = 420


def gpu_tests(setup: Setup) -> dict[str, Any]:
    """The tests marked `gpu`, many at a time where pytest can; the log lies beside the results."""
    settings = setup.links / "pytest.ini"
    settings.write_text(SETTINGS)
    select = ["-k", ONE] if setup.dry else ["-m", "gpu"]
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-c", str(settings), "--noconftest"]
    command += ["-p", "no:cacheprovider", *select, *FILES[: 1 if setup.dry else None]]
    if importlib.util.find_spec("xdist") and not setup.dry:
        # Compiling takes the time, and that is the work of the CPU.
        command += ["-p", "xdist", "-n", str(max(1, min(12, (os.cpu_count() or 2) - 2)))]
    log = setup.out / "gpu_tests.log"
    limit = MOST_SECONDS if setup.dry else max(30.0, min(MOST_SECONDS, setup.left()))
    with log.open("w") as stream:
        try:
            code = subprocess.run(
                command,
                cwd=setup.links,
                env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    counted = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", lines[-1] if lines else "")}
    failed = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    if code is None:
        raise RuntimeError(f"not done after {limit:.0f} s; see {log.name}: {lines[-1:]}")
    if code or not counted.get("passed"):
        raise RuntimeError(f"pytest returned {code}: {failed[:12] or lines[-3:]}")
    return {"passed": counted["passed"], "deselected": counted.get("deselected", 0)}
