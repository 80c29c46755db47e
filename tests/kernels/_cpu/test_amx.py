"""Products on the tile unit, where the CPU has one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bertgeom.kernels import attention_stats
from bertgeom.kernels._cpu import amx
from bertgeom.kernels._cpu.runtime import jit

pytestmark = pytest.mark.skipif(not amx.usable(), reason="no tile unit (AMX), or none to be used")


@jit
def _product(a, b, scale, left, right, out):
    n, depth = a.shape
    m = b.shape[0]
    at_left, at_right = np.int64(left.ctypes.data), np.int64(right.ctypes.data)
    amx.split_rows(np.int64(a.ctypes.data), a.strides[0], n, depth, scale, at_left)
    amx.split_transposed(np.int64(b.ctypes.data), b.strides[0], m, depth, at_right)
    amx.product(at_left, at_right, depth, n, m, np.int64(out.ctypes.data), out.strides[0])


def product(a: Any, b: Any, scale: float = 1.0) -> Any:
    """scale a b^T; what is not written stays NaN."""
    n, m, depth = len(a), len(b), a.shape[1]
    left, right = (np.full(amx.piece_floats(x, depth), np.nan, np.float32) for x in (n, m))
    out = np.full((amx.in_blocks(n), amx.in_blocks(m)), np.nan, np.float32)
    _product(a, b, np.float32(scale), left, right, out)
    return out[:n, :m]


@pytest.mark.parametrize("depth", [32, 64, 768])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (15, 33), (32, 16), (17, 70), (100, 31)])
def test_products_are_as_good_as_those_of_float32(n: int, m: int, depth: int) -> None:
    numbers = np.random.default_rng(n * m + depth)
    # Sizes of many orders: every piece counts.
    a, b = (
        (numbers.standard_normal((x, depth)) * 10 ** numbers.uniform(-3, 3, (x, 1))).astype("f4")
        for x in (n, m)
    )
    wide = np.zeros((n, depth + 5), np.float32)
    wide[:, 3 : depth + 3] = a
    exact = a.astype("f8") @ b.astype("f8").T
    size = np.abs(a).astype("f8") @ np.abs(b).astype("f8").T
    off = np.abs(product(wide[:, 3 : depth + 3], b) - exact)
    assert (off <= 2.0**-22 * size).all()
    assert np.sqrt(np.mean((off / size) ** 2)) < 2.0**-24


def test_whole_numbers_meet_exactly() -> None:
    """Nine bits take two pieces of a number, seventeen take three."""
    numbers = np.random.default_rng(0)
    a, b = (numbers.integers(-511, 512, (40, 32)).astype("f4") for _ in range(2))
    assert np.array_equal(product(a, b), (a.astype("f8") @ b.astype("f8").T).astype("f4"))
    large = numbers.integers(-(2**17), 2**17, (40, 32)).astype("f4")
    sign = numbers.integers(-1, 2, (50, 32)).astype("f4")
    for x, y in ((large, sign), (sign, large)):
        assert np.array_equal(product(x, y), (x.astype("f8") @ y.astype("f8").T).astype("f4"))


def test_a_number_is_the_sum_of_its_pieces() -> None:
    numbers = np.random.default_rng(0)
    a = (numbers.standard_normal((64, 32)) * 10 ** numbers.uniform(-20, 15, (64, 32))).astype("f4")
    unit = np.eye(32, dtype="f4")
    assert np.array_equal(product(a, unit), a)
    assert np.array_equal(product(unit, a), a.T)
    assert np.array_equal(product(a, unit, 0.125), a / 8)


def heads(tokens: int = 50, dim: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, tokens, dim, generator=generator) for _ in range(3)]


def by_blas(monkeypatch: pytest.MonkeyPatch, *vectors: torch.Tensor) -> Any:
    with monkeypatch.context() as patched:
        patched.setattr(amx, "usable", lambda: False)
        return attention_stats(*vectors, impl="numba")


def test_attention_multiplies_on_the_unit_and_agrees_with_blas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = heads()
    ours, blas = attention_stats(*vectors, impl="numba"), by_blas(monkeypatch, *vectors)
    torch.testing.assert_close(ours.output, blas.output, rtol=1e-5, atol=1e-6)
    # Both round, each in its own way.
    assert not torch.equal(ours.output, blas.output)


@pytest.mark.parametrize("large", [2.0**61, torch.inf, torch.nan])
def test_what_the_unit_is_not_made_for_is_left_to_blas(
    large: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = heads()
    query[0, 0, 3, 5] = large
    ours = attention_stats(query, key, value, impl="numba")
    blas = by_blas(monkeypatch, query, key, value)
    assert torch.equal(ours.output[0, 0].isnan(), blas.output[0, 0].isnan())
    for name, x in blas.values.items():
        first, second = ours.values[name][0, 0], x[0, 0]
        assert torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0)), name


def test_the_environment_can_say_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTGEOM_AMX", "0")
    assert not amx.usable.__wrapped__()
