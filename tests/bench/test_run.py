"""The arithmetic of the benchmarks."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


@pytest.fixture
def run() -> ModuleType:
    """`bench.run` of the checkout."""
    return importlib.import_module("bench.run")


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_any_number_of_rounds_has_quartiles(rounds: int, run: ModuleType) -> None:
    times = [2.0 + i for i in range(rounds)]
    found = run.summary({"bare": times, "all": [2 * t for t in times]}, "bare")
    assert found["all"]["ratio_q25"] == found["all"]["ratio_q75"] == pytest.approx(2)
    assert run.quartiles([3.0]) == (3.0, 3.0, 3.0)


def test_a_ratio_is_the_median_of_ratios_within_rounds(run: ModuleType) -> None:
    # Not the ratio of medians, which is 2 here: a slow round slows both.
    found = run.summary({"bare": [1.0, 2.0, 9.0], "all": [4.0, 3.0, 13.5]}, "bare")
    assert found["all"]["ratio_median"] == pytest.approx(1.5)


def test_wide_quartiles_are_named(run: ModuleType) -> None:
    steady = {"ratio_q25": 1.00, "ratio_median": 1.01, "ratio_q75": 1.02}
    wild = {"ratio_q25": 0.9, "ratio_median": 1.0, "ratio_q75": 1.1}
    assert run.unsteady({"attention": steady}, 9) is None
    assert "1 rounds" in run.unsteady({"attention": steady}, 1)
    warning = run.unsteady({"attention": steady, "everything": wild}, 9)
    assert "everything" in warning
    assert "attention" not in warning
