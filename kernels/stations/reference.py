"""Float64 oracle of the information stream, by definition.

`dtype` is for `tolerance.py`, which asks how far the same formulas are off in float32.
"""

from __future__ import annotations

import torch

from bertgeom.kernels._definitions import CONSTANT, OUTLIER


def stream_moments(
    x: torch.Tensor, lengths: torch.Tensor, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """Stream statistics of x (B, N, D) over the first lengths[b] rows; values are (B,)."""
    rows = [_stream(_finite(x[b, : lengths[b]].to(dtype))) for b in range(len(x))]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _finite(vectors: torch.Tensor) -> torch.Tensor:
    """NaN throughout where one entry is not finite."""
    return vectors if vectors.isfinite().all() else torch.full_like(vectors, torch.nan)


def _stream(vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    norm = vectors.norm(dim=1)
    n = len(norm)
    missing = torch.tensor(torch.nan)
    values = {
        **_moments("stream", vectors.flatten()),
        "stream_norm_mean": norm.mean(),
        "stream_norm_std": norm.std(correction=0) if n else missing,
        "stream_norm_max": norm.max() if n else missing,
        **_moments("stream_rowsum", vectors.sum(0) if n else vectors.flatten()),
        "stream_participation_ratio": _participation_ratio(vectors),
    }
    mean_vector = vectors.mean(0)
    off = (mean_vector - mean_vector.mean()).abs() > OUTLIER * mean_vector.std(correction=0)
    return {
        **{name: value.float() for name, value in values.items()},
        "stream_outlier_dims": off.sum().int(),
    }


def _moments(prefix: str, entries: torch.Tensor) -> dict[str, torch.Tensor]:
    centred = entries - entries.mean()
    variance = (centred**2).mean()
    spread = variance > CONSTANT * (entries**2).mean()
    missing = torch.tensor(torch.nan)
    return {
        f"{prefix}_mean": entries.mean(),
        f"{prefix}_variance": variance,
        f"{prefix}_skewness": (centred**3).mean() / variance**1.5 if spread else missing,
        f"{prefix}_kurtosis": (centred**4).mean() / variance**2 - 3 if spread else missing,
    }


def _participation_ratio(vectors: torch.Tensor) -> torch.Tensor:
    if not len(vectors):
        return torch.tensor(torch.nan)
    centred = vectors - vectors.mean(0)
    if not (centred**2).sum() > CONSTANT * (vectors**2).sum():
        return torch.tensor(torch.nan)
    covariance = centred.T @ centred / len(vectors)
    return covariance.trace() ** 2 / (covariance**2).sum()
