"""The options of a call, and the constants that every implementation shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bertgeom.kernels._dispatch import IMPLEMENTATIONS

#: Codes of `gate` in order; the code of "no gate holds half of the mass" follows them.
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
GATE_MIXED = len(GATES)
MAX_GROUPS = 16
TIERS = ("core", "full")
MAX_NEAR = 64
MAX_OFFSET_SIDE = 32

#: Stretches of the block map; token t of n belongs to stretch t * N_BLOCKS // n.
N_BLOCKS = 16
#: Partitions of the stretches whose block structure the gate `cluster` compares.
SEGMENTS = (2, 4, 8, 16)
#: Equal-width bins of the value entropy.
N_VALUE_BINS = 20

#: Thresholds are lowered by this share, and bin edges by this share of a bin, so that a weight
#: that equals a threshold in exact arithmetic passes it in every precision.
SLACK = 1e-5
#: The mass of k90, lowered likewise, so that nine of ten equal weights hold it.
K90_MASS = 0.9 * (1 - SLACK)
#: A column is a hub from min(HUB_MASS, n / 2) received weights on.
HUB_MASS = 8.0
#: max - min at or below this share of max counts as one bin.
FLAT = 1e-5
#: 1 - sum r c at or below this has no block structure to show.
ONE_BLOCK = 1e-6


@dataclass(frozen=True)
class Options:
    """The options of one call.

    Attributes:
        scale: factor of Q K^T inside the softmax.
        window: key j is visible to query i iff |i - j| <= window; None: every key is.
        full: whether the tier is "full".
        theta: weights from theta on are confident.
        near: |i - j| <= near is near.
        n_offset_side: one-sided bins of the offset profile.
        n_groups: token groups, 0 to 16.
        rows: whether `query_entropy` is returned.
        columns: whether `attention_received` is returned.
        cones: whether the cones of queries, keys, values and outputs are returned.
    """

    scale: float
    window: int | None
    full: bool
    theta: float
    near: int
    n_offset_side: int
    n_groups: int
    rows: bool
    columns: bool
    cones: bool = False


def fault(name: str, value: Any) -> str | None:
    """What is wrong with the value of an option, "expected ..., found ..."; None: nothing.

    The ranges of these options are defined only here; settings of a run use them, too. Loads
    neither torch nor Numba.
    """
    ok, expected = _RANGES[name]
    return None if ok(value) else f"expected {expected}, found {value!r}"


def _number(value: Any) -> bool:
    real = isinstance(value, int | float) or hasattr(value, "__float__")
    return real and not isinstance(value, bool | str)


def _whole(least: int, most: float) -> Any:
    def ok(value: Any) -> bool:
        whole = hasattr(value, "__index__") and not isinstance(value, bool)
        return bool(whole and least <= value <= most)

    return ok


_RANGES: dict[str, tuple[Any, str]] = {
    "scale": (lambda x: _number(x) and math.isfinite(x) and x > 0, "a positive number"),
    "window": (lambda x: x is None or _whole(0, math.inf)(x), "None or at least 0"),
    "tier": (lambda x: x in TIERS, "'core' or 'full'"),
    "theta": (lambda x: _number(x) and 0 < x <= 1, "a share in (0, 1]"),
    "near": (_whole(0, MAX_NEAR), f"0 to {MAX_NEAR} tokens"),
    "n_offset_side": (_whole(1, MAX_OFFSET_SIDE), f"1 to {MAX_OFFSET_SIDE} bins"),
    "n_groups": (_whole(0, MAX_GROUPS), f"0 to {MAX_GROUPS} groups"),
    "impl": (
        lambda x: x in ("auto", *IMPLEMENTATIONS),
        f"'auto' or one of {', '.join(IMPLEMENTATIONS)}",
    ),
}
