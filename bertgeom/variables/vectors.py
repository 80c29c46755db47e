"""Declared arrays: token vectors at the stations: cones, angles, streams."""

from __future__ import annotations

from bertgeom.variables.declaration import (
    ETHAYARAJH,
    OWN,
    PAPER,
    PER_ANGLE_STATION,
    PER_HEAD,
    PER_STATION,
    Variable,
)


def _moments(prefix: str, what: str, source: str = PAPER) -> list[Variable]:
    return [
        Variable(
            f"{prefix}_{moment}",
            PER_STATION,
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


CONE_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "cone_index",
        PER_STATION,
        "float32",
        "1",
        "norm of the sum of the unit token vectors; isotropic baseline about sqrt(n_tokens)",
        kind="cone",
        source=PAPER,
    ),
    Variable("cone_resultant", PER_STATION, "float32", "1", "cone_index / n_tokens", kind="cone"),
    Variable(
        "cone_mean_cosine",
        PER_STATION,
        "float32",
        "1",
        "mean cosine over all pairs of token vectors",
        kind="cone",
        source=ETHAYARAJH,
    ),
    Variable(
        "cone_axis_angle_mean",
        PER_STATION,
        "float32",
        "degree",
        "mean angle between token vectors and the axis of the cone",
        kind="cone",
        source=OWN,
    ),
    Variable(
        "cone_axis_angle_max",
        PER_STATION,
        "float32",
        "degree",
        "half-angle of the cone around the axis that holds all token vectors",
        kind="cone",
        source=OWN,
    ),
)

ANGLE_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "angle_histogram",
        (*PER_ANGLE_STATION, "angle"),
        "uint32",
        "1",
        "pairs of token vectors by angle, 90 bins of 2 degrees; sums to n(n-1)/2",
        kind="angle",
        source=PAPER,
    ),
    *(
        Variable(
            f"angle_{name}",
            PER_ANGLE_STATION,
            "float32",
            "degree",
            f"{text} angle over all pairs of token vectors",
            kind="angle",
            source=PAPER,
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
        (*PER_HEAD, "head_station"),
        "float32",
        "1",
        "norm of the sum of the unit vectors of one head",
        kind="head_cone",
        source=PAPER,
    ),
    Variable(
        "head_cone_mean_cosine",
        (*PER_HEAD, "head_station"),
        "float32",
        "1",
        "mean cosine over all pairs of vectors of one head",
        kind="head_cone",
        source=ETHAYARAJH,
    ),
)

STREAM_VARIABLES: tuple[Variable, ...] = (
    *_moments("stream", "all entries of the token vectors"),
    *(
        Variable(
            f"stream_norm_{name}",
            PER_STATION,
            "float32",
            "1",
            f"{text} of the norms of the token vectors",
            kind="stream",
            source=OWN,
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
        PER_STATION,
        "uint32",
        "1",
        "entries of the mean token vector beyond 6 standard deviations of its entries",
        kind="stream",
        source=OWN,
    ),
    Variable(
        "stream_participation_ratio",
        PER_STATION,
        "float32",
        "1",
        "tr(C)^2 / tr(C^2) of the centred covariance of the token vectors",
        kind="stream",
        source=OWN,
    ),
)
