"""Biases of the logits: added to rows of logits, and their part in the statistics of S.

With A = scale Q K', S = A + B. The statistics of S need |S|^2, tr(S^2) and tr((S S')^2), and with

    P = B K      R = B' Q      T = B' P      U = B Q      (n x d each)

every term that mixes A and B is a trace of products of d x d matrices:

    <A, B>        = scale <Q, P>              tr(A B)     = scale <K, U>
    tr(AA' AB')   = scale^3 tr(K'K Q'Q P'Q)   tr(AA' BB') = scale^2 tr(K'K R'R)
    tr(AB' BB')   = scale <T, R>
    |AB' + BA'|^2 = 2 scale^2 (tr((P'Q)^2) + tr(P'P Q'Q))

The terms of B alone are computed once for all heads that share B and n. All of it is float64,
because |B| may be large beside |S|.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertgeom.kernels._cpu import memory as _memory
from bertgeom.kernels._cpu.rows import floats_from
from bertgeom.kernels._cpu.runtime import (
    CHECKED,
    check_extent,
    claim,
    dgemm,
    dgemm_address,
    inner,
    jit,
    on_torch_threads,
    started,
)
from bertgeom.kernels._cpu.vectors import widest_vectors
from bertgeom.kernels.attention_stats.bias import AlibiBias, Bias, at_offsets

#: Rows of B that are multiplied at a time.
_ROWS = 64
#: A table of more steps than this is multiplied cell by cell, on BLAS.
_MOST_EDGES = 128
_PER_LN2 = np.float32(1 / math.log(2.0))


class Cells(NamedTuple):
    """The bias of a call; an address of 0: none.

    A bias by offset is a float32 table (H, 2 N - 1): cell (i, j) lies at row * i + column * j from
    cell (0, 0) there as in a matrix, with steps of -1 and 1.

        address            of cell (0, 0) of the first window and head
        begin, end         addresses of all its memory
        batch, head, row, column   steps in elements
        scale              factor of Q K'
        slopes (H,)        float64, of ALiBi; else (0,)
        edges (E,)         int64, of a table of few steps: the offsets at which a step begins
        jumps (H, E)       float64, by how much the bias falls there
        ends (H, 2)        float64, the bias at the first and the last offset of the table
        traces (T, 3)      float64, |B|^2, tr(B^2) and tr((B B')^2)
        trace_of (B, H)    int64, which of them are those of a head
    """

    address: int
    begin: int
    end: int
    batch: int
    head: int
    row: int
    column: int
    scale: float
    slopes: np.ndarray
    edges: np.ndarray
    jumps: np.ndarray
    ends: np.ndarray
    traces: np.ndarray
    trace_of: np.ndarray


def _none() -> Cells:
    reals, pairs, wholes = np.zeros(0), np.zeros((0, 0)), np.zeros(0, np.int64)
    return Cells(
        0, 0, 0, 0, 0, 0, 0, 0.0, reals, wholes, pairs, pairs, pairs, np.zeros((0, 0), np.int64)
    )


NO_BIAS = _none()


def placed(
    bias: Bias, n_heads: int, n_slots: int, lengths: Sequence[int], scale: float
) -> tuple[Cells, Tensor]:
    """The bias of a call in the form that the loops use, and the tensor that owns its memory.

    Args:
        bias: as checked by `bias.checked_bias`.
        lengths: of all windows.
        scale: factor of Q K'.
    """
    if isinstance(bias, Tensor):
        held = bias.to(torch.float32)
        steps = [0 if n == 1 else step for n, step in zip(held.shape, held.stride(), strict=True)]
        cells = NO_BIAS._replace(
            address=held.data_ptr(), batch=steps[0], head=steps[1], row=steps[2], column=steps[3]
        )
    else:
        held = at_offsets(bias, _offsets(n_slots)).to(torch.float32).contiguous()
        cells = NO_BIAS._replace(
            address=held.data_ptr() + 4 * (n_slots - 1), head=2 * n_slots - 1, row=-1, column=1
        )
        if isinstance(bias, AlibiBias):
            cells = cells._replace(slopes=bias.slopes.double().contiguous().numpy())
        else:
            cells = _steps(cells, held.double().numpy())
    size = sum((n - 1) * step for n, step in zip(held.shape, held.stride(), strict=True)) + 1
    cells = cells._replace(
        begin=held.data_ptr(), end=held.data_ptr() + 4 * size, scale=float(scale)
    )
    return _with_traces(cells, n_heads, lengths), held


@functools.lru_cache(maxsize=16)
def _offsets(n_slots: int) -> Tensor:
    return torch.arange(1 - n_slots, n_slots)


def _steps(cells: Cells, table: np.ndarray) -> Cells:
    """The places where a table (H, 2 N - 1) changes, if they are few."""
    at = np.nonzero((table[:, 1:] != table[:, :-1]).any(0))[0]
    if len(at) > _MOST_EDGES:
        return cells
    return cells._replace(
        edges=at + 1 - table.shape[1] // 2,
        jumps=np.ascontiguousarray(table[:, at] - table[:, at + 1]),
        ends=np.ascontiguousarray(table[:, [0, -1]]),
    )


def _with_traces(cells: Cells, n_heads: int, lengths: Sequence[int]) -> Cells:
    """The traces of B alone: once for all windows of one length, where they share it."""
    items: dict[tuple[int, int, int], int] = {}
    trace_of = np.zeros((len(lengths), n_heads), np.int64)
    for b, n in enumerate(lengths):
        for h in range(n_heads):
            item = (b if cells.batch else 0, h if cells.head else 0, n)
            trace_of[b, h] = items.setdefault(item, len(items))
    traces = _memory.zeros((len(items), 3), np.float64)
    work = np.array(list(items), np.int64)
    on_torch_threads(_trace_sweep, _memory.zeros(1, np.int64), dgemm_address(), cells, work, traces)
    return cells._replace(traces=traces, trace_of=trace_of)


class HeadCells(NamedTuple):
    """The bias of one head: as `Cells`; slope 0 and no ends where B has no such form."""

    address: Any
    row: Any
    column: Any
    scale: Any
    slope: Any
    edges: Any
    jumps: Any
    ends: Any
    norm: Any
    square: Any
    quartic: Any


@inner
def of_head(cells, b, h, n):
    """The bias of head h of window b with n tokens."""
    address = cells.address
    slope, norm, square, quartic = 0.0, 0.0, 0.0, 0.0
    jumps, ends = cells.edges[:0].astype(np.float64), cells.edges[:0].astype(np.float64)
    if address != 0:
        address += 4 * (b * cells.batch + h * cells.head)
        if CHECKED:
            before = (n - 1) * max(-cells.row, 0)
            after = (n - 1) * (max(cells.row, 0) + cells.column)
            check_extent(address - 4 * before, before + after + 1, cells.begin, cells.end)
        if cells.slopes.size > 0:
            slope = cells.slopes[h]
        if cells.ends.size > 0:
            jumps, ends = cells.jumps[h], cells.ends[h]
        if cells.trace_of.size > 0:
            trace = cells.traces[cells.trace_of[b, h]]
            norm, square, quartic = trace[0], trace[1], trace[2]
    return HeadCells(
        address, cells.row, cells.column, cells.scale, slope, cells.edges, jumps, ends, norm,
        square, quartic,
    )  # fmt: skip


@inner
def add_cells(bias, flip, i0, i1, c0, c1, out, pitch):
    """Add cells (i, j), flipped (j, i), to logits in units of log 2.

    Args:
        i0, i1, c0, c1: rows and columns.
        out, pitch: address of the logits, and the distance of their rows in elements.
    """
    widest_vectors()
    row, column = (bias.column, bias.row) if flip else (bias.row, bias.column)
    n = c1 - c0
    for i in range(i0, i1):
        logits = floats_from(out + 4 * (i - i0) * pitch, n)
        address = bias.address + 4 * (i * row + c0 * column)
        if column == 1:
            x = floats_from(address, n)
            for j in range(n):
                logits[j] += x[j] * _PER_LN2
        elif column == -1:
            x = floats_from(address - 4 * (n - 1), n)
            for j in range(n):
                logits[j] += x[n - 1 - j] * _PER_LN2
        else:
            x = floats_from(address, (n - 1) * column + 1)
            for j in range(n):
                logits[j] += x[j * column] * _PER_LN2


@inner
def _copy_rows(bias, flip, i0, i1, n, out):
    """Rows i0 to i1 and columns 0 to n of B, flipped of B', as float64."""
    row, column = (bias.column, bias.row) if flip else (bias.row, bias.column)
    for i in range(i0, i1):
        address = bias.address + 4 * i * row
        if column < 0:
            x = floats_from(address - 4 * (n - 1), n)
            for j in range(n):
                out[i - i0, j] = x[n - 1 - j]
        else:
            x = floats_from(address, (n - 1) * column + 1)
            for j in range(n):
                out[i - i0, j] = x[j * column]


@inner
def biased_products(blas, bias, q, k):
    """|S|^2, tr(S^2) and tr((S S')^2) of S = scale Q K' + B, and |Q|^2 + |K|^2.

    Args:
        blas: address of dgemm.
        q, k: (n, d) float64.
    """
    n, d = q.shape
    scale = bias.scale
    p, r, t = np.empty((n, d)), np.empty((n, d)), np.empty((n, d))
    _multiply(blas, bias, False, k, p)
    _multiply(blas, bias, True, q, r)
    _multiply(blas, bias, True, p, t)
    fourth = scale * _inner_product(t, r)
    first = scale * _inner_product(q, p)
    if bias.slope == 0:
        _multiply(blas, bias, False, q, t)
        mirrored = scale * _inner_product(k, t)
    else:
        mirrored = scale * _inner_product(k, r)
    products = np.empty((7, d, d))
    qq, kk, kq, pq, pp, rr, m = (
        products[0], products[1], products[2], products[3], products[4], products[5], products[6],
    )  # fmt: skip
    for a, b, c in ((q, q, qq), (k, k, kk), (k, q, kq), (p, q, pq), (p, p, pp), (r, r, rr)):
        dgemm(blas, 1, 0, d, d, n, 1.0, a.ctypes.data, d, b.ctypes.data, d, c.ctypes.data, d)
    dgemm(blas, 0, 0, d, d, d, 1.0, qq.ctypes.data, d, kk.ctypes.data, d, m.ctypes.data, d)
    size = norm = square = squares = cubes = crossed = outer = 0.0
    for x in range(d):
        size += qq[x, x] + kk[x, x]
        norm += m[x, x]
        for y in range(d):
            square += kq[x, y] * kq[y, x]
            squares += m[x, y] * m[y, x]
            cubes += m[x, y] * pq[x, y]
            crossed += pq[x, y] * pq[y, x] + pp[x, y] * qq[x, y]
            outer += kk[x, y] * rr[x, y]
    square_scale = scale * scale
    norm = square_scale * norm + 2 * first + bias.norm
    square = square_scale * square + 2 * mirrored + bias.square
    quartic = (
        square_scale * (square_scale * squares + 4 * scale * cubes + 2 * crossed + 2 * outer)
        + 4 * fourth
        + bias.quartic
    )
    if norm < 0:
        norm = 0.0
    return norm, square, quartic, size


@inner
def _inner_product(x, y):
    total = 0.0
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            total += x[i, c] * y[i, c]
    return total


@inner
def _multiply(blas, bias, flip, x, out):
    """B x, flipped B' x, for x (n, d) float64."""
    if bias.slope != 0:
        _by_slope(bias.slope, x, out)
    elif bias.ends.size > 0:
        _by_steps(bias, flip, x, out)
    else:
        n, d = x.shape
        tile = np.empty((_ROWS, n))
        for i in range(0, n, _ROWS):
            end = min(n, i + _ROWS)
            _copy_rows(bias, flip, i, end, n, tile)
            dgemm(
                blas, 0, 0, end - i, d, n, 1.0, tile.ctypes.data, n, x.ctypes.data, d,
                out.ctypes.data + 8 * i * d, d,
            )  # fmt: skip


@inner
def _by_slope(slope, x, out):
    """out_i = -slope sum_j |i - j| x_j, by running sums from both ends."""
    n, d = x.shape
    for c in range(d):
        out[0, c] = 0
    total, moment = np.zeros(d), np.zeros(d)
    for i in range(n):
        for c in range(d):
            moment[c] += total[c]
            out[i, c] = -slope * moment[c]
            total[c] += x[i, c]
    total[:] = 0
    moment[:] = 0
    for i in range(n - 1, -1, -1):
        for c in range(d):
            moment[c] += total[c]
            out[i, c] -= slope * moment[c]
            total[c] += x[i, c]


@inner
def _by_steps(bias, flip, x, out):
    """The same for a bias that changes at few offsets, by differences of running sums."""
    n, d = x.shape
    sums = np.zeros((n + 1, d))
    for i in range(n):
        for c in range(d):
            sums[i + 1, c] = sums[i, c] + x[i, c]
    # Turned around, a step that begins at offset e ends there: at 1 - e begins the one before it.
    last = bias.ends[0] if flip else bias.ends[1]
    for i in range(n):
        for c in range(d):
            out[i, c] = last * sums[n, c]
        for e in range(bias.edges.size):
            edge = 1 - bias.edges[e] if flip else bias.edges[e]
            jump = -bias.jumps[e] if flip else bias.jumps[e]
            at = min(max(i + edge, 0), n)
            for c in range(d):
                out[i, c] += jump * sums[at, c]


@jit
def _trace_sweep(team, counters, *arguments):
    """The loop of every thread: traces of B alone, for (window, head, n) of `work`."""
    if started(team, (counters, arguments)):
        return
    blas, cells, work, traces = arguments
    while True:
        item = claim(counters, 0)
        if item >= len(work):
            return
        b, h, n = work[item, 0], work[item, 1], work[item, 2]
        if n == 0:
            continue
        bias = of_head(cells, b, h, n)
        if bias.row < 0:
            _traces_by_offset(bias, n, traces[item])
        else:
            _traces_of_cells(blas, bias, n, traces[item])


@inner
def _traces_by_offset(bias, n, out):
    """From b(-n + 1) ... b(n - 1). Along a diagonal, B B' changes by what enters and what leaves:

    (B B')_{i+1, k+1} = (B B')_{i, k} + b(-1 - i) b(-1 - k) - b(n - 1 - i) b(n - 1 - k)
    """
    widest_vectors()
    middle = n - 1
    x = floats_from(bias.address - 4 * middle, 2 * n - 1)
    b, turned = np.empty(2 * n - 1), np.empty(2 * n - 1)
    for o in range(2 * n - 1):
        b[o] = x[o]
        turned[o] = x[2 * n - 2 - o]
    norm = square = quartic = 0.0
    for o in range(2 * n - 1):
        count = n - abs(o - middle)
        norm += count * b[o] * b[o]
        square += count * b[o] * turned[o]
    # Row i of B B' from its diagonal on; `turned` makes its loops run forwards.
    row = np.zeros(n)
    for j in range(n):
        factor = b[middle + j]
        for m in range(n):
            row[m] += factor * turned[middle - j + m]
    for i in range(n):
        total = 0.0
        for m in range(n - i):
            total += row[m] * row[m]
        quartic += 2 * total - row[0] * row[0]
        enters, leaves = b[middle - 1 - i] if i < n - 1 else 0.0, b[middle + n - 1 - i]
        for m in range(n - 1 - i):
            row[m] += enters * turned[middle + 1 + i + m] - leaves * turned[middle - n + 1 + i + m]
    out[0], out[1], out[2] = norm, square, quartic


@inner
def _traces_of_cells(blas, bias, n, out):
    """From tiles of rows of B, in O(n) memory."""
    here, there = np.empty((_ROWS, n)), np.empty((_ROWS, n))
    product = np.empty((_ROWS, _ROWS))
    norm = square = quartic = 0.0
    for i in range(0, n, _ROWS):
        rows = min(n - i, _ROWS)
        _copy_rows(bias, False, i, i + rows, n, here)
        _copy_rows(bias, True, i, i + rows, n, there)
        for r in range(rows):
            for c in range(n):
                norm += here[r, c] * here[r, c]
                square += here[r, c] * there[r, c]
        for j in range(i, n, _ROWS):
            others = min(n - j, _ROWS)
            _copy_rows(bias, False, j, j + others, n, there)
            dgemm(
                blas, 0, 1, rows, others, n, 1.0, here.ctypes.data, n, there.ctypes.data, n,
                product.ctypes.data, _ROWS,
            )  # fmt: skip
            total = 0.0
            for r in range(rows):
                for c in range(others):
                    total += product[r, c] * product[r, c]
            quartic += total if i == j else 2 * total
    out[0], out[1], out[2] = norm, square, quartic
