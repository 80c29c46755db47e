"""No shipped Triton kernel spills on sm_90, and products of matrices use its wgmma.

Compiles for sm_90 without a GPU; `python -m bench.static` prints the same table for sm_80 too.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)


@pytest.fixture
def static(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `bench.static` of the checkout."""
    monkeypatch.syspath_prepend(str(root))
    return importlib.import_module("bench.static")


def table(root: Path, *arguments: str) -> list[dict[str, Any]]:
    """What `python -m bench.static --json` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.static", "--json", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.stdout, done.stderr[-4000:]
    return list(json.loads(done.stdout))


def resources(static: ModuleType, **changes: object) -> Any:
    """A faultless row, but for what the test changes."""
    row = {
        "name": "kernel",
        "architecture": 90,
        "registers": 128,
        "spilled": 0,
        "shared": 1024,
        "wgmma": 4,
        "mma_sync": 0,
        "warps": 4,
        "stages": 2,
        "loops": (),
        "dots": True,
        "reason": None,
    }
    return static.Resources(**(row | changes))


def test_a_spill_or_a_missing_wgmma_is_a_fault_on_sm_90_alone(static: ModuleType) -> None:
    assert resources(static).fault is None
    assert resources(static, dots=False, wgmma=0).fault is None
    assert resources(static, wgmma=0, reason="16 rows").fault is None
    assert resources(static, architecture=80, spilled=8, wgmma=0).fault is None
    assert resources(static, spilled=8).fault == "spills 8 bytes per thread"
    assert "without wgmma" in resources(static, wgmma=0).fault


def test_every_module_with_triton_kernels_ships_them(root: Path, static: ModuleType) -> None:
    kernels = root / "kernels"
    found = sorted([*kernels.glob("*/gpu.py"), *kernels.glob("*/gpu/run.py")])
    assert len(found) >= 3
    for path in found:
        inner = path.relative_to(kernels).with_suffix("").parts
        module = ".".join(["bertgeom.kernels", *inner])
        assert module in static.MODULES
        assert static.shipped([module]), module


@pytest.mark.slow
def test_no_shipped_configuration_spills_or_misses_wgmma_on_sm_90(
    root: Path, static: ModuleType
) -> None:
    rows = table(root, "--sm", "90", "--workers", "2")
    assert [row["name"] for row in rows] == list(static.shipped())
    assert {row["name"]: row["fault"] for row in rows if row["fault"]} == {}


def test_the_table_counts_instructions_of_both_architectures(root: Path) -> None:
    old, new = table(root, "--only", "attention_gram/fp16/d64")
    assert (old["architecture"], new["architecture"]) == (80, 90)
    assert old["wgmma"] == 0 < old["mma_sync"]
    assert new["wgmma"] > 0
    assert all(0 < row["registers"] <= 255 for row in (old, new))
    assert all(row["loops"] for row in (old, new))


def test_loops_are_found_by_their_branches_backwards(static: ModuleType) -> None:
    sass = """
        code for sm_90
        /*0000*/                   MOV R1, c[0x0][0x28] ;   /* 0x00000a0000017a02 */
                                                            /* 0x000fe20000000f00 */
        /*0010*/                   FADD R2, R2, R3 ;        /* 0x0000000302027221 */
        /*0020*/                   FMUL R2, R2, R2 ;        /* 0x0000000202027220 */
        /*0030*/              @P0  BRA 0x20 ;               /* 0xfffffff000007947 */
        /*0040*/              @!P1 BRA 0x10 ;               /* 0xfffffff000007947 */
        /*0050*/              @P2  BRA 0x70 ;               /* 0xfffffff000007947 */
        /*0060*/                   EXIT ;                   /* 0x000000000000794d */
        /*0070*/                   BRA 0x70;                /* 0xfffffff000007947 */
"""
    assert static.loop_sizes(sass) == (2, 4)
