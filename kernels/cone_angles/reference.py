"""Float64 oracle of the cones, by definition; it materialises every cosine.

`dtype` is for `tolerance.py`, which asks how far the same formulas are off in float32.
"""

from __future__ import annotations

import torch

from bertgeom.kernels._definitions import NO_AXIS


def cone_sums(
    x: torch.Tensor,
    lengths: torch.Tensor,
    axis_angles: bool,
    dtype: torch.dtype = torch.float64,
) -> dict[str, torch.Tensor]:
    """Cone statistics of x (B, H, N, D) over the first lengths[b] rows; values are (B, H)."""
    sets = [x[b, h, : lengths[b]] for b in range(x.shape[0]) for h in range(x.shape[1])]
    rows = [_cone(vectors.to(dtype)) for vectors in sets]
    values = {
        name: torch.stack([row[name] for row in rows]).reshape(x.shape[:2]) for name in rows[0]
    }
    return values if axis_angles else {k: v for k, v in values.items() if "axis" not in k}


def _cone(vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    unit = unit_vectors(vectors)
    n = len(unit)
    total = unit.sum(0)
    index = total.norm() if n else torch.tensor(torch.nan)
    resultant = index / n if n else index
    values = {
        "cone_index": index,
        "cone_resultant": resultant,
        "cone_mean_cosine": (index**2 - n) / (n * (n - 1)) if n > 1 else torch.tensor(torch.nan),
        "cone_axis_angle_mean": torch.tensor(torch.nan),
        "cone_axis_angle_max": torch.tensor(torch.nan),
    }
    if resultant > NO_AXIS:
        angle = degrees_between(unit, (total / index)[None])
        values |= {"cone_axis_angle_mean": angle.mean(), "cone_axis_angle_max": angle.max()}
    values = {name: value.float() for name, value in values.items()}
    return values | {"zero_vectors": torch.tensor(len(vectors) - n, dtype=torch.int32)}


def pairwise_angle_histogram(
    x: torch.Tensor,
    y: torch.Tensor | None,
    lengths: torch.Tensor,
    y_lengths: torch.Tensor | None,
    bins: int,
) -> dict[str, torch.Tensor]:
    """Angles of all pairs i < j of x (B, N, D), or of all pairs (i, j) of x and y (B, M, D)."""
    rows = []
    for b in range(len(x)):
        unit = unit_vectors(x[b, : lengths[b]].double())
        if y is None or y_lengths is None:
            i, j = torch.triu_indices(len(unit), len(unit), 1)
            angle = degrees_between(unit, unit)[i, j]
        else:
            angle = degrees_between(unit, unit_vectors(y[b, : y_lengths[b]].double())).flatten()
        rows.append(_summary(angle, bins))
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _summary(angle: torch.Tensor, bins: int) -> dict[str, torch.Tensor]:
    counted = angle if angle.isfinite().all() else angle[:0]
    some = counted if len(counted) else torch.full((1,), torch.nan)
    return {
        "angle_histogram": torch.histc(counted, bins, 0.0, 180.0).long(),
        "angle_mean": some.mean().float(),
        "angle_std": some.std(correction=0).float(),
        "angle_min": some.min().float(),
        "angle_max": some.max().float(),
        "n_pairs": torch.tensor(len(counted)),
    }


def unit_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """Rows over their norms, without the zero ones; NaN where one entry is not finite."""
    if not vectors.isfinite().all():
        return torch.full_like(vectors, torch.nan)
    kept = vectors[vectors.abs().amax(1) > 0]
    units: torch.Tensor = kept / kept.norm(dim=1, keepdim=True)
    return units


def degrees_between(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Angles between all rows of u and of v, unit vectors, in degrees; exact at both ends.

    The angle is 2 atan2(|u - v|, |u + v|), which keeps its digits near 0 and 180 degrees,
    where the arc cosine loses half of them.
    """
    apart = torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist")
    together = torch.cdist(u, -v, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.rad2deg(2 * torch.atan2(apart, together)).clamp(max=180.0)
