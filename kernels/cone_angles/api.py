"""`cone_sums` and `pairwise_angle_histogram`: checks, shapes, and the choice of an implementation.

Definitions: `docs/statistics.md` section 2. Derivations and accuracy: README.md.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from bertgeom.kernels._dispatch import resolve
from bertgeom.kernels._valid import check_vectors, valid_rows

_MODULES = {"triton": "gpu", "numba": "cpu", "reference": "reference"}
MAX_BINS = 1024


def cone_sums(
    x: Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    axis_angles: bool = True,
    impl: str = "auto",
) -> dict[str, Tensor]:
    """How narrow the cone of the valid vectors is, from the sum of their unit vectors.

    Args:
        x: (B, ..., N, D) float32, float16 or bfloat16, any strides.
        lengths: (B,) integers; the first lengths[b] of the N rows are valid. On CUDA the numbers
            are clamped to [0, N], not checked. Default: all rows.
        mask: (B, N) bool, or 0 and 1; the valid rows, in any place, instead of `lengths`.
        axis_angles: whether to compute the angles to the axis, a second pass over x.
        impl: "auto", "triton", "numba" or "reference".

    Returns:
        (B, ...) each: cone_index, cone_resultant, cone_mean_cosine, and with `axis_angles`
        cone_axis_angle_mean, cone_axis_angle_max (degrees), float32; zero_vectors int32.
        Zero vectors are counted and left out. NaN where nothing is defined: no vector (fewer
        than two for the mean cosine, no axis for the angles), or an entry that is not finite.

    Raises:
        TypeError: for a tensor of another dtype.
        ValueError: for wrong shapes.
        ImplementationUnavailableError: where `impl` cannot run.

    Example:
        >>> import torch
        >>> from bertgeom.kernels import cone_sums
        >>> x = torch.eye(4)[None]  # four vectors, orthogonal
        >>> round(cone_sums(x)["cone_index"].item(), 4)
        2.0
    """
    check_vectors("x", x)
    if x.dim() < 3:
        raise ValueError(f"x: expected (B, ..., N, D), found shape {tuple(x.shape)}")
    name = resolve(impl, x, lengths, mask)
    with torch.no_grad():
        flat = x[:, None] if x.dim() == 3 else x.flatten(1, -3)
        flat, counts = valid_rows("x", flat, lengths, mask)
        found = _module(name).cone_sums(flat, counts, axis_angles)
    return {key: value.reshape(x.shape[:-2]) for key, value in found.items()}


def pairwise_angle_histogram(
    x: Tensor,
    y: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    y_lengths: Tensor | None = None,
    y_mask: Tensor | None = None,
    bins: int = 90,
    impl: str = "auto",
) -> dict[str, Tensor]:
    """Exact histogram of the angles between all pairs of vectors, without a matrix of them.

    Args:
        x: (B, N, D) or (N, D) float32, float16 or bfloat16, any strides.
        y: (B, M, D) or (M, D) of the same dtype: pairs are all (i, j) of x and y. Without it
            they are i < j within x.
        lengths, mask: valid rows of x, as in `cone_sums`.
        y_lengths, y_mask: valid rows of y.
        bins: equal bins on [0, 180] degrees, 1 to 1024; each holds its left edge, the last both.
        impl: "auto", "triton", "numba" or "reference".

    Returns:
        (B,), or () for (N, D): angle_histogram (B, bins) int64, angle_mean, angle_std
        (population), angle_min, angle_max (degrees) float32, n_pairs int64. Zero vectors are left
        out of the pairs; the histogram sums to n_pairs exactly. Without a pair the floats are
        NaN. If an entry is not finite, the floats are NaN and no pair is counted.

    Raises:
        TypeError: for a tensor of another dtype.
        ValueError: for wrong shapes or `bins`.
        ImplementationUnavailableError: where `impl` cannot run.

    Example:
        >>> import torch
        >>> from bertgeom.kernels import pairwise_angle_histogram
        >>> found = pairwise_angle_histogram(torch.eye(4))
        >>> found["n_pairs"].item(), round(found["angle_mean"].item(), 3)
        (6, 90.0)
    """
    single = x.dim() == 2
    check_vectors("x", x)
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"bins: expected 1 to {MAX_BINS}, found {bins}")
    if y is None and (y_lengths is not None or y_mask is not None):
        raise ValueError("y: expected a tensor with y_lengths or y_mask, found None")
    name = resolve(impl, x, y, lengths, mask, y_lengths, y_mask)
    with torch.no_grad():
        x, counts = _windows("x", x, lengths, mask)
        y_counts = None
        if y is not None:
            check_vectors("y", y)
            y, y_counts = _windows("y", y, y_lengths, y_mask)
            if y.shape[0] != x.shape[0] or y.shape[2] != x.shape[2] or y.dtype != x.dtype:
                raise ValueError(
                    f"y: expected ({x.shape[0]}, M, {x.shape[2]}) {x.dtype} like x, "
                    f"found {tuple(y.shape)} {y.dtype}"
                )
        found = _module(name).pairwise_angle_histogram(x, y, counts, y_counts, bins)
    return {key: value[0] for key, value in found.items()} if single else found


def _windows(
    name: str, x: Tensor, lengths: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    if x.dim() > 3:
        raise ValueError(f"{name}: expected (B, N, D) or (N, D), found shape {tuple(x.shape)}")
    batched = x if x.dim() == 3 else x[None]
    rows, counts = valid_rows(name, batched[:, None], lengths, mask)
    return rows[:, 0], counts


def _module(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{_MODULES[name]}")
