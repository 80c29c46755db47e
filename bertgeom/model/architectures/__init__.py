"""Architectures: one declaration each says where its layers are and where the stream is read.

`declaration` says what a declaration holds, `table` holds those of this package and finds the one
of a layer, `adapters` hands attention that does not use transformers' interface to the kernels.
Read in this order, then `bertgeom.model.discovery`, which checks a declaration on a dummy batch.
May import from: errors, and the masks of the room above.
"""

from bertgeom.model.architectures.declaration import Architecture, Attend, Station
from bertgeom.model.architectures.table import (
    ARCHITECTURES,
    UNSUPPORTED,
    architecture_of,
    architecture_of_config,
    architectures,
    refuse_by_name,
    register_architecture,
    station_of,
)

__all__ = [
    "ARCHITECTURES",
    "UNSUPPORTED",
    "Architecture",
    "Attend",
    "Station",
    "architecture_of",
    "architecture_of_config",
    "architectures",
    "refuse_by_name",
    "register_architecture",
    "station_of",
]
