"""Triton: the cones of a head's queries, keys, values and outputs, all in one launch.

The same sums as those of `cone_sums`: unit vectors in float32 over some blocks of rows, those in
float64. A head is narrow enough for one program to read all of it: no partial sum is written.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from bertgeom.kernels._triton.programs import any_length, head_of, launch, tokens_of
from bertgeom.kernels._triton.rows import BLOCK_ROWS, INFINITY, inverse, load_rows
from bertgeom.kernels.attention_stats.gpu.finish import AT_CONES
from bertgeom.kernels.attention_stats.gpu.tiles import Tiles, block_dim, compile_options

#: Blocks of rows that are added up before lanes are.
TOGETHER = tl.constexpr(16)
#: Queries, keys, values, outputs.
N_KINDS = tl.constexpr(4)


@triton.jit
def _store_cone(
    p_out, p_x, stride_n, stride_d, n, WIDTH: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Cone index and, N_KINDS further, mean cosine of n rows; see `rows.row_sums`, `merge_sums`."""
    o_dim = tl.arange(0, BLOCK_DIM)
    m_dim = o_dim < WIDTH
    total = tl.zeros((BLOCK_DIM,), tl.float64)
    kept = tl.zeros((BLOCK_ROWS,), tl.int32)
    finite = tl.zeros((BLOCK_ROWS,), tl.int32)
    for begin in range(0, n, TOGETHER * BLOCK_ROWS):
        units = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
        for first in range(begin, tl.minimum(begin + TOGETHER * BLOCK_ROWS, n), BLOCK_ROWS):
            o_row = first + tl.arange(0, BLOCK_ROWS)
            m_row = o_row < n
            x = load_rows(p_x, o_row, stride_n, m_row[:, None] & m_dim[None, :], o_dim * stride_d)
            # Scaled by the largest entry, so that no square over- or underflows.
            largest = tl.max(tl.abs(x), axis=1)
            scaled = x * inverse(largest)[:, None]
            norm = largest * tl.sqrt(tl.sum(scaled * scaled, axis=1))
            # tl.max drops NaN; a sum keeps it, that of the squares above too.
            units += x * inverse(norm)[:, None]
            kept += (norm > 0).to(tl.int32)
            finite += ((norm < INFINITY) & m_row).to(tl.int32)
        total += tl.sum(units, axis=0).to(tl.float64)
    n_kept = tl.sum(kept, axis=0)
    some = (tl.sum(finite, axis=0) >= n) & (n_kept > 0)
    index = tl.sqrt(tl.sum(total * total, axis=0))
    wide = n_kept.to(tl.float64)
    cosine = (index * index - wide) / tl.maximum(wide * (wide - 1), 1.0)
    tl.store(p_out, tl.where(some, index, float("nan")).to(tl.float32))
    tl.store(p_out + N_KINDS, tl.where(some & (n_kept > 1), cosine, float("nan")).to(tl.float32))


@any_length
def attention_cones(
    p_query,
    p_key,
    p_value,
    p_output,
    p_out,
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
    out_width,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """One kind of vectors of one head of one window: p_out (B, H, out_width) takes the cone index
    at the kind's number and the mean cosine at 4 + that; p_output has last stride 1."""
    kind, i_head, i_batch, i_flat = head_of(tl.program_id(0), n_heads, N_KINDS)
    n = tokens_of(p_lengths, i_batch, n_slots)
    i_key = i_head // heads_per_key
    p_o = p_out + i_flat * out_width + kind
    if kind == 0:
        p_x = p_query + i_batch * stride_qb + i_head * stride_qh
        _store_cone(p_o, p_x, stride_qn, stride_qd, n, HEAD_DIM, BLOCK_DIM, BLOCK_ROWS)
    elif kind == 1:
        p_x = p_key + i_batch * stride_kb + i_key * stride_kh
        _store_cone(p_o, p_x, stride_kn, stride_kd, n, HEAD_DIM, BLOCK_DIM, BLOCK_ROWS)
    elif kind == 2:
        p_x = p_value + i_batch * stride_vb + i_key * stride_vh
        _store_cone(p_o, p_x, stride_vn, stride_vd, n, HEAD_DIM, BLOCK_DIM, BLOCK_ROWS)
    else:
        p_x = p_output + i_batch * stride_ob + i_head * stride_oh
        _store_cone(p_o, p_x, stride_on, 1, n, HEAD_DIM, BLOCK_DIM, BLOCK_ROWS)


def cones_tiles(head_dim: int) -> Tiles:
    """The pinned configuration."""
    width = block_dim(head_dim)
    # Four warps spill at 64 values a row, eight at 128.
    warps = 4 if width < 64 else 8 if width < 128 else 16
    return Tiles(BLOCK_ROWS, width, warps, 2)


def store_cones(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, packed: Tensor, lengths: Tensor
) -> None:
    """Writes the cones of every head to their places of the packed tensor of `finish`."""
    batch, n_heads, n_slots, head_dim = query.shape
    tiles = cones_tiles(head_dim)
    launch(
        attention_cones, 4 * n_heads * batch,
        query, key, value, output, packed[..., AT_CONES.value :], lengths,
        *query.stride(), *key.stride(), *value.stride(), *output.stride()[:3],
        n_slots, n_heads, n_heads // key.shape[1], packed.shape[-1],
        HEAD_DIM=head_dim, BLOCK_DIM=block_dim(head_dim), BLOCK_ROWS=tiles.rows,
        **compile_options(tiles),
    )  # fmt: skip
