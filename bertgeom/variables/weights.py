"""Declared arrays: weights of the model, once per store."""

from __future__ import annotations

from bertgeom.variables.declaration import OWN, PAPER, SAPONATI, Variable


def _weight(
    name: str,
    unit: str,
    description: str,
    *extra: str,
    dtype: str = "float64",
    source: str = OWN,
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
        source=SAPONATI,
    ),
    _weight(
        "weight_directionality",
        "1",
        "(c - r) / (c + r), c and r the sums of the column and row norms of W beyond their mean "
        "plus 2 population standard deviations; 0 without such norms",
        source=SAPONATI,
    ),
    _weight(
        "weight_directionality_excess",
        "1",
        "as weight_directionality, with what exceeds the threshold instead of the norms",
        source=SAPONATI,
    ),
    _weight(
        "weight_subspace_cosines",
        "1",
        "cosines of the principal angles between query and key subspace, descending",
        "component",
        source=PAPER,
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
