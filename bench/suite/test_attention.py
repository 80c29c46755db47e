"""One layer of attention with its statistics, beside attention alone (SDPA)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import attention_cpu, materialised
from bench.suite.cases import Case, Cost, by_blas, cases, device, implementation
from bench.suite.conftest import Timed
from bertgeom.kernels import attention_stats
from bertgeom.variables import n_offset_side

HEADS = 12
OURS = ["numba, BLAS", "numba, tile unit", "triton"]
STORED = ["sdpa", *OURS, "materialised"]
FLOAT = ["float32"]
FULL = [
    *cases(STORED, "sdpa", B=[1], N=[128, 426, 512, 1024], d=[64], dtype=FLOAT),
    *cases(["sdpa", *OURS], "sdpa", B=[1], N=[2048, 4096], d=[64], dtype=FLOAT),
    *cases(STORED, "sdpa", B=[1], N=[512], d=[32, 128], dtype=FLOAT),
    *cases(STORED, "sdpa", B=[8], N=[426], d=[64], dtype=FLOAT),
    *cases(["sdpa", *OURS], "sdpa", B=[1], N=[512], d=[64], dtype=["float16", "bfloat16"]),
]
FULL += cases(["reference"], B=[1], N=[128], d=[64], dtype=FLOAT)
FULL += cases(["flex twice"], B=[1], N=[512], d=[64], dtype=FLOAT)
TINY = cases([*STORED, "reference"], "sdpa", B=[1], N=[33], d=[32], dtype=FLOAT)
# Not compiled it runs everywhere, by stored maps.
TINY.append(Case("flex twice", TINY[0].shape))
#: Logits of the check have a standard deviation of 1 nat.
SPREAD = 1.0
#: Shorter windows are not worth the compilation of FlexAttention, some half a minute.
COMPILED = 128


@cache
def checked() -> bool:
    """Raises where ours leaves the bounds of the oracle, on the CPU; tests do on a GPU."""
    if device() == "cpu":
        attention_cpu.gate(67, SPREAD)
    return True


def inputs(case: Case) -> list[list[Tensor]]:
    """Four times q, k, v (B, H, N, d), as the projections leave them."""
    found = []
    for seed in range(attention_cpu.N_INPUTS):
        generator = torch.Generator().manual_seed(seed)
        shape = (case["B"], case["N"], HEADS, case["d"])
        made = [torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3)]
        found.append([x.to(device(), getattr(torch, case["dtype"])) for x in made])
    return found


def cost(case: Case) -> Cost:
    """Two products of N x N x d; q, k, v and the output once."""
    logits = case["B"] * HEADS * case["N"] ** 2
    entries = 4 * case["B"] * HEADS * case["N"] * case["d"]
    size = getattr(torch, case["dtype"]).itemsize
    return Cost(logits, "logit", 4.0 * logits * case["d"], entries * size)


def flex_twice(x: list[Tensor]) -> Any:
    """Output and mean entropy alone: with keys in the place of values the rows' mean logits."""
    q, k, v = x
    from torch.nn.attention.flex_attention import AuxRequest

    flex = _flex(q.shape[-2] >= COMPILED)
    output, more = flex(q, k, v, return_aux=AuxRequest(lse=True))
    logit = (q * flex(q, k, k)).sum(-1) * q.shape[-1] ** -0.5
    return output, (more.lse - logit).mean(-1)


@cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def stored(case: Case) -> Callable[[list[Tensor]], Any]:
    special = ends(case)

    def run(x: list[Tensor]) -> Any:
        q, k, v = (part.float() for part in x)
        a = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
        return a @ v, materialised.attention(a, special), materialised.logits(q, k)

    return run


def ends(case: Case) -> Tensor:
    return attention_cpu.special_ends(case["B"], case["N"]).to(device())


def way(case: Case, tier: str) -> Callable[[list[Tensor]], Any]:
    if case.way == "sdpa":
        return lambda x: torch.nn.functional.scaled_dot_product_attention(x[0], x[1], x[2])
    if case.way == "materialised":
        return stored(case)
    if case.way == "flex twice":
        return flex_twice
    special, side, impl = ends(case), n_offset_side(case["N"]), implementation(case.way)
    return lambda x: attention_stats(*x, special=special, tier=tier, n_offset_side=side, impl=impl)


# Of torch about its own parts, and about the tiny windows.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without")
@pytest.mark.parametrize("tier", ["core", "full"])
def test_attention(timed: Timed, case: Case, tier: str) -> None:
    if tier == "core" and case.way in ("materialised", "flex twice"):
        pytest.skip("one list of statistics, stated beside tier full")
    assert checked()
    with torch.inference_mode(), by_blas(case.way):
        timed(f"attention, tier {tier}", case, cost(case), way(case, tier), inputs(case))
