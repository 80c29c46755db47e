"""Launches of the kernels of `rows` over sets of vectors, and the memory of their results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bertgeom.kernels._triton.programs import launch
from bertgeom.kernels._triton.rows import BLOCK_ROWS, TILE, centre_rows, merge_sums, row_sums
from bertgeom.kernels._triton.rules import ceil_div, next_power_of_two


@dataclass(frozen=True)
class Steps:
    """Rows a program loads at once, and its warps."""

    rows: int
    warps: int


def steps(block_dim: int) -> Steps:
    """The pinned configuration of the row kernels."""
    return Steps(min(32, max(1, 4096 // block_dim)), 4 if block_dim < 1024 else 8)


def block_dim(width: int) -> int:
    """The power of two that a row is padded to."""
    return next_power_of_two(width, 64)


def padded(n: int) -> int:
    """n rounded up to whole tiles."""
    return ceil_div(n, TILE) * TILE


@dataclass(frozen=True)
class Rows:
    """S = B H sets of vectors on the device, and the results of `row_sums`.

    Attributes:
        x: (B, H, N, D), last stride 1. lengths: (B,) integers.
        norm: (S, n_padded) float32.
        unit, rows: (S, K, D) float32; moments: (S, K, 5); the last two None unless asked for.
    """

    x: Tensor
    lengths: Tensor
    norm: Tensor
    unit: Tensor
    rows: Tensor | None
    moments: Tensor | None

    @property
    def n_sets(self) -> int:
        """S."""
        return self.norm.shape[0]

    @property
    def n_padded(self) -> int:
        """Rows of `norm`."""
        return self.norm.shape[1]

    @property
    def n_blocks(self) -> int:
        """K."""
        return self.n_padded // BLOCK_ROWS


def sum_rows(x: Tensor, lengths: Tensor, moments: bool) -> Rows:
    """`row_sums` of x (B, H, N, D)."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    batch, heads, n_slots, width = x.shape
    n_sets, n_padded = batch * heads, padded(n_slots)
    n_blocks = n_padded // BLOCK_ROWS
    new: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
    found = Rows(
        x=x,
        lengths=lengths,
        norm=torch.empty((n_sets, n_padded), **new),
        unit=torch.empty((n_sets, n_blocks, width), **new),
        rows=torch.empty((n_sets, n_blocks, width), **new) if moments else None,
        moments=torch.empty((n_sets, n_blocks, 5), **new) if moments else None,
    )
    block, step = block_dim(width), steps(block_dim(width))
    launch(
        row_sums, n_blocks * n_sets,
        x, lengths, found.norm, found.unit, found.rows, found.moments,
        heads, n_slots, n_padded, *x.stride()[:3],
        WIDTH=width, BLOCK_DIM=block, STEP=step.rows, BLOCK_ROWS=BLOCK_ROWS, MOMENTS=moments,
        **options(step.warps),
    )  # fmt: skip
    return found


@dataclass(frozen=True)
class Sets:
    """Sets of vectors, and the results of `row_sums` and `merge_sums`.

    Attributes:
        x: (B, H, N, D), last stride 1. lengths: (B,) int32.
        norm: (S, n_padded) float32.
        out: (S, n_out) float32. kept: (S,) int32.
        axis, shift: (S, D) float32.
        facts: (S, 2) float32.
    """

    x: Tensor
    lengths: Tensor
    norm: Tensor
    out: Tensor
    kept: Tensor
    axis: Tensor
    shift: Tensor
    facts: Tensor

    @property
    def n_sets(self) -> int:
        """S."""
        return self.norm.shape[0]

    @property
    def n_padded(self) -> int:
        """Rows of `norm`."""
        return self.norm.shape[1]


def sum_sets(x: Tensor, lengths: Tensor, n_out: int) -> Sets:
    """`row_sums` and `merge_sums` of x (B, H, N, D)."""
    rows = sum_rows(x, lengths.to(torch.int32), moments=False)
    width, n_sets = x.shape[-1], rows.n_sets
    new: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
    found = Sets(
        x=rows.x,
        lengths=rows.lengths,
        norm=rows.norm,
        out=torch.empty((n_sets, n_out), **new),
        kept=torch.empty(n_sets, device=x.device, dtype=torch.int32),
        axis=torch.empty((n_sets, width), **new),
        shift=torch.empty((n_sets, width), **new),
        facts=torch.empty((n_sets, 2), **new),
    )
    launch(
        merge_sums, n_sets,
        found.lengths, found.norm, rows.unit, found.out, found.kept, found.axis, found.shift,
        found.facts, x.shape[1], rows.n_padded, rows.n_blocks,
        WIDTH=width, BLOCK_DIM=block_dim(width), BLOCK_ROWS=BLOCK_ROWS, N_OUT=n_out,
        **options(4),
    )  # fmt: skip
    return found


@dataclass(frozen=True)
class Centred:
    """The results of `centre_rows`, see there; None for those not requested."""

    parts: Tensor | None = None
    vectors: Tensor | None = None
    alpha: Tensor | None = None
    scale: Tensor | None = None


def vector_type(x: Tensor) -> torch.dtype:
    """Type in which vectors are multiplied: fp16 for both types of half precision."""
    return torch.float32 if x.dtype == torch.float32 else torch.float16


def centre_sets(sets: Sets, *, axis: bool, units: bool = False) -> Centred:
    """`centre_rows` of all sets."""
    n_sets, n_padded, width = sets.n_sets, sets.n_padded, sets.x.shape[-1]
    new: dict[str, Any] = {"device": sets.x.device, "dtype": torch.float32}
    found = Centred()
    if axis:
        found = replace(found, parts=torch.empty((n_sets, n_padded // BLOCK_ROWS, 2), **new))
    if units:
        shape, kind = (n_sets, n_padded, padded(width)), vector_type(sets.x)
        found = replace(
            found,
            vectors=torch.empty(shape, device=sets.x.device, dtype=kind),
            alpha=torch.empty((n_sets, n_padded), **new),
            scale=torch.empty((n_sets, n_padded), **new),
        )
    block = next_power_of_two(padded(width)) if units else block_dim(width)
    step = steps(block)
    launch(
        centre_rows, n_padded // BLOCK_ROWS * n_sets,
        sets.x, sets.lengths, sets.norm, sets.axis, sets.shift, sets.facts,
        found.parts, found.vectors, found.alpha, found.scale,
        sets.x.shape[1], n_padded, *sets.x.stride()[:3],
        WIDTH=width, WIDTH_PADDED=padded(width), BLOCK_DIM=block, STEP=step.rows,
        BLOCK_ROWS=BLOCK_ROWS, WITH_AXIS=axis, UNITS=units,
        **options(step.warps),
    )  # fmt: skip
    return found


def options(warps: int, stages: int = 2) -> dict[str, Any]:
    """How a kernel is compiled; the default of fused multiply-add changes between releases."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
