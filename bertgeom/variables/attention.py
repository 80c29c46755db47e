"""Declared arrays: attention weights and logits of a head."""

from __future__ import annotations

from bertgeom.variables.axes import GATE_MIXED
from bertgeom.variables.declaration import CLARK, OWN, PAPER, PER_HEAD, SAPONATI, VIG, Variable


def _attention(
    name: str,
    unit: str,
    description: str,
    *,
    tier: str = "core",
    dims: tuple[str, ...] = PER_HEAD,
    dtype: str = "float32",
    source: str = OWN,
    keep: str | None = None,
) -> Variable:
    return Variable(name, dims, dtype, unit, description, tier, "attention", keep, source)


ATTENTION_VARIABLES: tuple[Variable, ...] = (
    _attention(
        "attention_entropy",
        "nat",
        "mean over query rows of the entropy of the attention weights",
        source=CLARK,
    ),
    _attention(
        "attention_entropy_std",
        "nat",
        "population standard deviation over query rows of the entropy of the attention weights",
    ),
    _attention("attention_top1", "1", "mean over rows of the largest weight"),
    _attention(
        "attention_purity",
        "1",
        "mean over rows of the sum of squared weights (its inverse: effective number of keys)",
    ),
    _attention(
        "attention_k90_median",
        "token",
        "lower median over rows of the least number of weights that hold 0.9 of the mass",
        tier="full",
        dtype="uint32",
        source=PAPER,
    ),
    _attention(
        "attention_k90_min",
        "token",
        "minimum over rows of the least number of weights that hold 0.9 of the mass",
        tier="full",
        dtype="uint32",
        source=PAPER,
    ),
    _attention("attention_distance", "token", "mean over rows of the attended |key - query|"),
    _attention("attention_offset", "token", "mean over rows of the attended (key - query)"),
    _attention("attention_self", "1", "mean over rows of the weight on the query's own position"),
    _attention("attention_forward", "1", "mean over rows of the mass on later positions"),
    _attention("attention_backward", "1", "mean over rows of the mass on earlier positions"),
    _attention(
        "attention_special", "1", "mean over rows of the mass on special tokens", source=CLARK
    ),
    _attention(
        "attention_confident_mass",
        "1",
        "mean over rows of the mass in weights of at least theta",
        source=VIG,
    ),
    _attention(
        "attention_confident_count",
        "1",
        "mean over rows of the number of weights of at least theta",
        source=VIG,
    ),
    _attention(
        "attention_received_entropy", "nat", "entropy of the attention received, column means"
    ),
    _attention("attention_received_max", "1", "largest attention received, column mean"),
    _attention(
        "attention_group_mass",
        "1",
        "mean over rows of the mass on each token group; groups may overlap",
        dims=(*PER_HEAD, "group"),
        source=VIG,
    ),
    _attention(
        "attention_value_entropy",
        "nat",
        "entropy of all weights of the head in 20 equal bins between their extremes",
        tier="full",
        source=PAPER,
    ),
    _attention(
        "attention_asymmetry",
        "1",
        "sum (A_ij - A_ji)^2 / (2 sum A_ij^2): 0 symmetric, 1 one-way",
        tier="full",
    ),
    _attention(
        "attention_offset_profile",
        "1",
        "mean over rows of the mass by signed offset key - query, bins doubling outwards",
        tier="full",
        dims=(*PER_HEAD, "offset"),
    ),
    _attention(
        "logit_asymmetry",
        "1",
        "share of the skew part in the squared norm of Q K^T",
        source=SAPONATI,
    ),
    _attention(
        "logit_effective_rank",
        "1",
        "participation ratio of the squared singular values of Q K^T",
    ),
    _attention(
        "gate_mass", "1", "gate spectrum: eight masses that sum to 1", dims=(*PER_HEAD, "gate")
    ),
    _attention(
        "gate",
        "1",
        f"code of the gate with the largest mass, {GATE_MIXED} (mixed) if none reaches 0.5",
        dtype="uint8",
    ),
    _attention(
        "block_map",
        "1",
        "attention mass in 16 x 16 equal stretches of query and key positions; sums to 1",
        tier="full",
        dims=(*PER_HEAD, "query_block", "key_block"),
        dtype="float16",
        keep="block_map",
    ),
    _attention(
        "query_entropy",
        "nat",
        "entropy of the attention weights of every query token",
        dims=(*PER_HEAD, "token"),
        dtype="float16",
        keep="tracks",
    ),
    _attention(
        "attention_received",
        "1",
        "column mean of the attention weights of every key token, times n_tokens",
        dims=(*PER_HEAD, "token"),
        dtype="float16",
        keep="tracks",
    ),
)
