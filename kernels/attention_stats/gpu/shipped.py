"""Every configuration that `gpu.run` can launch, for `python -m bench.static`.

bf16 compiles to the same shapes as fp16, and head dimensions are padded to a power of two; of
either, one stands for all. The code of tier core is part of that of tier full.
"""

from __future__ import annotations

from typing import Any

import torch

from bertgeom.kernels._triton.rules import TRITON_DTYPES, ShippedKernel
from bertgeom.kernels.attention_stats.gpu.columns import attention_columns, columns_tiles
from bertgeom.kernels.attention_stats.gpu.gram import attention_gram, gram_tiles
from bertgeom.kernels.attention_stats.gpu.k90 import attention_k90, k90_tiles
from bertgeom.kernels.attention_stats.gpu.pairs import attention_pairs, pairs_tiles
from bertgeom.kernels.attention_stats.gpu.rows import attention_rows, rows_tiles
from bertgeom.kernels.attention_stats.gpu.tiles import PRECISION, Tiles, block_dim

_SINGLE = "fp32 products run on the FMA units: TF32 would cost accuracy, three of them registers"
_RESIDENT = "16 resident rows are below the 64 of a wgmma tile; the product is 1/10 of the work"
_SMALL = "a d x d product with d below 64 is smaller than a wgmma tile"
#: Pointers to elements of the query's type, to int32; all others are float32.
_INPUTS = ("p_query", "p_key", "p_value", "p_output", "p_members")
_INTEGERS = ("p_lengths", "p_codes", "p_count", "p_bins")


def _configuration(
    kernel: Any,
    tiles: Tiles,
    dtype: torch.dtype,
    head_dim: int,
    mma_sync: str | None = None,
    **settings: Any,
) -> ShippedKernel:
    """One entry: signature and constants follow from the names of the arguments."""
    constexprs = {
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": block_dim(head_dim),
        "ROWS": tiles.rows,
        "COLS": tiles.cols,
        "BLOCK": tiles.rows,
        "PRECISION": PRECISION,
        "WIDEN": False,
        "WINDOW": False,
        "FULL": True,
        "stride_qd": 1,
        "stride_kd": 1,
        "stride_vd": 1,
    } | settings
    if not constexprs["FULL"]:
        constexprs |= {"p_low": None, "p_block_map": None}
    names = kernel.arg_names
    constexprs = {name: x for name, x in constexprs.items() if name in names}
    element = TRITON_DTYPES[dtype]
    signature = {}
    for name in names:
        if name in constexprs:
            continue
        if name.startswith("p_"):
            kind = element if name in _INPUTS else "i32" if name in _INTEGERS else "fp32"
            signature[name] = f"*{kind}"
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
        dots=True,
        mma_sync=_SINGLE if single else mma_sync,
    )


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
                tiles, resident = k90_tiles(dtype, d, n)
                reason = _RESIDENT if resident else None
                name = f"attention_k90/{of}/{'resident' if resident else 'swept'}"
                add(name, attention_k90, tiles, dtype, d, reason, RESIDENT=resident)
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
    tiles, resident = k90_tiles(half, d, 512)
    add(
        "attention_k90/fp16/d64/resident/window", attention_k90, tiles, half, d, _RESIDENT,
        RESIDENT=resident, WINDOW=True,
    )  # fmt: skip
    return found


SHIPPED: dict[str, ShippedKernel] = _shipped()
