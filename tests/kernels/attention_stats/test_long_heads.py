"""Heads too long to stay in memory: mirrored cells, candidates for the value bins, flat heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from bertgeom.kernels import AlibiBias, RelativeBias, attention_stats
from bertgeom.kernels._cpu import strips
from bertgeom.kernels.attention_stats import api
from bertgeom.kernels.attention_stats.cpu import rows, second_look
from bertgeom.kernels.attention_stats.options import N_VALUE_BINS
from bertgeom.kernels.attention_stats.tolerance import bounds, disagreements

#: Peaked and flat: logits of 2.5 and of 0.1 nat.
PEAKED, FLAT = 1.6, 0.3
WAYS = ["strips", "blas"] if strips.usable() else ["blas"]

both_ways = pytest.mark.parametrize("way", WAYS, indirect=True)
pytestmark = pytest.mark.usefixtures("products")


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with mock.patch.object(strips, "usable", return_value=request.param == "strips"):
        yield request.param


def heads(tokens: int, spread: float, *, batch: int = 1, n: int = 1, dim: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(batch, n, tokens, dim, generator=generator) for _ in range(3))
    return [spread * q, spread * k, v]


def check(q: Tensor, k: Tensor, v: Tensor, *, bias: Any = None, **asked: Any) -> None:
    """Fails with every statistic that leaves the bounds derived for this input."""
    batch, _, tokens, dim = q.shape
    lengths = asked.pop("lengths", torch.full((batch,), tokens))
    known: dict[str, Any] = {
        "scale": dim**-0.5,
        "window": None,
        "tier": "full",
        "theta": 0.3,
        "near": 4,
        "n_offset_side": 12,
        "n_groups": 3,
        "rows": True,
        "columns": True,
    } | asked
    special = torch.zeros(batch, tokens, dtype=torch.bool)
    special[:, [0, -1]] = True
    groups = (torch.arange(tokens, dtype=torch.int32) % 8).expand(batch, -1).contiguous()
    slots: dict[str, Any] = {"lengths": lengths, "special": special, "groups": groups}
    found = attention_stats(q, k, v, **slots, **known, bias=bias, impl="numba")
    limits = bounds(q, k, v, lengths, special, groups, api.checked_options(**known), bias)
    assert disagreements(limits, found.output, found.values) == []


@pytest.mark.parametrize(
    ("tokens", "spread"), [(1025, PEAKED), (1100, 0.0), (1281, FLAT), (1537, PEAKED)]
)
def test_odd_lengths(tokens: int, spread: float) -> None:
    check(*heads(tokens, spread))


@pytest.mark.parametrize("spread", [PEAKED, FLAT])
def test_by_blas_alone(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "usable", lambda: False)
    check(*heads(1100, spread))


@pytest.mark.slow
@pytest.mark.parametrize("spread", [PEAKED, FLAT])
def test_two_thousand_tokens(spread: float) -> None:
    check(*heads(2049, spread))


@pytest.mark.parametrize("dim", [24, 64])
def test_other_head_dimensions(dim: int) -> None:
    check(*heads(1100, PEAKED, dim=dim))


@pytest.mark.parametrize("spread", [PEAKED, FLAT])
@pytest.mark.parametrize(
    ("tokens", "window"), [(2, 0), (5, 1), (40, 3), (300, 0), (300, 64), (600, 300)]
)
def test_sliding_windows(tokens: int, window: int, spread: float) -> None:
    check(*heads(tokens, spread), window=window)


@pytest.mark.parametrize(("window", "spread"), [(40, PEAKED), (700, FLAT)])
def test_sliding_windows_of_long_heads(window: int, spread: float) -> None:
    check(*heads(1100, spread), window=window)


def test_long_and_short_windows_of_one_batch() -> None:
    q, k, v = heads(1110, PEAKED, batch=3)
    lengths = torch.tensor([1100, 0, 900])
    for b, n in enumerate(lengths.tolist()):
        for x in (q, k, v):
            x[b, :, n:] = torch.nan
    plain = [x.nan_to_num(0) for x in (q, k, v)]
    check(*plain, lengths=lengths)
    slots: dict[str, Any] = {"lengths": lengths, "impl": "numba"}
    clean, padded = (attention_stats(*x, **slots) for x in (plain, (q, k, v)))
    assert torch.equal(clean.output, padded.output)
    for name, x in clean.values.items():
        assert torch.equal(x.nan_to_num(-1), padded.values[name].nan_to_num(-1)), name


@both_ways
@pytest.mark.usefixtures("threads")
def test_threads_padding_and_batch_change_no_bit(way: str) -> None:
    """Peaked and flat windows, above and below the length from which heads are long."""
    lengths = [1025, 1024, 1100, 1060]
    q, k, v = heads(1100, PEAKED, batch=4, n=2)
    q[2:] *= FLAT / PEAKED
    asked: dict[str, Any] = {"rows": True, "columns": True, "impl": "numba"}
    torch.set_num_threads(3)
    batch = attention_stats(q, k, v, lengths=torch.tensor(lengths), **asked)
    torch.set_num_threads(1)
    for b, n in enumerate(lengths):
        one = attention_stats(*(x[b : b + 1, :, :n].contiguous() for x in (q, k, v)), **asked)
        assert torch.equal(one.output[0], batch.output[b, :, :n])
        for name, value in one.values.items():
            other = batch.values[name][b]
            other = other[:, :n] if name in ("query_entropy", "attention_received") else other
            assert torch.equal(value[0], other), name


@pytest.mark.parametrize(
    ("kind", "spread", "window"),
    [
        ("alibi", PEAKED, None),
        ("offsets", PEAKED, None),
        ("offsets", FLAT, None),
        ("tensor", PEAKED, 300),
        ("tensor", FLAT, None),
    ],
)
def test_biases_of_mirrored_cells(kind: str, spread: float, window: int | None) -> None:
    """Not symmetric, but for ALiBi: the cells (i, j) and (j, i) have biases of their own."""
    tokens = 1100
    generator = torch.Generator().manual_seed(1)
    biases: dict[str, Any] = {
        "alibi": AlibiBias(torch.tensor([0.01])),
        "offsets": RelativeBias(spread * torch.randn(1, 2 * tokens - 1, generator=generator)),
        "tensor": spread * torch.randn(1, 1, tokens, tokens, generator=generator),
    }
    check(*heads(tokens, spread), bias=biases[kind], window=window)


def test_a_head_that_is_not_symmetric_is_told_from_its_transpose() -> None:
    """Attention to the token before, and to the same: by definition 1 and 0, mirrored or not."""
    tokens = 1100
    position = torch.eye(64)[torch.arange(tokens) % 64].view(1, 1, tokens, 64)
    values = attention_stats(
        40 * position.roll(-1, 2), position, position, scale=1.0, impl="numba"
    ).values
    assert float(values["attention_asymmetry"]) == pytest.approx(1, abs=1e-5)
    values = attention_stats(40 * position, position, position, scale=1.0, impl="numba").values
    assert float(values["attention_asymmetry"]) == pytest.approx(0, abs=1e-5)


def bins_of(weights: np.ndarray, candidates: np.ndarray, kept: int) -> np.ndarray:
    n = len(weights)
    low, high = weights.min(), weights.max()
    bins = np.zeros(N_VALUE_BINS + 3, np.int64)
    codes = np.zeros(rows.padded(n), np.uint8)
    factor = np.float32(N_VALUE_BINS) / (high - low)
    second_look.count_candidates(n, candidates, kept, low, factor, codes, bins)
    return bins


def bins_by_definition(weights: np.ndarray) -> np.ndarray:
    n = len(weights)
    low, high = weights.min(), weights.max()
    bins = np.zeros(N_VALUE_BINS + 3, np.int64)
    codes = np.zeros(n, np.uint8)
    factor = np.float32(N_VALUE_BINS) / (high - low)
    for row in weights:
        rows.count_values(row, n, low, factor, codes, bins)
    return bins


@pytest.mark.parametrize("order", ["flat rows first", "falling", "mixed"])
def test_candidates_hold_all_that_may_lie_beyond_the_first_bin(order: str) -> None:
    """Whatever the order in which the largest weights come; dropped ones are counted, too."""
    random = np.random.default_rng(3)
    n = 192
    weights = np.exp(3 * random.standard_normal((n, n))).astype(np.float32)
    if order == "flat rows first":
        weights[:6] = 1
        weights[6:, 0] *= 1e3
    weights /= weights.sum(1, keepdims=True)
    if order == "falling":
        weights = np.ascontiguousarray(weights[np.argsort(-weights.max(1))])
    candidates, kept, largest, dropped = np.zeros(8 * n, np.float32), 0, np.float32(0), 0
    for row in weights:
        largest = max(largest, row.max())
        if second_look.may_be_beyond(row.max(), largest):
            before = kept
            kept = second_look.keep_candidates(row, largest, candidates, kept)
            dropped += kept < before
    assert kept > 0
    assert dropped == (order == "flat rows first")
    np.testing.assert_array_equal(bins_of(weights, candidates, kept), bins_by_definition(weights))


def test_a_flat_head_has_too_many_candidates() -> None:
    weights = np.full(128, 1 / 128, np.float32)
    candidates, kept = np.zeros(4 * 128, np.float32), 0
    for _ in range(4):
        kept = second_look.keep_candidates(weights, weights[0], candidates, kept)
    assert kept == 4 * 128
    assert second_look.keep_candidates(weights, weights[0], candidates, kept) == -1
