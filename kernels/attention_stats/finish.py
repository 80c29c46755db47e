"""Named statistics from the raw sums that a kernel computes for every head.

For kernels that return the sums of whole batches; the CPU finishes head by head in its own loops,
and the oracle has its own arithmetic. All of it is O(B H (N + 16 * 16)) work on
tensors of the kernel's device, in fp32 and a fixed order.

The sums of one sweep over the weights A of a head, with `special` columns S, near
window w, and confident weights A_ij >= theta:

    columns[j]        sum_i A_ij                      all rows, all columns
    far[j]            sum_i A_ij                      |i - j| > w, j not in S
    confident_far[j]  sum_i A_ij                      the same, and A_ij >= theta
    far_map[g, h]     the cells of `far` by stretch of the query g and of the key h
    block_map[g, h]   the same of all cells

Whether a column is a hub is known only when its sum is complete; by then `far` and
`confident_far` hold all that the gates need of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bertgeom.kernels.attention_stats.options import (
    FLAT,
    GATE_MIXED,
    HUB_MASS,
    N_BLOCKS,
    ONE_BLOCK,
    SEGMENTS,
    SLACK,
    Options,
)

#: Scalar sums of a head over all its cells or rows, in the order of `HeadSums.scalars`.
SUMS = (
    "top1",  # sum_i max_j A_ij
    "square",  # sum A_ij^2
    "distance",  # sum A_ij |j - i|
    "offset",  # sum A_ij (j - i)
    "self",  # sum A_ii
    "forward",  # sum of j > i
    "backward",  # sum of j < i
    "near_self",  # the last three again, |j - i| <= near and j not special
    "near_forward",
    "near_backward",
    "confident_mass",  # sum of A_ij >= theta
    "confident_count",
    "logit_norm",  # |S|^2 = tr(Q'Q K'K), S = Q K^T without scale; in any unit u
    "logit_square",  # tr(S^2) = tr((K'Q)^2), in the same unit
    "logit_quartic",  # tr((Q'Q K'K)^2), in u^2
)
#: The same for tier full, in the order of `HeadSums.full_scalars`.
FULL_SUMS = (
    "crossed",  # sum A_ij A_ji
    "smallest",  # min A_ij, cells hidden by a sliding window (0) included
    "largest",  # max A_ij
)


@dataclass(frozen=True)
class HeadSums:
    """Raw sums of every head of a batch. Slots from `lengths[b]` on are zero.

    Attributes:
        scalars: (B, H, len(SUMS)) float32.
        entropy: (B, H, N) float32, H_i of every query row.
        columns, far, confident_far: (B, H, N) float32.
        far_map: (B, H, 16, 16) float32.
        full_scalars: (B, H, len(FULL_SUMS)) float32; this and the rest None in tier core.
        profile: (B, H, 2 n_offset_side + 1) float32, mass by signed offset bin.
        block_map: (B, H, 16, 16) float32.
        value_bins: (B, H, 20) integer, weights by value bin; ignored where they are flat.
        k90: (B, H, 2) int32, lower median and minimum over rows.
    """

    scalars: Tensor
    entropy: Tensor
    columns: Tensor
    far: Tensor
    confident_far: Tensor
    far_map: Tensor
    full_scalars: Tensor | None = None
    profile: Tensor | None = None
    block_map: Tensor | None = None
    value_bins: Tensor | None = None
    k90: Tensor | None = None


def finish(
    sums: HeadSums,
    lengths: Tensor,
    special: Tensor | None,
    groups: Tensor | None,
    options: Options,
) -> dict[str, Tensor]:
    """The named statistics of a batch.

    Args:
        sums: the raw sums of the kernel.
        lengths: (B,) valid tokens.
        special: (B, N) bool, None for none.
        groups: (B, N) int32 bit masks, None for none.
        options: the call's options.

    Returns:
        every value of `api.attention_stats`: (B, H, ...) float32, k90 int32, gate uint8; NaN
        (0 for counts) where a window has no token.
    """
    n = lengths.to(torch.float32)[:, None]
    valid = torch.arange(sums.columns.shape[-1], device=lengths.device) < lengths[:, None]
    scalar = dict(zip(SUMS, sums.scalars.unbind(-1), strict=True))
    values = _row_values(scalar, sums.entropy, valid, n)
    values |= _logit_values(scalar)
    values |= _column_values(sums.columns, special, groups, n, options.n_groups)
    values["gate_mass"] = _gate_mass(values["attention_special"], scalar, sums, n)
    values["gate"] = dominant_gate(values["gate_mass"])
    if options.full:
        values |= _full_values(scalar, sums, n)
    values = {name: _missing_without_tokens(x, n) for name, x in values.items()}
    if options.rows:
        values["query_entropy"] = sums.entropy.masked_fill(~valid[:, None], torch.nan)
    if options.columns:
        values["attention_received"] = sums.columns.masked_fill(~valid[:, None], torch.nan)
    return values


def _row_values(
    scalar: dict[str, Tensor], entropy: Tensor, valid: Tensor, n: Tensor
) -> dict[str, Tensor]:
    mean = entropy.sum(-1) / n
    spread = ((entropy - mean[..., None]) * valid[:, None]).square().sum(-1)
    values = {
        "attention_entropy": mean,
        "attention_entropy_std": (spread / n).sqrt(),
        "attention_purity": scalar["square"] / n,
    }
    for name in ("top1", "distance", "offset", "self", "forward", "backward"):
        values[f"attention_{name}"] = scalar[name] / n
    for name in ("confident_mass", "confident_count"):
        values[f"attention_{name}"] = scalar[name] / n
    return values


def _logit_values(scalar: dict[str, Tensor]) -> dict[str, Tensor]:
    """norm(S_skew)^2 / norm(S)^2 and the participation ratio of the squared singular values."""
    norm, quartic = scalar["logit_norm"], scalar["logit_quartic"]
    skew = (0.5 * (norm - scalar["logit_square"]) / norm).clamp(0, 1)
    return {
        "logit_asymmetry": torch.where(norm == 0, 0.0, skew),
        "logit_effective_rank": torch.where(norm == 0, 0.0, norm.square() / quartic),
    }


def _column_values(
    columns: Tensor, special: Tensor | None, groups: Tensor | None, n: Tensor, n_groups: int
) -> dict[str, Tensor]:
    share = columns / n[..., None]
    values = {
        "attention_received_entropy": -torch.special.xlogy(share, share).sum(-1),
        "attention_received_max": share.amax(-1),
        "attention_special": torch.zeros_like(share[..., 0]),
    }
    if special is not None:
        values["attention_special"] = torch.where(special[:, None], share, 0.0).sum(-1)
    if n_groups and groups is not None:
        bit = torch.arange(n_groups, device=groups.device, dtype=groups.dtype)
        member = (groups[..., None] >> bit) & 1
        values["attention_group_mass"] = share @ member.to(share.dtype)
    return values


def _gate_mass(closed: Tensor, scalar: dict[str, Tensor], sums: HeadSums, n: Tensor) -> Tensor:
    """(B, H, 8) in the order of GATES."""
    threshold = torch.clamp(n / 2, max=HUB_MASS) * (1 - SLACK)
    hub = sums.columns >= threshold[..., None]
    directional = torch.where(hub, sums.far, 0.0).sum(-1) / n
    instance = torch.where(hub, 0.0, sums.confident_far).sum(-1) / n
    rest = torch.where(hub, 0.0, sums.far - sums.confident_far).sum(-1) / n
    cluster = rest * block_structure(sums.far_map)
    masses = (
        closed,
        scalar["near_self"] / n,
        scalar["near_backward"] / n,
        scalar["near_forward"] / n,
        directional,
        instance,
        cluster,
        rest - cluster,
    )
    return torch.stack(masses, dim=-1)


def block_structure(far_map: Tensor) -> Tensor:
    """max(0, m) of the gate `cluster` (...) for maps of far mass (..., 16, 16)."""
    total = far_map.sum((-2, -1))
    p = far_map / total[..., None, None]
    best = torch.zeros_like(total)
    for n_segments in reversed(SEGMENTS):
        # 16 segments are the stretches themselves; every coarser partition joins pairs.
        if n_segments < N_BLOCKS:
            p = p.unflatten(-1, (n_segments, 2)).sum(-1).unflatten(-2, (n_segments, 2)).sum(-2)
        chance = (p.sum(-1) * p.sum(-2)).sum(-1)
        m = (p.diagonal(dim1=-2, dim2=-1).sum(-1) - chance) / (1 - chance)
        best = torch.where(1 - chance > ONE_BLOCK, torch.maximum(best, m), best)
    return torch.where(total > 0, best, 0.0)


def dominant_gate(mass: Tensor) -> Tensor:
    """Code (...) of the largest of the masses (..., 8), the lowest of equals; mixed below 0.5."""
    largest, code = mass.max(-1)
    return torch.where(largest >= 0.5 * (1 - SLACK), code, GATE_MIXED).to(torch.uint8)


def _full_values(scalar: dict[str, Tensor], sums: HeadSums, n: Tensor) -> dict[str, Tensor]:
    full, profile, block_map = sums.full_scalars, sums.profile, sums.block_map
    bins, k90 = sums.value_bins, sums.k90
    if full is None or profile is None or block_map is None or bins is None or k90 is None:
        raise ValueError("tier full: expected all sums of the kernel, found some left out")
    extra = dict(zip(FULL_SUMS, full.unbind(-1), strict=True))
    flat = extra["largest"] - extra["smallest"] <= FLAT * extra["largest"]
    share = bins.to(torch.float32) / n.square()[..., None]
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return {
        "attention_k90_median": k90[..., 0],
        "attention_k90_min": k90[..., 1],
        "attention_value_entropy": torch.where(flat, 0.0, entropy),
        "attention_asymmetry": (1 - extra["crossed"] / scalar["square"]).clamp(0, 1),
        "attention_offset_profile": profile / n[..., None],
        "block_map": block_map / n[..., None, None],
    }


def _missing_without_tokens(x: Tensor, n: Tensor) -> Tensor:
    empty = (n == 0).view(-1, *([1] * (x.dim() - 1)))
    if x.dtype == torch.uint8:
        return x.masked_fill(empty, GATE_MIXED)
    return x.masked_fill(empty, torch.nan if x.is_floating_point() else 0)
