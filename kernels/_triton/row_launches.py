"""Launches of the kernels of `rows` over sets of vectors, and the memory of their results."""

from __future__ import annotations

from dataclasses import dataclass
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
class Sets:
    """S = B H sets of vectors on the device, and the results of `row_sums` and `merge_sums`.

    Attributes:
        x: (B, H, N, D), last stride 1. lengths: (B,) int32.
        norm: (S, n_padded) float32.
        out: (S, n_out) float32. kept: (S,) int32.
        axis, shift, mean: (S, D) float32; mean is None without moments.
        facts: (S, 3) float32.
        outliers: (S,) int32 or None.
    """

    x: Tensor
    lengths: Tensor
    norm: Tensor
    out: Tensor
    kept: Tensor
    axis: Tensor
    shift: Tensor
    mean: Tensor | None
    facts: Tensor
    outliers: Tensor | None

    @property
    def n_sets(self) -> int:
        """S."""
        return self.x.shape[0] * self.x.shape[1]

    @property
    def n_padded(self) -> int:
        """Rows of `norm`."""
        return self.norm.shape[1]

    def strides(self) -> tuple[int, ...]:
        """H, n_padded and the strides, as the kernels take them."""
        return (self.x.shape[1], self.n_padded, *self.x.stride()[:3])


def sum_sets(x: Tensor, lengths: Tensor, n_out: int, moments: bool) -> Sets:
    """`row_sums` and `merge_sums` of x (B, H, N, D)."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    batch, heads, n_slots, width = x.shape
    n_sets, n_padded = batch * heads, padded(n_slots)
    n_blocks = n_padded // BLOCK_ROWS
    lengths = lengths.to(torch.int32)
    new: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
    unit = torch.empty((n_sets, n_blocks, width), **new)
    rows = torch.empty_like(unit) if moments else None
    parts = torch.empty((n_sets, n_blocks, 5), **new) if moments else None
    found = Sets(
        x=x,
        lengths=lengths,
        norm=torch.empty((n_sets, n_padded), **new),
        out=torch.empty((n_sets, n_out), **new),
        kept=torch.empty(n_sets, device=x.device, dtype=torch.int32),
        axis=torch.empty((n_sets, width), **new),
        shift=torch.empty((n_sets, width), **new),
        mean=torch.empty((n_sets, width), **new) if moments else None,
        facts=torch.empty((n_sets, 3), **new),
        outliers=torch.empty(n_sets, device=x.device, dtype=torch.int32) if moments else None,
    )
    block, step = block_dim(width), steps(block_dim(width))
    launch(
        row_sums, n_blocks * n_sets,
        x, lengths, found.norm, unit, rows, parts, *found.strides(),
        WIDTH=width, BLOCK_DIM=block, STEP=step.rows, BLOCK_ROWS=BLOCK_ROWS, MOMENTS=moments,
        **options(step.warps),
    )  # fmt: skip
    launch(
        merge_sums, n_sets,
        lengths, found.norm, unit, rows, parts, found.out, found.kept, found.axis, found.shift,
        found.mean, found.facts, found.outliers, heads, n_padded, n_blocks,
        WIDTH=width, BLOCK_DIM=block, BLOCK_ROWS=BLOCK_ROWS, N_OUT=n_out, MOMENTS=moments,
        **options(4),
    )  # fmt: skip
    return found


@dataclass(frozen=True)
class Centred:
    """The results of `centre_rows`, see there; None for those not requested."""

    parts: Tensor
    vectors: Tensor | None = None
    alpha: Tensor | None = None
    scale: Tensor | None = None
    weight: Tensor | None = None


def centre_sets(
    sets: Sets, *, axis: bool, units: bool = False, rows: bool = False, ratio: bool = False
) -> Centred:
    """`centre_rows` of all sets."""
    n_sets, n_padded, width = sets.n_sets, sets.n_padded, sets.x.shape[-1]
    new: dict[str, Any] = {"device": sets.x.device, "dtype": torch.float32}
    kind = torch.float32 if sets.x.dtype == torch.float32 else torch.float16

    def per_row(wanted: bool) -> Tensor | None:
        return torch.empty((n_sets, n_padded), **new) if wanted else None

    found = Centred(
        parts=torch.empty((n_sets, n_padded // BLOCK_ROWS, 4), **new),
        vectors=(
            torch.empty((n_sets, n_padded, padded(width)), device=sets.x.device, dtype=kind)
            if units or rows
            else None
        ),
        alpha=per_row(units),
        scale=per_row(units),
        weight=per_row(ratio),
    )
    block = next_power_of_two(padded(width)) if units or rows else block_dim(width)
    step = steps(block)
    launch(
        centre_rows, n_padded // BLOCK_ROWS * n_sets,
        sets.x, sets.lengths, sets.norm, sets.axis, sets.shift, sets.mean, sets.facts,
        found.parts, found.vectors, found.alpha, found.scale, found.weight, *sets.strides(),
        WIDTH=width, WIDTH_PADDED=padded(width), BLOCK_DIM=block, STEP=step.rows,
        BLOCK_ROWS=BLOCK_ROWS, WITH_AXIS=axis, UNITS=units, ROWS=rows, RATIO=ratio,
        **options(step.warps),
    )  # fmt: skip
    return found


def options(warps: int, stages: int = 2) -> dict[str, Any]:
    """How a kernel is compiled; the default of fused multiply-add changes between releases."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
