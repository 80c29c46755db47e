"""Rows of strided tensors for the compiled CPU code: views, norms, products of rows.

Every sweep works on blocks of `ROWS` rows whose partial results are merged in order, so no result
depends on the number of threads or on the padding.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from torch import Tensor

from ._cpu import jit, on_torch_threads, sgemm

#: Decorator of compiled functions that compiled functions call. They leave no copy of their own:
#: Numba keeps one in every module that calls a function, rounded as that module was optimised, and
#: a process that compiles would run another one than a process that finds the code on disk.
inner = functools.partial(jit, forceinline=True)

#: Rows of a block; its vectors stay in the L2 cache.
ROWS = 64


def flat_rows(x: Tensor) -> tuple[Any, tuple[int, ...]]:
    """The memory that x spans as one float32 vector, and x's strides but the last, which is 1.

    Nothing is copied from a float32 tensor whose last stride is 1, whatever its other strides.
    """
    x = x.detach().float()
    if x.stride(-1) != 1:
        x = x.contiguous()
    span = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)) + 1
    return x.as_strided((span,), (1,), x.storage_offset()).numpy(), x.stride()[:-1]


def share_out(function: Any, n_tasks: int, *arguments: Any) -> None:
    """Runs function(n_tasks, counters, *arguments) on every thread of torch's team.

    The function claims tasks 0 ... n_tasks - 1 with `claim(counters, 0)`, and may number its
    thread with `claim(counters, 1)`.
    """
    if not function.signatures:
        function(0, np.zeros(2, np.int64), *arguments)
    counters = np.zeros(2, np.int64)
    on_torch_threads(lambda: function(n_tasks, counters, *arguments))


def n_blocks(n_rows: int) -> int:
    """How many blocks of `ROWS` rows there are."""
    return -(-n_rows // ROWS)


@inner
def unit_rows(flat, start, step, first, last, norm, total):  # type: ignore[no-untyped-def]
    """Norms of a block of rows, and the sum of their unit vectors; zero rows add nothing.

    Args:
        flat: see `flat_rows`; row i begins at start + i * step.
        first, last: the block.
        norm: (>= last,) float64; [first:last] is written.
        total: (D,) float32, overwritten.
    """
    width = len(total)
    total[:] = 0
    scale = np.zeros(4, np.float32)
    for i in range(first, last, 4):
        count = min(4, last - i)
        for r in range(count):
            row = flat[start + (i + r) * step : start + (i + r) * step + width]
            square = 0.0
            for d in range(width):
                square += np.float64(row[d]) * np.float64(row[d])
            norm[i + r] = np.sqrt(square)
            scale[r] = np.float32(1 / norm[i + r] if square > 0 else 0.0)
        add_scaled(flat, start + i * step, step, count, scale, total)


@inner
def add_scaled(flat, start, step, count, scale, total):  # type: ignore[no-untyped-def]
    """total += sum of `count` <= 4 rows from `start` on, each times its scale."""
    width = len(total)
    if count == 4:
        a, b, c, d = scale[0], scale[1], scale[2], scale[3]
        row_a = flat[start : start + width]
        row_b = flat[start + step : start + step + width]
        row_c = flat[start + 2 * step : start + 2 * step + width]
        row_d = flat[start + 3 * step : start + 3 * step + width]
        for k in range(width):
            total[k] += (row_a[k] * a + row_b[k] * b) + (row_c[k] * c + row_d[k] * d)
        return
    for r in range(count):
        row = flat[start + r * step : start + r * step + width]
        for k in range(width):
            total[k] += row[k] * scale[r]


@inner
def inner_products(address, a, b, transposed, out):  # type: ignore[no-untyped-def]
    """out[:r, :c] = a b^T, or a^T b where `transposed`, by one single-threaded sgemm.

    Args:
        address: from `_cpu.sgemm_address`.
        a, b: (r, k) and (c, k), or (k, r) and (k, c); float32, rows contiguous.
        out: (>= r, >= c) float32, rows contiguous.
    """
    rows, columns, depth = a.shape[0], b.shape[0], a.shape[1]
    flip_a, flip_b = 0, 1
    if transposed:
        rows, columns, depth = a.shape[1], b.shape[1], a.shape[0]
        flip_a, flip_b = 1, 0
    sgemm(
        address,
        flip_a,
        flip_b,
        rows,
        columns,
        depth,
        np.float32(1.0),
        a.ctypes.data,
        a.strides[0] // 4,
        b.ctypes.data,
        b.strides[0] // 4,
        out.ctypes.data,
        out.strides[0] // 4,
    )
