"""Triton: the d x d products Q'Q, K'K and K'Q of a head, whose traces `finish` takes."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
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


@triton.jit
def _shrink(trace):
    """A power of two near 1 / sqrt(trace): exact to multiply with, whatever the size of logits."""
    return tl.exp2(-tl.ceil(0.5 * tl.log2(tl.where(trace > 0, trace, 1.0))))


@triton.jit
def _product_square(
    p_gram, by_q, by_k, i, D: tl.constexpr, BLOCK_DIM: tl.constexpr, STEP: tl.constexpr
):
    """Sums by column of (P P)_ii, P = Q'Q K'K, over rows i to i + STEP: P and its transpose K'K Q'Q
    are multiplied anew, as a whole P of 128 x 128 would take all registers."""
    o = tl.arange(0, BLOCK_DIM)
    row = i + tl.arange(0, STEP)
    p = tl.zeros((STEP, BLOCK_DIM), tl.float32)
    t = tl.zeros((STEP, BLOCK_DIM), tl.float32)
    for j in range(0, D, STEP):
        inner = j + tl.arange(0, STEP)
        m_a = (row < D)[:, None] & (inner < D)[None, :]
        o_a = row[:, None] * D + inner[None, :]
        m_b = (inner < D)[:, None] & (o < D)[None, :]
        o_b = inner[:, None] * D + o[None, :]
        a = tl.load(p_gram + o_a, mask=m_a, other=0.0) * by_q
        b = tl.load(p_gram + D * D + o_b, mask=m_b, other=0.0) * by_k
        p = tl.dot(a, b, p, input_precision="ieee")
        a = tl.load(p_gram + D * D + o_a, mask=m_a, other=0.0) * by_k
        b = tl.load(p_gram + o_b, mask=m_b, other=0.0) * by_q
        t = tl.dot(a, b, t, input_precision="ieee")
    return tl.sum(p * t, 0)


@triton.jit
def traces(p_gram, D: tl.constexpr, BLOCK_DIM: tl.constexpr, STEP: tl.constexpr):
    """|S|^2, tr(S^2) and tr((Q'Q K'K)^2) of the products of a head, the last in the square of the
    unit of the others, which is near |Q|^2 |K|^2."""
    o = tl.arange(0, BLOCK_DIM)
    m = o < D
    by_q = _shrink(tl.sum(tl.load(p_gram + o * (D + 1), mask=m, other=0.0), 0))
    by_k = _shrink(tl.sum(tl.load(p_gram + D * D + o * (D + 1), mask=m, other=0.0), 0))
    by_both = by_q * by_k
    by_q = by_q * by_q
    by_k = by_k * by_k
    norm = tl.zeros((BLOCK_DIM,), tl.float32)
    square = tl.zeros((BLOCK_DIM,), tl.float32)
    quartic = tl.zeros((BLOCK_DIM,), tl.float32)
    WHOLE: tl.constexpr = BLOCK_DIM <= 64
    if WHOLE:
        whole = tl.zeros((BLOCK_DIM, BLOCK_DIM), tl.float32)
    for i in range(0, D, STEP):
        row = i + tl.arange(0, STEP)
        m_r = (row < D)[:, None] & m[None, :]
        o_r = row[:, None] * D + o[None, :]
        o_t = o[None, :] * D + row[:, None]
        q = tl.load(p_gram + o_r, mask=m_r, other=0.0) * by_q
        k = tl.load(p_gram + D * D + o_r, mask=m_r, other=0.0) * by_k
        norm += tl.sum(q * k, 0)
        cross = tl.load(p_gram + 2 * D * D + o_r, mask=m_r, other=0.0) * by_both
        turned = tl.load(p_gram + 2 * D * D + o_t, mask=m_r, other=0.0) * by_both
        square += tl.sum(cross * turned, 0)
        if WHOLE:
            # Q'Q is symmetric: its columns are these rows.
            whole = tl.dot(tl.trans(q), k, whole, input_precision="ieee")
        else:
            quartic += _product_square(p_gram, by_q, by_k, i, D, BLOCK_DIM, STEP)
    if WHOLE:
        quartic = tl.sum(whole * tl.trans(whole), 0)
    return tl.sum(norm, 0), tl.sum(square, 0), tl.sum(quartic, 0)


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
