"""Triton: every sum over the weights of a head, from tiles that keep their keys.

With the log-sum-exp of every row known, the transposed tile K Q^T gives the weights that a block
of keys receives. What belongs to a key (its column sum, whether it is special, whether its slot
is padded) then belongs to a row of the tile: sums finish in the registers of a few lanes, the
tile needs no mask for padding or special tokens, and nothing is added up in memory. O(N) for any
length.

Tiles are classed by their distance from the diagonal. A tile that no near cell can touch is
wholly forward or wholly backward, and wholly far: its offsets follow from two sums.
The map of blocks is an indicator product: the weights times the stretches of the queries.
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
from bertgeom.kernels.attention_stats.gpu.tiles import (
    LOG2E,
    NO_ROW,
    PRECISION,
    UNIT,
    UNIT_BITS,
    UNIT_SHIFT,
    Tiles,
    block_dim,
    compile_options,
    load_tile,
    logits,
    multiply,
    tile_offsets,
    widen,
)
from bertgeom.kernels.attention_stats.options import N_BLOCKS, SLACK, Options

MAPS = tl.constexpr(N_BLOCKS)
#: Sums that a program stores, in this order. The near ones are those of columns without special
#: tokens; `backward` is what no other direction holds.
SUMS = (
    "square",  # sum A_ij^2
    "distance",  # sum A_ij |j - i|
    "offset",  # sum A_ij (j - i)
    "self",  # sum A_ii
    "forward",  # sum of j > i
    "backward",  # sum of j < i
    "near_self",  # the last three again, |j - i| <= near and j not special
    "near_forward",
    "near_backward",
    "confident_mass",  # sum of A_ij >= theta
    "confident_count",
)
N_SCALARS = len(SUMS)
SCALARS = tl.constexpr(N_SCALARS)


@triton.jit
def _of_lanes(x):
    """Sums (rows, 4) of the columns that one lane holds: a product leaves a thread columns 2 k and
    2 k + 1 of every eight, so that no lane hears from another until the last tile is added."""
    rows: tl.constexpr = x.shape[0]
    eights: tl.constexpr = x.shape[1] // 8
    return tl.sum(tl.sum(tl.reshape(x, (rows, eights, 4, 2)), 3), 1)


@triton.jit
def _total(x, m):
    return tl.sum(tl.where(m, x, 0.0), 0) / UNIT


@triton.jit
def _members(i_first, n, COLS: tl.constexpr):
    """(COLS, 16): whether query i_first + row is in stretch g of a window: g n <= 16 i < (g + 1) n.

    Made of three instructions a cell: no launch has to write them before, none has to read them.
    """
    at = (i_first + tl.arange(0, COLS)) * MAPS
    begin = tl.arange(0, MAPS) * n
    member = (at[:, None] >= begin[None, :]) & (at[:, None] < (begin + n)[None, :])
    return tl.where(member, 1.0, 0.0)


@triton.jit
def _received(
    b_k,
    p_q,
    p_lse,
    o_q,
    i_first,
    stride_qn,
    n,
    scale,
    HEAD_DIM: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Weights (keys, queries) in units of 1 / UNIT; 0 for queries in padded slots."""
    o_col = i_first + tl.arange(0, COLS)
    p_tile = p_q + tl.cast(i_first, tl.int64) * stride_qn
    b_q = load_tile(p_tile, o_q, n - i_first, True, HEAD_DIM, COLS, BLOCK_DIM)
    lse = tl.load(p_lse + o_col, mask=o_col < n, other=NO_ROW)
    return tl.exp2(logits(b_k, b_q, PRECISION, WIDEN) * scale - (lse - UNIT_SHIFT)[None, :])


@any_length
def attention_columns(
    p_query,
    p_key,
    p_lse,
    p_columns,
    p_scalars,
    p_far_map,
    p_block_map,
    p_lengths,
    p_special,
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
    theta,
    near,
    window,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    FULL: tl.constexpr,
    SPECIAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Keys [block ROWS, ...) of one head of one window.

    Buffers, with K = blocks of keys: p_columns (B, H, 3, N), p_scalars (B, H, K, 11) and the maps
    (B, H, K, 16, 16) are written whole. p_special (B, N) bytes, None for none. theta in units of
    1 / UNIT.
    """
    n_blocks = tl.cdiv(n_slots, ROWS)
    i_block, i_head, i_batch, i_flat = head_of(tl.program_id(0), n_heads, n_blocks)
    i_part = i_flat * n_blocks + i_block
    n = tokens_of(p_lengths, i_batch, n_slots)
    j_first = i_block * ROWS
    i_key = j_first + tl.arange(0, ROWS)
    m_key = i_key < n
    p_l = p_lse + i_flat * n_slots
    p_q = p_query + i_batch * stride_qb + i_head * stride_qh
    p_k = p_key + i_batch * stride_kb + (i_head // heads_per_key) * stride_kh
    p_k = p_k + j_first.to(tl.int64) * stride_kn
    o_q = tile_offsets(stride_qn, stride_qd, COLS, BLOCK_DIM)
    o_k = tile_offsets(stride_kn, stride_kd, ROWS, BLOCK_DIM)
    b_k = load_tile(p_k, o_k, n - j_first, True, HEAD_DIM, ROWS, BLOCK_DIM)

    # Query tiles [first, last) see these keys; those of [band_first, band_last) may be near.
    first = 0
    last = tl.where(j_first < n, tl.cdiv(n, COLS), 0)
    band_first = tl.minimum(tl.maximum(j_first - near, 0) // COLS, last)
    band_last = tl.minimum(tl.cdiv(j_first + ROWS + near, COLS), last)
    if WINDOW:
        band_first = tl.minimum(tl.maximum(j_first - window, 0) // COLS, last)
        band_last = tl.minimum(tl.cdiv(j_first + ROWS + window, COLS), last)

    received = tl.zeros((ROWS, 4), tl.float32)
    square = tl.zeros((ROWS, 4), tl.float32)
    distance = tl.zeros((ROWS, 4), tl.float32)
    offset = tl.zeros((ROWS, 4), tl.float32)
    itself = tl.zeros((ROWS, 4), tl.float32)
    forward = tl.zeros((ROWS, 4), tl.float32)
    near_forward = tl.zeros((ROWS, 4), tl.float32)
    near_backward = tl.zeros((ROWS, 4), tl.float32)
    confident = tl.zeros((ROWS, 4), tl.float32)
    confident_far = tl.zeros((ROWS, 4), tl.float32)
    count = tl.zeros((ROWS, 4), tl.float32)
    b_far = tl.zeros((ROWS, MAPS), tl.float32)
    b_near = tl.zeros((ROWS, MAPS), tl.float32)
    o_map = tl.arange(0, MAPS)

    n_far = band_first - first + last - band_last
    if WINDOW:
        n_far = 0
    for it in range(n_far):
        i_first = tl.where(it < band_first, it, it - band_first + band_last) * COLS
        p = _received(
            b_k, p_q, p_l, o_q, i_first, stride_qn, n, scale,
            HEAD_DIM, COLS, BLOCK_DIM, PRECISION, WIDEN,
        )  # fmt: skip
        mass = _of_lanes(p)
        centre = _of_lanes(p * (tl.arange(0, COLS) - COLS // 2).to(tl.float32)[None, :])
        away = (i_key - i_first - COLS // 2).to(tl.float32)[:, None] * mass - centre
        ahead = i_first < j_first
        received += mass
        offset += away
        distance += tl.where(ahead, away, -away)
        forward += tl.where(ahead, mass, 0.0)
        square += _of_lanes(p * p)
        certain = tl.where(p >= theta, 1.0, 0.0)
        held = _of_lanes(certain * p)
        confident += held
        confident_far += held
        count += _of_lanes(certain)
        here = _members(i_first, n, COLS).to(b_k.dtype)
        b_far = multiply(p.to(b_k.dtype), here, b_far, PRECISION, WIDEN)

    for it in tl.range(band_first, band_last, num_stages=1):
        i_first = it * COLS
        p = _received(
            b_k, p_q, p_l, o_q, i_first, stride_qn, n, scale,
            HEAD_DIM, COLS, BLOCK_DIM, PRECISION, WIDEN,
        )  # fmt: skip
        # In float32, exact up to 2^24 tokens: its absolute value costs nothing.
        i_query = i_first + tl.arange(0, COLS)
        away = i_key.to(tl.float32)[:, None] - i_query.to(tl.float32)[None, :]
        if WINDOW:
            p = tl.where(tl.abs(away) <= window, p, 0.0)
        received += _of_lanes(p)
        square += _of_lanes(p * p)
        offset += _of_lanes(p * away)
        distance += _of_lanes(p * tl.abs(away))
        near_p = tl.where(tl.abs(away) <= near, p, 0.0)
        far_p = p - near_p
        forward += _of_lanes(tl.where(away > 0, p, 0.0))
        itself += _of_lanes(tl.where(away == 0, p, 0.0))
        near_forward += _of_lanes(tl.where(away > 0, near_p, 0.0))
        near_backward += _of_lanes(tl.where(away < 0, near_p, 0.0))
        certain = tl.where(p >= theta, 1.0, 0.0)
        confident += _of_lanes(certain * p)
        confident_far += _of_lanes(certain * far_p)
        count += _of_lanes(certain)
        here = _members(i_first, n, COLS).to(b_k.dtype)
        b_far = multiply(far_p.to(b_k.dtype), here, b_far, PRECISION, WIDEN)
        if FULL:
            b_near = multiply(near_p.to(b_k.dtype), here, b_near, PRECISION, WIDEN)

    received = tl.sum(received, 1)
    square = tl.sum(square, 1)
    distance = tl.sum(distance, 1)
    offset = tl.sum(offset, 1)
    itself = tl.sum(itself, 1)
    forward = tl.sum(forward, 1)
    near_forward = tl.sum(near_forward, 1)
    near_backward = tl.sum(near_backward, 1)
    confident = tl.sum(confident, 1)
    confident_far = tl.sum(confident_far, 1)
    count = tl.sum(count, 1)
    m_content = m_key
    if SPECIAL:
        special = tl.load(p_special + i_batch * n_slots + i_key, mask=m_key, other=1)
        m_content = m_key & (special == 0)
    far = tl.maximum(received - near_forward - near_backward - itself, 0.0)
    backward = tl.maximum(received - forward - itself, 0.0)
    m_slot = i_key < n_slots
    p_out = p_columns + i_flat * 3 * n_slots + i_key
    tl.store(p_out, tl.where(m_key, received, 0.0) / UNIT, mask=m_slot)
    tl.store(p_out + n_slots, tl.where(m_content, far, 0.0) / UNIT, mask=m_slot)
    tl.store(p_out + 2 * n_slots, tl.where(m_content, confident_far, 0.0) / UNIT, mask=m_slot)

    p_sum = p_scalars + i_part * SCALARS
    tl.store(p_sum, _total(square, m_key) / UNIT)
    tl.store(p_sum + 1, _total(distance, m_key))
    tl.store(p_sum + 2, _total(offset, m_key))
    tl.store(p_sum + 3, _total(itself, m_key))
    tl.store(p_sum + 4, _total(forward, m_key))
    tl.store(p_sum + 5, _total(backward, m_key))
    tl.store(p_sum + 6, _total(itself, m_content))
    tl.store(p_sum + 7, _total(near_forward, m_content))
    tl.store(p_sum + 8, _total(near_backward, m_content))
    tl.store(p_sum + 9, _total(confident, m_key))
    tl.store(p_sum + 10, _total(count, m_key) * UNIT)

    # A block of keys spans few stretches; maps are [query, key], and 0 elsewhere.
    some = tl.maximum(n, 1)
    g_first = tl.where(j_first < n, j_first * MAPS // some, MAPS)
    g_last = tl.where(j_first < n, (tl.minimum(j_first + ROWS, n) - 1) * MAPS // some, MAPS - 1)
    o_out = i_part * MAPS * MAPS + o_map * MAPS
    m_other = ((o_map < g_first) | (o_map > g_last))[None, :] & (o_map >= 0)[:, None]
    nothing = tl.zeros((MAPS, MAPS), tl.float32)
    tl.store(p_far_map + o_out[:, None] + o_map[None, :], nothing, mask=m_other)
    if FULL:
        tl.store(p_block_map + o_out[:, None] + o_map[None, :], nothing, mask=m_other)
    for g in range(g_first, g_last + 1):
        # The keys j of stretch g: g n <= 16 j < (g + 1) n.
        m_own = m_key & (i_key * MAPS >= g * n) & (i_key * MAPS < g * n + n)
        part = tl.where((m_own & m_content)[:, None], b_far, 0.0)
        tl.store(p_far_map + o_out + g, tl.sum(part, 0) / UNIT)
        if FULL:
            part = tl.where(m_own[:, None], b_far + b_near, 0.0)
            tl.store(p_block_map + o_out + g, tl.sum(part, 0) / UNIT)


@dataclass(frozen=True)
class ColumnSums:
    """The results of `attention_columns`; K = blocks of keys.

    Attributes:
        columns: (B, H, 3, N) column sums of all cells, of far, of confident far cells; far cells
            are those of columns without special tokens.
        scalars: (B, H, K, 11) in the order of `SUMS`.
        far_map: (B, H, K, 16, 16), the far cells by stretch of the query and of the key.
        block_map: the same of all cells, None in tier core.
    """

    columns: Tensor
    scalars: Tensor
    far_map: Tensor
    block_map: Tensor | None


def columns_tiles(dtype: torch.dtype, head_dim: int) -> Tiles:
    """The pinned configuration."""
    if dtype == torch.float32:
        return Tiles(16, 16, 8, 1) if block_dim(head_dim) > 64 else Tiles(32, 16, 4, 1)
    return Tiles(64, 32, 4, 2)


def column_sums(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    lengths: Tensor,
    special: Tensor | None,
    options: Options,
) -> ColumnSums:
    """Sums over all cells, given lse (B, H, N); special (B, N) contiguous, a byte each."""
    batch, n_heads, n_slots, head_dim = query.shape
    tiles = columns_tiles(query.dtype, head_dim)
    n_blocks = ceil_div(n_slots, tiles.rows)
    single = {"dtype": torch.float32, "device": query.device}
    maps = (batch, n_heads, n_blocks, N_BLOCKS, N_BLOCKS)
    found = ColumnSums(
        columns=torch.empty((batch, n_heads, 3, n_slots), **single),
        scalars=torch.empty((batch, n_heads, n_blocks, N_SCALARS), **single),
        far_map=torch.empty(maps, **single),
        block_map=torch.empty(maps, **single) if options.full else None,
    )
    launch(
        attention_columns, n_blocks * n_heads * batch,
        query, key, lse, found.columns, found.scalars, found.far_map, found.block_map,
        lengths, special,
        *query.stride(), *key.stride(), n_slots, n_heads, n_heads // key.shape[1],
        options.scale * LOG2E, options.theta * (1 - SLACK) * 2.0**UNIT_BITS,
        options.near, -1 if options.window is None else options.window,
        HEAD_DIM=head_dim, BLOCK_DIM=block_dim(head_dim), ROWS=tiles.rows, COLS=tiles.cols,
        FULL=options.full, SPECIAL=special is not None, WINDOW=options.window is not None,
        PRECISION=PRECISION, WIDEN=widen(query.dtype),
        **compile_options(tiles),
    )  # fmt: skip
    return found
