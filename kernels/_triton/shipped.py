"""Every configuration of the row and angle kernels, for `python -m bench.static`.

bf16 compiles to the shapes of fp16, and rows are padded to a power of two: the widths of BERT-base
and of one of its heads stand for others.
"""

from __future__ import annotations

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
from bertgeom.kernels._triton.angles import angle_tiles, finish_sets, fold_tiles, square_tiles
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
    "p_outliers",
    "p_counts",
    "p_folded_counts",
)
_SINGLE = "fp32 products run on the FMA units: three TF32 products would spill at this tile"
_TYPES = (torch.float16, torch.float32)


def row_kernels(width: int, moments: bool, n_out: int) -> dict[str, ShippedKernel]:
    """`row_sums` and `merge_sums` for vectors of a width."""
    what = f"{width}-{'moments' if moments else 'cone'}"
    constants: Constants = {
        "WIDTH": width,
        "BLOCK_DIM": block_dim(width),
        "BLOCK_ROWS": BLOCK_ROWS,
    }
    constants |= {"STEP": steps(block_dim(width)).rows, "MOMENTS": moments, "N_OUT": n_out}
    if not moments:
        constants |= dict.fromkeys(("p_rows", "p_moments", "p_mean", "p_outliers"))
    warps = steps(block_dim(width)).warps
    found = {
        f"row_sums-{what}-{TRITON_DTYPES[dtype]}": _entry(row_sums, dtype, constants, warps)
        for dtype in _TYPES
    }
    return found | {f"merge_sums-{what}": _entry(merge_sums, torch.float16, constants, 4)}


def centre_kernels(width: int, what: str, n_out: int) -> dict[str, ShippedKernel]:
    """`centre_rows`, `finish_sets`, and the products between them, for one use.

    Args:
        what: "axis", "pairs", "angles" or "ratio".
    """
    uses = {"WITH_AXIS": what in ("axis", "angles", "ratio"), "UNITS": what in ("pairs", "angles")}
    uses |= {"ROWS": what == "ratio", "RATIO": what == "angles"}
    found = {}
    constants: Constants
    for dtype in _TYPES:
        kind = TRITON_DTYPES[dtype]
        vectors = uses["UNITS"] or uses["ROWS"]
        block = next_power_of_two(padded(width)) if vectors else block_dim(width)
        constants = {"WIDTH": width, "WIDTH_PADDED": padded(width), "BLOCK_DIM": block}
        constants |= {"STEP": steps(block).rows, "BLOCK_ROWS": BLOCK_ROWS} | uses
        constants |= {} if vectors else {"p_vectors": None}
        constants |= {} if uses["UNITS"] else dict.fromkeys(("p_alpha", "p_scale"))
        constants |= {} if uses["RATIO"] else {"p_weight": None}
        constants |= {} if uses["ROWS"] or uses["RATIO"] else {"p_mean": None}
        name = f"centre_rows-{width}-{what}-{kind}"
        found[name] = _entry(centre_rows, dtype, constants, steps(block).warps)
    constants = {"BLOCK_BINS": block_bins(STATION_BINS), "N_OUT": n_out, "BLOCK_ROWS": BLOCK_ROWS}
    constants |= {"WIDTH": width, "WITH_AXIS": uses["WITH_AXIS"], "ANGLES": uses["UNITS"]}
    constants |= {"RATIO": uses["RATIO"], "SQUARES": uses["ROWS"]}
    constants |= {} if uses["UNITS"] else dict.fromkeys(("p_counts", "p_histogram"))
    constants |= {} if vectors else {"p_sums": None}
    found[f"finish_sets-{width}-{what}"] = _entry(finish_sets, torch.float16, constants, 4)
    return found


def tile_kernels(width: int) -> dict[str, ShippedKernel]:
    """`angle_tiles` in its three uses, and `square_tiles` in its two."""
    shape: Constants = {"FOLD": FOLD, "STEP": FOLD_STEP, "BLOCK_BINS": block_bins(STATION_BINS)}
    found = {"fold_tiles": _entry(fold_tiles, torch.float32, shape, 4)}
    for dtype in _TYPES:
        how = tile_products(dtype)
        shape = {"WIDTH": padded(width), "BLOCK": how.block, "BLOCK_K": how.depth}
        shape |= {"PRECISION": how.precision}
        reason = _SINGLE if dtype == torch.float32 else None
        for use, triangle, ratio in (
            ("station", True, True),
            ("pairs", True, False),
            ("sets", False, False),
        ):
            constants = shape | {"BLOCK_BINS": block_bins(STATION_BINS), "TRIANGLE": triangle}
            constants |= {"RATIO": ratio, "PARTS": n_parts(ratio)} | (
                {} if ratio else {"p_weight": None}
            )
            name = f"angle_tiles-{width}-{use}-{TRITON_DTYPES[dtype]}"
            found[name] = _entry(angle_tiles, dtype, constants, how.warps, how.stages, True, reason)
        for columns in (False, True):
            name = f"square_tiles-{width}-{'columns' if columns else 'rows'}-{TRITON_DTYPES[dtype]}"
            constants = shape | {"COLUMNS": columns}
            found[name] = _entry(
                square_tiles, dtype, constants, how.warps, how.stages, True, reason
            )
    return found


def _entry(
    kernel: Any,
    dtype: torch.dtype,
    constants: Constants,
    warps: int,
    stages: int = 2,
    dots: bool = False,
    mma_sync: str | None = None,
) -> ShippedKernel:
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {
        name: _type_of(name, TRITON_DTYPES[dtype]) for name in names if name not in constants
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


def _type_of(name: str, element: str) -> str:
    if not name.startswith("p_"):
        return "i32"
    if name in _INTEGERS:
        return "*i32"
    if name == "p_histogram":
        return "*i64"
    return f"*{element}" if name in ("p_x", "p_vectors", "p_a", "p_b") else "*fp32"
