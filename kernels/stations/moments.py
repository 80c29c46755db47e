"""`stream_moments`: checks, shapes, and the choice of an implementation.

Definitions: `docs/statistics.md` section 3. Derivations and accuracy: README.md.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from bertgeom.kernels._dispatch import resolve
from bertgeom.kernels._valid import check_vectors, valid_rows

_MODULES = {"triton": "gpu.run", "numba": "cpu", "reference": "reference"}


def stream_moments(
    x: Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    impl: str = "auto",
) -> dict[str, Tensor]:
    """Moments, norms and participation ratio of the valid vectors of every window.

    Args:
        x: (B, N, D) float32, float16 or bfloat16, any strides.
        lengths: (B,) integers; the first lengths[b] of the N rows are valid. On CUDA the numbers
            are clamped to [0, N], not checked. Default: all rows.
        mask: (B, N) bool, or 0 and 1; the valid rows, in any place, instead of `lengths`.
        impl: "auto", "triton", "numba" or "reference".

    Returns:
        (B,) each, float32: stream_{mean, variance, skewness, kurtosis} of all entries, the same
        four as stream_rowsum_* of the entries of the sum of the vectors, stream_norm_{mean, std,
        max}, stream_participation_ratio; stream_outlier_dims int32. Variances are population
        variances, kurtosis is excess. NaN where nothing is defined: no vector, no variance (for
        skewness, kurtosis, participation ratio), or an entry that is not finite.

    Raises:
        TypeError: for a tensor of another dtype.
        ValueError: for wrong shapes.
        ImplementationUnavailableError: where `impl` cannot run.

    Example:
        >>> import torch
        >>> from bertgeom.kernels import stream_moments
        >>> x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> found = stream_moments(x)
        >>> found["stream_mean"].item(), found["stream_variance"].item()
        (2.5, 1.25)
    """
    check_vectors("x", x)
    if x.dim() != 3:
        raise ValueError(f"x: expected (B, N, D), found shape {tuple(x.shape)}")
    name = resolve(impl, x, lengths, mask)
    with torch.no_grad():
        rows, counts = valid_rows("x", x[:, None], lengths, mask, clamp=name != "triton")
        module = importlib.import_module(f"{__package__}.{_MODULES[name]}")
        found: dict[str, Tensor] = module.stream_moments(rows[:, 0], counts)
    return found
