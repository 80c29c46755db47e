"""How an array is declared, and the words that declarations share."""

from __future__ import annotations

from dataclasses import dataclass


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


PER_HEAD = ("window", "layer", "head")
PER_STATION = ("window", "station")
PER_ANGLE_STATION = ("window", "angle_station")
PAPER = "Bonino et al. 2025, arXiv 2502.12033"
CLARK = "Clark et al. 2019"
VIG = "Vig et al. 2021"
ETHAYARAJH = "Ethayarajh 2019"
SAPONATI = "Saponati et al. 2025"
OWN = "bertgeom"
