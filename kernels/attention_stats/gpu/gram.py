"""Triton: the d x d products Q'Q, K'K and K'Q of a head, whose traces `finish` takes."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from bertgeom.kernels._triton.programs import any_length, head_of, launch, tokens_of
from bertgeom.kernels.attention_stats.gpu.tiles import (
    PRECISION,
    Tiles,
    block_dim,
    compile_options,
    load_tile,
    multiply,
    tile_offsets,
    widen,
)


@any_length
def attention_gram(
    p_query,
    p_key,
    p_gram,
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
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One head of one window: p_gram (B, H, 3, d, d) takes Q'Q, K'K, K'Q."""
    _, i_head, i_batch, i_flat = head_of(tl.program_id(0), n_heads, 1)
    n = tokens_of(p_lengths, i_batch, n_slots)
    p_q = p_query + i_batch * stride_qb + i_head * stride_qh
    p_k = p_key + i_batch * stride_kb + (i_head // heads_per_key) * stride_kh
    o_q = tile_offsets(stride_qn, stride_qd, BLOCK, BLOCK_DIM)
    o_k = tile_offsets(stride_kn, stride_kd, BLOCK, BLOCK_DIM)
    queries = tl.zeros((BLOCK_DIM, BLOCK_DIM), tl.float32)
    keys = tl.zeros((BLOCK_DIM, BLOCK_DIM), tl.float32)
    cross = tl.zeros((BLOCK_DIM, BLOCK_DIM), tl.float32)
    for tile in range(tl.cdiv(n, BLOCK)):
        first = tl.cast(tile, tl.int64) * BLOCK
        left = n - tile * BLOCK
        b_q = load_tile(p_q + first * stride_qn, o_q, left, True, HEAD_DIM, BLOCK, BLOCK_DIM)
        b_k = load_tile(p_k + first * stride_kn, o_k, left, True, HEAD_DIM, BLOCK, BLOCK_DIM)
        queries = multiply(tl.trans(b_q), b_q, queries, PRECISION, WIDEN)
        keys = multiply(tl.trans(b_k), b_k, keys, PRECISION, WIDEN)
        cross = multiply(tl.trans(b_k), b_q, cross, PRECISION, WIDEN)
    o_row = tl.arange(0, BLOCK_DIM)
    o_out = o_row[:, None] * HEAD_DIM + o_row[None, :]
    m_out = (o_row < HEAD_DIM)[:, None] & (o_row < HEAD_DIM)[None, :]
    p_out = p_gram + i_flat * 3 * HEAD_DIM * HEAD_DIM + o_out
    tl.store(p_out, queries, mask=m_out)
    tl.store(p_out + HEAD_DIM * HEAD_DIM, keys, mask=m_out)
    tl.store(p_out + 2 * HEAD_DIM * HEAD_DIM, cross, mask=m_out)


def gram_tiles(dtype: torch.dtype, head_dim: int) -> Tiles:
    """The pinned configuration."""
    warps = 16 if block_dim(head_dim) > 64 else 4
    if dtype == torch.float32:
        return Tiles(16, 16, max(8, warps), 1)
    return Tiles(64, 64, warps, 2)


def gram_matrices(query: Tensor, key: Tensor, lengths: Tensor) -> Tensor:
    """(B, H, 3, d, d) float32: Q'Q, K'K and K'Q of every head."""
    batch, n_heads, n_slots, head_dim = query.shape
    tiles = gram_tiles(query.dtype, head_dim)
    gram = query.new_empty((batch, n_heads, 3, head_dim, head_dim), dtype=torch.float32)
    launch(
        attention_gram, n_heads * batch,
        query, key, gram, lengths,
        *query.stride(), *key.stride(), n_slots, n_heads, n_heads // key.shape[1],
        HEAD_DIM=head_dim, BLOCK_DIM=block_dim(head_dim), BLOCK=tiles.rows,
        PRECISION=PRECISION, WIDEN=widen(query.dtype),
        **compile_options(tiles),
    )  # fmt: skip
    return gram
