"""Triton: the attention output and every statistic that a block of query rows can give.

A program owns `block` query rows of a head and sweeps its keys twice. The first sweep finds
every row's log-sum-exp. The second knows it, so that weights come out normalised: it multiplies
them with V and sums them, and nothing is ever rescaled. Keys and values of a head stay in L2.

Tiles are classed by their distance from the diagonal. A tile that no near cell and no edge of
the window can touch is wholly forward or wholly backward, and wholly far: it needs no mask.
"""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import ceil_div
from ._gpu_tiles import (
    LN2,
    LOG2E,
    LOWEST,
    NO_ROW,
    UNIT,
    UNIT_BITS,
    UNIT_SHIFT,
    Tiles,
    block_dim,
    load_tile,
    logits,
    multiply,
    precision_of,
    tile_offsets,
    widen,
)
from ._options import N_BLOCKS, SLACK, Options

#: Sums over the cells of a program's rows, in the order of the first SUMS of `_finish`.
N_SCALARS = 12
#: Longest padded window whose column sums come from this launch, as one row of sums a program.
FUSED_SLOTS = 512
MAPS = tl.constexpr(N_BLOCKS)


@triton.jit
def _visible(i_row, i_col, n, window, WINDOW: tl.constexpr):
    m = (i_row[:, None] < n) & (i_col[None, :] < n)
    if WINDOW:
        m = m & (tl.abs(i_col[None, :] - i_row[:, None]) <= window)
    return m


@triton.jit
def _log_sums(
    high,
    total,
    low,
    b_q,
    p_k,
    o_tile,
    stride_k,
    i_row,
    first,
    last,
    n,
    window,
    scale,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    LOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Largest logit, sum of exp2(scale (logit - largest)), and smallest logit of every row."""
    for tile in range(first, last):
        p_tile = p_k + tl.cast(tile, tl.int64) * BLOCK * stride_k
        b_k = load_tile(p_tile, o_tile, n - tile * BLOCK, MASKED, HEAD_DIM, BLOCK, BLOCK_DIM)
        s = logits(b_q, b_k, PRECISION, WIDEN)  # (BLOCK, BLOCK)
        if MASKED:
            i_col = tile * BLOCK + tl.arange(0, BLOCK)
            m = _visible(i_row, i_col, n, window, WINDOW)
            if LOW:
                low = tl.minimum(low, tl.min(tl.where(m, s, -LOWEST), 1))
            s = tl.where(m, s, 2 * LOWEST)
        elif LOW:
            low = tl.minimum(low, tl.min(s, 1))
        higher = tl.maximum(high, tl.max(s, 1))
        e = tl.exp2(s * scale - (higher * scale)[:, None])
        total = total * tl.exp2((high - higher) * scale) + tl.sum(e, 1)
        high = higher
    return high, total, low


@triton.jit
def attention_rows(
    p_query,
    p_key,
    p_value,
    p_output,
    p_lse,
    p_low,
    p_top,
    p_entropy,
    p_scalars,
    p_columns,
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
    stride_vb,
    stride_vh,
    stride_vn,
    stride_vd,
    stride_ob,
    stride_oh,
    stride_on,
    n_slots,
    heads_per_key,
    scale,
    theta,
    near,
    window,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPECIAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Rows [block BLOCK, ...) of one head of one window.

    Buffers, with R = blocks of rows: p_output (B, H, N, d), last stride 1; p_lse in units of
    log2, p_low, p_top (smallest and largest weight, FULL) and p_entropy (B, H, N);
    p_scalars (B, H, R, 12); p_columns (B, H, R, 3, N) and the maps (B, H, R, 16, 16), zero
    before the launch, of which a program writes what it can touch.
    """
    i_block = tl.program_id(0)
    i_head = tl.program_id(1).to(tl.int64)
    i_batch = tl.program_id(2).to(tl.int64)
    n_heads = tl.num_programs(1)
    n_blocks = tl.num_programs(0)
    n = tl.load(p_lengths + i_batch)
    i_first = i_block * BLOCK
    o_row = tl.arange(0, BLOCK)
    i_row = i_first + o_row
    m_row = i_row < n
    m_slot = i_row < n_slots
    i_flat = i_batch * n_heads + i_head
    o_flat = i_flat * n_slots + i_row

    p_q = p_query + i_batch * stride_qb + i_head * stride_qh + i_first.to(tl.int64) * stride_qn
    p_k = p_key + i_batch * stride_kb + (i_head // heads_per_key) * stride_kh
    p_v = p_value + i_batch * stride_vb + (i_head // heads_per_key) * stride_vh
    o_q = tile_offsets(stride_qn, stride_qd, BLOCK, BLOCK_DIM)
    o_k = tile_offsets(stride_kn, stride_kd, BLOCK, BLOCK_DIM)
    o_v = tile_offsets(stride_vn, stride_vd, BLOCK, BLOCK_DIM)
    b_q = load_tile(p_q, o_q, n - i_first, True, HEAD_DIM, BLOCK, BLOCK_DIM)

    # Tiles [first, last) hold visible keys; [band_first, band_last) may hold near ones.
    first = 0
    last = tl.where(i_first < n, tl.cdiv(n, BLOCK), 0)
    whole = tl.where(i_first < n, n // BLOCK, 0)
    if WINDOW:
        first = tl.maximum(i_first - window, 0) // BLOCK
        last = tl.minimum(last, tl.cdiv(i_first + BLOCK + window, BLOCK))
        first = tl.minimum(first, last)
        whole = first
        band_first = first
        band_last = last
    else:
        reach = tl.cdiv(near, BLOCK)
        band_first = tl.minimum(tl.maximum(i_block - reach, 0), last)
        band_last = tl.minimum(i_block + reach + 1, last)

    high = tl.full((BLOCK,), LOWEST, tl.float32)
    low = tl.full((BLOCK,), -LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if not WINDOW:
        high, total, low = _log_sums(
            high, total, low, b_q, p_k, o_k, stride_kn, i_row, first, whole, n, window, scale,
            False, WINDOW, FULL, HEAD_DIM, BLOCK, BLOCK_DIM, PRECISION, WIDEN,
        )  # fmt: skip
    high, total, low = _log_sums(
        high, total, low, b_q, p_k, o_k, stride_kn, i_row, whole, last, n, window, scale,
        True, WINDOW, FULL, HEAD_DIM, BLOCK, BLOCK_DIM, PRECISION, WIDEN,
    )  # fmt: skip
    lse = tl.where(m_row, high * scale + tl.log2(tl.where(m_row, total, 1.0)), NO_ROW)
    top = tl.exp2(tl.where(m_row, high * scale - lse, LOWEST))
    tl.store(p_lse + o_flat, lse, mask=m_slot)
    if FULL:
        low = tl.exp2(tl.where(m_row, low * scale - lse, LOWEST))
        if WINDOW:
            low = tl.where(n > window + 1, 0.0, low)
        tl.store(p_low + o_flat, low, mask=m_slot)
        tl.store(p_top + o_flat, top, mask=m_slot)
    shifted = lse - UNIT_SHIFT

    b_out = tl.zeros((BLOCK, BLOCK_DIM), tl.float32)
    b_far = tl.zeros((BLOCK, MAPS), tl.float32)
    b_all = tl.zeros((BLOCK, MAPS), tl.float32)
    moment = tl.zeros((BLOCK,), tl.float32)
    square = tl.zeros((BLOCK,), tl.float32)
    distance = tl.zeros((BLOCK,), tl.float32)
    offset = tl.zeros((BLOCK,), tl.float32)
    itself = tl.zeros((BLOCK,), tl.float32)
    forward = tl.zeros((BLOCK,), tl.float32)
    backward = tl.zeros((BLOCK,), tl.float32)
    near_self = tl.zeros((BLOCK,), tl.float32)
    near_forward = tl.zeros((BLOCK,), tl.float32)
    near_backward = tl.zeros((BLOCK,), tl.float32)
    confident = tl.zeros((BLOCK,), tl.float32)
    count = tl.zeros((BLOCK,), tl.float32)
    if COLUMNS:
        p_part = p_columns + (i_flat * n_blocks + i_block) * 3 * n_slots
    o_map = tl.arange(0, MAPS)

    # Whole tiles away from the band.
    before = tl.minimum(band_first, whole) - first
    after = tl.maximum(whole - band_last, 0)
    if WINDOW:
        before = 0
        after = 0
    for it in range(0, before + after):
        tile = tl.where(it < before, first + it, it - before + band_last)
        j_first = tile * BLOCK
        i_col = j_first + tl.arange(0, BLOCK)
        p_tile = p_k + tl.cast(tile, tl.int64) * BLOCK * stride_kn
        b_k = load_tile(p_tile, o_k, BLOCK, False, HEAD_DIM, BLOCK, BLOCK_DIM)
        p_tile = p_v + tl.cast(tile, tl.int64) * BLOCK * stride_vn
        b_v = load_tile(p_tile, o_v, BLOCK, False, HEAD_DIM, BLOCK, BLOCK_DIM)
        t = logits(b_q, b_k, PRECISION, WIDEN) * scale - shifted[:, None]
        p = tl.exp2(t)  # (BLOCK, BLOCK)
        content = tl.full((BLOCK,), 1.0, tl.float32)
        if SPECIAL:
            content = tl.where(tl.load(p_special + i_batch * n_slots + i_col) != 0, 0.0, 1.0)
        hit = p >= theta
        mass = tl.sum(p, 1)
        centre = tl.sum(p * (tl.arange(0, BLOCK) - BLOCK // 2).to(tl.float32)[None, :], 1)
        away = centre + (j_first + BLOCK // 2 - i_row).to(tl.float32) * mass
        ahead = j_first > i_first
        offset += away
        distance += tl.where(ahead, away, -away)
        forward += tl.where(ahead, mass, 0.0)
        backward += tl.where(ahead, 0.0, mass)
        moment += tl.sum(p * t, 1)
        square += tl.sum(p * p, 1)
        certain = tl.where(hit, p, 0.0)
        confident += tl.sum(certain, 1)
        count += tl.sum(tl.where(hit, 1.0, 0.0), 1)
        if COLUMNS:
            received = tl.sum(p, 0)
            tl.store(p_part + i_col, received / UNIT)
            tl.store(p_part + n_slots + i_col, received * content / UNIT)
            tl.store(p_part + 2 * n_slots + i_col, tl.sum(certain, 0) * content / UNIT)
        stretch = (i_col.to(tl.int64) * MAPS // n).to(tl.int32)
        member = stretch[:, None] == o_map[None, :]
        w = p.to(b_v.dtype)
        b_out = multiply(w, b_v, b_out, PRECISION, WIDEN)
        here = tl.where(member, content[:, None], 0.0).to(b_v.dtype)
        b_far = multiply(w, here, b_far, PRECISION, WIDEN)
        if FULL:
            b_all = multiply(w, tl.where(member, 1.0, 0.0).to(b_v.dtype), b_all, PRECISION, WIDEN)

    # Tiles of the band, and the last one where it is cut and outside of it.
    n_band = band_last - band_first
    cut = (whole < last) & (band_last < last)
    if WINDOW:
        cut = False
    for it in range(0, n_band + tl.where(cut, 1, 0)):
        tile = tl.where(it < n_band, band_first + it, last - 1)
        j_first = tile * BLOCK
        i_col = j_first + tl.arange(0, BLOCK)
        m_col = i_col < n
        p_tile = p_k + tl.cast(tile, tl.int64) * BLOCK * stride_kn
        b_k = load_tile(p_tile, o_k, n - j_first, True, HEAD_DIM, BLOCK, BLOCK_DIM)
        p_tile = p_v + tl.cast(tile, tl.int64) * BLOCK * stride_vn
        b_v = load_tile(p_tile, o_v, n - j_first, True, HEAD_DIM, BLOCK, BLOCK_DIM)
        t = logits(b_q, b_k, PRECISION, WIDEN) * scale - shifted[:, None]
        m = _visible(i_row, i_col, n, window, WINDOW)
        p = tl.where(m, tl.exp2(t), 0.0)  # (BLOCK, BLOCK)
        content = tl.full((BLOCK,), 1.0, tl.float32)
        if SPECIAL:
            p_s = p_special + i_batch * n_slots + i_col
            content = tl.where(tl.load(p_s, mask=m_col, other=0) != 0, 0.0, 1.0)
        away = i_col[None, :] - i_row[:, None]
        hit = p >= theta
        moment += tl.sum(p * t, 1)
        square += tl.sum(p * p, 1)
        offset += tl.sum(p * away.to(tl.float32), 1)
        distance += tl.sum(p * tl.abs(away).to(tl.float32), 1)
        forward += tl.sum(tl.where(away > 0, p, 0.0), 1)
        backward += tl.sum(tl.where(away < 0, p, 0.0), 1)
        itself += tl.sum(tl.where(away == 0, p, 0.0), 1)
        close = tl.where(tl.abs(away) <= near, p * content[None, :], 0.0)
        near_forward += tl.sum(tl.where(away > 0, close, 0.0), 1)
        near_backward += tl.sum(tl.where(away < 0, close, 0.0), 1)
        near_self += tl.sum(tl.where(away == 0, close, 0.0), 1)
        certain = tl.where(hit, p, 0.0)
        confident += tl.sum(certain, 1)
        count += tl.sum(tl.where(hit, 1.0, 0.0), 1)
        far = tl.where(tl.abs(away) > near, p * content[None, :], 0.0)
        if COLUMNS:
            tl.store(p_part + i_col, tl.sum(p, 0) / UNIT, mask=m_col)
            tl.store(p_part + n_slots + i_col, tl.sum(far, 0) / UNIT, mask=m_col)
            both = tl.sum(tl.where(hit, far, 0.0), 0) / UNIT
            tl.store(p_part + 2 * n_slots + i_col, both, mask=m_col)
        stretch = (i_col.to(tl.int64) * MAPS // tl.maximum(n, 1)).to(tl.int32)
        member = tl.where(stretch[:, None] == o_map[None, :], 1.0, 0.0).to(b_v.dtype)
        b_out = multiply(p.to(b_v.dtype), b_v, b_out, PRECISION, WIDEN)
        b_far = multiply(far.to(b_v.dtype), member, b_far, PRECISION, WIDEN)
        if FULL:
            b_all = multiply(p.to(b_v.dtype), member, b_all, PRECISION, WIDEN)

    o_dim = tl.arange(0, BLOCK_DIM)
    p_out = p_output + i_batch * stride_ob + i_head * stride_oh
    o_out = i_row.to(tl.int64)[:, None] * stride_on + o_dim[None, :]
    m_out = m_slot[:, None] & (o_dim < HEAD_DIM)[None, :]
    tl.store(p_out + o_out, (b_out / UNIT).to(p_output.dtype.element_ty), mask=m_out)

    # -sum p ln p, with t = log2 p + UNIT_SHIFT under the sum.
    weight = forward + backward + itself
    entropy = (weight * UNIT_SHIFT - moment) * (LN2 / UNIT)
    tl.store(p_entropy + o_flat, tl.maximum(entropy, 0.0), mask=m_slot)

    p_sum = p_scalars + (i_flat * n_blocks + i_block) * 12
    tl.store(p_sum, tl.sum(top, 0))
    tl.store(p_sum + 1, tl.sum(square, 0) / (UNIT * UNIT))
    tl.store(p_sum + 2, tl.sum(distance, 0) / UNIT)
    tl.store(p_sum + 3, tl.sum(offset, 0) / UNIT)
    tl.store(p_sum + 4, tl.sum(itself, 0) / UNIT)
    tl.store(p_sum + 5, tl.sum(forward, 0) / UNIT)
    tl.store(p_sum + 6, tl.sum(backward, 0) / UNIT)
    tl.store(p_sum + 7, tl.sum(near_self, 0) / UNIT)
    tl.store(p_sum + 8, tl.sum(near_forward, 0) / UNIT)
    tl.store(p_sum + 9, tl.sum(near_backward, 0) / UNIT)
    tl.store(p_sum + 10, tl.sum(confident, 0) / UNIT)
    tl.store(p_sum + 11, tl.sum(count, 0))

    # A block of rows spans few stretches.
    if i_first < n:
        i_last = tl.minimum(i_first + BLOCK, n) - 1
        own = (i_row.to(tl.int64) * MAPS // n).to(tl.int32)
        g_first = (i_first.to(tl.int64) * MAPS // n).to(tl.int32)
        g_last = (i_last.to(tl.int64) * MAPS // n).to(tl.int32)
        o_part = (i_flat * n_blocks + i_block) * MAPS * MAPS + o_map
        for g in range(g_first, g_last + 1):
            m_own = (own == g)[:, None]
            tl.store(p_far_map + o_part + g * MAPS, tl.sum(tl.where(m_own, b_far, 0.0), 0) / UNIT)
            if FULL:
                part = tl.sum(tl.where(m_own, b_all, 0.0), 0) / UNIT
                tl.store(p_block_map + o_part + g * MAPS, part)


@dataclass(frozen=True)
class RowSums:
    """What `attention_rows` leaves, blocks of rows already added up in order.

    Attributes:
        lse: (B, H, N) log2 of the sum of exp2 of the scaled logits; NO_ROW in padded slots.
        low, top: (B, H, N) smallest (0 in padded slots too) and largest weight of a row; None
            in tier core.
        entropy: (B, H, N) nats.
        scalars: (B, H, 12).
        columns: (B, H, 3, N) the column sums, far, confident and far; None for long windows.
        far_map: (B, H, 16, 16).
        block_map: the same, None in tier core.
    """

    lse: Tensor
    low: Tensor | None
    top: Tensor | None
    entropy: Tensor
    scalars: Tensor
    columns: Tensor | None
    far_map: Tensor
    block_map: Tensor | None


def rows_tiles(dtype: torch.dtype, head_dim: int) -> Tiles:
    """The pinned configuration."""
    wide = block_dim(head_dim) > 64
    if dtype == torch.float32:
        return Tiles(32, 4, 1)
    return Tiles(64, 4, 2) if not wide else Tiles(64, 4, 2)


def row_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    special: Tensor | None,
    options: Options,
) -> tuple[Tensor, RowSums]:
    """Output (B, H, N, d) and the sums of all rows."""
    batch, n_heads, n_slots, head_dim = query.shape
    tiles = rows_tiles(query.dtype, head_dim)
    n_blocks = ceil_div(n_slots, tiles.block)
    fused = n_slots <= FUSED_SLOTS
    heads = (batch, n_heads)
    output = query.new_empty(batch, n_slots, n_heads, head_dim).transpose(1, 2)
    single = {"dtype": torch.float32, "device": query.device}
    lse, entropy, low, top = torch.empty((4, *heads, n_slots), **single)
    scalars = torch.empty((*heads, n_blocks, N_SCALARS), **single)
    maps = torch.zeros((2 if options.full else 1, *heads, n_blocks, N_BLOCKS, N_BLOCKS), **single)
    columns = torch.zeros((*heads, n_blocks, 3, n_slots), **single) if fused else None
    attention_rows[(n_blocks, n_heads, batch)](
        query, key, value, output, lse, low, top, entropy, scalars, columns, maps[0], maps[-1],
        lengths, special,
        *query.stride(), *key.stride(), *value.stride(), *output.stride()[:3],
        n_slots, n_heads // key.shape[1],
        options.scale * LOG2E, options.theta * (1 - SLACK) * 2.0**UNIT_BITS,
        options.near, -1 if options.window is None else options.window,
        HEAD_DIM=head_dim, BLOCK_DIM=block_dim(head_dim), BLOCK=tiles.block,
        FULL=options.full, COLUMNS=fused, SPECIAL=special is not None,
        WINDOW=options.window is not None,
        PRECISION=precision_of(query.dtype), WIDEN=widen(query.dtype),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return output, RowSums(
        lse=lse,
        low=low if options.full else None,
        top=top if options.full else None,
        entropy=entropy,
        scalars=scalars.sum(2),
        columns=None if columns is None else columns.sum(2),
        far_map=maps[0].sum(2),
        block_map=maps[1].sum(2) if options.full else None,
    )
