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
#: Pairs of tiles that are counted in bytes and 16-bit fields: 7 x 2 x 64^2 cells.
COUNTED = tl.constexpr(7)


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
def _of_lanes(x, WARPS: tl.constexpr):
    """Sums (rows, WARPS, 4) of the cells that one thread holds: a product leaves it columns 2 k and
    2 k + 1 of every eight, and every warp a stretch of columns."""
    rows: tl.constexpr = x.shape[0]
    eights: tl.constexpr = x.shape[1] // 8 // WARPS
    return tl.sum(tl.sum(tl.reshape(x, (rows, WARPS, eights, 4, 2)), 4), 2)


@triton.jit
def _add_bins(fields, p, unit, low, factor, WARPS: tl.constexpr):
    """Adds the cells of a tile to six fields of four bins, a byte each; unit: 1, or 0 for none.

    Field 2 k has the bins 8 k, 8 k + 2, 8 k + 4, 8 k + 6, and field 2 k + 1 those between. A thread
    has at most 15 cells of a row: four bits hold them, eight bins fit into a word. Nothing is put
    within the bins: the largest weight falls into one more, a hidden cell before the first or out.
    """
    value_bin = (p * factor + (BIN_SLACK - low * factor)).to(tl.int32)
    one = unit << ((value_bin & 7) * 4)
    eight = value_bin >> 3
    found = ()
    for k in tl.static_range(3):
        word = _of_lanes(tl.where(eight == k, one, 0), WARPS)
        found += (fields[2 * k] + (word & 0x0F0F0F0F),)
        found += (fields[2 * k + 1] + ((word >> 4) & 0x0F0F0F0F),)
    return found


@triton.jit
def _total_of(x):
    size: tl.constexpr = x.shape[0] * x.shape[1] * x.shape[2]
    return tl.sum(tl.reshape(x, (size,)), 0)


@triton.jit
def _total_of_side(x, side, b):
    """Sum of the cells of x (rows, columns) whose side is b."""
    size: tl.constexpr = x.shape[0] * x.shape[1]
    return tl.sum(tl.reshape(tl.where(side == b, x, 0.0), (size,)), 0)


@triton.jit
def _add_fields(bins, fields):
    """bins (32,) + the bytes of `_add_bins`, whose totals must stay below 2^16."""
    o_bin = tl.arange(0, VALUE_SLOTS)
    byte = (o_bin & 7) >> 1
    # Bytes 0, 2, 1, 3 become fields of 16 bits, in this order.
    shift = ((byte & 1) * 32 + (byte & 2) * 8).to(tl.int64)
    for k in tl.static_range(6):
        even = (fields[k] & 0x00FF00FF).to(tl.int64)
        odd = ((fields[k] >> 8) & 0x00FF00FF).to(tl.int64)
        total = _total_of(even | (odd << 32))
        own = (o_bin >> 3 == k // 2) & ((o_bin & 1) == k % 2)
        bins += tl.where(own, ((total >> shift) & 0xFFFF).to(tl.int32), 0)
    return bins


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
    WARPS: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Block diagonals +delta and -delta of one head of one window.

    Buffers, with D = block diagonals: p_low, p_top (B, H, N) as `attention_rows` leaves them;
    p_crossed (B, H, D), p_bins (B, H, D, 32), p_profile (B, H, D, PROFILE), all written whole.
    Bin 20 of p_bins belongs to bin 19, and bin 0 may have cells that are hidden or lack others of
    them: `attention_finish` knows how many there are. WARPS: that share the columns of a tile.
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
    crossed = tl.zeros((BLOCK, WARPS, 4), tl.float32)
    bins = tl.zeros((VALUE_SLOTS,), tl.int32)
    # The tile on the diagonal is its own transpose: its cells are counted once.
    unit = tl.where(delta > 0, 1, 0)
    last = tl.maximum(tl.cdiv(n, BLOCK) - delta, 0)
    if WINDOW:
        last = tl.where(delta * BLOCK - BLOCK < window, last, 0)
    for begin in range(0, last, COUNTED):
        nothing = tl.zeros((BLOCK, WARPS, 4), tl.int32)
        fields = (nothing, nothing, nothing, nothing, nothing, nothing)
        for row in range(begin, tl.minimum(begin + COUNTED, last)):
            col = row + delta
            i_row = row * BLOCK + o_row
            i_col = col * BLOCK + o_row
            lse = tl.load(p_l + i_row, mask=i_row < n, other=NO_ROW)
            above = _tile(
                p_q, p_k, o_q, o_k, stride_qn, stride_kn, row, col, n,
                HEAD_DIM, BLOCK, BLOCK_DIM, PRECISION, WIDEN,
            )  # fmt: skip
            # Queries beyond n weigh 0 by their lse, keys by this. In the tile below the keys are
            # those of a whole block, but on the diagonal, where only `above` counts.
            above = tl.where((i_col < n)[None, :], tl.exp2(above * scale - lse[:, None]), 0.0)
            lse = tl.load(p_l + i_col, mask=i_col < n, other=NO_ROW)
            below = _tile(
                p_k, p_q, o_k, o_q, stride_kn, stride_qn, row, col, n,
                HEAD_DIM, BLOCK, BLOCK_DIM, PRECISION, WIDEN,
            )  # fmt: skip
            below = tl.exp2(below * scale - lse[None, :])
            if WINDOW:
                m = (o_row[None, :] >= first[:, None]) & (o_row[None, :] <= final[:, None])
                above = tl.where(m, above, 0.0)
                below = tl.where(m, below, 0.0)
            sum_above += above
            sum_below += below
            crossed += _of_lanes(above * below, WARPS)
            fields = _add_bins(fields, above, 1, low, factor, WARPS)
            fields = _add_bins(fields, below, unit, low, factor, WARPS)
        bins = _add_fields(bins, fields)

    total = _total_of(crossed)
    tl.store(p_crossed + i_part, tl.where(delta > 0, 2 * total, total))
    o_bin = tl.arange(0, VALUE_SLOTS)
    tl.store(p_bins + i_part * VALUE_SLOTS + o_bin, bins)

    p_mid = p_profile + i_part * PROFILE + n_side
    distance = delta * BLOCK + o_row[None, :] - o_row[:, None]
    side = _offset_bin(tl.abs(distance), n_side)
    side = tl.where(distance > 0, side, tl.where(distance < 0, -side, 0))
    nearest = _offset_bin(tl.maximum(delta * BLOCK - BLOCK + 1, 1), n_side)
    farthest = _offset_bin(delta * BLOCK + BLOCK - 1, n_side)
    # Bins that no cell of these diagonals falls into; the others are stored below.
    o_bin = tl.arange(0, PROFILE)
    away = tl.abs(o_bin - n_side)
    least = tl.where(delta > 0, 0, 1)
    m_none = (away > farthest) | ((away < nearest) & (away >= least))
    tl.store(p_profile + i_part * PROFILE + o_bin, tl.zeros((PROFILE,), tl.float32), mask=m_none)
    # Both tiles hold distances > 0; the one on the diagonal has those < 0 in its lower half.
    sign = 1
    if delta == 0:
        tl.store(p_mid, _total_of_side(sum_above, side, 0))
        sum_below = sum_above
        sign = -1
    for b in range(nearest, farthest + 1):
        tl.store(p_mid + b, _total_of_side(sum_above, side, b))
        tl.store(p_mid - b, _total_of_side(sum_below, side, sign * b))


@dataclass(frozen=True)
class PairSums:
    """The results of `attention_pairs` by block diagonal.

    Attributes:
        crossed: (B, H, D) sum of A_ij A_ji.
        profile: (B, H, D, 128) mass by signed offset bin, the first 2 n_offset_side + 1 of them.
        bins: (B, H, D, 32) int32, cells by value bin, see `attention_pairs`.
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


def warps_of_columns(tiles: Tiles) -> int:
    """Warps that share the columns of a tile: a wgmma tile of 64 rows takes four warps."""
    return tiles.warps // 4


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
        WARPS=warps_of_columns(tiles), WINDOW=options.window is not None,
        PRECISION=PRECISION, WIDEN=widen(query.dtype),
        **compile_options(tiles),
    )  # fmt: skip
    return found
