"""The same statistics the way a competent user takes them today: from materialised maps.

Eager attention with `output_attentions=True, output_hidden_states=True`, hooks for queries, keys
and values, then vectorised torch in float32 over whole batches. Padding-free batches only. This
is the competitor that `bertgeom` is timed against; the oracle is elsewhere, and gates both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bertgeom.variables import n_offset_side

THETA, NEAR, BLOCKS, ANGLES = 0.3, 4, 16, 90


def forward(model: Any, ids: Tensor, special: Tensor) -> dict[str, Tensor]:
    """Statistics (B, layer, ...) of one padding-free batch ids (B, N)."""
    seen: dict[str, list[Tensor]] = {"query": [], "key": [], "value": [], "block": []}
    handles = []
    for layer in model.encoder.layer:
        for name in ("query", "key", "value"):
            linear = getattr(layer.attention.self, name)
            handles.append(
                linear.register_forward_hook(lambda _, __, x, name=name: seen[name].append(x))
            )
        handles.append(
            layer.attention.register_forward_hook(lambda _, __, x: seen["block"].append(x[0]))
        )
    try:
        out = model(input_ids=ids, output_attentions=True, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    heads = model.config.num_attention_heads
    layers = []
    for i, a in enumerate(out.attentions):
        q, k, v = (_split(seen[name][i].float(), heads) for name in ("query", "key", "value"))
        a = a.float()
        layers.append(attention(a, special) | logits(q, k) | head_cones(q, k, v, a @ v))
    stations = [station(out.hidden_states[0], angles=True)]
    for block, output in zip(seen["block"], out.hidden_states[1:], strict=True):
        stations += [station(block, angles=False), station(output, angles=True)]
    found = {k: torch.stack([x[k] for x in layers], 1) for k in layers[0]}
    for name in stations[0]:
        found[name] = torch.stack([s[name] for s in stations if name in s], 1)
    return found


def attention(a: Tensor, special: Tensor) -> dict[str, Tensor]:
    """Section 1 of the definitions, tier full, of the maps a (B, H, N, N)."""
    n = a.shape[-1]
    at = torch.arange(n, device=a.device)
    offset = at[None] - at[:, None]
    entropy = -torch.special.xlogy(a, a).sum(-1)
    received = a.mean(-2)
    sorted_mass = a.sort(-1, descending=True).values.cumsum(-1)
    k90 = (sorted_mass < 0.9).sum(-1) + 1
    confident = a >= THETA
    on_special = special[:, None, None, :].to(a.dtype)
    side = 1 + torch.log2(offset.abs().clamp(min=1).float()).ceil().long()
    bins = n_offset_side(n)
    index = (offset.sign() * side + bins).flatten()
    profile = a.new_zeros(*a.shape[:2], 2 * bins + 1).index_add_(2, index, a.flatten(2)) / n
    member = nn.functional.one_hot(at * BLOCKS // n, BLOCKS).to(a.dtype)
    return {
        "attention_entropy": entropy.mean(-1),
        "attention_entropy_std": entropy.std(-1, correction=0),
        "attention_top1": a.amax(-1).mean(-1),
        "attention_purity": a.square().sum(-1).mean(-1),
        "attention_k90_median": k90.median(-1).values,
        "attention_k90_min": k90.amin(-1),
        "attention_distance": (a * offset.abs()).sum((-2, -1)) / n,
        "attention_offset": (a * offset).sum((-2, -1)) / n,
        "attention_self": a.diagonal(dim1=-2, dim2=-1).mean(-1),
        "attention_forward": a.triu(1).sum((-2, -1)) / n,
        "attention_backward": a.tril(-1).sum((-2, -1)) / n,
        "attention_special": (a * on_special).sum((-2, -1)) / n,
        "attention_confident_mass": (a * confident).sum((-2, -1)) / n,
        "attention_confident_count": confident.sum((-2, -1)) / n,
        "attention_received_entropy": -torch.special.xlogy(received, received).sum(-1),
        "attention_received_max": received.amax(-1),
        "attention_value_entropy": _value_entropy(a),
        "attention_asymmetry": (a - a.mT).square().sum((-2, -1)) / (2 * a.square().sum((-2, -1))),
        "attention_offset_profile": profile,
        "block_map": member.T @ a @ member / n,
        "gate_mass": _gates(a, special, offset, confident, member),
    }


def _value_entropy(a: Tensor) -> Tensor:
    low, high = a.amin((-2, -1), keepdim=True), a.amax((-2, -1), keepdim=True)
    bins = (20 * (a - low) / (high - low)).long().clamp_(max=19).flatten(2)
    ones = torch.ones_like(bins, dtype=a.dtype)
    share = a.new_zeros(*a.shape[:2], 20).scatter_add_(2, bins, ones) / bins.shape[-1]
    return -torch.special.xlogy(share, share).sum(-1)


def _gates(a: Tensor, special: Tensor, offset: Tensor, confident: Tensor, member: Tensor) -> Tensor:
    n = a.shape[-1]
    content = ~special[:, None, None, :]
    far = content & (offset.abs() > NEAR)
    hub = (a.sum(-2) >= min(8.0, n / 2))[:, :, None, :]
    masses = [
        (a * ~content).sum((-2, -1)),
        (a * (content & (offset == 0))).sum((-2, -1)),
        (a * (content & (offset < 0) & (offset >= -NEAR))).sum((-2, -1)),
        (a * (content & (offset > 0) & (offset <= NEAR))).sum((-2, -1)),
        (a * (far & hub)).sum((-2, -1)),
        (a * (far & ~hub & confident)).sum((-2, -1)),
    ]
    rest = (a * (far & ~hub & ~confident)).sum((-2, -1))
    p = member.T @ (a * far) @ member
    p = p / p.sum((-2, -1), keepdim=True).clamp(min=1e-30)
    best = torch.zeros_like(rest)
    for segments in (2, 4, 8, 16):
        q = p.unflatten(-1, (segments, -1)).unflatten(-3, (segments, -1)).sum((-1, -3))
        chance = (q.sum(-1) * q.sum(-2)).sum(-1)
        same = q.diagonal(dim1=-2, dim2=-1).sum(-1)
        best = torch.maximum(best, (same - chance) / (1 - chance).clamp(min=1e-6))
    masses += [rest * best, rest * (1 - best)]
    return torch.stack(masses, -1) / n


def logits(q: Tensor, k: Tensor) -> dict[str, Tensor]:
    """Asymmetry and effective rank of Q K^T, (B, H), from the d x d Gram matrices."""
    qq, kk, kq = q.mT @ q, k.mT @ k, k.mT @ q
    norm = (qq * kk.mT).sum((-2, -1))
    square = (kq * kq.mT).sum((-2, -1))
    product = qq @ kk
    return {
        "logit_asymmetry": (norm - square) / (2 * norm),
        "logit_effective_rank": norm.square() / (product * product.mT).sum((-2, -1)),
    }


def head_cones(q: Tensor, k: Tensor, v: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Cone index and mean cosine of the vectors of every head, (B, H, 4)."""
    index = torch.stack(
        [nn.functional.normalize(x, dim=-1).sum(-2).norm(dim=-1) for x in (q, k, v, z)], -1
    )
    n = q.shape[-2]
    return {
        "head_cone_index": index,
        "head_cone_mean_cosine": (index.square() - n) / (n * (n - 1)),
    }


def station(x: Tensor, *, angles: bool) -> dict[str, Tensor]:
    """Sections 2 and 3 of the definitions for one station x (B, N, D)."""
    x = x.float()
    n = x.shape[1]
    norm = x.norm(dim=-1)
    unit = x / norm[..., None]
    total = unit.sum(1)
    index = total.norm(dim=-1)
    to_axis = torch.rad2deg(
        torch.acos(((unit @ total[..., None]).squeeze(-1) / index[:, None]).clamp(-1, 1))
    )
    mean = x.mean(1)
    centred = x - mean[:, None]
    gram = centred @ centred.mT if n <= x.shape[-1] else centred.mT @ centred
    trace = centred.square().sum((1, 2))
    found = {
        "cone_index": index,
        "cone_resultant": index / n,
        "cone_mean_cosine": (index.square() - n) / (n * (n - 1)),
        "cone_axis_angle_mean": to_axis.mean(-1),
        "cone_axis_angle_max": to_axis.amax(-1),
        **_moments("stream", x.flatten(1)),
        **_moments("stream_rowsum", x.sum(1)),
        "stream_norm_mean": norm.mean(-1),
        "stream_norm_std": norm.std(-1, correction=0),
        "stream_norm_max": norm.amax(-1),
        "stream_outlier_dims": (
            (mean - mean.mean(-1, keepdim=True)).abs() > 6 * mean.std(-1, correction=0)[:, None]
        ).sum(-1),
        "stream_participation_ratio": trace.square() / gram.square().sum((1, 2)),
    }
    if angles:
        pairs = torch.triu_indices(n, n, 1, device=x.device)
        theta = torch.rad2deg(torch.acos((unit @ unit.mT).clamp(-1, 1)[:, pairs[0], pairs[1]]))
        found["angle_histogram"] = torch.stack([torch.histc(t, ANGLES, 0, 180) for t in theta])
        found["angle_mean"] = theta.mean(-1)
        found["angle_std"] = theta.std(-1, correction=0)
        found["angle_min"], found["angle_max"] = theta.amin(-1), theta.amax(-1)
    return found


def _moments(prefix: str, x: Tensor) -> dict[str, Tensor]:
    mean = x.mean(-1)
    centred = x - mean[:, None]
    variance = centred.square().mean(-1)
    z = centred / variance.sqrt()[:, None]
    return {
        f"{prefix}_mean": mean,
        f"{prefix}_variance": variance,
        f"{prefix}_skewness": z.pow(3).mean(-1),
        f"{prefix}_kurtosis": z.pow(4).mean(-1) - 3,
    }


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, N, H d) to (B, H, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
