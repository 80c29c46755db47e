"""Every configuration of the row and angle kernels, for `python -m bench.static`.

bf16 compiles to the shapes of fp16, and rows are padded to a power of two: the widths of BERT-base
and of one of its heads stand for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bertgeom.kernels._definitions import STATION_BINS
from bertgeom.kernels._triton.angle_launches import (
    FOLD,
    FOLD_STEP,
    block_bins,
    n_parts,
    tile_products,
)
from bertgeom.kernels._triton.angles import angle_tiles, finish_sets, fold_tiles
from bertgeom.kernels._triton.row_launches import block_dim, padded, steps
from bertgeom.kernels._triton.rows import BLOCK_ROWS, centre_rows, merge_sums, row_sums
from bertgeom.kernels._triton.rules import TRITON_DTYPES, ShippedKernel, next_power_of_two

#: Values of constexpr arguments by name, None for a pointer that is not given.
Constants = dict[str, Any]

_INTEGERS = (
    "p_lengths",
    "p_lengths_a",
    "p_lengths_b",
    "p_kept",
    "p_kept_a",
    "p_kept_b",
    "p_counts",
    "p_folded_counts",
)
#: Types of the arrays that are not those of vectors.
TYPES = dict.fromkeys(_INTEGERS, "*i32") | {"p_histogram": "*i64"}
_SINGLE = "fp32 products run on the FMA units: three TF32 products would spill at this tile"
VECTOR_TYPES = (torch.float16, torch.float32)


def row_kernels(
    width: int, moments: bool, types: Mapping[str, str] = TYPES
) -> dict[str, ShippedKernel]:
    """`row_sums` for vectors of a width."""
    constants: Constants = {"WIDTH": width, "BLOCK_DIM": block_dim(width), "MOMENTS": moments}
    constants |= {"STEP": steps(block_dim(width)).rows, "BLOCK_ROWS": BLOCK_ROWS}
    constants |= {} if moments else dict.fromkeys(("p_rows", "p_moments"))
    warps = steps(block_dim(width)).warps
    what = "moments" if moments else "cone"
    return {
        f"row_sums-{width}-{what}-{TRITON_DTYPES[dtype]}": entry(
            row_sums, dtype, constants, warps, types=types
        )
        for dtype in VECTOR_TYPES
    }


def merge_kernels(width: int, n_out: int) -> dict[str, ShippedKernel]:
    """`merge_sums` for vectors of a width."""
    constants: Constants = {"WIDTH": width, "BLOCK_DIM": block_dim(width), "N_OUT": n_out}
    constants |= {"BLOCK_ROWS": BLOCK_ROWS}
    return {f"merge_sums-{width}-cone": entry(merge_sums, torch.float16, constants, 4)}


def centre_kernels(width: int, what: str, n_out: int) -> dict[str, ShippedKernel]:
    """`centre_rows` and `finish_sets` for one use.

    Args:
        what: "axis" or "pairs".
    """
    pairs = what == "pairs"
    found = {}
    constants: Constants
    for dtype in VECTOR_TYPES:
        block = next_power_of_two(padded(width)) if pairs else block_dim(width)
        constants = {"WIDTH": width, "WIDTH_PADDED": padded(width), "BLOCK_DIM": block}
        constants |= {"STEP": steps(block).rows, "BLOCK_ROWS": BLOCK_ROWS}
        constants |= {"WITH_AXIS": not pairs, "UNITS": pairs}
        given = ("p_parts",) if pairs else ("p_vectors", "p_alpha", "p_scale")
        constants |= dict.fromkeys(given)
        name = f"centre_rows-{width}-{what}-{TRITON_DTYPES[dtype]}"
        found[name] = entry(centre_rows, dtype, constants, steps(block).warps)
    bins = STATION_BINS if pairs else 4
    constants = {"BLOCK_BINS": block_bins(bins), "N_OUT": n_out, "BLOCK_ROWS": BLOCK_ROWS}
    constants |= {"WITH_AXIS": not pairs, "ANGLES": pairs}
    constants |= dict.fromkeys(("p_parts",) if pairs else ("p_counts", "p_sums", "p_histogram"))
    found[f"finish_sets-{width}-{what}"] = entry(finish_sets, torch.float16, constants, 4)
    return found


def tile_shape(dtype: torch.dtype, width: int) -> tuple[Constants, dict[str, Any]]:
    """Constants of a kernel of products of vectors of a width, and how `entry` is to take it."""
    how = tile_products(dtype)
    shape: Constants = {"WIDTH": padded(width), "BLOCK": how.block, "BLOCK_K": how.depth}
    reason = _SINGLE if dtype == torch.float32 else None
    return shape | {"PRECISION": how.precision}, {
        "warps": how.warps,
        "stages": how.stages,
        "dots": True,
        "mma_sync": reason,
    }


def tile_kernels(width: int) -> dict[str, ShippedKernel]:
    """`angle_tiles` in its two uses, and `fold_tiles`."""
    shape: Constants = {"FOLD": FOLD, "STEP": FOLD_STEP, "BLOCK_BINS": block_bins(STATION_BINS)}
    found = {"fold_tiles": entry(fold_tiles, torch.float32, shape, 4)}
    for dtype in VECTOR_TYPES:
        shape, how = tile_shape(dtype, width)
        shape |= {"BLOCK_BINS": block_bins(STATION_BINS), "PARTS": n_parts(False)}
        for use in ("pairs", "sets"):
            name = f"angle_tiles-{width}-{use}-{TRITON_DTYPES[dtype]}"
            found[name] = entry(angle_tiles, dtype, shape | {"TRIANGLE": use == "pairs"}, **how)
    return found


def entry(
    kernel: Any,
    dtype: torch.dtype,
    constants: Constants,
    warps: int,
    stages: int = 2,
    dots: bool = False,
    mma_sync: str | None = None,
    types: Mapping[str, str] = TYPES,
) -> ShippedKernel:
    """One configuration of a kernel of rows or tiles.

    Args:
        dtype: of the vectors.
        constants: by name; those that are no argument of the kernel are left out.
        warps, stages, dots, mma_sync: see `ShippedKernel`.
        types: of the arrays that are neither vectors nor float32.
    """
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {
        name: _type_of(name, TRITON_DTYPES[dtype], types) for name in names if name not in constants
    }
    aligned = [n for n in signature if n.startswith("p_") or n in ("stride_b", "stride_n")]
    return ShippedKernel(
        kernel=kernel,
        signature=signature,
        constexprs=constants,
        num_warps=warps,
        num_stages=stages,
        aligned=tuple(aligned),
        dots=dots,
        mma_sync=mma_sync,
    )


def _type_of(name: str, element: str, types: Mapping[str, str]) -> str:
    if not name.startswith("p_"):
        return "i32"
    element = element if name in ("p_x", "p_vectors", "p_a", "p_b") else "fp32"
    return types.get(name, f"*{element}")
