"""The count model: loops of machine code, passes of the interpreter, rates."""

from __future__ import annotations

import importlib
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture
def sass() -> ModuleType:
    """`bench.sass` of the checkout."""
    return importlib.import_module("bench.sass")


@pytest.fixture
def model() -> ModuleType:
    """`bench.model` of the checkout."""
    return importlib.import_module("bench.model")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A source file with one loop inside of another."""
    path = tmp_path / "kernel.py"
    path.write_text("for i in range(4):\n    a = i\n    while a:\n        a -= 1\n    b = a\n")
    return path


def listing(file: Path) -> str:
    """A disassembly of nested loops as nvdisasm prints it."""

    def at(*lines: int) -> str:
        inlined = "".join(
            f'\t//## File "{file}", line {a} inlined at "{file}", line {b}\n'
            for a, b in itertools.pairwise(lines)
        )
        return inlined + f'\t//## File "{file}", line {lines[-1]}\n'

    return (
        f"{at(1)}        /*0000*/                   MOV R1, c[0x0][0x28] ;\n"
        f".L_x_1:\n{at(2)}        /*0010*/                   HGMMA.64x32x16.F32 R2, R3, R4 ;\n"
        f".L_x_0:\n{at(4)}        /*0020*/                   MUFU.EX2 R2, R2 ;\n"
        "        /*0030*/                   F2I.TRUNC.NTZ R2, R2 ;\n"
        f"{at(3)}        /*0040*/               @P0 BRA `(.L_x_0) ;\n"
        f"{at(5)}        /*0050*/                   F2FP.F16.F32.PACK_AB R2, R2, R3 ;\n"
        f"{at(1, 5)}        /*0060*/              @!P1 BRA `(.L_x_1) ;\n"
        "        /*0070*/                   EXIT ;\n"
        ".L_x_2:\n        /*0080*/                   BRA `(.L_x_2);\n"
    )


def test_loops_own_what_no_inner_loop_owns(sass: ModuleType, kernel: Path) -> None:
    code = sass.read(listing(kernel))
    inner, outer = code.loops
    assert inner.place == ((str(kernel), 3),)
    # The header, and the line that the loop was inlined at.
    assert outer.place == ((str(kernel), 1), (str(kernel), 5))
    assert (inner.inner.issued, inner.inner.xu, inner.inner.exp2) == (3, 2, 1)
    assert (outer.inner.issued, outer.inner.xu) == (3, 0)
    assert outer.inner.flop == 2 * 64 * 32 * 16 / 4
    assert (code.once.issued, code.once.xu) == (3, 0)
    assert (inner.depth, outer.depth) == (1, 0)


def test_work_is_passes_times_loops(sass: ModuleType, model: ModuleType, kernel: Path) -> None:
    passes = importlib.import_module("bench.passes").Passes
    code = sass.read(listing(kernel))
    inner, outer = (loop.place for loop in code.loops)
    counted = passes("kernel", {}, 2, Counter({outer: 8, inner: 40}))
    total, unknown = model.work_of(code, counted)
    assert total.issued == 3 + 4 * 3 + 20 * 3
    assert total.exp2 == 20
    assert unknown == []
    # A loop that the interpreter never saw is passed as often as the one around it, and named.
    total, unknown = model.work_of(code, passes("kernel", {}, 2, Counter({outer: 8})))
    assert total.issued == 3 + 4 * 3 + 4 * 3
    assert unknown == ["kernel.py:3"]


def test_an_operation_takes_what_its_slowest_resource_takes(model: ModuleType) -> None:
    launches = importlib.import_module("bench.launches")
    assert model.operation_us(launches.Operation("add", 8)) == model.LEAST
    moved = launches.Operation("add", 43_000_000_000)
    assert model.operation_us(moved) == pytest.approx(1e4)
    product = launches.Operation("mm", 8, int(7.9e12))
    assert model.operation_us(product) == pytest.approx(1e4)


@pytest.mark.slow
def test_every_launch_of_a_forward_is_counted(json_of: Callable[..., Any]) -> None:
    found = json_of("bench.static", "--model", "--json", "--workers", "2")
    assert "measured" in found["computed"]
    launches = [x for part in found["parts"].values() for x in part["launches"]]
    assert launches
    for x in launches:
        # Loops of the kernels were all counted; those in Triton's own sums are the compiler's.
        assert all(place.startswith("standard.py") for place in x["passes_unknown"]), x["name"]
        assert x["spilled"] == 0, x["name"]
        assert x["us"] >= x["floor_us"] > 0, x["name"]
    full = found["parts"]["attention full"]["launches"]
    rows = next(x for x in full if x["name"] == "attention_rows")
    # Two products of a cell by the tensor cores, and one exponential: what attention is made of.
    cells = 64 * 12 * 512 * 512
    assert rows["tensor_us"] == pytest.approx(1e6 * 4 * 64 * cells / 790e12, rel=0.02)
    assert 1.0 <= rows["exp2_a_cell"] <= 1.1
    forward = found["forward"]
    assert forward["bare"]["over_bare"] == 1.0 < forward["core"]["over_bare"]
    assert forward["core"]["over_bare"] < forward["full"]["over_bare"] < 4.0
