"""Triton: sums that need a weight A_ij together with A_ji, its offset j - i, or its value bin.

A program owns one pair of block diagonals, the tiles (r, r + delta) and (r + delta, r) for all r,
with the log-sum-exp of every row known. On a diagonal the offset of a cell depends on its place
in the tile alone, so the tiles are added up first and binned by offset once. The tile below the
diagonal is computed transposed, so that A_ij and A_ji meet in one register.
"""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertgeom.kernels._triton.programs import any_length, head_of, launch, tokens_of
from bertgeom.kernels._triton.rules import ceil_div
from bertgeom.kernels.attention_stats.gpu.rows import RowValues
from bertgeom.kernels.attention_stats.gpu.tiles import (
    LOG2E,
    NO_ROW,
    PRECISION,
    Tiles,
    block_dim,
    compile_options,
    load_tile,
    logits,
    tile_offsets,
    widen,
)
from bertgeom.kernels.attention_stats.options import N_VALUE_BINS, SLACK, Options

VALUE_BINS = tl.constexpr(N_VALUE_BINS)
VALUE_SLOTS = tl.constexpr(32)
#: Width of the profile in memory, and rows whose extremes are read at once.
PROFILE = tl.constexpr(128)
AT_ONCE = tl.constexpr(512)
BIN_SLACK = tl.constexpr(SLACK * N_VALUE_BINS)


@triton.jit
def _offset_bin(distance, n_side):
    """1 + ceil(log2 distance), at most n_side, for distance >= 1."""
    # Exact for distance - 1 < 2 ** 24, whose float exponent is floor(log2).
    below = tl.maximum(distance - 1, 0)
    exponent = (below.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    return tl.minimum(tl.where(below > 0, exponent + 2, 1), n_side)


@triton.jit
def _tile(
    p_rows,
    p_cols,
    o_rows,
    o_cols,
    stride_rows,
    stride_cols,
    row,
    col,
    n,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Products of block `row` of one matrix with block `col` of another."""
    p_row = p_rows + tl.cast(row, tl.int64) * BLOCK * stride_rows
    p_col = p_cols + tl.cast(col, tl.int64) * BLOCK * stride_cols
    b_rows = load_tile(p_row, o_rows, n - row * BLOCK, True, HEAD_DIM, BLOCK, BLOCK_DIM)
    b_cols = load_tile(p_col, o_cols, n - col * BLOCK, True, HEAD_DIM, BLOCK, BLOCK_DIM)
    return logits(b_rows, b_cols, PRECISION, WIDEN)


@triton.jit
def _extremes(p_low, p_top, n):
    """Smallest and largest weight of a head of n tokens from those of its rows."""
    o_row = tl.arange(0, AT_ONCE)
    low = tl.full((AT_ONCE,), 1.0, tl.float32)
    top = tl.zeros((AT_ONCE,), tl.float32)
    for first in range(0, n, AT_ONCE):
        m = first + o_row < n
        low = tl.minimum(low, tl.load(p_low + first + o_row, mask=m, other=1.0))
        top = tl.maximum(top, tl.load(p_top + first + o_row, mask=m, other=0.0))
    return tl.min(low, 0), tl.max(top, 0)


@triton.jit
def _bins_of_rows(p, m, low, factor):
    """Cells of every row by bin: five words of four bins, a byte each (a row has 64 cells)."""
    x = (p - low) * factor + BIN_SLACK
    value_bin = tl.minimum(tl.maximum(x, 0.0), VALUE_BINS - 1.0).to(tl.int32)
    one = tl.where(m, 1, 0) << ((value_bin & 3) * 8)
    word = value_bin >> 2
    w_0 = tl.sum(tl.where(word == 0, one, 0), 1)
    w_1 = tl.sum(tl.where(word == 1, one, 0), 1)
    w_2 = tl.sum(tl.where(word == 2, one, 0), 1)
    w_3 = tl.sum(tl.where(word == 3, one, 0), 1)
    w_4 = tl.sum(tl.where(word == 4, one, 0), 1)
    return w_0, w_1, w_2, w_3, w_4


@triton.jit
def _unpack(w_0, w_1, w_2, w_3, w_4):
    """(BLOCK, 32) counts from the words of `_bins_of_rows`."""
    o_bin = tl.arange(0, VALUE_SLOTS)[None, :]
    o_word = o_bin >> 2
    w = tl.where(o_word == 0, w_0[:, None], 0)
    w = tl.where(o_word == 1, w_1[:, None], w)
    w = tl.where(o_word == 2, w_2[:, None], w)
    w = tl.where(o_word == 3, w_3[:, None], w)
    w = tl.where(o_word == 4, w_4[:, None], w)
    return (w >> ((o_bin & 3) * 8)) & 255


@any_length
def attention_pairs(
    p_query,
    p_key,
    p_lse,
    p_low,
    p_top,
    p_crossed,
    p_profile,
    p_bins,
    p_lengths,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    n_slots,
    n_heads,
    heads_per_key,
    scale,
    window,
    n_side,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Block diagonals +delta and -delta of one head of one window.

    Buffers, with D = block diagonals: p_low, p_top (B, H, N) as `attention_rows` leaves them;
    p_crossed (B, H, D), p_bins (B, H, D, 32), p_profile (B, H, D, PROFILE), all written whole.
    """
    n_diagonals = tl.cdiv(n_slots, BLOCK)
    delta, i_head, i_batch, i_flat = head_of(tl.program_id(0), n_heads, n_diagonals)
    i_part = i_flat * n_diagonals + delta
    n = tokens_of(p_lengths, i_batch, n_slots)
    low, high = _extremes(p_low + i_flat * n_slots, p_top + i_flat * n_slots, n)
    factor = tl.where(high > low, VALUE_BINS / tl.where(high > low, high - low, 1.0), 0.0)

    p_q = p_query + i_batch * stride_qb + i_head * stride_qh
    p_k = p_key + i_batch * stride_kb + (i_head // heads_per_key) * stride_kh
    p_l = p_lse + i_flat * n_slots
    o_q = tile_offsets(stride_qn, stride_qd, BLOCK, BLOCK_DIM)
    o_k = tile_offsets(stride_kn, stride_kd, BLOCK, BLOCK_DIM)
    o_row = tl.arange(0, BLOCK)
    # First and last column of a tile's row that a sliding window shows.
    first = o_row - (delta * BLOCK + window)
    final = o_row - (delta * BLOCK - window)

    sum_above = tl.zeros((BLOCK, BLOCK), tl.float32)
    sum_below = tl.zeros((BLOCK, BLOCK), tl.float32)
    crossed = tl.zeros((BLOCK,), tl.float32)
    bins = tl.zeros((BLOCK, VALUE_SLOTS), tl.int32)
    last = tl.maximum(tl.cdiv(n, BLOCK) - delta, 0)
    if WINDOW:
        last = tl.where(delta * BLOCK - BLOCK < window, last, 0)
    for row in range(last):
        col = row + delta
        i_row = row * BLOCK + o_row
        i_col = col * BLOCK + o_row
        m = (i_row < n)[:, None] & (i_col < n)[None, :]
        if WINDOW:
            m = m & (o_row[None, :] >= first[:, None]) & (o_row[None, :] <= final[:, None])
        lse = tl.load(p_l + i_row, mask=i_row < n, other=NO_ROW)
        above = _tile(
            p_q, p_k, o_q, o_k, stride_qn, stride_kn, row, col, n,
            HEAD_DIM, BLOCK, BLOCK_DIM, PRECISION, WIDEN,
        )  # fmt: skip
        above = tl.where(m, tl.exp2(above * scale - lse[:, None]), 0.0)
        sum_above += above
        w_0, w_1, w_2, w_3, w_4 = _bins_of_rows(above, m, low, factor)
        bins += _unpack(w_0, w_1, w_2, w_3, w_4)
        lse = tl.load(p_l + i_col, mask=i_col < n, other=NO_ROW)
        below = _tile(
            p_k, p_q, o_k, o_q, stride_kn, stride_qn, row, col, n,
            HEAD_DIM, BLOCK, BLOCK_DIM, PRECISION, WIDEN,
        )  # fmt: skip
        below = tl.where(m, tl.exp2(below * scale - lse[None, :]), 0.0)
        sum_below += below
        crossed += tl.sum(above * below, 1)
        # The tile on the diagonal is its own transpose: its cells are counted once.
        w_0, w_1, w_2, w_3, w_4 = _bins_of_rows(below, m & (delta > 0), low, factor)
        bins += _unpack(w_0, w_1, w_2, w_3, w_4)

    total = tl.sum(crossed, 0)
    tl.store(p_crossed + i_part, tl.where(delta > 0, 2 * total, total))
    o_bin = tl.arange(0, VALUE_SLOTS)
    tl.store(p_bins + i_part * VALUE_SLOTS + o_bin, tl.sum(bins, 0))

    p_mid = p_profile + i_part * PROFILE + n_side
    distance = delta * BLOCK + o_row[None, :] - o_row[:, None]
    side = _offset_bin(tl.abs(distance), n_side)
    nearest = _offset_bin(tl.maximum(delta * BLOCK - BLOCK + 1, 1), n_side)
    farthest = _offset_bin(delta * BLOCK + BLOCK - 1, n_side)
    # Bins that no cell of these diagonals falls into; the others are stored below.
    o_bin = tl.arange(0, PROFILE)
    away = tl.abs(o_bin - n_side)
    least = tl.where(delta > 0, 0, 1)
    m_none = (away > farthest) | ((away < nearest) & (away >= least))
    tl.store(p_profile + i_part * PROFILE + o_bin, tl.zeros((PROFILE,), tl.float32), mask=m_none)
    if delta == 0:
        zero = tl.where(distance == 0, sum_above, 0.0)
        tl.store(p_mid, tl.sum(tl.sum(zero, 1), 0))
        sum_below = sum_above
    for b in range(nearest, farthest + 1):
        m = (side == b) & (distance > 0)
        tl.store(p_mid + b, tl.sum(tl.sum(tl.where(m, sum_above, 0.0), 1), 0))
        # Above delta 0 both tiles hold distance > 0; on it, the lower half is distance < 0.
        m = (side == b) & tl.where(delta > 0, distance > 0, distance < 0)
        tl.store(p_mid - b, tl.sum(tl.sum(tl.where(m, sum_below, 0.0), 1), 0))


@dataclass(frozen=True)
class PairSums:
    """The results of `attention_pairs` by block diagonal.

    Attributes:
        crossed: (B, H, D) sum of A_ij A_ji.
        profile: (B, H, D, 128) mass by signed offset bin, the first 2 n_offset_side + 1 of them.
        bins: (B, H, D, 32) int32, visible cells by value bin, the first 20 of them.
    """

    crossed: Tensor
    profile: Tensor
    bins: Tensor


def pairs_tiles(dtype: torch.dtype, head_dim: int) -> Tiles:
    """The pinned configuration."""
    if dtype == torch.float32:
        side = 16 if block_dim(head_dim) > 64 else 32
        return Tiles(side, side, 4, 1)
    return Tiles(64, 64, 8, 2)


def pair_sums(
    query: Tensor, key: Tensor, rows: RowValues, lengths: Tensor, options: Options
) -> PairSums:
    """Sums over pairs of cells, given the values of every row.

    Raises:
        ValueError: for rows without their smallest weights.
    """
    if rows.low is None:
        raise ValueError("tier full: expected the smallest weight of every row, found none")
    batch, n_heads, n_slots, head_dim = query.shape
    tiles = pairs_tiles(query.dtype, head_dim)
    n_diagonals = ceil_div(n_slots, tiles.rows)
    parts = (batch, n_heads, n_diagonals)
    found = PairSums(
        crossed=torch.empty(parts, dtype=torch.float32, device=query.device),
        profile=torch.empty((*parts, PROFILE.value), dtype=torch.float32, device=query.device),
        bins=torch.empty((*parts, VALUE_SLOTS.value), dtype=torch.int32, device=query.device),
    )
    launch(
        attention_pairs, n_diagonals * n_heads * batch,
        query, key, rows.lse, rows.low, rows.top, found.crossed, found.profile, found.bins,
        lengths, *query.stride(), *key.stride(),
        n_slots, n_heads, n_heads // key.shape[1], options.scale * LOG2E,
        -1 if options.window is None else options.window, options.n_offset_side,
        HEAD_DIM=head_dim, BLOCK_DIM=block_dim(head_dim), BLOCK=tiles.rows,
        WINDOW=options.window is not None,
        PRECISION=PRECISION, WIDEN=widen(query.dtype),
        **compile_options(tiles),
    )  # fmt: skip
    return found
