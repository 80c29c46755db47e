"""Cone sums and pairwise angles on the CPU, by blocks of rows and by tiles of pairs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._cone_sweeps import (
    NARROW,
    NO_AXIS,
    TILE_COLUMNS,
    TILE_ROWS,
    angle_tile,
    axis_angles,
    centre_units,
    versine_edges,
)
from .._cpu import claim, jit, sgemm_address
from .._cpu_vectors import widest_vectors
from .._rows import ROWS, flat_rows, n_blocks, share_out, unit_rows


def cone_sums(x: Tensor, lengths: Tensor, with_axis: bool) -> dict[str, Tensor]:
    """Cone statistics of x (B, H, N, D) over the first lengths[b] rows; values are (B, H)."""
    shape = x.shape[:2]
    sums = _sum_units(x, lengths.numpy())
    index, kept = _lengths_of(sums.total, sums.kept), sums.kept
    pairs = kept * (kept - 1.0)
    values = {
        "cone_index": index,
        "cone_resultant": _ratio(index, kept),
        "cone_mean_cosine": _ratio(index * index - kept, pairs),
    }
    if with_axis:
        mean, largest = _axis_angles(sums, index)
        values |= {"cone_axis_angle_mean": mean, "cone_axis_angle_max": largest}
    found = {k: torch.from_numpy(v.astype(np.float32)).reshape(shape) for k, v in values.items()}
    zeros = np.where(sums.finite, sums.lengths - kept, 0).astype(np.int32)
    return found | {"zero_vectors": torch.from_numpy(zeros).reshape(shape)}


@dataclass(frozen=True)
class _UnitSums:
    """Unit vectors of S sets, summed.

    Attributes:
        flat, starts, step: row i of set s begins at flat[starts[s] + i * step].
        lengths, kept: (S,) int64, rows, and those that are not zero.
        finite: (S,) bool, whether every entry is finite; where not, `total` is NaN.
        norm: (S, N) float64.
        total: (S, D) float64, sum of the unit vectors.
    """

    flat: Any
    starts: Any
    step: int
    lengths: Any
    kept: Any
    finite: Any
    norm: Any
    total: Any


def _sum_units(x: Tensor, lengths: Any) -> _UnitSums:
    """Of the sets x[b, h], in this order; x (B, H, N, D), lengths (B,)."""
    batch, heads, n_slots, width = x.shape
    flat, (step_b, step_h, step) = flat_rows(x)
    starts = (np.arange(batch)[:, None] * step_b + np.arange(heads) * step_h).ravel()
    lengths = lengths.astype(np.int64)
    norm = np.zeros((batch * heads, n_slots))
    parts = np.zeros((batch, n_blocks(n_slots), heads, width), np.float32)
    share_out(
        _unit_blocks, parts.shape[0] * parts.shape[1], flat, starts, step, lengths, norm, parts
    )
    finite = np.isfinite(norm).all(1)
    total = parts.sum(1, dtype=np.float64).reshape(-1, width)
    total[~finite] = np.nan
    lengths = lengths.repeat(heads)
    return _UnitSums(flat, starts, step, lengths, (norm != 0).sum(1), finite, norm, total)


@jit
def _unit_blocks(n_tasks, counters, flat, starts, step, lengths, norm, parts):
    widest_vectors()
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


def _lengths_of(total: Any, kept: Any) -> Any:
    return np.where(kept > 0, np.sqrt((total * total).sum(1)), np.nan)


def _ratio(value: Any, by: Any) -> Any:
    return np.divide(value, by, out=np.full(len(value), np.nan), where=by > 0)


def _axis_angles(sums: _UnitSums, index: Any) -> tuple[Any, Any]:
    has_axis = index > NO_AXIS * sums.kept
    axis = sums.total / np.where(has_axis, index, 1)[:, None]
    lengths = np.where(has_axis, sums.lengths, 0)
    parts = np.zeros((len(axis), n_blocks(sums.norm.shape[1]), 2))
    n_tasks = parts.shape[0] * parts.shape[1]
    share_out(
        _axis_blocks, n_tasks, sums.flat, sums.starts, sums.step, lengths, sums.norm, axis, parts
    )
    mean = _ratio(parts[:, :, 0].sum(1), np.where(has_axis, sums.kept, 0))
    return mean, np.where(has_axis, parts[:, :, 1].max(1), np.nan)


@jit
def _axis_blocks(n_tasks, counters, flat, starts, step, lengths, norm, axis, parts):
    widest_vectors()
    n_parts = parts.shape[1]
    while True:
        task = claim(counters, 0)
        if task >= n_tasks:
            return
        s, k = task // n_parts, task % n_parts
        first, last = k * ROWS, min((k + 1) * ROWS, lengths[s])
        if first < last:
            axis_angles(flat, starts[s], step, first, last, norm[s], axis[s], parts[s, k])


def pairwise_angle_histogram(
    x: Tensor, y: Tensor | None, lengths: Tensor, y_lengths: Tensor | None, bins: int
) -> dict[str, Tensor]:
    """Angles of all pairs i < j of x (B, N, D), or of all pairs (i, j) of x and y (B, M, D)."""
    sums = [_sum_units(x[:, None], lengths.numpy())]
    if y is not None and y_lengths is not None:
        sums.append(_sum_units(y[:, None], y_lengths.numpy()))
    kept = np.stack([s.kept for s in sums])
    finite = np.stack([s.finite for s in sums]).all(0)
    near_mean, shift = _near_mean(sums), _shift(sums)
    sides = [_centred(s, shift) for s in sums]
    tasks = _tiles(np.where(finite, kept, 0), triangle=len(sums) == 1)
    counts = np.zeros((len(tasks), bins), np.int64)
    partial = np.zeros((len(tasks), 4))
    edges, angle = versine_edges(bins), near_mean.astype(np.float32)
    share_out(
        _angle_tiles,
        len(tasks),
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
    inner = (first.total * last.total).sum(1)
    if first is last:
        cosine = _ratio(inner - first.kept, first.kept * (first.kept - 1.0))
    else:
        cosine = _ratio(inner, first.kept * last.kept)
    return np.degrees(np.arccos(np.clip(np.nan_to_num(cosine), -1, 1)))


def _shift(sums: list[_UnitSums]) -> Any:
    """(B, D) float32: the mean unit vector of both sides where it is long, else 0."""
    total = np.sum([s.total for s in sums], 0)
    kept = np.sum([s.kept for s in sums], 0)
    length = _ratio(_lengths_of(total, kept), kept)
    mean = total / np.maximum(kept, 1)[:, None]
    return np.where((length > NARROW)[:, None], mean, 0).astype(np.float32)


class _Side(NamedTuple):
    """The non-zero unit vectors of one side, minus the shift: (B, N, D), and two (B, N)."""

    unit: Any
    half: Any
    size: Any
    kept: Any


def _centred(sums: _UnitSums, shift: Any) -> _Side:
    n_sets, n_slots = sums.norm.shape
    slot = np.where(sums.norm > 0, np.cumsum(sums.norm > 0, 1) - 1, -1).astype(np.int32)
    lengths = np.where(sums.finite, sums.lengths, 0)
    side = _Side(
        unit=np.empty((n_sets, n_slots, shift.shape[1]), np.float32),
        half=np.empty((n_sets, n_slots), np.float32),
        size=np.empty((n_sets, n_slots), np.float32),
        kept=sums.kept,
    )
    n_tasks = n_sets * n_blocks(n_slots)
    share_out(
        _centre_blocks,
        n_tasks,
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
def _centre_blocks(n_tasks, counters, flat, starts, step, lengths, norm, slot, shift, side):
    widest_vectors()
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


def _tiles(kept: Any, triangle: bool) -> Any:
    """(T, 3) int64: window, first row, first column of every tile, window by window."""
    tiles = [
        (b, i, j)
        for b in range(kept.shape[1])
        for i in range(0, int(kept[0, b]), TILE_ROWS)
        for j in range(i if triangle else 0, int(kept[-1, b]), TILE_COLUMNS)
    ]
    return np.array(tiles, np.int64).reshape(-1, 3)


@jit
def _angle_tiles(
    n_tasks,
    counters,
    address,
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
    widest_vectors()
    tile = np.empty((TILE_ROWS, TILE_COLUMNS), np.float32)
    while True:
        task = claim(counters, 0)
        if task >= n_tasks:
            return
        b, i, j = tasks[task, 0], tasks[task, 1], tasks[task, 2]
        i_stop = min(i + TILE_ROWS, left.kept[b])
        j_stop = min(j + TILE_COLUMNS, right.kept[b])
        angle_tile(
            address,
            left.unit[b, i:i_stop],
            right.unit[b, j:j_stop],
            left.half[b, i:i_stop],
            right.half[b, j:j_stop],
            left.size[b, i:i_stop],
            right.size[b, j:j_stop],
            shift[b],
            i - j if triangle else -TILE_ROWS - 1,
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
