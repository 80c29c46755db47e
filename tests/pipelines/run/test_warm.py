"""`bertgeom warm`: a later process compiles nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_RUN = """
import sys
from numba.core import dispatcher

def forbidden(self, *args):
    raise AssertionError(f"{self.py_func.__name__} is compiled anew: {args}")

dispatcher._FunctionCompiler.compile = forbidden
from bertgeom.pipelines.run import stages

source, model, out = sys.argv[1:]
stages.run(source, model=model, out=out, window=40, keep="block_map,tracks", strand="both")
"""


@pytest.mark.slow
def test_a_run_after_warm_compiles_nothing(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_text(">a\n" + "ACGTTGCA" * 20 + "\n")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "code")}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )

    places = [str(tmp_path / "x.fa"), str(tiny_model), str(tmp_path / "x.zarr")]
    cold = run("-c", _RUN, *places)
    assert "is compiled anew" in cold.stderr
    warmed = run("-m", "bertgeom.pipelines.cli.main", "warm")
    assert warmed.returncode == 0, warmed.stderr
    assert warmed.stdout.startswith("CPU kernels are ready: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["code", "x.fa"]
    done = run("-c", _RUN, *places)
    assert done.returncode == 0, done.stderr[-2000:]
