"""Launches of the kernels of `angles` over sets of vectors, and the memory of their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from bertgeom.kernels._triton.angles import angle_tiles, finish_sets, fold_tiles
from bertgeom.kernels._triton.programs import launch
from bertgeom.kernels._triton.row_launches import Centred, Sets, options
from bertgeom.kernels._triton.rows import BLOCK_ROWS
from bertgeom.kernels._triton.rules import ceil_div, next_power_of_two

#: Tiles that one program folds into one where there are more, and how many it reads at once.
#: A tile has at most 2^14 pairs, so that 32-bit counts hold FOLD of them.
FOLD, FOLD_STEP = 128, 8


@dataclass(frozen=True)
class Products:
    """How tiles of products are computed: rows and columns, depth of a step, compilation."""

    block: int
    depth: int
    warps: int
    stages: int
    precision: str


def tile_products(dtype: torch.dtype) -> Products:
    """The pinned configuration for centred vectors of a type, fp16 or fp32."""
    if dtype == torch.float32:
        return Products(block=64, depth=32, warps=8, stages=2, precision="ieee")
    return Products(block=128, depth=64, warps=8, stages=3, precision="ieee")


def n_parts(ratio: bool) -> int:
    """Parts that a tile is summarised in. Without the covariance, four leave room for a second
    program on a multiprocessor of sm_90; with it they do not, and on sm_80 they spill."""
    return 2 if ratio else 4


def n_triangle(rows: int, block: int) -> int:
    """Tiles of the upper triangle of rows x rows."""
    side = rows // block
    return side * (side + 1) // 2


def block_bins(bins: int) -> int:
    """Bins rounded up to whole groups, and to a power of two."""
    return next_power_of_two(ceil_div(bins, 4) * 4)


@dataclass(frozen=True)
class TileSums:
    """Results of the tiles of S sets: counts (S, T, bins) int32, sums (S, T, 4) float32."""

    counts: Tensor
    sums: Tensor


def angle_sums(
    a: Sets,
    b: Sets,
    centred_a: Centred,
    centred_b: Centred,
    near_mean: Tensor,
    bins: int,
) -> TileSums:
    """`angle_tiles` of all pairs within a (b is a), or of a and b; near_mean (S,), any stride."""
    within = b is a
    vectors_a, vectors_b = cast("Tensor", centred_a.vectors), cast("Tensor", centred_b.vectors)
    how = tile_products(vectors_a.dtype)
    tiles_b = b.n_padded // how.block
    n_tiles = n_triangle(a.n_padded, how.block) if within else a.n_padded // how.block * tiles_b
    device = a.x.device
    found = TileSums(
        counts=torch.empty((a.n_sets, n_tiles, bins), device=device, dtype=torch.int32),
        sums=torch.empty((a.n_sets, n_tiles, 4), device=device, dtype=torch.float32),
    )
    launch(
        angle_tiles, n_tiles * a.n_sets,
        vectors_a, vectors_b, centred_a.alpha, centred_b.alpha,
        centred_a.scale, centred_b.scale, a.norm, b.norm,
        a.lengths, b.lengths, a.kept, b.kept, near_mean, found.counts, found.sums,
        a.n_padded, b.n_padded, n_tiles, tiles_b, near_mean.stride(0), bins,
        WIDTH=vectors_a.shape[2], BLOCK=how.block, BLOCK_K=how.depth,
        BLOCK_BINS=block_bins(bins), PARTS=n_parts(False), TRIANGLE=within,
        PRECISION=how.precision, **options(how.warps, how.stages),
    )  # fmt: skip
    return fold(found) if n_tiles > FOLD else found


def fold(tiles: TileSums) -> TileSums:
    """Every `FOLD` tiles as one, so that the last kernel's loop is short."""
    n_sets, n_tiles, bins = tiles.counts.shape
    n_folds = ceil_div(n_tiles, FOLD)
    found = TileSums(
        counts=tiles.counts.new_empty((n_sets, n_folds, bins)),
        sums=tiles.sums.new_empty((n_sets, n_folds, 4)),
    )
    launch(
        fold_tiles, n_folds * n_sets,
        tiles.counts, tiles.sums, found.counts, found.sums, n_tiles, bins,
        FOLD=FOLD, STEP=FOLD_STEP, BLOCK_BINS=block_bins(bins), **options(4),
    )  # fmt: skip
    return found


def finish_axis(sets: Sets, parts: Tensor) -> None:
    """Completes `sets.out` by the angles to the axis."""
    _finish(sets, parts, None, sets.facts[:, 1], None)


def finish_angles(sets: Sets, tiles: TileSums, near_mean: Tensor) -> Tensor:
    """Completes `sets.out` by the angles of all pairs; returns the histogram (S, bins) int64."""
    shape = (sets.n_sets, tiles.counts.shape[2])
    histogram = torch.empty(shape, device=sets.x.device, dtype=torch.int64)
    _finish(sets, None, tiles, near_mean, histogram)
    return histogram


def _finish(
    sets: Sets,
    parts: Tensor | None,
    tiles: TileSums | None,
    near_mean: Tensor,
    histogram: Tensor | None,
) -> None:
    bins = 4 if tiles is None else tiles.counts.shape[2]
    launch(
        finish_sets, sets.n_sets,
        near_mean, parts, tiles and tiles.counts, tiles and tiles.sums,
        sets.lengths, sets.kept, sets.out, histogram, sets.x.shape[1],
        sets.n_padded // BLOCK_ROWS, tiles.sums.shape[1] if tiles else 0, near_mean.stride(0), bins,
        BLOCK_BINS=block_bins(bins), N_OUT=sets.out.shape[1], BLOCK_ROWS=BLOCK_ROWS,
        WITH_AXIS=parts is not None, ANGLES=tiles is not None,
        **options(4),
    )  # fmt: skip
