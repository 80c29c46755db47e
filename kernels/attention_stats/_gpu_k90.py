"""Triton: how many of its largest weights a row needs to hold 0.9 of its mass.

A threshold t is narrowed between `high`, above which the weights do not hold the mass, and
`low`, above which they do. The mass and the number of weights above both are known, so that the
answer is read off once no more than one weight, or only equal ones, lie between. Steps alternate
between the middle of log t and the place where a straight line through both masses meets 0.9:
the first bounds the number of steps, the second takes few on smooth rows.

Windows up to RESIDENT_SLOTS keep the weights of a program's rows in registers; beyond, every
step computes them again from Q and K.
"""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import ceil_div, next_power_of_two
from ._gpu_tiles import (
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
from ._options import K90_MASS, Options

MASS = tl.constexpr(K90_MASS)
#: Half of them halve at most 23 octaves: weights apart by 2 ** -19 of themselves are told apart.
MAX_STEPS = 48
RESIDENT_SLOTS = 512


@triton.jit
def _row_weights(
    b_q,
    p_k,
    o_k,
    stride_kn,
    lse,
    i_row,
    j_first,
    n,
    window,
    scale,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    i_col = j_first + tl.arange(0, COLS)
    p_tile = p_k + tl.cast(j_first, tl.int64) * stride_kn
    b_k = load_tile(p_tile, o_k, n - j_first, True, HEAD_DIM, COLS, BLOCK_DIM)
    p = tl.exp2(logits(b_q, b_k, PRECISION, WIDEN) * scale - lse[:, None])
    m = (i_col < n)[None, :]
    if WINDOW:
        m = m & (tl.abs(i_col[None, :] - i_row[:, None]) <= window)
    return tl.where(m, p, 0.0)


@triton.jit
def attention_k90(
    p_query,
    p_key,
    p_lse,
    p_count,
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
    heads_per_key,
    scale,
    window,
    max_steps,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RESIDENT: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Rows [block ROWS, ...) of one head; p_count (B, H, N) int32, 0 in padded slots.

    RESIDENT: COLS columns hold the whole window.
    """
    i_head = tl.program_id(1).to(tl.int64)
    i_batch = tl.program_id(2).to(tl.int64)
    i_flat = i_batch * tl.num_programs(1) + i_head
    n = tl.load(p_lengths + i_batch)
    i_first = tl.program_id(0) * ROWS
    i_row = i_first + tl.arange(0, ROWS)
    m_row = i_row < n
    p_q = p_query + i_batch * stride_qb + i_head * stride_qh + i_first.to(tl.int64) * stride_qn
    p_k = p_key + i_batch * stride_kb + (i_head // heads_per_key) * stride_kh
    o_q = tile_offsets(stride_qn, stride_qd, ROWS, BLOCK_DIM)
    o_k = tile_offsets(stride_kn, stride_kd, COLS, BLOCK_DIM)
    b_q = load_tile(p_q, o_q, n - i_first, True, HEAD_DIM, ROWS, BLOCK_DIM)
    lse = tl.load(p_lse + i_flat * n_slots + i_row, mask=m_row, other=NO_ROW)

    first = 0
    last = tl.cdiv(n, COLS)
    if WINDOW:
        first = tl.maximum(i_first - window, 0) // COLS
        last = tl.minimum(last, tl.cdiv(i_first + ROWS + window, COLS))
    if RESIDENT:
        p = _row_weights(
            b_q, p_k, o_k, stride_kn, lse, i_row, 0, n, window, scale,
            WINDOW, HEAD_DIM, COLS, BLOCK_DIM, PRECISION, WIDEN,
        )  # fmt: skip

    # Weights below 0.05 / n hold less than 0.05 together; none exceeds 1.
    low = tl.zeros((ROWS,), tl.float32) - 4.4 - tl.log2(tl.maximum(n, 1).to(tl.float32))
    low_mass = tl.where(m_row, 1.0, 0.0)
    low_count = tl.where(m_row, n.to(tl.float32), 0.0)
    high = tl.full((ROWS,), 0.001, tl.float32)
    high_mass = tl.zeros((ROWS,), tl.float32)
    high_count = tl.zeros((ROWS,), tl.float32)
    # Weights this close (in log2) count as equal: n of them shift the count by less than 0.1.
    close = tl.maximum(0.1 / tl.maximum(n, 1).to(tl.float32), 4e-6)
    step = 0
    open_rows = tl.where(i_first < n, 1, 0)
    while (open_rows > 0) & (step < max_steps):
        line = (MASS - high_mass) / tl.maximum(low_mass - high_mass, 1e-20)
        line = tl.minimum(tl.maximum(line, 0.05), 0.95)
        part = tl.where(step % 2 == 1, line, 0.5)
        middle = high + (low - high) * part
        threshold = tl.exp2(middle)
        mass = tl.zeros((ROWS,), tl.float32)
        count = tl.zeros((ROWS,), tl.float32)
        if RESIDENT:
            hit = p >= threshold[:, None]
            mass = tl.sum(tl.where(hit, p, 0.0), 1)
            count = tl.sum(tl.where(hit, 1.0, 0.0), 1)
        else:
            for tile in range(first, last):
                b_p = _row_weights(
                    b_q, p_k, o_k, stride_kn, lse, i_row, tile * COLS, n, window, scale,
                    WINDOW, HEAD_DIM, COLS, BLOCK_DIM, PRECISION, WIDEN,
                )  # fmt: skip
                hit = b_p >= threshold[:, None]
                mass += tl.sum(tl.where(hit, b_p, 0.0), 1)
                count += tl.sum(tl.where(hit, 1.0, 0.0), 1)
        enough = mass >= MASS
        low = tl.where(enough, middle, low)
        low_mass = tl.where(enough, mass, low_mass)
        low_count = tl.where(enough, count, low_count)
        high = tl.where(enough, high, middle)
        high_mass = tl.where(enough, high_mass, mass)
        high_count = tl.where(enough, high_count, count)
        undecided = m_row & (low_count - high_count > 1.5) & (high - low > close)
        open_rows = tl.max(undecided.to(tl.int32), 0)
        step += 1

    # Between both thresholds: one weight, or equal ones.
    between = low_count - high_count
    weight = (low_mass - high_mass) / tl.maximum(between, 1.0)
    share = tl.minimum((MASS - high_mass) / tl.maximum(weight, 1e-30), between) - 1e-3
    needed = share.to(tl.int32) + 1
    count = high_count.to(tl.int32) + tl.maximum(needed, 1)
    o_flat = i_flat * n_slots + i_row
    tl.store(p_count + o_flat, tl.where(m_row, count, 0), mask=i_row < n_slots)


def k90_tiles(dtype: torch.dtype, head_dim: int, n_slots: int) -> tuple[Tiles, bool]:
    """The pinned configuration, and whether its columns hold the window."""
    wide = block_dim(head_dim) > 64
    cols = next_power_of_two(n_slots, 64)
    if dtype == torch.float32:
        if cols <= RESIDENT_SLOTS // 2 and not wide:
            return Tiles(16, cols, 8, 1), True
        return Tiles(16 if wide else 32, 32, 8 if wide else 4, 1), False
    if cols <= RESIDENT_SLOTS:
        return Tiles(16, cols, 8 if wide else 4, 1), True
    return Tiles(64, 64, 4, 2), False


def k90_counts(
    query: Tensor, key: Tensor, lse: Tensor, lengths: Tensor, options: Options
) -> Tensor:
    """(B, H, N) int32: k90 of every row, 0 in padded slots."""
    batch, n_heads, n_slots, head_dim = query.shape
    tiles, resident = k90_tiles(query.dtype, head_dim, n_slots)
    counts = torch.empty((batch, n_heads, n_slots), dtype=torch.int32, device=query.device)
    attention_k90[(ceil_div(n_slots, tiles.rows), n_heads, batch)](
        query, key, lse, counts, lengths,
        *query.stride(), *key.stride(),
        n_slots, n_heads // key.shape[1], options.scale * LOG2E,
        -1 if options.window is None else options.window, MAX_STEPS,
        HEAD_DIM=head_dim, BLOCK_DIM=block_dim(head_dim), ROWS=tiles.rows, COLS=tiles.cols,
        RESIDENT=resident, WINDOW=options.window is not None,
        PRECISION=PRECISION, WIDEN=widen(query.dtype),
        **compile_options(tiles),
    )  # fmt: skip
    return counts


def median_and_minimum(counts: Tensor, lengths: Tensor) -> Tensor:
    """(B, H, 2) int32: lower median and minimum of the valid rows; 0 without any."""
    # Padded slots sort behind every valid row.
    slot = torch.arange(counts.shape[-1], device=counts.device)
    valid = (slot < lengths[:, None])[:, None]
    ranked = counts.masked_fill(~valid, torch.iinfo(torch.int32).max).sort(dim=-1).values
    middle = ((lengths.long() - 1).clamp(min=0) // 2)[:, None, None].expand(*counts.shape[:2], 1)
    found = torch.cat([ranked.gather(-1, middle), ranked[..., :1]], dim=-1)
    return found.masked_fill((lengths == 0)[:, None, None], 0)
