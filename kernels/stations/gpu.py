"""Stream, cone and angle statistics of residual stations on the GPU, five launches a station."""

from __future__ import annotations

import torch
from torch import Tensor

from bertgeom.kernels._definitions import ANGLE, AXIS, CONE, RATIO, STATION_BINS, STREAM
from bertgeom.kernels._triton.angle_launches import angle_sums, finish, square_sums
from bertgeom.kernels._triton.row_launches import centre_sets, sum_sets
from bertgeom.kernels._triton.shipped import centre_kernels, row_kernels

_FLOATS = CONE + AXIS + STREAM + RATIO + ANGLE
_AT_RATIO = len(CONE + AXIS + STREAM)


def stream_moments(x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Stream statistics of x (B, N, D) over the first lengths[b] rows; values are (B,)."""
    values = station_statistics(x, lengths, angles=False)
    return {name: value for name, value in values.items() if name.startswith("stream_")}


def station_statistics(x: Tensor, lengths: Tensor, angles: bool) -> dict[str, Tensor]:
    """Cone, stream and (if `angles`) angle statistics of x (B, N, D); values are (B,)."""
    sets = sum_sets(x[:, None], lengths, len(_FLOATS), moments=True)
    near_mean = sets.facts[:, 1]
    if angles:
        centred = centre_sets(sets, axis=True, units=True, ratio=True)
        tiles = angle_sums(sets, sets, centred, centred, near_mean, STATION_BINS)
    else:
        centred = centre_sets(sets, axis=True, rows=True)
        tiles = square_sums(sets, centred)
    histogram = finish(
        sets,
        centred.parts,
        tiles,
        near_mean,
        axis=True,
        at_ratio=_AT_RATIO,
        ratio=angles,
        bins=STATION_BINS,
    )
    names = _FLOATS if angles else _FLOATS[: _AT_RATIO + 1]
    found = dict(zip(names, sets.out.unbind(1), strict=False))
    found["zero_vectors"] = torch.where(sets.kept < 0, 0, sets.lengths - sets.kept)
    if sets.outliers is not None:
        found["stream_outlier_dims"] = sets.outliers
    if histogram is not None:
        found["angle_histogram"] = histogram
    return found


SHIPPED = {
    **row_kernels(768, moments=True, n_out=len(_FLOATS)),
    **centre_kernels(768, "angles", len(_FLOATS)),
    **centre_kernels(768, "ratio", len(_FLOATS)),
}
