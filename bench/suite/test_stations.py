"""One residual station: cone, moments, norms, with and without the angles of all pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import materialised, stations_cpu
from bench.suite.cases import Case, Cost, by_blas, cases, device, implementation
from bench.suite.conftest import Timed
from bertgeom.kernels import cone_sums, station_statistics, stream_moments
from bertgeom.kernels.cone_angles.tolerance import cone_disagreements
from bertgeom.kernels.stations.tolerance import stream_disagreements

OURS = ["numba, BLAS", "numba, tile unit", "triton"]
WAYS = [*OURS, "materialised"]
FULL = [
    *cases(WAYS, "materialised", B=[1], N=[128, 512, 1024, 2048], D=[768], dtype=["float32"]),
    *cases(WAYS, "materialised", B=[8], N=[426], D=[768], dtype=["float32"]),
    *cases(OURS, B=[1], N=[512], D=[320, 1280], dtype=["float32"]),
    *cases(OURS, B=[1], N=[512], D=[768], dtype=["float16"]),
    *cases(["reference"], B=[1], N=[128], D=[768], dtype=["float32"]),
]
TINY = cases([*WAYS, "reference"], "materialised", B=[2], N=[33], D=[48], dtype=["float32"])


def states(case: Case) -> list[Tensor]:
    """Four hidden states (B, N, D): vectors around an axis, two wide dimensions, as in BERT."""
    found = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        shape = (case["B"], case["N"], case["D"])
        x = torch.randn(shape, generator=generator) + torch.randn(shape[-1], generator=generator)
        x[..., :2] *= 8
        found.append(x.to(device(), getattr(torch, case["dtype"])))
    return found


@cache
def checked() -> bool:
    """Raises where ours leaves the bounds of the oracle."""
    x = states(Case("numba", {"B": 2, "N": 67, "D": 64, "dtype": "float32"}))[0]
    stations_cpu.gate(stations_cpu.States(torch.zeros(2, 67), [x]))
    lengths = torch.full((2,), 67)
    wrong = stream_disagreements(x, lengths, stream_moments(x))
    wrong += cone_disagreements(x[:, None], lengths, cone_sums(x[:, None]))
    assert not wrong, wrong
    return True


def cost(case: Case, products: float) -> Cost:
    """The state once; `products` multiplications and additions an entry."""
    entries = case["B"] * case["N"] * case["D"]
    size = getattr(torch, case["dtype"]).itemsize
    return Cost(entries, "entry", products * entries, entries * size)


def way(case: Case, ours: Callable[[Tensor], Any], *, angles: bool) -> Callable[[Tensor], Any]:
    return (
        (lambda x: materialised.station(x, angles=angles)) if case.way == "materialised" else ours
    )


@pytest.mark.parametrize("angles", [True, False], ids=["angles", "plain"])
def test_station(timed: Timed, case: Case, angles: bool) -> None:
    assert checked()
    impl = implementation(case.way)
    run = way(case, lambda x: station_statistics(x, angles=angles, impl=impl), angles=angles)
    # Half of the Gram matrix; without angles the smaller one of its two sides would do.
    side = case["N"] if angles else min(case["N"], case["D"])
    with torch.inference_mode(), by_blas(case.way):
        kernel = "a station, with angles" if angles else "a station, without angles"
        timed(kernel, case, cost(case, side), run, states(case))


def test_moments(timed: Timed, case: Case) -> None:
    if case.way == "materialised":
        pytest.skip("stated beside the station without angles")
    assert checked()
    impl, side = implementation(case.way), min(case["N"], case["D"])
    with torch.inference_mode(), by_blas(case.way):
        run = lambda x: stream_moments(x, impl=impl)  # noqa: E731
        timed("moments, norms and participation ratio", case, cost(case, side), run, states(case))


@pytest.mark.parametrize("axis", [True, False], ids=["axis", "sums"])
def test_cone(timed: Timed, case: Case, axis: bool) -> None:
    if case.way == "materialised":
        pytest.skip("stated beside the station without angles")
    assert checked()
    impl = implementation(case.way)
    with torch.inference_mode(), by_blas(case.way):
        run = lambda x: cone_sums(x, axis_angles=axis, impl=impl)  # noqa: E731
        kernel = "cone sums, with angles to the axis" if axis else "cone sums"
        timed(kernel, case, cost(case, 4.0 if axis else 2.0), run, states(case))
