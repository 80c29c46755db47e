"""Triton: products of the centred rows of a window, tile by tile; the last tile completes it.

    station_angles    angles of all pairs, and the squares of the covariance
    station_squares   the squares of a Gram matrix

A program that is through with its tile draws a ticket. Who draws the last one of a window knows
that all its tiles are written, and adds their results in order: who that is, is chance, but what
comes out is not. Counts are added by atomics, which in integers have no order.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from bertgeom.kernels import _definitions
from bertgeom.kernels._triton.angles import (
    angles_of_tile,
    axis_angles,
    bins_of_fields,
    products,
    store_angles,
    triangle,
)
from bertgeom.kernels._triton.programs import any_length, tokens_of
from bertgeom.kernels._triton.rows import NO_AXIS
from bertgeom.kernels.stations.gpu.places import (
    AT_ANGLES,
    AT_AXIS,
    AT_DONE,
    AT_ENTRIES,
    AT_KEPT,
    AT_NEAR_MEAN,
    AT_RATIO,
    N_COUNTS,
    N_OUT,
    N_PARTS,
    N_SUMS,
)

CONSTANT = tl.constexpr(_definitions.CONSTANT)
#: Tiles, or blocks of rows, whose results the last program reads at once.
TOGETHER = tl.constexpr(64)


@triton.jit
def _is_last(p_counts, i_set, n_tiles):
    """Whether every other program of the window is done, after this one has stored its results.

    The barrier orders the stores of all threads before the ticket; drawing it releases them to the
    device, and acquires those of the programs that drew before."""
    tl.debug_barrier()
    p_done = p_counts + i_set * N_COUNTS + AT_DONE
    return tl.atomic_add(p_done, 1, sem="acq_rel", scope="gpu") == n_tiles - 1


@triton.jit
def _load_new(p, m):
    # Past the first cache, which does not see what other multiprocessors have written.
    return tl.load(p, mask=m, other=0.0, cache_modifier=".cg").to(tl.float64)


@triton.jit
def _finish_axis_and_ratio(
    p_parts, p_out, p_counts, i_set, n, n_blocks, square, BLOCK_ROWS: tl.constexpr,
    WIDTH: tl.constexpr, ANGLES: tl.constexpr,
):  # fmt: skip
    """Stores angles to the axis and participation ratio; square: of the covariance, in the unit
    of the traces, with ANGLES but for the diagonal."""
    o = tl.arange(0, TOGETHER)
    angle_sum = tl.zeros((TOGETHER,), tl.float64)
    angle_max = tl.zeros((TOGETHER,), tl.float32)
    trace = tl.zeros((TOGETHER,), tl.float64)
    diagonal = tl.zeros((TOGETHER,), tl.float64)
    used = tl.cdiv(n, BLOCK_ROWS)
    for first in range(0, used, TOGETHER):
        m = first + o < used
        p_in = p_parts + (i_set * n_blocks + first + o) * N_PARTS
        angle_sum += tl.load(p_in, mask=m, other=0.0).to(tl.float64)
        angle_max = tl.maximum(angle_max, tl.load(p_in + 1, mask=m, other=0.0))
        trace += tl.load(p_in + 2, mask=m, other=0.0).to(tl.float64)
        diagonal += tl.load(p_in + 3, mask=m, other=0.0).to(tl.float64)
    kept = tl.load(p_counts + i_set * N_COUNTS + AT_KEPT)
    p_o = p_out + i_set * N_OUT
    has_axis = (kept > 0) & (tl.load(p_o + 1) > NO_AXIS)
    mean, largest = axis_angles(tl.sum(angle_sum, 0), tl.max(angle_max, 0), kept, has_axis)
    tl.store(p_o + AT_AXIS, mean)
    tl.store(p_o + AT_AXIS + 1, largest)
    total = tl.sum(trace, 0)
    entries = n.to(tl.float64) * WIDTH
    if ANGLES:
        square += tl.sum(diagonal, 0)
        entry_mean, variance = tl.load(p_o + AT_ENTRIES), tl.load(p_o + AT_ENTRIES + 1)
        # Without angles the rows are scaled to a mean square of 1.
        entries *= (variance + entry_mean * entry_mean).to(tl.float64)
    spread = (kept >= 0) & (total > CONSTANT * entries) & (square > 0)
    ratio = total * total / tl.where(spread, square, 1.0)
    tl.store(p_o + AT_RATIO, tl.where(spread, ratio, float("nan")).to(tl.float32))


@any_length
def station_angles(
    p_vectors,
    p_alpha,
    p_scale,
    p_norm,
    p_weight,
    p_lengths,
    p_parts,
    p_sums,
    p_out,
    p_counts,
    p_histogram,
    n_slots,
    n_padded,
    n_blocks,
    n_tiles,
    WIDTH: tl.constexpr,
    DIMENSIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_BINS: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile, window): p_sums (S, T, N_SUMS); adds its counts to p_histogram (S, BINS)
    int64. The last of a window completes p_out. Vectors (S, n_padded, WIDTH) of so many
    dimensions, and their numbers, are those of `station_centre`."""
    i_tile = tl.program_id(0) % n_tiles
    i_set = (tl.program_id(0) // n_tiles).to(tl.int64)
    i, j = triangle(i_tile)
    n = tokens_of(p_lengths, i_set, n_slots)
    n_good = tl.where(tl.load(p_counts + i_set * N_COUNTS + AT_KEPT) >= 0, n, 0)
    near_mean = tl.load(p_out + i_set * N_OUT + AT_NEAR_MEAN)
    at = i_set * n_padded
    counts, first, second, least, largest, squares = angles_of_tile(
        p_vectors, p_vectors, p_alpha, p_alpha, p_scale, p_scale, p_norm, p_norm, p_weight,
        at, at, i, j, n_good, n_good, near_mean, BINS,
        WIDTH, BLOCK, BLOCK_K, BLOCK_BINS, PARTS, True, True, PRECISION,
    )  # fmt: skip
    p_own = p_sums + (i_set * n_tiles + i_tile) * N_SUMS
    tl.store(p_own, first)
    tl.store(p_own + 1, second)
    tl.store(p_own + 2, least)
    tl.store(p_own + 3, largest)
    tl.store(p_own + 4, squares)
    o_field = bins_of_fields(BLOCK_BINS)
    p_bins = p_histogram + i_set * BINS
    m_field = (o_field < BINS) & (counts > 0)
    tl.atomic_add(p_bins + o_field, counts.to(tl.int64), mask=m_field, sem="relaxed")
    if _is_last(p_counts, i_set, n_tiles):
        o = tl.arange(0, TOGETHER)
        all_first = tl.zeros((TOGETHER,), tl.float64)
        all_second = tl.zeros((TOGETHER,), tl.float64)
        square = tl.zeros((TOGETHER,), tl.float64)
        lowest = tl.full((TOGETHER,), 360.0, tl.float32)
        highest = tl.full((TOGETHER,), -1.0, tl.float32)
        for k in range(0, n_tiles, TOGETHER):
            m = k + o < n_tiles
            p_in = p_sums + (i_set * n_tiles + k + o) * N_SUMS
            all_first += _load_new(p_in, m)
            all_second += _load_new(p_in + 1, m)
            low = tl.load(p_in + 2, mask=m, other=360.0, cache_modifier=".cg")
            high = tl.load(p_in + 3, mask=m, other=-1.0, cache_modifier=".cg")
            lowest = tl.minimum(lowest, low)
            highest = tl.maximum(highest, high)
            square += _load_new(p_in + 4, m)
        o_bin = tl.arange(0, BLOCK_BINS)
        found = tl.load(p_bins + o_bin, mask=o_bin < BINS, other=0, cache_modifier=".cg")
        store_angles(
            p_out + i_set * N_OUT + AT_ANGLES, tl.sum(found, 0), tl.sum(all_first, 0),
            tl.sum(all_second, 0), tl.min(lowest, 0), tl.max(highest, 0), near_mean,
        )  # fmt: skip
        _finish_axis_and_ratio(
            p_parts, p_out, p_counts, i_set, n, n_blocks, 2 * tl.sum(square, 0),
            BLOCK_ROWS, DIMENSIONS, True,
        )  # fmt: skip


@any_length
def station_squares(
    p_vectors,
    p_lengths,
    p_parts,
    p_sums,
    p_out,
    p_counts,
    n_slots,
    n_padded,
    n_blocks,
    n_tiles,
    WIDTH: tl.constexpr,
    DIMENSIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile, window): p_sums (S, T) takes the tile's share of the squared norm of X X^T,
    or of X^T X where that is smaller; X is p_vectors (S, n_padded, WIDTH), zero beyond the length.
    The last of a window completes p_out. COLUMNS: whether any length may exceed WIDTH."""
    i_tile = tl.program_id(0) % n_tiles
    i_set = (tl.program_id(0) // n_tiles).to(tl.int64)
    i, j = triangle(i_tile)
    n_tokens = tokens_of(p_lengths, i_set, n_slots)
    n = tl.where(tl.load(p_counts + i_set * N_COUNTS + AT_KEPT) >= 0, n_tokens, 0)
    p_set = p_vectors + i_set * n_padded * WIDTH
    p_a = p_set + i.to(tl.int64) * BLOCK * WIDTH
    p_b = p_set + j.to(tl.int64) * BLOCK * WIDTH
    depth = tl.where((n <= WIDTH) & (j * BLOCK < n), WIDTH, 0)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    acc = products(acc, p_a, p_b, depth, WIDTH, WIDTH, BLOCK, BLOCK_K, PRECISION, False)
    if COLUMNS:
        p_a = p_set + i * BLOCK
        p_b = p_set + j * BLOCK
        depth = tl.where(n <= WIDTH, 0, n)
        acc = products(acc, p_a, p_b, depth, WIDTH, WIDTH, BLOCK, BLOCK_K, PRECISION, True)
    own = tl.sum(tl.sum(acc * acc, axis=1), axis=0)
    # A tile off the diagonal also counts for its mirror image.
    tl.store(p_sums + i_set * n_tiles + i_tile, tl.where(i == j, own, 2 * own))
    if _is_last(p_counts, i_set, n_tiles):
        o = tl.arange(0, TOGETHER)
        square = tl.zeros((TOGETHER,), tl.float64)
        for k in range(0, n_tiles, TOGETHER):
            square += _load_new(p_sums + i_set * n_tiles + k + o, k + o < n_tiles)
        _finish_axis_and_ratio(
            p_parts, p_out, p_counts, i_set, n_tokens, n_blocks, tl.sum(square, 0),
            BLOCK_ROWS, DIMENSIONS, False,
        )  # fmt: skip
