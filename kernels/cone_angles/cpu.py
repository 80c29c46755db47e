"""Cone sums and pairwise angles on the CPU, by blocks of rows and by tiles of pairs."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertgeom.kernels._cpu import memory as _memory
from bertgeom.kernels._cpu.amx import row_bytes
from bertgeom.kernels._cpu.cones import (
    TILE_COLUMNS,
    TILE_ROWS,
    angle_tile,
    axis_angles,
    centre_units,
    cone_of,
    versine_edges,
)
from bertgeom.kernels._cpu.rows import (
    ROWS,
    Products,
    flat_rows,
    n_blocks,
    share_out,
    split_vector,
    unit_memory,
    unit_pieces,
    unit_rows,
)
from bertgeom.kernels._cpu.runtime import claim, inner, jit, sgemm_address, started
from bertgeom.kernels._definitions import AXIS, CONE, NARROW, NO_AXIS


def cone_sums(x: Tensor, lengths: Tensor, with_axis: bool) -> dict[str, Tensor]:
    """Cone statistics of x (B, H, N, D) over the first lengths[b] rows; values are (B, H)."""
    sums = _sum_units(x, lengths.numpy())
    names: tuple[str, ...] = CONE
    if with_axis:
        names = CONE + AXIS
        axis_parts = _memory.zeros((len(sums.starts), n_blocks(x.shape[2]), 2), np.float64)
        n_tasks = axis_parts.shape[0] * axis_parts.shape[1]
        share_out(_axis_blocks, n_tasks, len(sums.starts), axis_parts, *sums)
    found = torch.from_numpy(sums.out).float().view(*x.shape[:2], -1).unbind(-1)
    zeros = torch.from_numpy(sums.zeros).view(x.shape[:2])
    return dict(zip(names, found, strict=False)) | {"zero_vectors": zeros}


class _UnitSums(NamedTuple):
    """Unit vectors of S = B H sets, summed; windows b = s // H."""

    flat: Any
    """row i of set s begins at starts[s] + i * step"""
    starts: Any
    step: int
    lengths: Any
    """(B,) int64"""
    norm: Any
    """(S, N) float64; 0 beyond the length"""
    parts: Any
    """(B, K, H, D) float32, sums over blocks of rows"""
    total: Any
    """(S, D) float64, NaN where an entry is not finite"""
    kept: Any
    """(S,) int64, vectors that are not zero; -1 where an entry is not finite"""
    zeros: Any
    """(S,) int32, vectors that are"""
    out: Any
    """(S, 5) float64: statistics in the order of CONE + AXIS"""


def _sum_units(x: Tensor, lengths: Any) -> _UnitSums:
    """Of the sets x[b, h], in this order; x (B, H, N, D), lengths (B,)."""
    batch, heads, n_slots, width = x.shape
    flat, (step_b, step_h, step) = flat_rows(x)
    n_parts = n_blocks(n_slots)
    sums = _UnitSums(
        flat=flat,
        starts=(np.arange(batch)[:, None] * step_b + np.arange(heads) * step_h).ravel(),
        step=step,
        lengths=lengths,
        norm=_memory.zeros((batch * heads, n_slots), np.float64),
        parts=_memory.zeros((batch, n_parts, heads, width), np.float32),
        total=_memory.empty((batch * heads, width), np.float64),
        kept=_memory.empty(batch * heads, np.int64),
        zeros=_memory.empty(batch * heads, np.int32),
        out=_memory.full((batch * heads, len(CONE + AXIS)), np.nan, np.float64),
    )
    share_out(_unit_blocks, batch * n_parts, batch, *sums)
    return sums


@jit
def _unit_blocks(team, n_tasks, counters, *sums):
    if started(team, (n_tasks, counters, sums)):
        return
    flat, starts, step, lengths, norm, parts, total, kept, zeros, out = sums
    n_parts, heads = parts.shape[1], parts.shape[2]
    while True:
        task = claim(counters, 0)
        if task >= n_tasks:
            return
        b, k = task // n_parts, task % n_parts
        last = min((k + 1) * ROWS, lengths[b])
        # Heads lie side by side in memory: row by row, all of them.
        for i in range(k * ROWS, last, 4):
            for h in range(heads):
                s = b * heads + h
                unit_rows(flat, starts[s], step, i, min(i + 4, last), norm[s], parts[b, k, h])
        if claim(counters, 2 + b) == n_parts - 1:
            for h in range(heads):
                s = b * heads + h
                kept[s] = _count_kept(norm[s, : lengths[b]])
                zeros[s] = lengths[b] - kept[s] if kept[s] >= 0 else 0
                _cone(parts[b, :, h], kept[s], total[s], out[s])


@inner
def _count_kept(norm):
    kept = 0
    for x in norm:
        if not np.isfinite(x):
            return -1
        kept += x > 0
    return kept


@inner
def _cone(parts, kept, total, out):
    square = 0.0
    for d in range(len(total)):
        total[d] = 0.0
        for k in range(len(parts)):
            total[d] += parts[k, d]
        if kept < 0:
            total[d] = np.nan
        square += total[d] * total[d]
    out[0], out[1], out[2] = cone_of(square, kept)


@jit
def _axis_blocks(team, n_tasks, counters, axis_parts, *sums):
    if started(team, (n_tasks, counters, axis_parts, sums)):
        return
    flat, starts, step, lengths, norm, parts, total, kept, _, out = sums
    n_parts = axis_parts.shape[1]
    heads = parts.shape[2]
    while True:
        task = claim(counters, 0)
        if task >= n_tasks:
            return
        s, k = task // n_parts, task % n_parts
        has_axis = kept[s] > 0 and out[s, 1] > NO_AXIS
        first, last = k * ROWS, min((k + 1) * ROWS, lengths[s // heads])
        if has_axis and first < last:
            part = axis_parts[s, k]
            axis_angles(flat, starts[s], step, first, last, norm[s], total[s], 1 / out[s, 0], part)
        if claim(counters, 2 + s) == n_parts - 1 and has_axis:
            mean, largest = 0.0, 0.0
            for part in axis_parts[s]:
                mean += part[0]
                largest = max(largest, part[1])
            out[s, 3], out[s, 4] = mean / kept[s], largest


def pairwise_angle_histogram(
    x: Tensor, y: Tensor | None, lengths: Tensor, y_lengths: Tensor | None, bins: int
) -> dict[str, Tensor]:
    """Angles of all pairs i < j of x (B, N, D), or of all pairs (i, j) of x and y (B, M, D)."""
    sums = [_sum_units(x[:, None], lengths.numpy())]
    if y is not None and y_lengths is not None:
        sums.append(_sum_units(y[:, None], y_lengths.numpy()))
    kept = np.stack([s.kept for s in sums])
    near_mean, shift = _near_mean(sums), _shift(sums)
    sides = [_centred(s, shift) for s in sums]
    tasks = _tiles(np.where((kept < 0).any(0), 0, kept), triangle=len(sums) == 1)
    counts = _memory.zeros((len(tasks), bins), np.int64)
    partial = _memory.zeros((len(tasks), 4), np.float64)
    edges, angle = versine_edges(bins), near_mean.astype(np.float32)
    share_out(
        _angle_tiles,
        len(tasks),
        0,
        sgemm_address(),
        sides[0],
        sides[-1],
        len(sums) == 1,
        tasks,
        shift,
        edges,
        angle,
        counts,
        partial,
    )
    return _merge_tiles(tasks[:, 0], len(x), counts, partial, angle)


def _near_mean(sums: list[_UnitSums]) -> Any:
    """(B,) degrees: the angle whose cosine is the mean cosine."""
    first, last = sums[0], sums[-1]
    product = (first.total * last.total).sum(1)
    if first is last:
        cosine = first.out[:, 2]
    else:
        cosine = _ratio(product, first.kept * last.kept)
    return np.degrees(np.arccos(np.clip(np.nan_to_num(cosine), -1, 1)))


def _shift(sums: list[_UnitSums]) -> Any:
    """(B, D) float32: the mean unit vector of both sides where it is long, else 0."""
    total = np.sum([s.total for s in sums], 0)
    kept = np.sum([s.kept for s in sums], 0)
    mean = total / np.maximum(kept, 1)[:, None]
    narrow = (mean * mean).sum(1) > NARROW * NARROW
    return np.where(narrow[:, None], mean, 0).astype(np.float32)


def _ratio(value: Any, by: Any) -> Any:
    return np.divide(value, by, out=np.full(len(value), np.nan), where=by > 0)


class _Side(NamedTuple):
    """The non-zero unit vectors of one side, minus the shift.

    unit (B, N, D) float32; half and size (B, N + TILE_COLUMNS) float32; kept (B,) int64; pieces:
    see `_cpu.rows.unit_pieces`.
    """

    unit: Any
    half: Any
    size: Any
    kept: Any
    pieces: Any


def _centred(sums: _UnitSums, shift: Any) -> _Side:
    n_sets, n_slots = sums.norm.shape
    slot = np.where(sums.norm > 0, np.cumsum(sums.norm > 0, 1) - 1, -1).astype(np.int32)
    lengths = np.where(sums.kept < 0, 0, sums.lengths)
    side = _Side(
        unit=_memory.empty((n_sets, n_slots, shift.shape[1]), np.float32),
        half=_memory.zeros((n_sets, n_slots + TILE_COLUMNS), np.float32),
        size=_memory.zeros((n_sets, n_slots + TILE_COLUMNS), np.float32),
        kept=sums.kept,
        pieces=unit_pieces(n_sets, n_slots, shift.shape[1]),
    )
    n_tasks = n_sets * n_blocks(n_slots)
    share_out(
        _centre_blocks,
        n_tasks,
        0,
        sums.flat,
        sums.starts,
        sums.step,
        lengths,
        sums.norm,
        slot,
        shift,
        side,
    )
    return side


@jit
def _centre_blocks(team, n_tasks, counters, flat, starts, step, lengths, norm, slot, shift, side):
    if started(team, (n_tasks, counters, flat, starts, step, lengths, norm, slot, shift, side)):
        return
    n_parts = -(-norm.shape[1] // ROWS)
    while True:
        task = claim(counters, 0)
        if task >= n_tasks:
            return
        s, k = task // n_parts, task % n_parts
        first, last = k * ROWS, min((k + 1) * ROWS, lengths[s])
        if first >= last:
            continue
        unit, half, size = side.unit[s], side.half[s], side.size[s]
        centre_units(
            flat, starts[s], step, first, last, norm[s], slot[s], shift[s], unit, half, size
        )
        if side.pieces.size > 0:
            for to in slot[s, first:last]:
                if to >= 0:
                    split_vector(unit, to, side.pieces[s])


def _tiles(kept: Any, triangle: bool) -> Any:
    """(T, 3) int64: window, first row, first column of every tile, window by window."""
    tiles = [
        (b, i, j)
        for b in range(kept.shape[1])
        for j in range(0, int(kept[-1, b]), TILE_COLUMNS)
        for i in range(j if triangle else 0, int(kept[0, b]), TILE_ROWS)
    ]
    return np.array(tiles, np.int64).reshape(-1, 3)


@jit
def _angle_tiles(
    team,
    n_tasks,
    counters,
    blas,
    left,
    right,
    triangle,
    tasks,
    shift,
    edges,
    near_mean,
    counts,
    sums,
):
    if started(
        team,
        (
            n_tasks,
            counters,
            blas,
            left,
            right,
            triangle,
            tasks,
            shift,
            edges,
            near_mean,
            counts,
            sums,
        ),
    ):
        return
    tile = np.zeros((TILE_ROWS, TILE_COLUMNS), np.float32)
    width = left.unit.shape[2]
    memory, row = unit_memory(left.pieces.size > 0, TILE_COLUMNS, width), row_bytes(width)
    while True:
        task = claim(counters, 0)
        if task >= n_tasks:
            return
        b, i, j = tasks[task, 0], tasks[task, 1], tasks[task, 2]
        i_stop = min(i + TILE_ROWS, left.kept[b])
        j_stop = min(j + TILE_COLUMNS, right.kept[b])
        angle_tile(
            Products(
                blas,
                memory,
                np.int64(left.pieces[b].ctypes.data) + i * row,
                np.int64(right.pieces[b].ctypes.data) + j * row,
            ),
            left.unit[b, i:i_stop],
            right.unit[b, j:j_stop],
            left.half[b, i:i_stop],
            right.half[b, j : j + TILE_COLUMNS],
            left.size[b, i:i_stop],
            right.size[b, j : j + TILE_COLUMNS],
            shift[b],
            i - j if triangle else TILE_COLUMNS,
            edges,
            near_mean[b],
            tile,
            counts[task],
            sums[task],
        )


def _merge_tiles(
    window: Any, n_windows: int, counts: Any, sums: Any, near_mean: Any
) -> dict[str, Tensor]:
    histogram = np.zeros((n_windows, counts.shape[1]), np.int64)
    values = np.full((4, n_windows), np.nan)
    starts = np.searchsorted(window, np.arange(n_windows + 1))
    for b, (first, last) in enumerate(itertools.pairwise(starts)):
        histogram[b] = counts[first:last].sum(0)
        pairs = int(histogram[b].sum())
        if pairs:
            off = math.fsum(sums[first:last, 0]) / pairs
            square = math.fsum(sums[first:last, 1]) / pairs
            values[:2, b] = near_mean[b] + off, math.sqrt(max(0.0, square - off * off))
            values[2:, b] = sums[first:last, 2].min(), sums[first:last, 3].max()
    names = ("angle_mean", "angle_std", "angle_min", "angle_max")
    return {
        "angle_histogram": torch.from_numpy(histogram),
        **{
            name: torch.from_numpy(v.astype(np.float32))
            for name, v in zip(names, values, strict=True)
        },
        "n_pairs": torch.from_numpy(histogram.sum(1)),
    }
