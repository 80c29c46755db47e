"""How a benchmark is timed, and the table that it prints."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, Protocol

import pytest

from bench.run import environment
from bench.suite import limits, table
from bench.suite.cases import NEEDS, Case, Cost, available, device

ROWS = pytest.StashKey[list[dict[str, Any]]]()
LIMITS = pytest.StashKey[limits.Limits]()
#: Seconds of the rounds of one benchmark, and how many there are at least and at most.
SECONDS, FEWEST, MOST = 0.5, 5, 50


class Timed(Protocol):
    """See `timed`."""

    def __call__(
        self,
        kernel: str,
        case: Case,
        cost: Cost,
        run: Callable[[Any], Any],
        inputs: Sequence[Any],
    ) -> None: ...


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    # One table a kernel is printed below; those of the plugin where commits are compared.
    if not (config.getoption("benchmark_compare") or config.getoption("benchmark_verbose")):
        config.option.benchmark_quiet = True


def measures(config: pytest.Config) -> bool:
    """Whether benchmarks are timed in this session, not only run once."""
    return bool(config.getoption("benchmark_enable"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case` goes over FULL of the module, over TINY in the tests."""
    if "case" in metafunc.fixturenames:
        which = "FULL" if measures(metafunc.config) else "TINY"
        metafunc.parametrize("case", getattr(metafunc.module, which), ids=str)


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest) -> Timed:
    """Times `run` on the inputs in turn, so that no round finds its data in a cache.

    Args (of the returned function):
        kernel: name of the table. case: the line of it. cost: the least work of a run.
        run: takes one of `inputs`. inputs: alike in shape.
    """
    config = request.config

    def time_it(
        kernel: str, case: Case, cost: Cost, run: Callable[[Any], Any], inputs: Sequence[Any]
    ) -> None:
        turns = cycle(inputs)
        where = device()

        def once() -> None:
            run(next(turns))
            limits.wait(where)

        benchmark.group = f"{kernel}, {case.title}"
        if not measures(config):
            benchmark(once)
            return
        # The first run compiles, the second is timed to choose the rounds.
        once()
        start = time.perf_counter()
        once()
        seconds = time.perf_counter() - start
        rounds = int(min(MOST, max(FEWEST, SECONDS / max(seconds, 1e-6))))
        if config.stash.get(LIMITS, None) is None:
            config.stash[LIMITS] = limits.measured(where)
        benchmark.pedantic(once, rounds=rounds)
        times = benchmark.stats.stats.data
        middle = statistics.median(times)
        row = {
            "kernel": kernel,
            "way": case.way,
            "shape": case.shape,
            "base": case.base,
            "seconds": middle,
            "rounds": rounds,
            "throughput": cost.amount / middle,
            "unit": cost.unit,
            "roofline": config.stash[LIMITS].least_seconds(cost) / middle,
        }
        benchmark.extra_info.update(row)
        quarters = statistics.quantiles(times, n=4, method="inclusive")
        config.stash[ROWS].append({**row, "iqr": quarters[2] - quarters[0]})

    return time_it


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Versions, threads, tile unit and the ceilings go into the JSON."""
    machine_info["bertgeom"] = environment(device())
    found = config.stash.get(LIMITS, None)
    machine_info["limits"] = found.facts() if found is not None else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    about = environment(device())
    terminalreporter.write_line("")
    terminalreporter.write_line(", ".join(f"{k} {v}" for k, v in about.items()))
    found = config.stash[LIMITS]
    terminalreporter.write_line(
        f"ceilings: {found.flops / 1e9:.0f} GFLOP/s of float32 products, "
        f"{found.bytes / 1e9:.1f} GB/s of a copy"
    )
    for line in table.lines(rows):
        terminalreporter.write_line(line)
    for way, need in NEEDS.items():
        if not available(way):
            terminalreporter.write_line(f"not here: {way}, it needs {need}")
