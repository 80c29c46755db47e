"""Products in strips, against float64, between guards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bertgeom.kernels._cpu import memory, strips

pytestmark = pytest.mark.skipif(not strips.usable(), reason="products in strips need AVX-512")


def spaced(random: np.random.Generator, rows: int, width: int) -> tuple[np.ndarray, int]:
    """A matrix whose rows lie apart, NaN between them, and their distance."""
    held = memory.full((rows, width + 5), np.nan, np.float32)
    held[:, :width] = random.standard_normal((rows, width))
    return held, width + 5


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 32, 45])
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("depth", [1, 32, 64])
def test_a_product_with_a_transpose(rows: int, columns: int, depth: int, guards: Any) -> None:
    random = np.random.default_rng(rows * columns + depth)
    (left, left_row), (right, right_row) = (spaced(random, n, depth) for n in (rows, columns))
    ordered = memory.empty(strips.strip_floats(columns, depth), np.float32)
    strips.transposed_strips(
        right.ctypes.data, right_row, columns, depth, np.float32(0.5), ordered.ctypes.data
    )
    written = -(-columns // strips.WIDTH) * strips.WIDTH
    out = memory.empty((rows - 1) * (written + 3) + written, np.float32)
    strips.product(
        left.ctypes.data, left_row, ordered.ctypes.data, depth, rows, columns, out.ctypes.data,
        written + 3,
    )  # fmt: skip
    guards.check()
    expected = left[:, :depth].astype(float) @ right[:, :depth].astype(float).T / 2
    for i in range(rows):
        row = out[i * (written + 3) :][:written]
        np.testing.assert_allclose(row[:columns], expected[i], rtol=1e-5, atol=1e-5)
        assert not row[columns:].any()


@pytest.mark.parametrize("rows", [1, 8, 20])
@pytest.mark.parametrize("width", [32, 64, 96])
@pytest.mark.parametrize(("first", "last", "depth"), [(0, 1, 1), (0, 300, 300), (64, 257, 300)])
def test_a_product_over_a_part_of_a_long_depth(
    rows: int, width: int, first: int, last: int, depth: int, guards: Any
) -> None:
    random = np.random.default_rng(depth)
    right, right_row = spaced(random, depth, width)
    ordered = memory.empty(depth * width, np.float32)
    strips.strips_of_rows(right.ctypes.data, right_row, depth, width, ordered.ctypes.data)
    left, left_row = spaced(random, rows, last - first)
    out = memory.empty((rows - 1) * (width + 3) + width, np.float32)
    strips.deep_product(
        left.ctypes.data, left_row, ordered.ctypes.data, depth, first, last, rows, width,
        out.ctypes.data, width + 3,
    )  # fmt: skip
    guards.check()
    expected = left[:, : last - first].astype(float) @ right[first:last, :width].astype(float)
    for i in range(rows):
        found = out[i * (width + 3) :][:width]
        np.testing.assert_allclose(found, expected[i], rtol=1e-4, atol=1e-4)
