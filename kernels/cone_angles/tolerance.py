"""How far an implementation may be from the oracle of the cones, derived from the input itself.

Cones: twice the error of the oracle's formulas in float32, and a rounding band.
Angles: a cosine may be off by twice the largest error of a plain matrix product of the unit
vectors in the working precision, and a rounding band. That gives every pair an interval of
angles; sums, extremes and cumulative counts must lie between those of the interval ends.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bertgeom.kernels.cone_angles import reference

_EPSILON = 2.0**-23
#: The rounding band in units of epsilon.
_BAND = 16
_DEGREES = 180 / math.pi


def cone_disagreements(x: Tensor, lengths: Tensor, values: dict[str, Tensor]) -> list[str]:
    """One line for every value of `cone_sums` out of bounds; x (B, H, N, D), values (B, H)."""
    with_axis = "cone_axis_angle_mean" in values
    exact = reference.cone_sums(x, lengths, with_axis)
    plain = reference.cone_sums(x, lengths, with_axis, dtype=torch.float32)
    return compare(exact, plain, values)


def compare(
    exact: dict[str, Tensor], plain: dict[str, Tensor], values: dict[str, Tensor]
) -> list[str]:
    """Values against twice the error of `plain` and a band; counts must be equal."""
    lines = []
    for name, x in exact.items():
        found = values[name].cpu()
        if found.shape != x.shape or found.dtype != x.dtype:
            lines.append(f"{name}: {found.dtype} {tuple(found.shape)}, expected {x.dtype}")
            continue
        error = (plain[name].double() - x).abs().nan_to_num(0).max() if x.numel() else 0.0
        unit = _DEGREES if "angle" in name else 1.0
        bound = torch.as_tensor(2 * error + _BAND * _EPSILON * x.double().abs().clamp(min=unit))
        if not x.is_floating_point():
            bound = torch.zeros_like(bound)
        off = (found.double() - x.double()).abs()
        wrong = (off > bound) | (found.isnan() != x.isnan())
        if wrong.any():
            lines.append(f"{name}: off by {off[wrong].tolist()}, bound {bound[wrong].tolist()}")
    return lines


def angle_disagreements(
    x: Tensor, y: Tensor | None, values: dict[str, Tensor], working: torch.dtype = torch.float32
) -> list[str]:
    """One line for every value of `pairwise_angle_histogram` of one window that is out of bounds.

    Args:
        x, y: valid vectors (n, D), (m, D); y is None for the pairs within x.
        values: of this window, with or without n_pairs.
        working: type of the vectors that the implementation multiplies.
    """
    low, exact, high = angle_intervals(x, y, working)
    counts = values["angle_histogram"].cpu()
    lines = (
        [] if int(counts.sum()) == len(exact) else [f"{int(counts.sum())} of {len(exact)} pairs"]
    )
    if not len(exact):
        floats = [values[f"angle_{name}"] for name in ("mean", "std", "min", "max")]
        return lines + [f"expected NaN, found {f}" for f in floats if not f.isnan()]
    edges = torch.linspace(0, 180, len(counts) + 1, dtype=torch.float64)[1:-1]
    below = counts.cumsum(0)[:-1]
    least = (high[:, None] < edges).sum(0)
    most = (low[:, None] < edges).sum(0)
    if ((below < least) | (below > most)).any():
        lines.append(f"histogram: {below.tolist()} not in {least.tolist()}..{most.tolist()}")
    width = float((high - low).square().mean().sqrt())
    for name, (first, last) in {
        "mean": (low.mean(), high.mean()),
        "std": (exact.std(correction=0) - width, exact.std(correction=0) + width),
        "min": (low.min(), high.min()),
        "max": (low.max(), high.max()),
    }.items():
        found = float(values[f"angle_{name}"])
        band = _EPSILON * 180
        if not first - band <= found <= last + band:
            lines.append(f"angle_{name}: {found} not in {float(first)}..{float(last)}")
    return lines


def angle_intervals(
    x: Tensor, y: Tensor | None, working: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Least, exact and largest angle of every pair, float64 degrees."""
    u = reference.unit_vectors(x.cpu().double())
    w = u if y is None else reference.unit_vectors(y.cpu().double())
    plain = (u.to(working).float() @ w.to(working).float().T).double()
    exact = reference.degrees_between(u, w)
    error = (plain - u @ w.T).abs().max() if plain.numel() else torch.tensor(0.0)
    slack = 2 * error + _BAND * _EPSILON
    cosine = torch.cos(torch.deg2rad(exact))
    low = torch.rad2deg(torch.acos((cosine + slack).clamp(-1, 1)))
    high = torch.rad2deg(torch.acos((cosine - slack).clamp(-1, 1)))
    if y is not None:
        return low.flatten(), exact.flatten(), high.flatten()
    i, j = torch.triu_indices(len(u), len(u), 1)
    return low[i, j], exact[i, j], high[i, j]
