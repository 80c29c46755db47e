"""Every array a store may hold, declared once.

The store is created from these declarations, `FORMAT.md` is checked against them, and
`bertgeom.open` takes units and descriptions from them. A statistic that is not declared
here does not exist. Definitions: `docs/statistics.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

#: Version of the meaning of the arrays; written into every store.
DEFINITIONS_VERSION = 1

GATES = (
    "closed",
    "open",
    "backward",
    "forward",
    "directional",
    "instance",
    "cluster",
    "diffuse",
)
#: Code of `gate` where no gate holds half of the mass.
GATE_MIXED = len(GATES)
HEAD_STATIONS = ("query", "key", "value", "head")
N_BLOCKS = 16
N_ANGLES = 90
MAX_GROUPS = 16

#: Bits of `flags`, in order: name and meaning.
FLAGS = {
    "unknown": "more unknown tokens than --max-unknown",
    "short": "shorter than the window: the only window of a short record",
    "empty": "no token of the record is left; statistics are missing",
    "zero_vector": "a zero vector was met and left out of a cone",
    "recomputed": "not finite in half precision; computed again in a wider type",
    "quarantined": "could not be computed (out of memory or not finite); statistics are missing",
}


def flag_bit(name: str) -> int:
    """The bit of `flags` called `name`."""
    return 1 << tuple(FLAGS).index(name)


#: Bits of `flags` of which either says that a window has no statistics.
LOST = flag_bit("empty") | flag_bit("quarantined")


def offset_edges(n_side: int) -> np.ndarray:
    """Smallest |j - i| of the bins 1..n_side of one side: 1, 2, 3, 5, 9, 17, ... (int64)."""
    return np.array([1, *(2**m + 1 for m in range(n_side - 1))], dtype=np.int64)


def n_offset_side(max_tokens: int) -> int:
    """How many one-sided offset bins keep every offset of `max_tokens` tokens in its own bin."""
    return max(1, int(np.ceil(np.log2(max(max_tokens - 1, 1)))) + 1)


def offset_labels(n_side: int) -> list[str]:
    """Names of the 2 n_side + 1 signed bins, from the farthest backward to the farthest forward."""
    low = offset_edges(n_side)
    names = []
    for i, start in enumerate(low):
        stop = low[i + 1] - 1 if i + 1 < n_side else 2**i if i else 1
        names.append(str(start) if start == stop else f"{start}..{stop}")
    return [f"-{x}" for x in reversed(names)] + ["0"] + [f"+{x}" for x in names]


@dataclass(frozen=True)
class Variable:
    """One array of the store.

    Attributes:
        name: the array's name.
        dims: dimension names; the first is `window` for everything per window.
        dtype: numpy dtype on disk.
        unit: a UDUNITS-like unit, "1" for shares and counts.
        description: one sentence that says what a number is.
        tier: "core" or "full".
        kind: which part computes it: window, attention, cone, angle, stream, head_cone, output.
        keep: name of the `--keep` option that turns it on, None if always on.
        source: where the definition comes from.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    unit: str
    description: str
    tier: str = "core"
    kind: str = "attention"
    keep: str | None = None
    source: str = "statistics.md"


_HEAD = ("window", "layer", "head")
_STATION = ("window", "station")
_ANGLE = ("window", "angle_station")
_PAPER = "Bonino et al. 2025, arXiv 2502.12033"
_CLARK = "Clark et al. 2019"
_VIG = "Vig et al. 2021"
_ETHAYARAJH = "Ethayarajh 2019"
_SAPONATI = "Saponati et al. 2025"
_OWN = "bertgeom"


def _attention(
    name: str,
    unit: str,
    description: str,
    *,
    tier: str = "core",
    dims: tuple[str, ...] = _HEAD,
    dtype: str = "float32",
    source: str = _OWN,
    keep: str | None = None,
) -> Variable:
    return Variable(name, dims, dtype, unit, description, tier, "attention", keep, source)


def _moments(prefix: str, what: str, source: str = _PAPER) -> list[Variable]:
    return [
        Variable(
            f"{prefix}_{moment}",
            _STATION,
            "float32",
            "1",
            f"{text} of {what}",
            kind="stream",
            source=source,
        )
        for moment, text in (
            ("mean", "mean"),
            ("variance", "population variance"),
            ("skewness", "skewness"),
            ("kurtosis", "excess kurtosis"),
        )
    ]


WINDOW_VARIABLES: tuple[Variable, ...] = tuple(
    Variable(name, ("window",), dtype, unit, description, kind="window", source=_OWN)
    for name, dtype, unit, description in (
        ("record_index", "uint32", "1", "index of the record in the record table"),
        ("record_id", "string", "1", "id of the record; ids may repeat"),
        ("start", "uint64", "base", "first base of the window in its record, 0-based"),
        ("stop", "uint64", "base", "one past the last base of the window in its record"),
        ("strand", "int8", "1", "+1 as in the record, -1 reverse complement"),
        ("n_tokens", "uint32", "token", "valid tokens, special ones included"),
        ("n_unknown", "uint32", "token", "tokens that the tokenizer maps to its unknown token"),
        ("n_ambiguous", "uint32", "base", "bases of the window that are not A, C, G, T or U"),
        ("truncated", "bool", "1", "whether tokens were cut off at the model's maximum length"),
        ("flags", "uint16", "1", "bit field, see flag_meanings"),
        ("label", "int32", "1", "code of the window's label, -1 without one"),
    )
)

ATTENTION_VARIABLES: tuple[Variable, ...] = (
    _attention(
        "attention_entropy",
        "nat",
        "mean over query rows of the entropy of the attention weights",
        source=_CLARK,
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
        source=_PAPER,
    ),
    _attention(
        "attention_k90_min",
        "token",
        "minimum over rows of the least number of weights that hold 0.9 of the mass",
        tier="full",
        dtype="uint32",
        source=_PAPER,
    ),
    _attention("attention_distance", "token", "mean over rows of the attended |key - query|"),
    _attention("attention_offset", "token", "mean over rows of the attended (key - query)"),
    _attention("attention_self", "1", "mean over rows of the weight on the query's own position"),
    _attention("attention_forward", "1", "mean over rows of the mass on later positions"),
    _attention("attention_backward", "1", "mean over rows of the mass on earlier positions"),
    _attention(
        "attention_special", "1", "mean over rows of the mass on special tokens", source=_CLARK
    ),
    _attention(
        "attention_confident_mass",
        "1",
        "mean over rows of the mass in weights of at least theta",
        source=_VIG,
    ),
    _attention(
        "attention_confident_count",
        "1",
        "mean over rows of the number of weights of at least theta",
        source=_VIG,
    ),
    _attention(
        "attention_received_entropy", "nat", "entropy of the attention received, column means"
    ),
    _attention("attention_received_max", "1", "largest attention received, column mean"),
    _attention(
        "attention_group_mass",
        "1",
        "mean over rows of the mass on each token group; groups may overlap",
        dims=(*_HEAD, "group"),
        source=_VIG,
    ),
    _attention(
        "attention_value_entropy",
        "nat",
        "entropy of all weights of the head in 20 equal bins between their extremes",
        tier="full",
        source=_PAPER,
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
        dims=(*_HEAD, "offset"),
    ),
    _attention(
        "logit_asymmetry",
        "1",
        "share of the skew part in the squared norm of Q K^T",
        source=_SAPONATI,
    ),
    _attention(
        "logit_effective_rank",
        "1",
        "participation ratio of the squared singular values of Q K^T",
    ),
    _attention(
        "gate_mass", "1", "gate spectrum: eight masses that sum to 1", dims=(*_HEAD, "gate")
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
        dims=(*_HEAD, "query_block", "key_block"),
        dtype="float16",
        keep="block_map",
    ),
    _attention(
        "query_entropy",
        "nat",
        "entropy of the attention weights of every query token",
        dims=(*_HEAD, "token"),
        dtype="float16",
        keep="tracks",
    ),
    _attention(
        "attention_received",
        "1",
        "column mean of the attention weights of every key token, times n_tokens",
        dims=(*_HEAD, "token"),
        dtype="float16",
        keep="tracks",
    ),
)

REGION_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "group_tokens",
        ("window", "group"),
        "uint32",
        "token",
        "tokens in each group; divided by n_tokens, the share of attention a region gets by chance",
        kind="window",
        source=_VIG,
    ),
)

TRACK_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "token_start",
        ("window", "token"),
        "int32",
        "base",
        "first base of the token in its record minus the window's start; -1: no bases",
        tier="full",
        kind="window",
        keep="tracks",
        source=_OWN,
    ),
    Variable(
        "token_stop",
        ("window", "token"),
        "int32",
        "base",
        "one past the last base of the token minus the window's start; -1: no bases",
        tier="full",
        kind="window",
        keep="tracks",
        source=_OWN,
    ),
)

CONE_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "cone_index",
        _STATION,
        "float32",
        "1",
        "norm of the sum of the unit token vectors; isotropic baseline about sqrt(n_tokens)",
        kind="cone",
        source=_PAPER,
    ),
    Variable("cone_resultant", _STATION, "float32", "1", "cone_index / n_tokens", kind="cone"),
    Variable(
        "cone_mean_cosine",
        _STATION,
        "float32",
        "1",
        "mean cosine over all pairs of token vectors",
        kind="cone",
        source=_ETHAYARAJH,
    ),
    Variable(
        "cone_axis_angle_mean",
        _STATION,
        "float32",
        "degree",
        "mean angle between token vectors and the axis of the cone",
        kind="cone",
        source=_OWN,
    ),
    Variable(
        "cone_axis_angle_max",
        _STATION,
        "float32",
        "degree",
        "half-angle of the cone around the axis that holds all token vectors",
        kind="cone",
        source=_OWN,
    ),
)

ANGLE_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "angle_histogram",
        (*_ANGLE, "angle"),
        "uint32",
        "1",
        "pairs of token vectors by angle, 90 bins of 2 degrees; sums to n(n-1)/2",
        kind="angle",
        source=_PAPER,
    ),
    *(
        Variable(
            f"angle_{name}",
            _ANGLE,
            "float32",
            "degree",
            f"{text} angle over all pairs of token vectors",
            kind="angle",
            source=_PAPER,
        )
        for name, text in (
            ("mean", "mean"),
            ("std", "population standard deviation of the"),
            ("min", "smallest"),
            ("max", "largest"),
        )
    ),
)

HEAD_CONE_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "head_cone_index",
        (*_HEAD, "head_station"),
        "float32",
        "1",
        "norm of the sum of the unit vectors of one head",
        kind="head_cone",
        source=_PAPER,
    ),
    Variable(
        "head_cone_mean_cosine",
        (*_HEAD, "head_station"),
        "float32",
        "1",
        "mean cosine over all pairs of vectors of one head",
        kind="head_cone",
        source=_ETHAYARAJH,
    ),
)

STREAM_VARIABLES: tuple[Variable, ...] = (
    *_moments("stream", "all entries of the token vectors"),
    *(
        Variable(
            f"stream_norm_{name}",
            _STATION,
            "float32",
            "1",
            f"{text} of the norms of the token vectors",
            kind="stream",
            source=_OWN,
        )
        for name, text in (
            ("mean", "mean"),
            ("std", "population standard deviation"),
            ("max", "largest"),
        )
    ),
    *_moments("stream_rowsum", "the entries of the sum of the token vectors"),
    Variable(
        "stream_outlier_dims",
        _STATION,
        "uint32",
        "1",
        "entries of the mean token vector beyond 6 standard deviations of its entries",
        kind="stream",
        source=_OWN,
    ),
    Variable(
        "stream_participation_ratio",
        _STATION,
        "float32",
        "1",
        "tr(C)^2 / tr(C^2) of the centred covariance of the token vectors",
        kind="stream",
        source=_OWN,
    ),
)

OUTPUT_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "cls",
        ("window", "hidden_state", "hidden"),
        "float16",
        "1",
        "vector of the first token after the embedding and after every layer",
        kind="output",
        keep="cls",
        source=_PAPER,
    ),
    Variable(
        "logits",
        ("window", "class"),
        "float32",
        "1",
        "class logits of the model's head",
        kind="output",
        keep="logits",
        source=_PAPER,
    ),
)


def _weight(
    name: str,
    unit: str,
    description: str,
    *extra: str,
    dtype: str = "float64",
    source: str = _OWN,
) -> Variable:
    return Variable(
        name, ("layer", "head", *extra), dtype, unit, description, kind="weight", source=source
    )


#: Once per model: statistics of W = W_q^T W_k and of the three projections of a head.
WEIGHT_VARIABLES: tuple[Variable, ...] = (
    _weight(
        "weight_symmetry",
        "1",
        "(|symmetric part|^2 - |skew part|^2) / |W|^2: 1 symmetric, -1 skew",
        source=_SAPONATI,
    ),
    _weight(
        "weight_directionality",
        "1",
        "(c - r) / (c + r), c and r the sums of the column and row norms of W beyond their mean "
        "plus 2 population standard deviations; 0 without such norms",
        source=_SAPONATI,
    ),
    _weight(
        "weight_directionality_excess",
        "1",
        "as weight_directionality, with what exceeds the threshold instead of the norms",
        source=_SAPONATI,
    ),
    _weight(
        "weight_subspace_cosines",
        "1",
        "cosines of the principal angles between query and key subspace, descending",
        "component",
        source=_PAPER,
    ),
    _weight(
        "weight_eigen_positive", "1", "eigenvalues of W with a positive real part", dtype="int32"
    ),
    _weight(
        "weight_eigen_negative", "1", "eigenvalues of W with a negative real part", dtype="int32"
    ),
    _weight("weight_eigen_complex", "1", "eigenvalues of W that are not real", dtype="int32"),
    _weight(
        "weight_symmetric_positive_share",
        "1",
        "positive eigenvalues of the symmetric part of W over the sum of their absolute values",
    ),
    _weight("weight_singular_values", "1", "singular values of W, descending", "component"),
    _weight("weight_rank", "1", "numerical rank of W (numpy's rule, float64)", dtype="int32"),
    _weight(
        "weight_effective_rank", "1", "participation ratio of the squared singular values of W"
    ),
    _weight(
        "projection_singular_values",
        "1",
        "singular values of W_q, W_k, W_v, descending",
        "projection",
        "component",
    ),
    _weight(
        "projection_rank",
        "1",
        "numerical rank of W_q, W_k, W_v (numpy's rule, float64)",
        "projection",
        dtype="int32",
    ),
    _weight(
        "projection_effective_rank",
        "1",
        "participation ratio of the squared singular values of W_q, W_k, W_v",
        "projection",
    ),
    _weight(
        "projection_bias_norm",
        "1",
        "norm of the bias of the projection; 0 where the model has none",
        "projection",
    ),
)


def _spectrum(
    name: str,
    unit: str,
    description: str,
    *extra: str,
    dtype: str = "float32",
    source: str = _OWN,
    head: bool = True,
) -> Variable:
    dims = ("sample", "layer", "head", *extra) if head else ("sample", "layer", *extra)
    return Variable(name, dims, dtype, unit, description, "full", "spectrum", "spectra", source)


#: Spectra of a head; `logit` is Q K^T without scale, of which d values can be nonzero.
SPECTRA = ("attention", "value", "head", "logit")

#: For sampled windows only (`--spectra`). Values that a shorter window lacks are NaN.
SPECTRUM_VARIABLES: tuple[Variable, ...] = (
    _spectrum(
        "attention_singular_values", "1", "singular values of A, descending", "token_component"
    ),
    _spectrum("value_singular_values", "1", "singular values of V, descending", "head_component"),
    _spectrum(
        "head_singular_values", "1", "singular values of Z = A V, descending", "head_component"
    ),
    _spectrum(
        "logit_singular_values", "1", "singular values of Q K^T, descending", "head_component"
    ),
    _spectrum(
        "spectrum_rank", "1", "numerical rank (numpy's rule, float32)", "spectrum", dtype="int32"
    ),
    _spectrum("spectrum_small", "1", "singular values below 1e-3", "spectrum", dtype="int32"),
    _spectrum(
        "spectrum_condition",
        "1",
        "largest over smallest singular value",
        "spectrum",
        dtype="float64",
    ),
    _spectrum("spectral_entropy", "nat", "-sum p ln p with p = s^2 / sum s^2", "spectrum"),
    _spectrum(
        "logit_eigenvalues_real",
        "1",
        "real parts of the eigenvalues of Q K^T, by falling absolute value",
        "head_component",
    ),
    _spectrum(
        "logit_eigenvalues_imaginary",
        "1",
        "imaginary parts of the eigenvalues of Q K^T, in the order of the real parts",
        "head_component",
    ),
    _spectrum(
        "logit_symmetric_eigenvalues",
        "1",
        "eigenvalues of the symmetric part of Q K^T, ascending",
        "symmetric_component",
    ),
    _spectrum(
        "paper_von_neumann_entropy",
        "nat",
        "-sum p ln p with p the absolute eigenvalues of Q K^T over their 2-norm",
        source=_PAPER,
    ),
    _spectrum(
        "paper_shannon_entropy",
        "nat",
        "entropy of all weights of the head in 20 equal bins between their extremes",
        source=_PAPER,
    ),
    _spectrum(
        "output_singular_values",
        "1",
        "singular values of the layer output, descending",
        "output_component",
        head=False,
    ),
    _spectrum(
        "output_spectrum_rank",
        "1",
        "numerical rank of the layer output (numpy's rule, float32)",
        dtype="int32",
        head=False,
    ),
    _spectrum(
        "output_spectrum_small",
        "1",
        "singular values of the layer output below 1e-3",
        dtype="int32",
        head=False,
    ),
    _spectrum(
        "output_spectrum_condition",
        "1",
        "largest over smallest singular value of the layer output",
        dtype="float64",
        head=False,
    ),
    _spectrum(
        "output_spectral_entropy",
        "nat",
        "-sum p ln p with p = s^2 / sum s^2 of the layer output",
        head=False,
    ),
)

VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (
        *WINDOW_VARIABLES,
        *REGION_VARIABLES,
        *ATTENTION_VARIABLES,
        *CONE_VARIABLES,
        *ANGLE_VARIABLES,
        *HEAD_CONE_VARIABLES,
        *STREAM_VARIABLES,
        *OUTPUT_VARIABLES,
        *TRACK_VARIABLES,
    )
}

#: Names accepted by `--keep`.
KEEP = tuple(sorted({v.keep for v in VARIABLES.values() if v.keep}))


def select(tier: str = "full", keep: tuple[str, ...] = ()) -> Iterator[Variable]:
    """The variables of a run: all of `tier`, and those that `keep` asks for, in order.

    Raises:
        ValueError: for an unknown tier or keep.
    """
    if tier not in ("core", "full"):
        raise ValueError(f"expected tier 'core' or 'full', found {tier!r}")
    unknown = set(keep) - set(KEEP)
    if unknown:
        raise ValueError(f"expected --keep out of {', '.join(KEEP)}, found {sorted(unknown)}")
    for variable in VARIABLES.values():
        if variable.keep is not None:
            if variable.keep in keep:
                yield variable
        elif tier == "full" or variable.tier == "core":
            yield variable
