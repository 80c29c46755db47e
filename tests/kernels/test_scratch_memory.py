"""No batch of mixed lengths may leave the memory it is given, or read what was not written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bertgeom.kernels import attention_stats
from bertgeom.kernels._cpu import claim, inner, jit, on_torch_threads, started
from bertgeom.kernels.attention_stats import cpu
from bertgeom.kernels.attention_stats._cpu_work import most_floats, scratch_floats

THRESHOLDS = [n + o for n in (64, 512, 577, 1024, 1152, 2048, 4096) for o in (-1, 0, 1)]
GUARD = 1 << 14


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
    lengths: list[int], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def with_guards(rows: int, n_floats: int) -> tuple[int, int]:
        pitch = -(-n_floats // 64) * 64 + GUARD
        memory = torch.full((rows * pitch + 64,), torch.nan)
        skip = -(memory.data_ptr() // 4) % 64
        guards = memory[skip : skip + rows * pitch].view(rows, pitch)[:, pitch - GUARD :]
        guards.fill_(3.25)
        kept.append((memory, guards))
        return memory.data_ptr() + 4 * skip, pitch

    monkeypatch.setattr(cpu, "scratch_address", with_guards)
    torch.manual_seed(0)
    query, key, value = (torch.randn(len(lengths), 2, max(lengths), 16) for _ in range(3))
    asked: dict[str, Any] = {"lengths": torch.tensor(lengths), "window": window, "rows": True}
    found = attention_stats(query, key, value, **asked, impl="numba")
    assert (kept[0][1] == 3.25).all()
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

    monkeypatch.setattr(cpu, "most_floats", by_the_longest)
    heads = torch.randn(2, 2, 1200, 16)
    with pytest.raises(IndexError, match="scratch memory too small"):
        attention_stats(heads, heads, heads, lengths=torch.tensor([1200, 700]), impl="numba")


@inner
def _refuse(number):
    if number == 3:
        raise ValueError("three")


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
