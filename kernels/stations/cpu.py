"""Stream, cone and angle statistics of residual stations on the CPU, one pass of memory each.

A window goes through three steps; a thread takes a whole window through all of them while its
vectors are in its cache, or, where there are too few windows, all threads take the blocks of one
step together, and wait for each other between the steps. Both ways compute the same blocks and
merge them in the same order.

    sweep block      norms, sum of units, sum of rows, moments        64 rows
                     then cone index and axis, moments, mean, shift   of the window
    centre block     centred (unit) vectors, angles to the axis       64 rows
    tile             products of the centred vectors                  1024 x 48 pairs
                     then angles and participation ratio              of the window
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertgeom.kernels._cpu import memory as _memory
from bertgeom.kernels._cpu.amx import in_blocks, row_bytes
from bertgeom.kernels._cpu.cones import (
    TILE_COLUMNS,
    TILE_ROWS,
    angle_tile,
    axis_angles,
    centre_units,
    cone_axis,
    cone_of,
)
from bertgeom.kernels._cpu.rows import (
    ROWS,
    Products,
    add_rows,
    floats_from,
    n_blocks,
    readable,
    share_out,
    split_vector,
    unit_memory,
    unit_rows,
)
from bertgeom.kernels._cpu.runtime import claim, inner, jit, sgemm_address, started, wait_for
from bertgeom.kernels._definitions import CONSTANT, NARROW, NO_AXIS
from bertgeom.kernels.stations.sweeps import (
    GROUP,
    centre_rows,
    covariance_row,
    describe,
    group_moments,
    in_float_range,
    merge_moments,
    moments_of,
    outlier_dims,
    square_tile,
)
from bertgeom.kernels.stations.work import (
    AT_ANGLE,
    AT_RATIO,
    AT_STREAM,
    Work,
    allocate,
    named_values,
)

_WINDOW, SWEEP, CENTRE, TILE = range(-1, 3)


def stream_moments(x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Stream statistics of x (B, N, D) over the first lengths[b] rows; values are (B,)."""
    values = station_statistics([x], lengths, [False])
    return {name: value[0] for name, value in values.items() if name.startswith("stream_")}


def station_statistics(
    states: list[Tensor], lengths: Tensor, angles: list[bool]
) -> dict[str, Tensor]:
    """Cone, stream and angle statistics of S stations (B, N, D), all over the same rows.

    Values are (S, B); those of the angles hold only the stations with `angles`.
    """
    states = [readable(x) for x in states]
    batch, n_slots, _ = states[0].shape
    n_windows = len(states) * batch
    n_threads = torch.get_num_threads()
    costs = [-n * n for n in lengths.tolist()] * len(states)
    by_window = _fills_threads(costs, n_threads)
    work = allocate(states, lengths, angles, n_threads if by_window else n_windows)
    if by_window:
        tasks = _memory.empty((n_windows, 3), np.int64)
        tasks[:, 0], tasks[:, 1], tasks[:, 2] = _WINDOW, np.argsort(costs, kind="stable"), 0
    else:
        tasks = block_tasks(n_windows, n_blocks(n_slots), len(work.tiles))
    run_tasks(work, tasks)
    return named_values(work, angles)


def _fills_threads(costs: list[int], n_threads: int) -> bool:
    """Whether whole windows keep all threads busy for nine tenths of the time; costs < 0."""
    load = [0] * n_threads
    for cost in sorted(costs):
        load[load.index(max(load))] += cost
    return -sum(load) >= -0.9 * n_threads * min(load)


@functools.lru_cache(maxsize=64)
def block_tasks(batch: int, blocks: int, tiles: int) -> Any:
    """(T, 3) int64 step, window, part: no task waits for one that comes after it."""
    parts = {SWEEP: blocks, CENTRE: blocks, TILE: tiles}
    return np.array(
        [(step, b, k) for step, n in parts.items() for b in range(batch) for k in range(n)]
    )


def run_tasks(work: Work, tasks: Any) -> None:
    """Run the tasks, in their order, on all threads."""
    # Numba takes arrays faster than a tuple of arrays.
    share_out(_claim_tasks, len(tasks), len(work.kept), tasks, sgemm_address(), *work)


@jit
def _claim_tasks(team, n_tasks, counters, tasks, blas, place, *arrays):
    if started(team, (n_tasks, counters, tasks, blas, place, arrays)):
        return
    w = Work(floats_from(place[0], place[1]), *arrays)
    mine = claim(counters, 1)
    if tasks[0, 0] == _WINDOW and mine >= len(w.vectors):
        # There are more threads than scratch memories; the others take all windows.
        return
    scratch = np.zeros((TILE_ROWS, TILE_COLUMNS), np.float32)
    memory = unit_memory(w.pieces.size > 0, TILE_COLUMNS, w.vectors.shape[2])
    blocks = w.moments.shape[1]
    while True:
        k = claim(counters, 0)
        if k >= n_tasks:
            return
        step, b, part = tasks[k, 0], tasks[k, 1], tasks[k, 2]
        whole = step == _WINDOW
        at = mine if whole else b
        done = 2 + b
        # What is counted for a window: its sweeps, its merge, its centred blocks, its tiles.
        before_it = blocks + 1 if step == CENTRE else 2 * blocks + 1 if step == TILE else 0
        if not wait_for(team, counters, done, before_it):
            return
        # One call site: everything below is inlined.
        for each in range(SWEEP if whole else step, (TILE if whole else step) + 1):
            n_parts = len(w.tiles) if each == TILE else blocks
            for this in range(0 if whole else part, n_parts if whole else part + 1):
                if each == SWEEP:
                    _sweep(w, b, this)
                elif each == CENTRE:
                    _centre(w, b, this, at)
                else:
                    _tile(w, b, this, at, scratch, blas, memory)
            before = 0 if whole else claim(counters, done)
            if each == SWEEP and (whole or before == blocks - 1):
                _merge(w, b)
                claim(counters, done)
            elif each == TILE and (whole or before == 2 * blocks + len(w.tiles)):
                _finish(w, b, at)


@inner
def _sweep(w, b, k):
    first, last = k * ROWS, min((k + 1) * ROWS, w.lengths[b])
    if first >= last:
        return
    start, step = w.start[b], w.step[b]
    norm, unit_sum, row_sum, moments = w.norm[b], w.unit_sum[b, k], w.row_sum[b, k], w.moments[b, k]
    width = len(row_sum)
    for d in range(width):
        unit_sum[d] = 0
        row_sum[d] = 0
    for m in range(len(moments)):
        moments[m] = 0
    group = np.zeros(5)
    for i in range(first, last, GROUP):
        stop = min(i + GROUP, last)
        unit_rows(w.flat, start, step, i, stop, norm, unit_sum)
        group_moments(w.flat, start, step, i, stop, width, norm, group)
        merge_moments(moments, group)
        add_rows(w.flat, start, step, i, stop, row_sum)


@inner
def _merge(w, b):
    n = w.lengths[b]
    kept = _pack(w.norm[b, :n], w.slot[b])
    w.kept[b] = kept
    if n == 0 or kept < 0:
        return
    out = w.out[b]
    n_parts = -(-n // ROWS)
    width = w.axis.shape[1]
    total = _sum_parts(w.unit_sum[b, :n_parts])
    _cone(total, kept, w.axis[b], out)
    rows = _sum_parts(w.row_sum[b, :n_parts])
    w.outliers[b] = outlier_dims(rows)
    moments = np.zeros(5)
    for k in range(n_parts):
        merge_moments(moments, w.moments[b, k])
    describe(moments, out[AT_STREAM : AT_STREAM + 4])
    rms = math.sqrt(moments[2] / moments[0] + moments[1] * moments[1])
    moments_of(w.norm[b, :n], moments)
    out[AT_STREAM + 4] = moments[1]
    out[AT_STREAM + 5] = math.sqrt(moments[2] / n)
    out[AT_STREAM + 6] = _largest(w.norm[b, :n])
    moments_of(rows, moments)
    describe(moments, out[AT_STREAM + 7 : AT_STREAM + 11])
    for d in range(width):
        w.mean[b, d] = rows[d] / n
    if w.angles[b]:
        narrow = kept > 0 and out[1] > NARROW
        for d in range(width):
            w.shift[b, d] = total[d] / kept if narrow else 0.0
        if kept > 1:
            w.near_mean[b] = math.degrees(math.acos(min(1.0, max(-1.0, out[2]))))
    else:
        for d in range(width):
            w.shift[b, d] = w.mean[b, d]
        w.scale[b] = 1 / rms if rms > 0 else 1.0


@inner
def _pack(norm, slot):
    """Number the non-zero rows in `slot`; returns their number, -1 if a norm is not finite."""
    kept = 0
    for i in range(len(norm)):
        if not np.isfinite(norm[i]):
            return -1
        slot[i] = kept if norm[i] > 0 else -1
        kept += norm[i] > 0
    return kept


@inner
def _sum_parts(parts):
    total = np.zeros(parts.shape[1])
    for k in range(len(parts)):
        for d in range(len(total)):
            total[d] += parts[k, d]
    return total


@inner
def _cone(total, kept, axis, out):
    out[0], out[1], out[2] = cone_of(cone_axis(total, kept, axis), kept)


@inner
def _centre(w, b, k, at):
    first, last = k * ROWS, min((k + 1) * ROWS, w.lengths[b])
    if first >= last or w.kept[b] < 0:
        return
    start, step = w.start[b], w.step[b]
    norm, slot, shift = w.norm[b], w.slot[b], w.shift[b]
    vectors, half, size = w.vectors[at], w.half[at], w.size[at]
    group = np.empty(2)
    total, largest, trace = 0.0, 0.0, 0.0
    for i in range(first, last, GROUP):
        stop = min(i + GROUP, last)
        axis_angles(w.flat, start, step, i, stop, norm, w.axis[b], 1.0, group)
        total += group[0]
        largest = max(largest, group[1])
        if w.angles[b]:
            centre_units(w.flat, start, step, i, stop, norm, slot, shift, vectors, half, size)
            _weights(
                w.flat, start, step, i, stop, norm, slot, w.mean[b], w.packed_norm[at],
                w.weight[at],
            )  # fmt: skip
        elif in_float_range(w.scale[b]):
            scale = np.float32(w.scale[b])
            trace += centre_rows(w.flat, start, step, i, stop, shift, scale, vectors)
        else:
            mean = w.mean[b]
            trace += centre_rows(w.flat, start, step, i, stop, mean, w.scale[b], vectors)
        _split(w, b, at, i, stop)
    part = w.blocks[b, k]
    part[0], part[1], part[2] = total, largest, trace


@inner
def _split(w, b, at, first, last):
    """Split the centred vectors of some rows into pieces; zeros fill the last block."""
    n, width = w.lengths[b], w.vectors.shape[2]
    if w.pieces.size == 0 or (n > width and not w.angles[b]):
        return
    for i in range(first, last):
        to = w.slot[b, i] if w.angles[b] else i
        if to >= 0:
            split_vector(w.vectors[at], to, w.pieces[at])
    if last == n:
        kept, row = w.kept[b] if w.angles[b] else n, row_bytes(width) // 4
        w.pieces[at, kept * row : in_blocks(kept) * row] = 0


@inner
def _weights(flat, start, step, first, last, norm, slot, mean, packed_norm, weight):
    """Norms, and <x_i, m> - |m|^2 / 2 (see `covariance_row`), of the non-zero rows, packed."""
    width = len(mean)
    square = 0.0
    for d in range(width):
        square += mean[d] * mean[d]
    for i in range(first, last):
        if slot[i] < 0:
            continue
        row = flat[start + i * step : start + i * step + width]
        along = 0.0
        for d in range(width):
            along += np.float64(row[d]) * mean[d]
        packed_norm[slot[i]] = norm[i]
        weight[slot[i]] = along - square / 2


@inner
def _tile(w, b, k, at, scratch, blas, memory):
    if w.kept[b] < 0:
        return
    row = row_bytes(w.vectors.shape[2])
    pieces = np.int64(w.pieces[at].ctypes.data)
    i, j = w.tiles[k, 0], w.tiles[k, 1]
    how = Products(blas, memory, pieces + i * row, pieces + j * row)
    if not w.angles[b]:
        _gram_tile(w, b, k, i, j, at, scratch, how)
    else:
        _angle_tile(w, b, k, i, j, at, scratch, how)


@inner
def _gram_tile(w, b, k, i, j, at, scratch, how):
    """Of X X^T or of X^T X: they have the same norm, and the smaller one costs less."""
    n, width = w.lengths[b], w.vectors.shape[2]
    transposed = n > width
    size = width if transposed else n
    if i >= size or j >= size:
        return
    i_stop, j_stop = min(i + TILE_ROWS, size), min(j + TILE_COLUMNS, size)
    vectors = w.vectors[at]
    if transposed:
        left, right = vectors[0:n, i:i_stop], vectors[0:n, j:j_stop]
    else:
        left, right = vectors[i:i_stop, 0:width], vectors[j:j_stop, 0:width]
    w.sums[b, k, 4] = square_tile(how, left, right, transposed, i - j, scratch)


@inner
def _angle_tile(w, b, k, i, j, at, scratch, how):
    kept = w.kept[b]
    if i >= kept or j >= kept:
        return
    i_stop, j_stop = min(i + TILE_ROWS, kept), min(j + TILE_COLUMNS, kept)
    vectors, half, size = w.vectors[at], w.half[at], w.size[at]
    angle_tile(
        how,
        vectors[i:i_stop],
        vectors[j:j_stop],
        half[i:i_stop],
        half[j : j + TILE_COLUMNS],
        size[i:i_stop],
        size[j : j + TILE_COLUMNS],
        w.shift[b],
        i - j,
        w.edges,
        w.near_mean[b],
        scratch,
        w.counts[b, k],
        w.sums[b, k],
    )
    norm, weight = w.packed_norm[at], w.weight[at]
    total = 0.0
    for r in range(i, i_stop):
        row = scratch[r - i, : min(j_stop, r) - j]
        total += covariance_row(row, norm[r], norm[j:j_stop], weight[r], weight[j:j_stop])
    w.sums[b, k, 4] = 2 * total


@inner
def _finish(w, b, at):
    n, kept, out = w.lengths[b], w.kept[b], w.out[b]
    if n == 0 or kept < 0:
        return
    if kept > 0 and out[1] > NO_AXIS:
        out[3] = _total(w.blocks[b, :, 0]) / kept
        out[4] = _largest(w.blocks[b, :, 1])
    if not w.angles[b]:
        # The scale makes the mean square of the entries 1.
        trace, entries = _total(w.blocks[b, :, 2]), n * w.mean.shape[1]
        square = _total(w.sums[b, :, 4])
    else:
        trace, entries, square = _covariance(w, b, at)
        _angles(w, b)
    out[AT_RATIO] = trace * trace / square if trace > CONSTANT * entries else np.nan


@inner
def _total(values):
    total = 0.0
    for x in values:
        total += x
    return total


@inner
def _largest(values):
    largest = values[0]
    for x in values:
        largest = max(largest, x)
    return largest


@inner
def _covariance(w, b, at):
    """Trace of the centred Gram matrix, trace of the uncentred one, squared norm of the centred."""
    kept = w.kept[b]
    square = _total(w.sums[b, :, 4])
    mean_square, trace, entries, beside_zero = 0.0, 0.0, 0.0, 0.0
    for x in w.mean[b]:
        mean_square += x * x
    for i in range(kept):
        norm, weight = w.packed_norm[at, i], w.weight[at, i]
        own = norm * norm - 2 * weight
        trace += own
        entries += norm * norm
        square += own * own
        beside = mean_square / 2 - weight
        beside_zero += beside * beside
    # Zero vectors have no angle, but they have a deviation from the mean.
    zeros = w.lengths[b] - kept
    zero_trace = zeros * mean_square
    square += 2 * zeros * beside_zero + zero_trace * zero_trace
    return trace + zero_trace, entries, square


@inner
def _angles(w, b):
    kept, out = w.kept[b], w.out[b]
    if kept < 2:
        return
    first, second, least, largest = 0.0, 0.0, 180.0, 0.0
    for k in range(len(w.tiles)):
        if w.tiles[k, 0] < kept and w.tiles[k, 1] < kept:
            first += w.sums[b, k, 0]
            second += w.sums[b, k, 1]
            least = min(least, w.sums[b, k, 2])
            largest = max(largest, w.sums[b, k, 3])
    pairs = kept * (kept - 1) / 2
    off = first / pairs
    out[AT_ANGLE] = w.near_mean[b] + off
    out[AT_ANGLE + 1] = math.sqrt(max(0.0, second / pairs - off * off))
    out[AT_ANGLE + 2] = least
    out[AT_ANGLE + 3] = largest
