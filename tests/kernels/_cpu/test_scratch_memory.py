"""No batch of mixed lengths may leave the memory it is given, or read what was not written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bertgeom.kernels import attention_stats, station_statistics
from bertgeom.kernels._cpu import runtime
from bertgeom.kernels._cpu.runtime import claim, inner, jit, on_torch_threads, started, wait_for
from bertgeom.kernels.attention_stats.cpu import run
from bertgeom.kernels.attention_stats.cpu.work import most_floats, scratch_floats
from bertgeom.kernels.stations import cpu as stations

THRESHOLDS = [n + o for n in (64, 512, 577, 1024, 1152, 2048, 4096) for o in (-1, 0, 1)]


@pytest.mark.parametrize("head_dim", [1, 7, 16, 32, 64, 128])
@pytest.mark.parametrize("reach", [0, 5, 64, 1 << 20])
def test_scratch_memory_is_enough_for_every_length_of_a_batch(head_dim: int, reach: int) -> None:
    numbers = np.random.default_rng(head_dim + reach)
    theta = np.float32(0.3)
    for _ in range(10):
        lengths = numbers.choice(THRESHOLDS, 4).astype(np.int32)
        given = most_floats(lengths, head_dim, 4, theta, reach)
        needs = [scratch_floats(int(n), head_dim, 4, theta, reach) for n in lengths]
        assert given == max(needs)


@pytest.mark.parametrize("lengths", [[1200, 700], [700, 1200, 1], [1025, 1024, 0], [513, 512, 33]])
@pytest.mark.parametrize("window", [None, 2])
def test_mixed_lengths_leave_their_guards_alone_and_agree_with_the_oracle(
    lengths: list[int], window: int | None, guards: Any
) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(len(lengths), 2, max(lengths), 16) for _ in range(3))
    asked: dict[str, Any] = {"lengths": torch.tensor(lengths), "window": window, "rows": True}
    found = attention_stats(query, key, value, **asked, impl="numba")
    guards.check()
    oracle = attention_stats(query, key, value, **asked, impl="reference")
    torch.testing.assert_close(found.output, oracle.output, rtol=1e-4, atol=1e-5)
    for name in ("attention_entropy", "attention_distance", "gate_mass", "query_entropy"):
        ours, theirs = found.values[name], oracle.values[name]
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True)
    for b, n in enumerate(lengths):
        assert not found.output[b, :, n:].any()


def test_memory_that_is_too_small_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the longest window alone, as it once was."""

    def by_the_longest(lengths: Any, *options: Any) -> int:
        return int(scratch_floats(int(max(lengths)), *options))

    monkeypatch.setattr(run, "most_floats", by_the_longest)
    heads = torch.randn(2, 2, 1200, 16)
    with pytest.raises(IndexError, match="scratch memory too small"):
        attention_stats(heads, heads, heads, lengths=torch.tensor([1200, 700]), impl="numba")


@inner
def _refuse(number):
    if number == 3:
        raise ValueError("three")


@jit
def _fails_before_others_may_go_on(team, counters):
    """The first task counts ten and raises on the way; all others wait for the ten."""
    if started(team, (counters,)):
        return
    while True:
        number = claim(counters, 0)
        if number > 20:
            return
        if number > 0 and not wait_for(team, counters, 1, 10):
            claim(counters, 2)
            return
        for k in range(10):
            _refuse(k)
            claim(counters, 1)


@jit
def _fails(team, counters):
    if started(team, (counters,)):
        return
    while True:
        number = claim(counters, 0)
        if number > 10:
            return
        _refuse(number)


def test_what_a_thread_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="three"):
        on_torch_threads(_fails, np.zeros(2, np.int64))


@pytest.mark.usefixtures("threads")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("team", ["torch", "python"])
def test_nobody_waits_for_a_thread_that_has_failed(
    team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's threads, and on Python's where torch has no OpenMP of GCC's kind."""
    if team == "python":
        found = runtime._address
        monkeypatch.setattr(
            runtime, "_address", lambda name: 0 if name == "GOMP_parallel" else found(name)
        )
    torch.set_num_threads(4)
    for _ in range(20):
        counters = np.zeros(3, np.int64)
        with pytest.raises(ValueError, match="three"):
            on_torch_threads(_fails_before_others_may_go_on, counters)
        assert counters[1] == 3
    # The next call knows nothing of it.
    counters = np.array([1, 10, 0])
    on_torch_threads(_fails_before_others_may_go_on, np.array([21, 10, 0]))
    with pytest.raises(ValueError, match="three"):
        on_torch_threads(_fails_before_others_may_go_on, counters)
    assert counters[2] == 0


@pytest.mark.usefixtures("threads")
@pytest.mark.timeout(60)
def test_a_station_whose_thread_runs_out_of_memory_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the other threads wait for the step that it was at."""
    torch.set_num_threads(4)
    x = torch.randn(1, 200, 32)
    allocate = stations.allocate

    def with_a_sum_of_endless_vectors(*arguments: Any) -> Any:
        work = allocate(*arguments)
        endless = np.lib.stride_tricks.as_strided(
            work.unit_sum, (1, 1, 1 << 50), (1 << 52, 1 << 52, 4)
        )
        # The sweeps of blocks beyond the window touch nothing; the step after them allocates.
        work.norm[:] = 1
        return work._replace(unit_sum=endless)

    def without_sweeps(windows: int, blocks: int, tiles: int) -> Any:
        tasks = block_tasks(windows, blocks, tiles).copy()
        tasks[tasks[:, 0] == stations.SWEEP, 2] = blocks
        return tasks

    block_tasks = stations.block_tasks
    expected = station_statistics(x, angles=True)
    with monkeypatch.context() as patched:
        patched.setattr(stations, "allocate", with_a_sum_of_endless_vectors)
        patched.setattr(stations, "block_tasks", without_sweeps)
        with pytest.raises(MemoryError):
            station_statistics(x, angles=True)
    again = station_statistics(x, angles=True)
    for name, value in expected.items():
        assert torch.equal(again[name], value), name
