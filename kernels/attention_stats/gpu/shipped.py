"""Every configuration that `gpu.run` can launch, for `python -m bench.static`.

bf16 compiles to the same shapes as fp16, and head dimensions are padded to a power of two; of
either, one stands for all. The code of tier core is part of that of tier full.
"""

from __future__ import annotations

from typing import Any

import torch

from bertgeom.kernels._triton.rules import TRITON_DTYPES, ShippedKernel
from bertgeom.kernels.attention_stats.gpu.columns import attention_columns, columns_tiles
from bertgeom.kernels.attention_stats.gpu.cones import attention_cones, cones_tiles
from bertgeom.kernels.attention_stats.gpu.finish import attention_finish, finish_tiles
from bertgeom.kernels.attention_stats.gpu.gram import attention_gram, gram_tiles
from bertgeom.kernels.attention_stats.gpu.k90 import attention_k90, k90_tiles
from bertgeom.kernels.attention_stats.gpu.pairs import (
    attention_pairs,
    pairs_tiles,
    warps_of_columns,
)
from bertgeom.kernels.attention_stats.gpu.rows import attention_rows, rows_tiles
from bertgeom.kernels.attention_stats.gpu.tiles import PRECISION, Tiles, block_dim

_SINGLE = "fp32 products run on the FMA units: TF32 would cost accuracy, three of them registers"
_SMALL = "a d x d product with d below 64 is smaller than a wgmma tile"
_NO_PRODUCT = "the traces of d x d matrices are fp32 sums, a thousandth of the work"
#: Pointers that tier core leaves out.
_FULL_ONLY = ("p_low", "p_block_map", "p_crossed", "p_profile", "p_bins", "p_k90")
#: Pointers to elements of the query's type, to int32; all others are float32.
_INPUTS = ("p_query", "p_key", "p_value", "p_output")
_INTEGERS = ("p_lengths", "p_count", "p_counts", "p_bins", "p_k90", "p_groups")
_BYTES = ("p_special",)


def _configuration(
    kernel: Any,
    tiles: Tiles,
    dtype: torch.dtype,
    head_dim: int,
    mma_sync: str | None = None,
    dots: bool = True,
    **settings: Any,
) -> ShippedKernel:
    """One entry: signature and constants follow from the names of the arguments."""
    constexprs = {
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": block_dim(head_dim),
        "ROWS": tiles.rows,
        "COLS": tiles.cols,
        "BLOCK": tiles.rows,
        "BLOCK_ROWS": tiles.rows,
        "STEP": tiles.rows,
        "WARPS": warps_of_columns(tiles),
        "PRECISION": PRECISION,
        "WIDEN": False,
        "WINDOW": False,
        "FULL": True,
        "SPECIAL": True,
        "stride_qd": 1,
        "stride_kd": 1,
        "stride_vd": 1,
    } | settings
    if not constexprs["FULL"]:
        constexprs |= dict.fromkeys(_FULL_ONLY)
    names = kernel.arg_names
    constexprs = {name: x for name, x in constexprs.items() if name in names}
    element = TRITON_DTYPES[dtype]
    signature = {}
    for name in names:
        if name in constexprs:
            continue
        if name.startswith("p_"):
            signature[name] = f"*{_element(name, element)}"
        else:
            signature[name] = "fp32" if name in ("scale", "theta") else "i32"
    aligned = tuple(name for name in signature if name.startswith(("p_", "stride_")))
    single = dtype == torch.float32
    return ShippedKernel(
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        aligned=aligned,
        dots=dots,
        mma_sync=_SINGLE if single else mma_sync,
    )


def _element(name: str, element: str) -> str:
    """What a pointer points to; `element` is the query's type."""
    if name in _INPUTS:
        return element
    return "i32" if name in _INTEGERS else "u8" if name in _BYTES else "fp32"


def _shipped() -> dict[str, ShippedKernel]:
    found = {}

    def add(name: str, *args: Any, **settings: Any) -> None:
        found[name] = _configuration(*args, **settings)

    for dtype in (torch.float16, torch.float32):
        for d in (16, 32, 64, 128):
            of = f"{TRITON_DTYPES[dtype]}/d{d}"
            add(f"attention_rows/{of}", attention_rows, rows_tiles(dtype, d), dtype, d)
            add(f"attention_columns/{of}", attention_columns, columns_tiles(dtype, d), dtype, d)
            add(f"attention_pairs/{of}", attention_pairs, pairs_tiles(dtype, d), dtype, d)
            reason = _SMALL if d < 64 else None
            add(f"attention_gram/{of}", attention_gram, gram_tiles(dtype, d), dtype, d, reason)
            for n in (512, 1024):
                tiles, n_tiles = k90_tiles(dtype, d, n)
                name = f"attention_k90/{of}/{'resident' if n_tiles else 'swept'}"
                add(name, attention_k90, tiles, dtype, d, TILES=n_tiles)
            if dtype == torch.float16:
                for core in (False, True):
                    name = f"attention_finish/d{d}{'/core' if core else ''}"
                    tiles = finish_tiles(d)
                    add(name, attention_finish, tiles, dtype, d, _NO_PRODUCT, FULL=not core)
            add(f"attention_cones/{of}", attention_cones, cones_tiles(d), dtype, d, dots=False)
    half, d = torch.float16, 64
    tiles = rows_tiles(half, d)
    add("attention_rows/fp16/d64/core", attention_rows, tiles, half, d, FULL=False)
    add("attention_rows/fp16/d64/window", attention_rows, tiles, half, d, WINDOW=True)
    tiles = columns_tiles(half, d)
    add("attention_columns/fp16/d64/core", attention_columns, tiles, half, d, FULL=False)
    add("attention_columns/fp16/d64/window", attention_columns, tiles, half, d, WINDOW=True)
    add(
        "attention_pairs/fp16/d64/window",
        attention_pairs,
        pairs_tiles(half, d),
        half,
        d,
        WINDOW=True,
    )
    for n in (64, 128, 256):
        tiles, n_tiles = k90_tiles(half, d, n)
        name = f"attention_k90/fp16/d64/resident/{n}"
        add(name, attention_k90, tiles, half, d, TILES=n_tiles)
    tiles, n_tiles = k90_tiles(half, d, 512)
    add(
        "attention_k90/fp16/d64/resident/window", attention_k90, tiles, half, d, TILES=n_tiles,
        WINDOW=True,
    )  # fmt: skip
    return found


SHIPPED: dict[str, ShippedKernel] = _shipped()
