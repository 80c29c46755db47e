"""One residual station and one layer's heads: `python -m pytest bench --benchmark-enable`."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from bench import stations_cpu, workloads
from bertgeom.kernels import cone_sums, station_statistics


@pytest.fixture(scope="module")
def states() -> list[stations_cpu.States]:
    work = workloads.bert_base(426, 4, layers=1)
    made = [stations_cpu.states_of(work, ids) for ids in work.batches]
    stations_cpu.gate(made[0])
    return made


@pytest.mark.parametrize("angles", [True, False], ids=["angles", "plain"])
def test_station(benchmark: Any, states: list[stations_cpu.States], angles: bool) -> None:
    inputs = cycle(state.stations[-1] for state in states)
    benchmark.group = "a station, 4 x 426 x 768"
    benchmark.pedantic(
        lambda: station_statistics(next(inputs), angles=angles), rounds=20, warmup_rounds=2
    )


def test_head_cones(benchmark: Any, states: list[stations_cpu.States]) -> None:
    # The heads of a projection as attention sees them, (B, H, N, D).
    inputs = cycle(state.stations[-1].unflatten(-1, (12, 64)).transpose(1, 2) for state in states)
    benchmark.group = "queries of a layer, 4 x 12 x 426 x 64"
    benchmark.pedantic(
        lambda: cone_sums(next(inputs), axis_angles=False), rounds=20, warmup_rounds=2
    )
