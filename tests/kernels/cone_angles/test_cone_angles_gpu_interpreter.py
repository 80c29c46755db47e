"""Runs `test_cone_angles_gpu.py` under Triton's interpreter, in a process that starts with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_triton_kernels_agree_with_the_oracle_in_the_interpreter(root: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    cases = Path(__file__).with_name("test_cone_angles_gpu.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "interpreter", str(cases)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
