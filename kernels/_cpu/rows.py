"""Rows of strided tensors for the compiled CPU code: views, norms, products of rows.

Every sweep works on blocks of `ROWS` rows whose partial results are merged in order, so no result
depends on the number of threads or on the padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from bertgeom.kernels._cpu import amx
from bertgeom.kernels._cpu import memory as _memory
from bertgeom.kernels._cpu.runtime import CHECKED, check_extent, inner, on_torch_threads, sgemm
from bertgeom.kernels._cpu.vectors import floats_at

#: Rows of a block; its vectors stay in the L2 cache.
ROWS = 64
#: Vectors shorter than this are scaled in float64.
SMALLEST_NORM = 1e-37
#: Float32 of a cache line.
_LINE = 16


def readable(x: Tensor) -> Tensor:
    """x as float32 whose last stride is 1; x itself if possible."""
    if x.dtype != torch.float32 or x.requires_grad:
        x = x.detach().float()
    return x if x.stride(-1) == 1 else x.contiguous()


def flat_rows(x: Tensor) -> tuple[Any, tuple[int, ...]]:
    """The memory that `readable` x spans as one vector, and x's strides but the last."""
    x = readable(x)
    span = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)) + 1
    return x.as_strided((span,), (1,), x.storage_offset()).numpy(), x.stride()[:-1]


def share_out(function: Any, n_tasks: int, n_groups: int, *arguments: Any) -> None:
    """`on_torch_threads` for functions (team, n_tasks, counters, *arguments).

    The function claims tasks 0 ... n_tasks - 1 with `claim(counters, 0)`, may number its thread
    with `claim(counters, 1)`, and counts the finished tasks of group g in counters[2 + g].
    """
    on_torch_threads(function, n_tasks, _memory.zeros(2 + n_groups, np.int64), *arguments)


def n_blocks(n_rows: int) -> int:
    """How many blocks of `ROWS` rows there are."""
    return -(-n_rows // ROWS)


@inner
def floats_from(address, n_floats):
    """(n_floats,) float32 from an address on; see `vectors.floats_at`."""
    return numba.carray(floats_at(address), (n_floats,), np.float32)


@inner
def unit_rows(flat, start, step, first, last, norm, total):
    """Norms of a few rows; adds their unit vectors to `total`. Zero rows add nothing.

    Args:
        flat: see `flat_rows`; row i begins at start + i * step.
        first, last: the rows.
        norm: (>= last,) float64; [first:last] is written.
        total: (D,) float32.
    """
    width = len(total)
    whole = last - (last - first) % 4
    for i in range(first, whole, 4):
        row_a, row_b, row_c, row_d = _four_rows(flat, start + i * step, step, width)
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        for k in range(width):
            a += np.float64(row_a[k]) * np.float64(row_a[k])
            b += np.float64(row_b[k]) * np.float64(row_b[k])
            c += np.float64(row_c[k]) * np.float64(row_c[k])
            d += np.float64(row_d[k]) * np.float64(row_d[k])
        a, b, c, d = np.sqrt(a), np.sqrt(b), np.sqrt(c), np.sqrt(d)
        norm[i], norm[i + 1], norm[i + 2], norm[i + 3] = a, b, c, d
        if _tiny(a) or _tiny(b) or _tiny(c) or _tiny(d):
            for row, size in ((row_a, a), (row_b, b), (row_c, c), (row_d, d)):
                _add_unit(row, size, total)
            continue
        u, v, w, x = _inverse(a), _inverse(b), _inverse(c), _inverse(d)
        for k in range(width):
            total[k] += (row_a[k] * u + row_b[k] * v) + (row_c[k] * w + row_d[k] * x)
    for i in range(whole, last):
        row = flat[start + i * step : start + i * step + width]
        square = 0.0
        for k in range(width):
            square += np.float64(row[k]) * np.float64(row[k])
        norm[i] = np.sqrt(square)
        if _tiny(norm[i]):
            _add_unit(row, norm[i], total)
            continue
        scale = _inverse(norm[i])
        for k in range(width):
            total[k] += row[k] * scale


@inner
def add_rows(flat, start, step, first, last, total):
    """Adds a few rows to `total` (D,) float32; arguments as in `unit_rows`."""
    width = len(total)
    whole = last - (last - first) % 4
    for i in range(first, whole, 4):
        row_a, row_b, row_c, row_d = _four_rows(flat, start + i * step, step, width)
        for k in range(width):
            total[k] += (row_a[k] + row_b[k]) + (row_c[k] + row_d[k])
    for i in range(whole, last):
        row = flat[start + i * step : start + i * step + width]
        for k in range(width):
            total[k] += row[k]


@inner
def _four_rows(flat, start, step, width):
    return (
        flat[start : start + width],
        flat[start + step : start + step + width],
        flat[start + 2 * step : start + 2 * step + width],
        flat[start + 3 * step : start + 3 * step + width],
    )


@inner
def _inverse(norm):
    return np.float32(1 / norm if norm > 0 else 0.0)


@inner
def _tiny(norm):
    """Whether 1 / norm overflows in float32: vectors of subnormal numbers."""
    return 0 < norm < SMALLEST_NORM


@inner
def _add_unit(row, norm, total):
    inverse = 1 / norm if norm > 0 else 0.0
    for k in range(len(total)):
        total[k] += np.float32(row[k] * inverse)


class Products(NamedTuple):
    """How `inner_products` multiplies the vectors a and b: by BLAS, or on the tile unit."""

    blas: Any
    """from `runtime.sgemm_address`"""
    memory: Any
    """from `unit_memory`; empty: by BLAS"""
    left: Any
    """address of the pieces of a, its last block padded with zeros; like right"""
    right: Any


def by_unit(width: int) -> bool:
    """Whether vectors of this width are multiplied on the tile unit."""
    return amx.usable() and width % amx.STEP == 0


def unit_pieces(sets: int, n: int, width: int) -> Any:
    """(sets, P) float32 of zeros for n vectors of each set in pieces; P is 0 without the unit."""
    n_floats = amx.piece_floats(n, width) if by_unit(width) else 0
    memory = _memory.zeros(sets * n_floats + _LINE, np.float32)
    skip = -(memory.ctypes.data // 4) % _LINE
    return memory[skip : skip + sets * n_floats].reshape(sets, n_floats)


@inner
def split_vector(vectors, i, pieces):
    """Leaves row i of (n, D) in pieces."""
    width = vectors.shape[1]
    there = np.int64(pieces.ctypes.data) + i * amx.row_bytes(width)
    if CHECKED:
        begin = np.int64(pieces.ctypes.data)
        check_extent(there, amx.row_bytes(width) // 4, begin, begin + 4 * pieces.size)
    source = np.int64(vectors[i].ctypes.data)
    amx.split_row(source, width // amx.STEP, np.float32(1), there)


@inner
def unit_memory(used, columns, width):
    """A thread's memory for the products with `columns` vectors at a time; empty without unit."""
    memory = np.empty(amx.piece_floats(columns, width) + _LINE if used else 0, np.float32)
    return memory[-(np.int64(memory.ctypes.data) // 4) % _LINE :]


@inner
def inner_products(how, a, b, transposed, out):
    """out[:r, :c] = a b^T, or a^T b where `transposed`, on one thread.

    Args:
        how: `Products`; the unit computes only a b^T, in whole blocks.
        a, b: (r, k) and (c, k), or (k, r) and (k, c); float32, rows contiguous.
        out: (>= r, >= c) float32, rows contiguous.
    """
    if how.memory.size > 0 and not transposed:
        turned = np.int64(how.memory.ctypes.data)
        there = np.int64(out.ctypes.data)
        if CHECKED:
            width, whole = b.shape[1], amx.in_blocks(len(b))
            end = turned + 4 * how.memory.size
            check_extent(turned, whole // amx.SIDE * amx.strip_bytes(width) // 4, turned, end)
            written = (amx.in_blocks(len(a)) - 1) * (out.strides[0] // 4) + whole
            check_extent(there, written, there, there + 4 * out.size)
        amx.turn_rows(how.right, len(b), b.shape[1], turned)
        amx.product(how.left, turned, a.shape[1], len(a), len(b), there, out.strides[0])
        return
    rows, columns, depth = a.shape[0], b.shape[0], a.shape[1]
    flip_a, flip_b = 0, 1
    if transposed:
        rows, columns, depth = a.shape[1], b.shape[1], a.shape[0]
        flip_a, flip_b = 1, 0
    if CHECKED:
        begin = np.int64(out.ctypes.data)
        written = (rows - 1) * (out.strides[0] // 4) + columns
        check_extent(begin, written, begin, begin + 4 * out.size)
    sgemm(
        how.blas,
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
