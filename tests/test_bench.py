"""The arithmetic of the benchmarks."""

from __future__ import annotations

import pytest

from bench.run import quartiles, summary


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_any_number_of_rounds_has_quartiles(rounds: int) -> None:
    times = [2.0 + i for i in range(rounds)]
    found = summary({"bare": times, "all": [2 * t for t in times]}, "bare")
    assert found["all"]["ratio_q25"] == found["all"]["ratio_q75"] == pytest.approx(2)
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
