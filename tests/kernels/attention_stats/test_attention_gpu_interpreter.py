"""Runs `test_attention_gpu.py` under Triton's interpreter, in a process that starts with it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[[Path], subprocess.CompletedProcess[str]]


def test_the_triton_kernels_agree_with_the_oracle_in_the_interpreter(in_interpreter: Run) -> None:
    done = in_interpreter(Path(__file__).with_name("test_attention_gpu.py"))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
