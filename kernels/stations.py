"""All statistics of one residual station in one call: cones, stream, and pairwise angles."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from ._dispatch import resolve
from ._valid import check_vectors, valid_rows

_FUSED = {"triton": "gpu", "numba": "cpu"}


def station_statistics(
    x: Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    angles: bool,
    impl: str = "auto",
) -> dict[str, Tensor]:
    """What `cone_sums`, `stream_moments` and, if asked for, the pairwise angles say of x.

    One Gram matrix, tile by tile, serves the angles and the participation ratio, and x is read
    once while it is in the cache.

    Args:
        x: (B, N, D) float32, float16 or bfloat16, any strides.
        lengths: (B,) integers; the first lengths[b] of the N rows are valid. Default: all.
        mask: (B, N) bool, or 0 and 1; the valid rows, wherever they are, instead of `lengths`.
        angles: whether to compute angle_histogram (90 bins), angle_mean, angle_std, angle_min,
            angle_max over all pairs, too.
        impl: "auto", "triton", "numba" or "reference".

    Returns:
        The arrays of `cone_sums`, `stream_moments` and `pairwise_angle_histogram` but n_pairs,
        (B,) or (B, 90).

    Raises:
        TypeError: for a tensor of another dtype.
        ValueError: for shapes that do not fit.
        ImplementationUnavailableError: where `impl` cannot run.
    """
    check_vectors("x", x)
    if x.dim() != 3:
        raise ValueError(f"x: expected (B, N, D), found shape {tuple(x.shape)}")
    name = resolve(impl, x, lengths, mask)
    with torch.no_grad():
        rows, counts = valid_rows("x", x[:, None], lengths, mask)
        if name == "reference":
            return _one_by_one(rows[:, 0], counts, angles)
        fused = importlib.import_module(f"{__package__}.stream_moments.{_FUSED[name]}")
        found: dict[str, Tensor] = fused.station_statistics(rows[:, 0], counts, angles)
    return found


def _one_by_one(x: Tensor, lengths: Tensor, angles: bool) -> dict[str, Tensor]:
    cones = importlib.import_module(f"{__package__}.cone_angles.reference")
    stream = importlib.import_module(f"{__package__}.stream_moments.reference")
    found: dict[str, Tensor] = {
        key: value[:, 0] for key, value in cones.cone_sums(x[:, None], lengths, True).items()
    }
    found |= stream.stream_moments(x, lengths)
    if angles:
        found |= cones.pairwise_angle_histogram(x, None, lengths, None, 90)
        del found["n_pairs"]
    return found
