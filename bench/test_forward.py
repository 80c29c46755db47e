"""The whole forward in its variants: `python -m pytest bench --benchmark-enable`."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from bench import workloads


@pytest.fixture(scope="module")
def work() -> workloads.Workload:
    made = workloads.bert_base(426, layers=2)
    workloads.gate(made)
    return made


@pytest.mark.parametrize("name", ["bare", "attention", "everything", "materialised"])
def test_forward(benchmark: Any, work: workloads.Workload, name: str) -> None:
    batches = cycle(work.batches)
    benchmark.group = work.name
    run = workloads.variants(work)[name]
    benchmark.pedantic(lambda: run(next(batches)), rounds=5, warmup_rounds=1)
