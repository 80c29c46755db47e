"""A sample of windows of a store, measured again by the float64 oracle.

The oracle is the reference of every kernel, fed with the queries, keys, values and hidden states
of the same model. What is left between the two is the rounding of the store's precision, and
single cells that lie on a threshold or a bin's edge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from bertgeom.pipelines.context.run_context import (
    RunContext,
)
from bertgeom.pipelines.partition.measure import encode_windows, measure_batch
from bertgeom.store import zarr_io
from bertgeom.store.layout import missing_value
from bertgeom.variables import Variable

#: Largest difference to the oracle, absolute up to 1 and relative beyond, by compute type.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
#: The same for angles, in degrees: the arc cosine magnifies rounding where it is steep.
ANGLE_TOLERANCE = {"float32": 5e-2, "float16": 2.0, "bfloat16": 5.0}
#: Arrays with a threshold or bins: a cell on the edge may fall to either side, and moves its
#: number by a whole cell. This share of an array's numbers may be such.
_EDGES = {
    "attention_confident_mass",
    "attention_confident_count",
    "attention_value_entropy",
    "gate_mass",
    "gate",
    "attention_k90_median",
    "attention_k90_min",
    "stream_outlier_dims",
}
EDGE_SHARE = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.3}
#: Share of the pairs of a window that may lie on the edge of an angle bin.
PAIR_SHARE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}


@dataclass(frozen=True)
class Comparison:
    """One array against the oracle.

    Attributes:
        values: numbers compared. largest: largest difference beyond rounding of the type on
            disk, in units of max(1, |oracle|); for histograms the largest share of pairs in
            another bin.
        tolerance: what `largest` may be. outside: numbers beyond it; allowed: how many may be.
    """

    array: str
    values: int
    largest: float
    tolerance: float
    outside: int
    allowed: int

    @property
    def agrees(self) -> bool:
        return self.outside <= self.allowed


def compare(context: RunContext, windows: Iterable[int]) -> list[Comparison]:
    """Measure windows again and compare them with the store, array by array."""
    numbers = list(windows)
    parts = [context.plan.index.windows(i, i + 1) for i in numbers]
    oracle_settings = replace(context.measure_settings, impl="reference")
    fresh = [
        measure_batch(context, encode_windows(context, part), part, oracle_settings)
        for part in parts
    ]
    arrays = zarr_io.Arrays(context.storage, read_only=True)
    found = []
    for variable in context.layout.variables:
        if variable.kind == "window" and variable.name not in ("n_tokens", "n_unknown"):
            continue
        old = np.concatenate([arrays.read(variable.name, i, i + 1) for i in numbers])
        new = np.concatenate([_as_stored(context, variable, m[variable.name]) for m in fresh])
        precision, rounding = context.facts.identity.model.dtype, _rounding(context, variable)
        found.append(compare_values(variable, old, new, precision, rounding))
    return found


def _as_stored(context: RunContext, variable: Variable, values: np.ndarray) -> np.ndarray:
    """Oracle values in the shape of the store: a shorter token dimension is filled up."""
    shape = context.layout.shape(variable)[1:]
    full = np.full((len(values), *shape), missing_value(variable), np.float64)
    full[(slice(None), *(slice(0, n) for n in values.shape[1:]))] = values
    return full


def compare_values(
    variable: Variable, old: np.ndarray, new: np.ndarray, precision: str, rounding: float = 0.0
) -> Comparison:
    """Compare the values of one array with those of the oracle, in one shape.

    Args:
        old: values of the kernels; new: those of the oracle.
        precision: the model's dtype, "float32", "float16" or "bfloat16".
        rounding: relative rounding of `old` on disk.
    """
    if variable.name == "angle_histogram":
        return _compare_histograms(old, new, PAIR_SHARE[precision])
    if variable.unit == "degree":
        tolerance = ANGLE_TOLERANCE[precision]
    else:
        tolerance = TOLERANCE[precision]
    old = old.astype(np.float64)
    scale = np.maximum(1.0, np.abs(new))
    with np.errstate(invalid="ignore"):
        difference = np.abs(old - new) - rounding * np.abs(new)
    difference = np.where(np.isnan(old) & np.isnan(new), 0.0, difference / scale)
    difference = np.where(np.isnan(difference), np.inf, np.maximum(difference, 0.0))
    outside = int((difference > tolerance).sum())
    allowed = 0
    if variable.name in _EDGES:
        allowed = max(1, int(EDGE_SHARE[precision] * difference.size))
    return Comparison(
        variable.name,
        difference.size,
        float(difference.max(initial=0.0)),
        tolerance,
        outside,
        allowed,
    )


def _rounding(context: RunContext, variable: Variable) -> float:
    """Relative rounding of the type on disk and of --bitround."""
    if np.dtype(variable.dtype).kind != "f":
        return 0.0
    error = float(np.finfo(variable.dtype).eps) if variable.dtype == "float16" else 0.0
    bits = context.settings.bitround
    return error + (0.0 if bits is None else 2.0**-bits)


def _compare_histograms(old: np.ndarray, new: np.ndarray, tolerance: float) -> Comparison:
    """Pairs that moved to another bin; the totals must be equal."""
    old, new = old.astype(np.float64), new.astype(np.float64)
    moved = np.abs(np.cumsum(old - new, axis=-1)).max(axis=-1)
    total = new.sum(axis=-1)
    share = np.where(total > 0, moved / np.maximum(total, 1), moved)
    # One or two pairs of a short window are more than the share.
    bad = (share > tolerance) & (moved > 2) | (old.sum(axis=-1) != total)
    return Comparison(
        "angle_histogram", share.size, float(share.max(initial=0.0)), tolerance, int(bad.sum()), 0
    )
