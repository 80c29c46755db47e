"""`bertgeom warm`: a later process compiles nothing.

Not in a cache of its own: the functions that `warm` asks for are told apart from those that other
tests left in the cache, and compiling all of them again would take minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: Notes every compiled function that a process asks the disk cache for, by name and signature.
_NOTED = """
import json, sys
from bertgeom.kernels._cpu import disk_cache

asked = set()
load = disk_cache._Cache.load_overload

def noted(self, sig, target_context):
    asked.add(f"{self._impl.filename_base} {sig}")
    return load(self, sig, target_context)

disk_cache._Cache.load_overload = noted
"""
_WARM = """
from bertgeom.pipelines.cli.main import main

assert main(["warm"]) == 0
print(json.dumps(sorted(asked)))
"""
_RUN = """
from numba.core import dispatcher

def forbidden(self, *args):
    raise AssertionError(f"{self.py_func.__name__} is compiled anew: {args}")

dispatcher._FunctionCompiler.compile = forbidden
from bertgeom.pipelines.run import stages

source, model, out = sys.argv[1:]
stages.run(source, model=model, out=out, window=40, keep="block_map,tracks", strand="both")
print(json.dumps(sorted(asked)))
"""


@pytest.mark.slow
def test_a_run_after_warm_compiles_nothing(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_text(">a\n" + "ACGTTGCA" * 20 + "\n")
    places = [str(tmp_path / "x.fa"), str(tiny_model), str(tmp_path / "x.zarr")]
    (tmp_path / "temporary").mkdir()

    def run(code: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _NOTED + code, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"TMPDIR": str(tmp_path / "temporary")} | more,
            cwd=tmp_path,
        )

    def asked(done: subprocess.CompletedProcess[str]) -> Any:
        assert done.returncode == 0, done.stderr[-2000:]
        return set(json.loads(done.stdout.splitlines()[-1]))

    cold = run(_RUN, *places, NUMBA_CACHE_DIR=str(tmp_path / "code"))
    assert "is compiled anew" in cold.stderr
    warmed = run(_WARM)
    by_warm = asked(warmed)
    assert warmed.stdout.startswith("CPU kernels are ready: ")
    assert not list((tmp_path / "temporary").iterdir())
    # Whatever else lies in the cache: this is what a run finds there after `warm` alone.
    by_run = asked(run(_RUN, *places))
    assert by_run
    assert by_run - by_warm == set()
