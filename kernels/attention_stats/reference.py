"""Attention statistics by definition, in float64, from the whole matrix A.

The oracle: every other implementation is tested against this file and shares nothing with it
but constants. It is written to be compared with `docs/statistics.md` section 1 line by line,
not to be fast. Memory is O(H n^2) per batch element. `slack` lowers every threshold a little
(see `options.SLACK`); varying it shows which numbers depend on a weight next to a threshold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bertgeom.kernels.attention_stats.bias import AlibiBias, Bias, RelativeBias
from bertgeom.kernels.attention_stats.options import (
    FLAT,
    GATE_MIXED,
    GATES,
    HUB_MASS,
    N_BLOCKS,
    N_VALUE_BINS,
    ONE_BLOCK,
    SEGMENTS,
    SLACK,
    Options,
)


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    special: Tensor | None,
    groups: Tensor | None,
    options: Options,
    bias: Bias | None = None,
    *,
    slack: float = SLACK,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and statistics of a batch; arguments as checked by `api.attention_stats`.

    Returns:
        output (B, H, N, d) in the query's dtype, and the values in `dtype` (k90 int32, gate uint8).
    """
    batch, n_heads, n_slots, _ = query.shape
    repeat = n_heads // key.shape[1]
    output = torch.zeros_like(query)
    values: dict[str, list[Tensor]] = {}
    for b in range(batch):
        n = int(lengths[b])
        q = query[b, :, :n].to(dtype)
        k = key[b, :, :n].to(dtype).repeat_interleave(repeat, dim=0)
        v = value[b, :, :n].to(dtype).repeat_interleave(repeat, dim=0)
        is_special = torch.zeros(n, dtype=torch.bool, device=query.device)
        if special is not None:
            is_special = special[b, :n]
        member = groups[b, :n] if groups is not None else torch.zeros_like(is_special).int()
        added = None if bias is None else bias_cells(bias, b, n, q)
        weights = attention_weights(q, k, options, added)
        output[b, :, :n] = (weights @ v).to(query.dtype)
        if n:
            found = head_statistics(q, k, weights, is_special, member, options, slack, added)
        else:
            found = _no_tokens(query.new_zeros(n_heads, 1, 1).to(dtype), options)
        for name, x in found.items():
            values.setdefault(name, []).append(_pad(x, n_slots) if name in _TRACKS else x)
    return output, {name: torch.stack(x) for name, x in values.items()}


def head_statistics(
    q: Tensor,
    k: Tensor,
    a: Tensor,
    special: Tensor,
    groups: Tensor,
    options: Options,
    slack: float = SLACK,
    bias: Tensor | None = None,
) -> dict[str, Tensor]:
    """All statistics of the heads of one window: q, k (H, n, d), a, bias (H, n, n), n >= 1.

    A head whose queries or keys are not finite has none: NaN, 0 for counts, no dominant gate.
    """
    found = weight_statistics(a, special, options, slack)
    if bias is None:
        found |= logit_statistics(q, k)
    else:
        found |= biased_logit_statistics(options.scale * (q @ k.mT) + bias)
    if options.n_groups:
        found["attention_group_mass"] = group_mass(a, groups, options.n_groups)
    finite = q.isfinite().all(-1).all(-1) & k.isfinite().all(-1).all(-1)
    return {name: _where_finite(name, x, finite) for name, x in found.items()}


def _where_finite(name: str, x: Tensor, finite: Tensor) -> Tensor:
    """Statistics x (H, ...), and what stands for none in heads that are not finite (H,)."""
    missing = GATE_MIXED if name == "gate" else math.nan if x.is_floating_point() else 0
    return x.masked_fill(~finite.view(-1, *([1] * (x.dim() - 1))), missing)


def bias_cells(bias: Bias, b: int, n: int, like: Tensor) -> Tensor:
    """B of the n tokens of window b, (H, n, n), in the dtype of `like` (H, n, d)."""
    offset = _offsets(like)
    if isinstance(bias, AlibiBias):
        cells = -bias.slopes.to(like)[:, None, None] * offset.abs()
    elif isinstance(bias, RelativeBias):
        middle = bias.table.shape[1] // 2
        buckets = bias.buckets or (lambda o: o.clamp(-middle, middle) + middle)
        cells = bias.table.to(like)[:, buckets(offset)]
    else:
        cells = bias[min(b, len(bias) - 1), :, :n, :n].to(like)
    return cells.expand(len(like), n, n)


def attention_weights(q: Tensor, k: Tensor, options: Options, bias: Tensor | None = None) -> Tensor:
    """A = softmax(scale Q K^T + B) over the visible keys: (H, n, n) from (H, n, d)."""
    logits = options.scale * (q @ k.mT)
    if bias is not None:
        logits = logits + bias
    if options.window is not None:
        logits = logits.masked_fill(_offsets(q).abs() > options.window, -math.inf)
    return torch.softmax(logits, dim=-1)


def weight_statistics(
    a: Tensor, special: Tensor, options: Options, slack: float = SLACK
) -> dict[str, Tensor]:
    """Every statistic that depends only on the weights a (H, n, n) and the special tokens."""
    n = a.shape[-1]
    offset = _offsets(a)
    entropy = -torch.special.xlogy(a, a).sum(-1)
    received = a.sum(-2)
    confident = a >= options.theta * (1 - slack)
    share = received / n

    def mean_mass(cells: Tensor) -> Tensor:
        return (a * cells).sum((-2, -1)) / n

    found = {
        "attention_entropy": entropy.mean(-1),
        "attention_entropy_std": entropy.std(-1, correction=0),
        "attention_top1": a.amax(-1).mean(-1),
        "attention_purity": (a**2).sum(-1).mean(-1),
        "attention_distance": mean_mass(offset.abs()),
        "attention_offset": mean_mass(offset),
        "attention_self": mean_mass(offset == 0),
        "attention_forward": mean_mass(offset > 0),
        "attention_backward": mean_mass(offset < 0),
        "attention_special": mean_mass(special),
        "attention_confident_mass": mean_mass(confident),
        "attention_confident_count": confident.to(a).sum((-2, -1)) / n,
        "attention_received_entropy": -torch.special.xlogy(share, share).sum(-1),
        "attention_received_max": share.amax(-1),
        "gate_mass": gate_mass(a, special, options, slack),
    }
    found["gate"] = dominant_gate(found["gate_mass"])
    if options.full:
        k90 = smallest_count(a, slack)
        found |= {
            "attention_k90_median": k90.median(-1).values,
            "attention_k90_min": k90.amin(-1),
            "attention_value_entropy": value_entropy(a, slack),
            "attention_asymmetry": ((a - a.mT) ** 2).sum((-2, -1)) / (2 * (a**2).sum((-2, -1))),
            "attention_offset_profile": offset_profile(a, options.n_offset_side),
            "block_map": stretch_map(a) / n,
        }
    if options.rows:
        found["query_entropy"] = entropy
    if options.columns:
        found["attention_received"] = received
    return found


def gate_mass(a: Tensor, special: Tensor, options: Options, slack: float = SLACK) -> Tensor:
    """The gate spectrum (H, 8) of the weights a (H, n, n), in the order of GATES."""
    n = a.shape[-1]
    offset = _offsets(a)
    content = ~special
    far = content & (offset.abs() > options.near)
    hub = (a.sum(-2, keepdim=True) >= min(HUB_MASS, n / 2) * (1 - slack)).expand_as(a)
    confident = a >= options.theta * (1 - slack)
    cells = {
        "closed": special.expand_as(a),
        "open": (content & (offset == 0)).expand_as(a),
        "backward": (content & (offset <= -1) & (offset >= -options.near)).expand_as(a),
        "forward": (content & (offset >= 1) & (offset <= options.near)).expand_as(a),
        "directional": far & hub,
        "instance": far & ~hub & confident,
    }
    mass = {name: (a * where).sum((-2, -1)) / n for name, where in cells.items()}
    rest = (a * (far & ~hub & ~confident)).sum((-2, -1)) / n
    structure = block_structure(stretch_map(a * far))
    mass["cluster"] = rest * structure
    mass["diffuse"] = rest - mass["cluster"]
    return torch.stack([mass[name] for name in GATES], dim=-1)


def block_structure(far_map: Tensor) -> Tensor:
    """max(0, m) of the gate `cluster` for maps (H, 16, 16) of far mass; 0 without far mass."""
    total = far_map.sum((-2, -1), keepdim=True)
    p = far_map / total
    best = torch.zeros_like(total[..., 0, 0])
    for n_segments in SEGMENTS:
        size = N_BLOCKS // n_segments
        p_s = p.unflatten(-1, (n_segments, size)).unflatten(-3, (n_segments, size)).sum((-1, -3))
        chance = (p_s.sum(-1) * p_s.sum(-2)).sum(-1)
        m = (p_s.diagonal(dim1=-2, dim2=-1).sum(-1) - chance) / (1 - chance)
        known = (total[..., 0, 0] > 0) & (1 - chance > ONE_BLOCK)
        best = torch.where(known, torch.maximum(best, m), best)
    return best


def dominant_gate(mass: Tensor) -> Tensor:
    """Code of the largest of the masses (H, 8), the lowest of equals; mixed below 0.5."""
    half = mass.amax(-1) >= 0.5 * (1 - SLACK)
    return torch.where(half, mass.argmax(-1), GATE_MIXED).to(torch.uint8)


def smallest_count(a: Tensor, slack: float = SLACK) -> Tensor:
    """k_i (H, n): the least number of weights of row i whose sum is at least 0.9."""
    held = a.sort(dim=-1, descending=True).values.cumsum(-1)
    return ((held < 0.9 * (1 - slack)).sum(-1) + 1).to(torch.int32)


def value_entropy(a: Tensor, slack: float = SLACK) -> Tensor:
    """Entropy (H,) of the n^2 weights of a head in 20 equal bins between their extremes."""
    low, high = a.amin((-2, -1), keepdim=True), a.amax((-2, -1), keepdim=True)
    flat = (high - low <= FLAT * high)[..., 0, 0]
    x = N_VALUE_BINS * (a - low) / (high - low) + slack * N_VALUE_BINS
    bins = x.nan_to_num().floor().clamp(0, N_VALUE_BINS - 1).long()
    share = torch.nn.functional.one_hot(bins, N_VALUE_BINS).to(a).mean((-3, -2))
    return torch.where(flat, 0.0, -torch.special.xlogy(share, share).sum(-1))


def offset_profile(a: Tensor, n_side: int) -> Tensor:
    """Mean mass (H, 2 n_side + 1) by signed offset: bins 0, 1, 2, [3,4], [5,8], ... outwards."""
    offset = _offsets(a)
    side = 1 + torch.log2(offset.abs().clamp(min=1).double()).ceil().long()
    index = n_side + offset.sign() * side.clamp(max=n_side)
    profile = a.new_zeros(a.shape[0], 2 * n_side + 1)
    return profile.index_add_(1, index.flatten(), a.flatten(1)) / a.shape[-1]


def stretch_map(a: Tensor) -> Tensor:
    """Sums (H, 16, 16) of the cells of a (H, n, n) by stretch of the query and of the key."""
    n = a.shape[-1]
    stretch = torch.arange(n, device=a.device) * N_BLOCKS // n
    member = torch.nn.functional.one_hot(stretch, N_BLOCKS).to(a)
    return member.T @ a @ member


def group_mass(a: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Mean mass (H, n_groups) on the keys whose bit of `groups` (n,) is set."""
    member = (groups[:, None] >> torch.arange(n_groups, device=a.device)) & 1
    return (a @ member.to(a)).sum(-2) / a.shape[-1]


def logit_statistics(q: Tensor, k: Tensor) -> dict[str, Tensor]:
    """Asymmetry and effective rank (H,) of S = Q K^T, unscaled, from S itself."""
    s = q @ k.mT
    norm = (s**2).sum((-2, -1))
    skew = (((s - s.mT) / 2) ** 2).sum((-2, -1))
    # Q = U R, K = W T with orthonormal U, W: Q K^T and the small R T^T share singular values.
    # LAPACK refuses what is not finite; NaN takes its place in the end.
    r_q, r_k = (torch.linalg.qr(x.nan_to_num(0.0, 0.0, 0.0)).R for x in (q, k))
    sigma2 = torch.linalg.svdvals(r_q @ r_k.mT) ** 2
    rank = sigma2.sum(-1) ** 2 / (sigma2**2).sum(-1)
    empty = norm == 0
    return {
        "logit_asymmetry": torch.where(empty, 0.0, skew / norm),
        "logit_effective_rank": torch.where(empty, 0.0, rank),
    }


def biased_logit_statistics(s: Tensor) -> dict[str, Tensor]:
    """Asymmetry and effective rank (H,) of S = scale Q K^T + B (H, n, n), from S itself."""
    norm = (s**2).sum((-2, -1))
    skew = (((s - s.mT) / 2) ** 2).sum((-2, -1))
    # The sum of the fourth powers of the singular values of S is |S' S|^2.
    rank = norm**2 / ((s.mT @ s) ** 2).sum((-2, -1))
    return {
        "logit_asymmetry": torch.where(norm == 0, 0.0, skew / norm),
        "logit_effective_rank": torch.where(norm == 0, 0.0, rank),
    }


_TRACKS = ("query_entropy", "attention_received")


def _offsets(x: Tensor) -> Tensor:
    """j - i for every cell (n, n)."""
    at = torch.arange(x.shape[-2], device=x.device)
    return at[None, :] - at[:, None]


def _no_tokens(dummy: Tensor, options: Options) -> dict[str, Tensor]:
    """The values of a window without tokens: NaN, 0 for counts, and no dominant gate."""
    nobody = torch.zeros(1, dtype=torch.int32, device=dummy.device)
    found = head_statistics(dummy, dummy, dummy + 1, nobody.bool(), nobody, options)
    for name, x in found.items():
        if name in _TRACKS:
            found[name] = x[..., :0]
        elif name == "gate":
            found[name] = torch.full_like(x, GATE_MIXED)
        else:
            found[name] = torch.full_like(x, math.nan) if x.is_floating_point() else x * 0
    return found


def _pad(x: Tensor, n_slots: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, n_slots - x.shape[-1]), value=math.nan)
