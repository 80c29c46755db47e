"""Triton: column sums of long windows, from tiles that keep their keys and sweep the queries.

With the log-sum-exp of every row known, a transposed tile K Q^T holds the weights that a block
of keys receives. A column sum is then a sum along a row of the tile, finished in registers: no
partial sums in memory, O(N) whatever the length.
"""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import ceil_div
from ._gpu_tiles import (
    LOG2E,
    NO_ROW,
    Tiles,
    block_dim,
    load_tile,
    logits,
    precision_of,
    tile_offsets,
    widen,
)
from ._options import SLACK, Options


@triton.jit
def attention_columns(
    p_query,
    p_key,
    p_lse,
    p_columns,
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
    heads_per_key,
    scale,
    theta,
    near,
    window,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    SPECIAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Keys [block BLOCK, ...) of one head; p_columns (B, H, 3, N) is written whole."""
    i_block = tl.program_id(0)
    i_head = tl.program_id(1).to(tl.int64)
    i_batch = tl.program_id(2).to(tl.int64)
    n_heads = tl.num_programs(1)
    n = tl.load(p_lengths + i_batch)
    j_first = i_block * BLOCK
    i_col = j_first + tl.arange(0, BLOCK)
    m_slot = i_col < n_slots
    i_flat = i_batch * n_heads + i_head

    p_q = p_query + i_batch * stride_qb + i_head * stride_qh
    p_k = p_key + i_batch * stride_kb + (i_head // heads_per_key) * stride_kh
    p_k = p_k + j_first.to(tl.int64) * stride_kn
    o_q = tile_offsets(stride_qn, stride_qd, BLOCK, BLOCK_DIM)
    o_k = tile_offsets(stride_kn, stride_kd, BLOCK, BLOCK_DIM)
    b_k = load_tile(p_k, o_k, n - j_first, True, HEAD_DIM, BLOCK, BLOCK_DIM)

    first = 0
    last = tl.where(j_first < n, tl.cdiv(n, BLOCK), 0)
    if WINDOW:
        first = tl.maximum(j_first - window, 0) // BLOCK
        last = tl.minimum(last, tl.cdiv(j_first + BLOCK + window, BLOCK))
        first = tl.minimum(first, last)
    reach = tl.cdiv(near, BLOCK)

    received = tl.zeros((BLOCK,), tl.float32)
    close = tl.zeros((BLOCK,), tl.float32)
    confident = tl.zeros((BLOCK,), tl.float32)
    for tile in range(first, last):
        i_first = tile * BLOCK
        i_row = i_first + tl.arange(0, BLOCK)
        p_tile = p_q + tl.cast(tile, tl.int64) * BLOCK * stride_qn
        b_q = load_tile(p_tile, o_q, n - i_first, True, HEAD_DIM, BLOCK, BLOCK_DIM)
        lse = tl.load(p_lse + i_flat * n_slots + i_row, mask=i_row < n, other=NO_ROW)
        t = logits(b_k, b_q, PRECISION, WIDEN) * scale - lse[None, :]
        p = tl.exp2(t)  # (BLOCK keys, BLOCK queries)
        if WINDOW:
            p = tl.where(tl.abs(i_row[None, :] - i_col[:, None]) <= window, p, 0.0)
        received += tl.sum(p, 1)
        far = p
        if (tile >= i_block - reach) & (tile <= i_block + reach):
            m = tl.abs(i_row[None, :] - i_col[:, None]) <= near
            close += tl.sum(tl.where(m, p, 0.0), 1)
            far = tl.where(m, 0.0, p)
        confident += tl.sum(tl.where(far >= theta, far, 0.0), 1)

    m_content = i_col < n
    if SPECIAL:
        p_s = p_special + i_batch * n_slots + i_col
        m_content = m_content & (tl.load(p_s, mask=i_col < n, other=1) == 0)
    far = tl.where(m_content, tl.maximum(received - close, 0.0), 0.0)
    o_out = i_flat * 3 * n_slots + i_col
    tl.store(p_columns + o_out, tl.where(i_col < n, received, 0.0), mask=m_slot)
    tl.store(p_columns + o_out + n_slots, far, mask=m_slot)
    tl.store(p_columns + o_out + 2 * n_slots, tl.where(m_content, confident, 0.0), mask=m_slot)


def columns_tiles(dtype: torch.dtype, head_dim: int) -> Tiles:
    """The pinned configuration."""
    if dtype == torch.float32:
        return Tiles(32, 4, 1)
    return Tiles(64, 4, 2)


def column_sums(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    lengths: Tensor,
    special: Tensor | None,
    options: Options,
) -> Tensor:
    """(B, H, 3, N): the column sums, those of far cells, those of far and confident cells."""
    batch, n_heads, n_slots, head_dim = query.shape
    tiles = columns_tiles(query.dtype, head_dim)
    columns = torch.empty((batch, n_heads, 3, n_slots), dtype=torch.float32, device=query.device)
    attention_columns[(ceil_div(n_slots, tiles.block), n_heads, batch)](
        query, key, lse, columns, lengths, special,
        *query.stride(), *key.stride(),
        n_slots, n_heads // key.shape[1],
        options.scale * LOG2E, options.theta * (1 - SLACK),
        options.near, -1 if options.window is None else options.window,
        HEAD_DIM=head_dim, BLOCK_DIM=block_dim(head_dim), BLOCK=tiles.block,
        SPECIAL=special is not None, WINDOW=options.window is not None,
        PRECISION=precision_of(query.dtype), WIDEN=widen(query.dtype),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return columns
