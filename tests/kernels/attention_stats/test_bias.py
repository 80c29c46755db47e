"""Additive biases against the oracle: ALiBi, tables of relative positions, tensors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bertgeom.kernels import AlibiBias, RelativeBias, attention_stats
from bertgeom.kernels.attention_stats import api, reference
from bertgeom.kernels.attention_stats.bias import Bias, bias_matrix
from bertgeom.kernels.attention_stats.cpu.bias import _MOST_EDGES
from bertgeom.kernels.attention_stats.cpu.work import RESIDENT_TOKENS
from bertgeom.kernels.attention_stats.tolerance import bounds, disagreements

pytestmark = pytest.mark.usefixtures("products")
KINDS = ("alibi", "t5", "clipped", "offsets", "dense", "dense of every window")


def t5_buckets(offset: Tensor) -> Tensor:
    """32 buckets of both directions up to 128 tokens: 8 exact ones a side, then logarithmic."""
    distance = offset.abs()
    far = 8 + (torch.log(distance.clamp(min=1) / 8) / math.log(128 / 8) * 8).long()
    return 16 * (offset > 0) + torch.where(distance < 8, distance, far.clamp(max=15))


def alibi_slopes(n_heads: int) -> Tensor:
    """2^(-8 i / n) for a power of two; else those of the next power in between."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(n_heads - power)]
    return torch.tensor(slopes)


def bias_of(kind: str, batch: int, heads: int, tokens: int, spread: float = 1.0) -> Bias:
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return spread * torch.randn(*shape, generator=generator)

    if kind == "alibi":
        return AlibiBias(spread * alibi_slopes(heads))
    if kind == "t5":
        return RelativeBias(normal(heads, 32), t5_buckets)
    if kind == "clipped":
        return RelativeBias(normal(heads, 9))
    if kind == "offsets":
        return RelativeBias(normal(heads, 2 * tokens - 1))
    return normal(1 if kind == "dense" else batch, heads, tokens, tokens)


def heads_of(
    batch: int, heads: int, tokens: int, dim: int = 32, spread: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, tokens, heads, dim, generator=generator).transpose(1, 2)
        for _ in range(3)
    )
    return spread * q, k, v


def check(q: Tensor, k: Tensor, v: Tensor, bias: Bias, **asked: Any) -> None:
    """Fails with every statistic that leaves the bounds derived for this input."""
    batch, _, tokens, dim = q.shape
    counts = torch.tensor([tokens] * batch)
    known: dict[str, Any] = {
        "scale": dim**-0.5, "window": None, "tier": "full", "theta": 0.3, "near": 4,
        "n_offset_side": 12, "n_groups": 0, "rows": True, "columns": True,
    }  # fmt: skip
    known |= asked
    special = torch.zeros(batch, tokens, dtype=torch.bool)
    special[:, 0] = True
    found = attention_stats(
        q, k, v, lengths=counts, special=special, bias=bias, impl="numba", **known
    )
    options = api.checked_options(**known)
    limits = bounds(q, k, v, counts, special, None, options, bias)
    assert disagreements(limits, found.output, found.values) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 5, 31, 33, 65, 130])
def test_random_heads(kind: str, tokens: int) -> None:
    heads = heads_of(2, 2, tokens, spread=1.5, seed=tokens)
    check(*heads, bias_of(kind, 2, 2, tokens))


@pytest.mark.parametrize("kind", ["alibi", "t5", "offsets", "dense"])
def test_a_head_too_long_to_stay_in_memory(kind: str) -> None:
    tokens = RESIDENT_TOKENS + 76
    check(*heads_of(1, 1, tokens, spread=1.5), bias_of(kind, 1, 1, tokens))


@pytest.mark.parametrize("kind", ["alibi", "t5", "dense"])
@pytest.mark.parametrize("window", [0, 5, 64])
def test_sliding_windows(kind: str, window: int) -> None:
    check(*heads_of(1, 2, 150), bias_of(kind, 1, 2, 150), window=window)


@pytest.mark.parametrize("n_heads", [8, 12])
@pytest.mark.parametrize("spread", [0.0, 4.0])
def test_alibi_of_usual_numbers_of_heads(n_heads: int, spread: float) -> None:
    check(*heads_of(1, n_heads, 96, spread=spread), AlibiBias(alibi_slopes(n_heads)))


@pytest.mark.parametrize("kind", KINDS)
def test_biases_that_outweigh_the_products(kind: str) -> None:
    check(*heads_of(1, 2, 70, spread=0.1), bias_of(kind, 1, 2, 70, spread=20.0))


def test_whole_numbers_with_many_equal_weights() -> None:
    generator = torch.Generator().manual_seed(5)
    for tokens in (10, 33):
        q, k, v = (
            torch.randint(-1, 2, (2, 3, tokens, 16), generator=generator).float() for _ in range(3)
        )
        table = torch.randint(-2, 3, (3, 32), generator=generator).float()
        dense = torch.randint(-2, 3, (2, 1, tokens, tokens), generator=generator).float()
        slopes = torch.tensor([1.0, 2.0, 0.0])
        for bias in (RelativeBias(table, t5_buckets), dense, AlibiBias(slopes)):
            check(q, k, v, bias, scale=1.0)


def test_a_bias_that_cancels_the_products() -> None:
    """S is a tenth of both parts: its statistics keep their digits."""
    q, k, v = heads_of(1, 2, 60, dim=8)
    product = 8**-0.5 * q @ k.mT
    dense = -product + 0.1 * torch.randn(product.shape, generator=torch.Generator().manual_seed(1))
    values = attention_stats(q, k, v, bias=dense, impl="numba").values
    exact = 8**-0.5 * q.double() @ k.double().mT + dense.double()
    for name, x in reference.biased_logit_statistics(exact[0]).items():
        torch.testing.assert_close(values[name][0].double(), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["alibi", "t5", "offsets", "dense"])
def test_a_kind_of_bias_is_what_its_cells_are(kind: str) -> None:
    heads = heads_of(2, 2, 50)
    bias = bias_of(kind, 2, 2, 50)
    by_kind = attention_stats(*heads, bias=bias, impl="numba")
    by_cell = attention_stats(*heads, bias=bias_matrix(bias, 50), impl="numba")
    torch.testing.assert_close(by_kind.output, by_cell.output, rtol=1e-5, atol=1e-5)
    for name in ("logit_asymmetry", "logit_effective_rank", "attention_entropy"):
        torch.testing.assert_close(by_kind.values[name], by_cell.values[name], rtol=1e-5, atol=1e-5)


def test_a_table_of_many_steps_is_multiplied_cell_by_cell() -> None:
    """The widest table above is one, and 32 buckets are none."""
    assert 31 < _MOST_EDGES < 2 * 130 - 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 7])
def test_padding_and_the_rest_of_the_batch_change_no_bit(kind: str, window: int | None) -> None:
    lengths = [70, 71, 33, 0]
    q, k, v = heads_of(4, 2, 71, dim=32)
    bias = bias_of(kind, 4, 2, 71)
    for b, n in enumerate(lengths):
        for x in (q, k, v):
            x[b, :, n:] = torch.nan
    asked: dict[str, Any] = {"rows": True, "columns": True, "window": window, "impl": "numba"}
    batch = attention_stats(q, k, v, lengths=torch.tensor(lengths), bias=bias, **asked)
    for b, n in enumerate(lengths[:3]):
        own = bias
        if isinstance(bias, Tensor):
            own = bias[min(b, len(bias) - 1)][None, :, :n, :n].contiguous()
        elif kind == "offsets":
            assert isinstance(bias, RelativeBias)
            own = RelativeBias(bias.table[:, 71 - n : 70 + n])
        one = attention_stats(*(x[b : b + 1, :, :n] for x in (q, k, v)), bias=own, **asked)
        assert torch.equal(one.output[0], batch.output[b, :, :n])
        for name, x in one.values.items():
            y = batch.values[name][b]
            y = y[:, :n] if name in ("query_entropy", "attention_received") else y
            assert torch.equal(x[0], y), name


@pytest.mark.parametrize("impl", ["reference", "numba"])
@pytest.mark.parametrize("kind", ["alibi", "dense of every window"])
def test_valid_tokens_may_lie_anywhere(impl: str, kind: str) -> None:
    """A bias by offset counts valid tokens, rows and columns of a tensor are slots."""
    q, k, v = heads_of(2, 2, 20)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, :4] = False
    mask[1, [3, 7, 8, 19]] = False
    bias = bias_of(kind, 2, 2, 20)
    whole = attention_stats(q, k, v, mask=mask, bias=bias, impl=impl)
    for b in range(2):
        kept = mask[b]
        own = bias[b : b + 1, :, kept][..., kept] if isinstance(bias, Tensor) else bias
        alone = attention_stats(*(x[b : b + 1, :, kept] for x in (q, k, v)), bias=own, impl=impl)
        assert torch.equal(whole.output[b][:, kept], alone.output[0])
        for name, x in alone.values.items():
            assert torch.equal(x[0], whole.values[name][b]), name


def test_neither_layout_nor_precision_of_a_tensor_matters() -> None:
    heads = heads_of(2, 2, 40)
    bias = torch.randint(-8, 9, (2, 2, 40, 40)).float() / 4
    expected = attention_stats(*heads, bias=bias, impl="numba")
    one = bias[:1, :1]
    for like, found in (
        (expected, attention_stats(*heads, bias=bias.mT.contiguous().mT, impl="numba")),
        (expected, attention_stats(*heads, bias=bias.half(), impl="numba")),
        (expected, attention_stats(*heads, bias=bias.bfloat16(), impl="numba")),
        (
            attention_stats(*heads, bias=one, impl="numba"),
            attention_stats(*heads, bias=one.expand(2, 2, 40, 40).contiguous(), impl="numba"),
        ),
    ):
        assert torch.equal(like.output, found.output)
        for name, x in like.values.items():
            assert torch.equal(x, found.values[name]), name


def test_threads_change_no_bit() -> None:
    heads, before = heads_of(3, 3, 130), torch.get_num_threads()
    for kind in ("t5", "dense"):
        found = []
        try:
            for n_threads in (1, 3):
                torch.set_num_threads(n_threads)
                bias = bias_of(kind, 3, 3, 130)
                found.append(attention_stats(*heads, bias=bias, impl="numba"))
        finally:
            torch.set_num_threads(before)
        for name, x in found[0].values.items():
            assert torch.equal(x, found[1].values[name]), name


@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_a_bias_of_nothing_changes_no_weight(impl: str) -> None:
    heads = heads_of(1, 2, 40)
    plain = attention_stats(*heads, impl=impl)
    for bias in (
        AlibiBias(torch.zeros(2)),
        RelativeBias(torch.zeros(2, 1)),
        torch.zeros(1, 1, 40, 40),
    ):
        found = attention_stats(*heads, bias=bias, impl=impl)
        assert torch.equal(plain.output, found.output)
        for name, x in plain.values.items():
            if name.startswith("logit"):
                torch.testing.assert_close(x, found.values[name], rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(x, found.values[name]), name


REFUSED: list[tuple[Any, type[Exception], str]] = [
    ("alibi", TypeError, "bias: expected AlibiBias, RelativeBias or a tensor, found str"),
    (AlibiBias(torch.ones(3)), ValueError, r"bias: expected slopes \(2,\), found \(3,\)"),
    (AlibiBias(torch.ones(2, dtype=torch.int64)), TypeError, "bias: expected a floating dtype"),
    (RelativeBias(torch.ones(3, 5)), ValueError, r"bias: expected a table \(2, M\)"),
    (RelativeBias(torch.ones(2, 4)), ValueError, "odd number of offsets or buckets"),
    (RelativeBias(torch.ones(2, 5), t5_buckets), ValueError, "a bucket of 0 to 4 for every"),
    (torch.zeros(1, 1, 9, 8), ValueError, r"bias: expected shape \(1 or 2, 1 or 2, 9, 9\)"),
    (torch.zeros(9, 9), ValueError, r"bias: expected shape .* found \(9, 9\)"),
    (torch.zeros(1, 1, 9, 9, dtype=torch.bool), TypeError, "bias: expected a floating dtype"),
]


@pytest.mark.parametrize(("bias", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused(bias: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attention_stats(*heads_of(2, 2, 9), bias=bias, impl="numba")
