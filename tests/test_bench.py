"""The arithmetic of the benchmarks."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`bench.run` of the checkout; the benchmarks are not installed."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("bench.run")


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_any_number_of_rounds_has_quartiles(rounds: int, run: ModuleType) -> None:
    times = [2.0 + i for i in range(rounds)]
    found = run.summary({"bare": times, "all": [2 * t for t in times]}, "bare")
    assert found["all"]["ratio_q25"] == found["all"]["ratio_q75"] == pytest.approx(2)
    assert run.quartiles([3.0]) == (3.0, 3.0, 3.0)
