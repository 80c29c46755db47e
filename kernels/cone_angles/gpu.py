"""Cone sums and pairwise angles on the GPU: the launches, and the configurations they pick."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from bertgeom.kernels._definitions import ANGLE, AXIS, CONE
from bertgeom.kernels._triton.angle_launches import angle_sums, finish_angles, finish_axis
from bertgeom.kernels._triton.row_launches import Sets, centre_sets, sum_sets
from bertgeom.kernels._triton.shipped import (
    centre_kernels,
    merge_kernels,
    row_kernels,
    tile_kernels,
)

_NARROW = 0.5


def cone_sums(x: Tensor, lengths: Tensor, with_axis: bool) -> dict[str, Tensor]:
    """Cone statistics of x (B, H, N, D) over the first lengths[b] rows; values are (B, H)."""
    shape = x.shape[:2]
    sets = sum_sets(x, lengths, len(CONE + AXIS))
    names: tuple[str, ...] = CONE
    if with_axis:
        finish_axis(sets, cast("Tensor", centre_sets(sets, axis=True).parts))
        names = CONE + AXIS
    found = {name: sets.out[:, k].reshape(shape) for k, name in enumerate(names)}
    kept = sets.kept.reshape(shape)
    zeros = torch.where(kept < 0, 0, sets.lengths[:, None] - kept)
    return found | {"zero_vectors": zeros}


def pairwise_angle_histogram(
    x: Tensor, y: Tensor | None, lengths: Tensor, y_lengths: Tensor | None, bins: int
) -> dict[str, Tensor]:
    """Angles of all pairs i < j of x (B, N, D), or of all pairs (i, j) of x and y (B, M, D)."""
    sets = sum_sets(x[:, None], lengths, len(CONE + ANGLE))
    near_mean = sets.facts[:, 1]
    if y is None or y_lengths is None:
        centred = other_centred = centre_sets(sets, axis=False, units=True)
        others = sets
    else:
        others = sum_sets(y[:, None], y_lengths, len(CONE))
        shift, narrow, near_mean = _common_shift(sets, others)
        facts = torch.stack([narrow, near_mean], 1)
        sets, others = (replace(s, shift=shift, facts=facts) for s in (sets, others))
        centred, other_centred = (centre_sets(s, axis=False, units=True) for s in (sets, others))
    tiles = angle_sums(sets, others, centred, other_centred, near_mean, bins)
    histogram = finish_angles(sets, tiles, near_mean)
    found = {name: sets.out[:, len(CONE) + k] for k, name in enumerate(ANGLE)}
    return {"angle_histogram": histogram, **found, "n_pairs": histogram.sum(1)}


def _common_shift(a: Sets, b: Sets) -> tuple[Tensor, Tensor, Tensor]:
    """Mean unit vector of both sides where it is long, else 0; whether it is; the mean angle."""
    kept = [s.kept.clamp(min=0)[:, None] for s in (a, b)]
    totals = [s.axis.nan_to_num() * s.out[:, :1].nan_to_num() for s in (a, b)]
    mean = (totals[0] + totals[1]) / (kept[0] + kept[1]).clamp(min=1)
    narrow = mean.norm(dim=1) > _NARROW
    cosine = (totals[0] * totals[1]).sum(1) / (kept[0] * kept[1])[:, 0].clamp(min=1)
    near_mean = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
    return torch.where(narrow[:, None], mean, 0.0), narrow.float(), near_mean


SHIPPED = {
    **row_kernels(64, moments=False),
    **merge_kernels(64, len(CONE + AXIS)),
    **row_kernels(768, moments=False),
    **merge_kernels(768, len(CONE + ANGLE)),
    **centre_kernels(768, "axis", len(CONE + AXIS)),
    **centre_kernels(768, "pairs", len(CONE + ANGLE)),
    **tile_kernels(768),
}
