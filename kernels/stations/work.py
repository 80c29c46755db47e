"""Memory of a call of `cpu`: its arrays, where each window lies in them, and the values by name."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertgeom.kernels._cpu import memory as _memory
from bertgeom.kernels._cpu.amx import piece_floats
from bertgeom.kernels._cpu.cones import TILE_COLUMNS, TILE_ROWS, versine_edges
from bertgeom.kernels._cpu.rows import by_unit, n_blocks
from bertgeom.kernels._definitions import ANGLE, AXIS, CONE, RATIO, STATION_BINS, STREAM

FLOATS = CONE + AXIS + STREAM + RATIO + ANGLE
AT_STREAM, AT_RATIO = len(CONE + AXIS), len(CONE + AXIS + STREAM)
AT_ANGLE = AT_RATIO + 1


class Work(NamedTuple):
    """Arrays of a call. B windows, N slots, D entries, K blocks, T tiles, S windows at a time."""

    flat: Any
    """address and number of float32, and in compiled code their array: row i of window b begins
    at start[b] + i * step[b]"""
    start: Any
    """(B,) int64, like step and lengths"""
    step: Any
    lengths: Any
    angles: Any
    """(B,) bool, whether to compute the angles"""
    edges: Any
    """versines of the bin edges"""
    tiles: Any
    """(T, 2) first row and first column"""
    norm: Any
    """(B, N) float64"""
    slot: Any
    """(B, N) int32, row among the non-zero ones, or -1"""
    unit_sum: Any
    """(B, K, D) float32, like row_sum"""
    row_sum: Any
    moments: Any
    """(B, K, 5) float64"""
    axis: Any
    """(B, D) float64, like mean"""
    mean: Any
    shift: Any
    """(B, D) float32, what is subtracted from the (unit) vectors"""
    scale: Any
    """(B,) float64, factor of the centred vectors"""
    near_mean: Any
    """(B,) float32, an angle near the mean"""
    kept: Any
    """(B,) int64, vectors that are not zero; -1 where an entry is not finite"""
    blocks: Any
    """(B, K, 3) float64: sum and maximum of the angles to the axis, trace"""
    vectors: Any
    """(S, N, D) float32"""
    pieces: Any
    """(S, P) float32, the vectors in pieces for the tile unit (`_cpu.amx`); P is 0 without it"""
    half: Any
    """(S, N + TILE_COLUMNS) float32, like size"""
    size: Any
    packed_norm: Any
    """(S, N) float64, like weight"""
    weight: Any
    counts: Any
    """(B, T, bins) int64"""
    sums: Any
    """(B, T, 5) float64: angles as in angle_tile, then squares of the covariance"""
    out: Any
    """(B, 21) float64"""
    outliers: Any
    """(B,) int64"""


def allocate(states: list[Tensor], lengths: Tensor, angles: list[bool], at_a_time: int) -> Work:
    """The arrays for stations returned by `_cpu.rows.readable`, which must outlive them."""
    windows, n_slots, width = states[0].shape
    batch = len(states) * windows
    lowest = min(x.data_ptr() for x in states)
    places = [((x.data_ptr() - lowest) // 4, *x.stride()[:2]) for x in states]
    blocks = n_blocks(n_slots)
    tiles = _tiles(n_slots)
    f32, f64 = np.float32, np.float64
    n_floats = at_a_time * n_slots * width
    n_pieces = at_a_time * piece_floats(n_slots, width) if by_unit(width) else 0
    memory = _memory.scratch_memory(n_pieces + n_floats)
    return Work(
        flat=(lowest, (max(_end(x) for x in states) - lowest) // 4),
        start=np.array([at + b * step for at, step, _ in places for b in range(windows)]),
        step=np.array([step for _, _, step in places]).repeat(windows),
        lengths=np.tile(lengths.numpy().astype(np.int64), len(states)),
        angles=np.array(angles).repeat(windows),
        edges=versine_edges(STATION_BINS),
        tiles=tiles,
        norm=_memory.empty((batch, n_slots), f64),
        slot=_memory.empty((batch, n_slots), np.int32),
        unit_sum=_memory.empty((batch, blocks, width), f32),
        row_sum=_memory.empty((batch, blocks, width), f32),
        moments=_memory.empty((batch, blocks, 5), f64),
        axis=_memory.empty((batch, width), f64),
        mean=_memory.empty((batch, width), f64),
        shift=_memory.empty((batch, width), f32),
        scale=_memory.full(batch, 1, f64),
        near_mean=_memory.full(batch, 90, f32),
        kept=_memory.zeros(batch, np.int64),
        blocks=_memory.zeros((batch, blocks, 3), f64),
        vectors=memory[n_pieces:].reshape(at_a_time, n_slots, width),
        pieces=memory[:n_pieces].reshape(at_a_time, n_pieces // at_a_time),
        half=_memory.zeros((at_a_time, n_slots + TILE_COLUMNS), f32),
        size=_memory.zeros((at_a_time, n_slots + TILE_COLUMNS), f32),
        packed_norm=_memory.empty((at_a_time, n_slots), f64),
        weight=_memory.empty((at_a_time, n_slots), f64),
        counts=_memory.zeros((batch, len(tiles), STATION_BINS if any(angles) else 0), np.int64),
        sums=_memory.zeros((batch, len(tiles), 5), f64),
        out=_memory.full((batch, len(FLOATS)), np.nan, f64),
        outliers=_memory.zeros(batch, np.int64),
    )


def _end(x: Tensor) -> int:
    """Address after the last entry of x."""
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr() + 4 * (last + 1)


@functools.lru_cache(maxsize=64)
def _tiles(n: int) -> Any:
    """First rows and columns of the tiles that cover the lower triangle of n x n, (T, 2) int64.

    Those of a smaller triangle are among them, in the same order.
    """
    starts = [(i, j) for j in range(0, n, TILE_COLUMNS) for i in range(j, n, TILE_ROWS)]
    return np.array(starts, np.int64).reshape(-1, 2)


def named_values(work: Work, angles: list[bool]) -> dict[str, Tensor]:
    def of_stations(x: Any) -> Tensor:
        return torch.from_numpy(x.reshape(len(angles), -1, *x.shape[1:]))

    found = of_stations(work.out).float()
    values = dict(zip(FLOATS[:AT_ANGLE], found.unbind(-1), strict=False))
    zeros = np.where(work.kept < 0, 0, work.lengths - work.kept)
    values["zero_vectors"] = of_stations(zeros.astype(np.int32))
    values["stream_outlier_dims"] = of_stations(work.outliers.astype(np.int32))
    if any(angles):
        values |= zip(ANGLE, found[angles, :, AT_ANGLE:].unbind(-1), strict=True)
        values["angle_histogram"] = of_stations(work.counts.sum(1))[angles]
    return values
