"""All pairwise angles within a set of vectors, and between two sets."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.suite.cases import Case, Cost, by_blas, cases, device, implementation
from bench.suite.conftest import Timed
from bertgeom.kernels import pairwise_angle_histogram
from bertgeom.kernels.cone_angles.tolerance import angle_disagreements

WAYS = ["materialised", "numba, BLAS", "numba, tile unit", "triton"]
FULL = [
    *cases(WAYS, "materialised", N=[512, 1024, 2048, 4096], D=[768], dtype=["float32"]),
    *cases(WAYS, "materialised", N=[2048], D=[64, 320], dtype=["float32"]),
    *cases(["reference"], N=[128], D=[768], dtype=["float32"]),
]
TINY = cases([*WAYS, "reference"], "materialised", N=[65], D=[48], dtype=["float32"])
BINS = 90


def sets(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Two pairs of sets (N, D), vectors around axes of their own."""
    found = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)

        def one(generator: torch.Generator = generator) -> Tensor:
            axis = torch.randn(case["D"], generator=generator)
            x = axis + torch.randn(case["N"], case["D"], generator=generator)
            return x.to(device(), getattr(torch, case["dtype"]))

        found.append((one(), one()))
    return found


@cache
def checked() -> bool:
    """Raises where ours leaves the bounds of the oracle."""
    x, y = sets(Case("numba", {"N": 67, "D": 48, "dtype": "float32"}))[0]
    wrong = angle_disagreements(x, None, pairwise_angle_histogram(x))
    wrong += angle_disagreements(x, y, pairwise_angle_histogram(x, y))
    assert not wrong, wrong
    return True


def stored(x: Tensor, y: Tensor | None) -> Any:
    """The matrix of all cosines, its angles and their histogram."""
    u = torch.nn.functional.normalize(x, dim=-1)
    v = u if y is None else torch.nn.functional.normalize(y, dim=-1)
    cosine = (u @ v.mT).clamp(-1, 1)
    if y is None:
        pairs = torch.triu_indices(len(u), len(u), 1, device=u.device)
        cosine = cosine[pairs[0], pairs[1]]
    theta = torch.rad2deg(torch.acos(cosine))
    return torch.histc(theta, BINS, 0, 180), theta.mean(), theta.std(), theta.amin(), theta.amax()


@pytest.mark.parametrize("between", [False, True], ids=["within", "between"])
def test_angles(timed: Timed, case: Case, between: bool) -> None:
    assert checked()
    impl, n = implementation(case.way), case["N"]
    pairs = n * n if between else n * (n - 1) // 2

    def run(two: tuple[Tensor, Tensor]) -> Any:
        y = two[1] if between else None
        if case.way == "materialised":
            return stored(two[0], y)
        return pairwise_angle_histogram(two[0], y, bins=BINS, impl=impl)

    n_bytes = (2 if between else 1) * n * case["D"] * getattr(torch, case["dtype"]).itemsize
    cost = Cost(pairs, "pair", 2.0 * pairs * case["D"], n_bytes)
    kernel = "angles between two sets" if between else "angles within a set"
    with torch.inference_mode(), by_blas(case.way):
        timed(kernel, case, cost, run, sets(case))
