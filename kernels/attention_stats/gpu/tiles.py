"""What the Triton kernels of attention statistics share: tiles, products, configurations.

Weights are kept in units of 2 ** -UNIT_BITS: exp2(t) with t = log2(e) scale q.k - lse + UNIT_BITS.
A weight of 1 is then 32768, within fp16, and a weight of 1e-7 still has all bits of an fp16
significand when it enters the product with V. The factor is exact and is taken out of the sums.
"""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from bertgeom.kernels._triton.rules import interpreting, next_power_of_two

LOG2E = 1.4426950408889634
UNIT_BITS = 15
UNIT = tl.constexpr(2.0**UNIT_BITS)
UNIT_SHIFT = tl.constexpr(float(UNIT_BITS))
LN2 = tl.constexpr(0.6931471805599453)
#: Log-sum-exp of a row in a padded slot: every weight under it is exactly 0.
NO_ROW = tl.constexpr(1e30)
#: Below every logit; finite, so that it can be subtracted from itself.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def tile_offsets(stride_row, stride_dim, BLOCK: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Offsets of a tile of rows from the address of its first element, in int64."""
    o_row = tl.arange(0, BLOCK).to(tl.int64)
    o_dim = tl.arange(0, BLOCK_DIM).to(tl.int64)
    return o_row[:, None] * stride_row + o_dim[None, :] * stride_dim


@triton.jit
def load_tile(
    p_first,
    offsets,
    n_left,
    CHECK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """A tile of rows; zeros beyond the first `n_left` rows (if CHECK) and beyond HEAD_DIM."""
    m_dim = tl.arange(0, BLOCK_DIM)[None, :] < HEAD_DIM
    m_row = tl.arange(0, BLOCK)[:, None] < n_left
    if CHECK:
        if HEAD_DIM == BLOCK_DIM:
            tile = tl.load(p_first + offsets, mask=m_row, other=0.0)
        else:
            tile = tl.load(p_first + offsets, mask=m_row & m_dim, other=0.0)
    else:
        if HEAD_DIM == BLOCK_DIM:
            tile = tl.load(p_first + offsets)
        else:
            tile = tl.load(p_first + offsets, mask=m_dim, other=0.0)
    return tile


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """acc + a b in fp32. WIDEN: the interpreter has no bf16 product; the wider one is the same."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def logits(b_rows, b_cols, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Unscaled dot products of two tiles of rows."""
    zero = tl.zeros((b_rows.shape[0], b_cols.shape[0]), tl.float32)
    return multiply(b_rows, tl.trans(b_cols), zero, PRECISION, WIDEN)


@dataclass(frozen=True)
class Tiles:
    """Shape of a kernel's tiles and how it is compiled."""

    rows: int
    cols: int
    warps: int
    stages: int


#: Products of fp32 tiles keep fp32 accuracy. Three TF32 products would need wgmma operands that
#: spill at these tiles; the FMA units run them at a similar rate.
PRECISION = "ieee"


def widen(dtype: torch.dtype) -> bool:
    """Whether `multiply` must widen its operands."""
    return dtype == torch.bfloat16 and interpreting()


def block_dim(head_dim: int) -> int:
    """The power of two that a tile's rows are padded to."""
    return next_power_of_two(head_dim, 16)


def compile_options(tiles: Tiles) -> dict[str, Any]:
    """How a kernel is compiled; the default of fused multiply-add changes between releases."""
    return {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
