"""Triton: the attention output, and the statistics of a whole row: log-sum-exp, entropy,
extremes.

One sweep over the keys with a running maximum. The entropy comes along as the sum of e t, with
e = exp2(t) and t the logit below the running maximum: nothing cancels, whatever the logits.
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
    LN2,
    LOG2E,
    LOWEST,
    NO_ROW,
    PRECISION,
    Tiles,
    block_dim,
    compile_options,
    load_tile,
    logits,
    multiply,
    tile_offsets,
    widen,
)
from bertgeom.kernels.attention_stats.options import Options


@triton.jit
def _sweep(
    high,
    total,
    moment,
    low,
    b_out,
    b_q,
    p_k,
    p_v,
    stride_kn,
    stride_kd,
    stride_vn,
    stride_vd,
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
    COLS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Key tiles [first, last): running maximum, sum of e, sum of e t, minimum, sum of e v."""
    o_k = tile_offsets(stride_kn, stride_kd, COLS, BLOCK_DIM)
    o_v = tile_offsets(stride_vn, stride_vd, COLS, BLOCK_DIM)
    for tile in range(first, last):
        j_first = tile * COLS
        p_tile = p_k + tl.cast(j_first, tl.int64) * stride_kn
        b_k = load_tile(p_tile, o_k, n - j_first, MASKED, HEAD_DIM, COLS, BLOCK_DIM)
        p_tile = p_v + tl.cast(j_first, tl.int64) * stride_vn
        b_v = load_tile(p_tile, o_v, n - j_first, MASKED, HEAD_DIM, COLS, BLOCK_DIM)
        s = logits(b_q, b_k, PRECISION, WIDEN)  # (ROWS, COLS)
        if MASKED:
            i_col = j_first + tl.arange(0, COLS)
            m = (i_col < n)[None, :]
            if WINDOW:
                m = m & (tl.abs(i_col[None, :] - i_row[:, None]) <= window)
            if LOW:
                low = tl.minimum(low, tl.min(tl.where(m, s, -LOWEST), 1))
            s = tl.where(m, s, 2 * LOWEST)
        elif LOW:
            low = tl.minimum(low, tl.min(s, 1))
        higher = tl.maximum(high, tl.max(s, 1))
        t = s * scale - (higher * scale)[:, None]
        e = tl.exp2(t)
        rise = (high - higher) * scale
        shrink = tl.exp2(rise)
        # Before the first visible key nothing is held: 0 x any rise, kept finite by LOWEST.
        moment = shrink * (moment + total * rise) + tl.sum(e * t, 1)
        total = total * shrink + tl.sum(e, 1)
        b_out = multiply(e.to(b_v.dtype), b_v, b_out * shrink[:, None], PRECISION, WIDEN)
        high = higher
    return high, total, moment, low, b_out


@any_length
def attention_rows(
    p_query,
    p_key,
    p_value,
    p_output,
    p_lse,
    p_entropy,
    p_top,
    p_low,
    p_lengths,
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
    n_heads,
    heads_per_key,
    scale,
    window,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    FULL: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Rows [block ROWS, ...) of one head of one window.

    p_output (B, H, N, d) has last stride 1; p_lse (log2), p_entropy (nats), p_top and, if FULL,
    p_low (largest and smallest weight) are (B, H, N). All are written in every slot.
    """
    n_blocks = tl.cdiv(n_slots, ROWS)
    i_block, i_head, i_batch, i_flat = head_of(tl.program_id(0), n_heads, n_blocks)
    n = tokens_of(p_lengths, i_batch, n_slots)
    i_first = i_block * ROWS
    i_row = i_first + tl.arange(0, ROWS)
    m_row = i_row < n
    m_slot = i_row < n_slots
    i_key_head = i_head // heads_per_key
    p_q = p_query + i_batch * stride_qb + i_head * stride_qh + i_first.to(tl.int64) * stride_qn
    p_k = p_key + i_batch * stride_kb + i_key_head * stride_kh
    p_v = p_value + i_batch * stride_vb + i_key_head * stride_vh
    o_q = tile_offsets(stride_qn, stride_qd, ROWS, BLOCK_DIM)
    b_q = load_tile(p_q, o_q, n - i_first, True, HEAD_DIM, ROWS, BLOCK_DIM)

    high = tl.full((ROWS,), LOWEST, tl.float32)
    low = tl.full((ROWS,), -LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    b_out = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    first = 0
    last = tl.where(i_first < n, tl.cdiv(n, COLS), 0)
    whole = tl.where(i_first < n, n // COLS, 0)
    if WINDOW:
        last = tl.minimum(last, tl.cdiv(i_first + ROWS + window, COLS))
        whole = tl.minimum(tl.maximum(i_first - window, 0) // COLS, last)
    else:
        high, total, moment, low, b_out = _sweep(
            high, total, moment, low, b_out, b_q, p_k, p_v,
            stride_kn, stride_kd, stride_vn, stride_vd, i_row, first, whole, n, window, scale,
            False, WINDOW, FULL, HEAD_DIM, COLS, BLOCK_DIM, PRECISION, WIDEN,
        )  # fmt: skip
    high, total, moment, low, b_out = _sweep(
        high, total, moment, low, b_out, b_q, p_k, p_v,
        stride_kn, stride_kd, stride_vn, stride_vd, i_row, whole, last, n, window, scale,
        True, WINDOW, FULL, HEAD_DIM, COLS, BLOCK_DIM, PRECISION, WIDEN,
    )  # fmt: skip

    safe = tl.where(m_row, total, 1.0)
    spread = tl.log2(safe)
    lse = tl.where(m_row, high * scale + spread, NO_ROW)
    # Of the largest weight and a NaN, tl.maximum returns the weight; a comparison keeps the NaN.
    entropy = spread - moment / safe
    entropy = tl.where(m_row, tl.where(entropy < 0.0, 0.0, entropy) * LN2, 0.0)
    o_flat = i_flat * n_slots + i_row
    tl.store(p_lse + o_flat, lse, mask=m_slot)
    tl.store(p_entropy + o_flat, entropy, mask=m_slot)
    tl.store(p_top + o_flat, tl.where(m_row, 1.0 / safe, 0.0), mask=m_slot)
    if FULL:
        least = tl.exp2(tl.where(m_row, (low - high) * scale - spread, 0.0))
        if WINDOW:
            least = tl.where(n > window + 1, 0.0, least)
        tl.store(p_low + o_flat, tl.where(m_row, least, 0.0), mask=m_slot)

    b_out = tl.where(m_row[:, None], b_out / safe[:, None], 0.0)
    o_dim = tl.arange(0, BLOCK_DIM)
    o_out = i_row.to(tl.int64)[:, None] * stride_on + o_dim[None, :]
    p_out = p_output + i_batch * stride_ob + i_head * stride_oh + o_out
    m_out = m_slot[:, None] & (o_dim < HEAD_DIM)[None, :]
    tl.store(p_out, b_out.to(p_output.dtype.element_ty), mask=m_out)


@dataclass(frozen=True)
class RowValues:
    """The results of `attention_rows`, (B, H, N) float32 each; 0 in padded slots, except `lse`.

    Attributes:
        lse: log2 of the sum of exp2 of log2(e) times the scaled logits; 1e30 in padded slots.
        entropy: nats.
        top, low: largest and smallest weight of a row; `low` None in tier core.
    """

    lse: Tensor
    entropy: Tensor
    top: Tensor
    low: Tensor | None


def rows_tiles(dtype: torch.dtype, head_dim: int) -> Tiles:
    """The pinned configuration."""
    wide = block_dim(head_dim) > 64
    if dtype == torch.float32:
        return Tiles(16, 16, 8, 1) if wide else Tiles(32, 32, 4, 1)
    return Tiles(64, 32 if wide else 64, 4, 2)


def row_values(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, options: Options
) -> tuple[Tensor, RowValues]:
    """Output (B, H, N, d), and the values of every row."""
    batch, n_heads, n_slots, head_dim = query.shape
    tiles = rows_tiles(query.dtype, head_dim)
    output = query.new_empty(batch, n_slots, n_heads, head_dim).transpose(1, 2)
    shape = (4 if options.full else 3, batch, n_heads, n_slots)
    rows = torch.empty(shape, dtype=torch.float32, device=query.device)
    low = rows[3] if options.full else None
    launch(
        attention_rows, ceil_div(n_slots, tiles.rows) * n_heads * batch,
        query, key, value, output, rows[0], rows[1], rows[2], low, lengths,
        *query.stride(), *key.stride(), *value.stride(), *output.stride()[:3],
        n_slots, n_heads, n_heads // key.shape[1], options.scale * LOG2E,
        -1 if options.window is None else options.window,
        HEAD_DIM=head_dim, BLOCK_DIM=block_dim(head_dim), ROWS=tiles.rows, COLS=tiles.cols,
        FULL=options.full, WINDOW=options.window is not None,
        PRECISION=PRECISION, WIDEN=widen(query.dtype),
        **compile_options(tiles),
    )  # fmt: skip
    return output, RowValues(lse=rows[0], entropy=rows[1], top=rows[2], low=low)
