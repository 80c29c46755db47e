"""Stream, cone and angle statistics of residual stations on the GPU, three launches a station."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from bertgeom.kernels._definitions import ANGLE, STATION_BINS
from bertgeom.kernels._triton.angle_launches import block_bins, n_parts, n_triangle, tile_products
from bertgeom.kernels._triton.programs import launch
from bertgeom.kernels._triton.row_launches import (
    Rows,
    options,
    padded,
    steps,
    sum_rows,
    vector_type,
)
from bertgeom.kernels._triton.rows import BLOCK_ROWS
from bertgeom.kernels._triton.rules import TRITON_DTYPES, ShippedKernel, next_power_of_two
from bertgeom.kernels._triton.shipped import (
    TYPES,
    VECTOR_TYPES,
    Constants,
    entry,
    row_kernels,
    tile_shape,
)
from bertgeom.kernels.stations.gpu.centre import station_centre
from bertgeom.kernels.stations.gpu.places import (
    AT_OUTLIERS,
    AT_ZEROS,
    FLOATS,
    N_COUNTS,
    N_OUT,
    N_PARTS,
    N_SUMS,
)
from bertgeom.kernels.stations.gpu.tiles import station_angles, station_squares

__all__ = ["SHIPPED", "station_statistics", "stream_moments"]


def stream_moments(x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Stream statistics of x (B, N, D) over the first lengths[b] rows; values are (B,)."""
    values = station_statistics(x, lengths, angles=False)
    return {name: value for name, value in values.items() if name.startswith("stream_")}


def station_statistics(x: Tensor, lengths: Tensor, angles: bool) -> dict[str, Tensor]:
    """Cone, stream and (if `angles`) angle statistics of x (B, N, D); values are (B,).

    Args:
        x: float32, float16 or bfloat16.
        lengths: (B,) integers, taken to be within [0, N] where they are not.
        angles: whether to compute angle_histogram (B, 90) and angle_{mean, std, min, max}, too.
    """
    rows = sum_rows(x[:, None], lengths, moments=True)
    new: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
    out = torch.empty((rows.n_sets, N_OUT.value), **new)
    counts = torch.empty((rows.n_sets, N_COUNTS.value), device=x.device, dtype=torch.int32)
    parts = torch.empty((rows.n_sets, rows.n_blocks, N_PARTS.value), **new)
    shape, kind = (rows.n_sets, rows.n_padded, padded(x.shape[-1])), vector_type(x)
    vectors = torch.empty(shape, device=x.device, dtype=kind)
    histogram = None
    if angles:
        histogram = torch.empty((len(x), STATION_BINS), device=x.device, dtype=torch.int64)
    numbers = [torch.empty_like(rows.norm) if angles else None for _ in range(3)]
    _centre(rows, out, counts, histogram, parts, vectors, numbers)
    if angles:
        _angles(rows, out, counts, cast("Tensor", histogram), parts, vectors, numbers)
    else:
        _squares(rows, out, counts, parts, vectors)
    names = FLOATS if angles else FLOATS[: -len(ANGLE)]
    found = dict(zip(names, out.unbind(1), strict=False))
    found["zero_vectors"] = counts[:, AT_ZEROS.value]
    found["stream_outlier_dims"] = counts[:, AT_OUTLIERS.value]
    if histogram is not None:
        found["angle_histogram"] = histogram
    return found


def _centre(
    rows: Rows,
    out: Tensor,
    counts: Tensor,
    histogram: Tensor | None,
    parts: Tensor,
    vectors: Tensor,
    numbers: list[Tensor | None],
) -> None:
    width_padded = vectors.shape[2]
    block = next_power_of_two(width_padded)
    step = steps(block)
    launch(
        station_centre, rows.n_blocks * rows.n_sets,
        rows.x, rows.lengths, rows.norm, rows.unit, rows.rows, rows.moments,
        out, counts, histogram, parts, vectors, *numbers,
        rows.x.shape[2], rows.n_padded, rows.x.stride(0), rows.x.stride(2),
        WIDTH=rows.x.shape[3], WIDTH_PADDED=width_padded, BLOCK_DIM=block, STEP=step.rows,
        BLOCK_ROWS=BLOCK_ROWS, BINS=STATION_BINS, BLOCK_BINS=block_bins(STATION_BINS),
        ANGLES=histogram is not None, **options(step.warps),
    )  # fmt: skip


def _angles(
    rows: Rows,
    out: Tensor,
    counts: Tensor,
    histogram: Tensor,
    parts: Tensor,
    vectors: Tensor,
    numbers: list[Tensor | None],
) -> None:
    how = tile_products(vectors.dtype)
    n_tiles = n_triangle(rows.n_padded, how.block)
    sums = torch.empty((rows.n_sets, n_tiles, N_SUMS.value), device=out.device, dtype=out.dtype)
    alpha, scale, weight = numbers
    launch(
        station_angles, n_tiles * rows.n_sets,
        vectors, alpha, scale, rows.norm, weight, rows.lengths,
        parts, sums, out, counts, histogram,
        rows.x.shape[2], rows.n_padded, rows.n_blocks, n_tiles,
        WIDTH=vectors.shape[2], DIMENSIONS=rows.x.shape[3], BLOCK=how.block, BLOCK_K=how.depth,
        BLOCK_ROWS=BLOCK_ROWS, BINS=STATION_BINS, BLOCK_BINS=block_bins(STATION_BINS),
        PARTS=n_parts(True), PRECISION=how.precision, **options(how.warps, how.stages),
    )  # fmt: skip


def _squares(rows: Rows, out: Tensor, counts: Tensor, parts: Tensor, vectors: Tensor) -> None:
    how = tile_products(vectors.dtype)
    width_padded = vectors.shape[2]
    n_tiles = n_triangle(min(rows.n_padded, width_padded), how.block)
    sums = torch.empty((rows.n_sets, n_tiles), device=out.device, dtype=out.dtype)
    launch(
        station_squares, n_tiles * rows.n_sets,
        vectors, rows.lengths, parts, sums, out, counts,
        rows.x.shape[2], rows.n_padded, rows.n_blocks, n_tiles,
        WIDTH=width_padded, DIMENSIONS=rows.x.shape[3], BLOCK=how.block, BLOCK_K=how.depth,
        BLOCK_ROWS=BLOCK_ROWS, COLUMNS=rows.n_padded > width_padded, PRECISION=how.precision,
        **options(how.warps, how.stages),
    )  # fmt: skip


def _shipped(width: int) -> dict[str, ShippedKernel]:
    """`station_centre` and both kernels of tiles for vectors of a width."""
    # Lengths come as the model counts them.
    types = TYPES | {"p_lengths": "*i64"}
    block = next_power_of_two(padded(width))
    bins: Constants = {"BINS": STATION_BINS, "BLOCK_BINS": block_bins(STATION_BINS)}
    found = row_kernels(width, moments=True, types=types)
    for dtype in VECTOR_TYPES:
        kind = TRITON_DTYPES[dtype]
        for angles in (True, False):
            constants = bins | {"WIDTH": width, "WIDTH_PADDED": padded(width), "BLOCK_DIM": block}
            constants |= {"STEP": steps(block).rows, "BLOCK_ROWS": BLOCK_ROWS, "ANGLES": angles}
            if not angles:
                constants |= dict.fromkeys(("p_histogram", "p_alpha", "p_scale", "p_weight"))
            name = f"station_centre-{width}-{'angles' if angles else 'squares'}-{kind}"
            found[name] = entry(station_centre, dtype, constants, steps(block).warps, types=types)
        shape, how = tile_shape(dtype, width)
        shape |= {"DIMENSIONS": width, "BLOCK_ROWS": BLOCK_ROWS}
        constants = shape | bins | {"PARTS": n_parts(True)}
        name = f"station_angles-{width}-{kind}"
        found[name] = entry(station_angles, dtype, constants, types=types, **how)
        for columns in (False, True):
            constants = shape | {"COLUMNS": columns}
            name = f"station_squares-{width}-{'columns' if columns else 'rows'}-{kind}"
            found[name] = entry(station_squares, dtype, constants, types=types, **how)
    return found


SHIPPED = _shipped(768)
