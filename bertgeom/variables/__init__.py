"""Every array a store may hold, declared once, by family.

The store is created from these declarations, `FORMAT.md` is checked against them, and
`bertgeom.open` takes units and descriptions from them. A statistic that is not declared
here does not exist. Definitions: `docs/statistics.md`.

Read `declaration` first, then a family: `windows`, `attention`, `vectors`, `weights`, `spectra`.
`axes` says what the axes count. Import every name from here.
Imports nothing but numpy, and that late: the command line's help reads these names.
"""

from __future__ import annotations

from collections.abc import Iterator

from bertgeom.variables.attention import ATTENTION_VARIABLES
from bertgeom.variables.axes import (
    FLAGS,
    GATE_MIXED,
    GATES,
    HEAD_STATIONS,
    LOST,
    MAX_GROUPS,
    N_ANGLES,
    N_BLOCKS,
    flag_bit,
    n_offset_side,
    offset_edges,
    offset_labels,
)
from bertgeom.variables.declaration import Variable
from bertgeom.variables.spectra import SPECTRA, SPECTRUM_VARIABLES
from bertgeom.variables.vectors import (
    ANGLE_VARIABLES,
    CONE_VARIABLES,
    HEAD_CONE_VARIABLES,
    STREAM_VARIABLES,
)
from bertgeom.variables.weights import WEIGHT_VARIABLES
from bertgeom.variables.windows import (
    OUTPUT_VARIABLES,
    REGION_VARIABLES,
    TRACK_VARIABLES,
    WINDOW_VARIABLES,
)

__all__ = [
    "ANGLE_VARIABLES",
    "ATTENTION_VARIABLES",
    "CONE_VARIABLES",
    "DEFINITIONS_VERSION",
    "FLAGS",
    "GATES",
    "GATE_MIXED",
    "HEAD_CONE_VARIABLES",
    "HEAD_STATIONS",
    "KEEP",
    "LOST",
    "MAX_GROUPS",
    "N_ANGLES",
    "N_BLOCKS",
    "OUTPUT_VARIABLES",
    "REGION_VARIABLES",
    "SPECTRA",
    "SPECTRUM_VARIABLES",
    "STREAM_VARIABLES",
    "TRACK_VARIABLES",
    "VARIABLES",
    "WEIGHT_VARIABLES",
    "WINDOW_VARIABLES",
    "Variable",
    "flag_bit",
    "n_offset_side",
    "offset_edges",
    "offset_labels",
    "select",
]

#: Version of the meaning of the arrays; written into every store.
DEFINITIONS_VERSION = 1

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
