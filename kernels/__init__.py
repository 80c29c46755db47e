"""Arrays in, statistics out: the kernels of bertgeom.

This package knows no model, no file and no store. Importing it loads neither torch, Triton nor
Numba: the operations load torch when they are first accessed, and the others when they are first
called. Every operation is a folder with the same files: `api.py` (validation, dispatch),
`reference.py` (float64 oracle), `cpu.py` (Numba), `gpu.py` (Triton).
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertgeom.kernels._dispatch import ImplementationUnavailableError
    from bertgeom.kernels.attention_stats.api import AttentionStats, attention_stats
    from bertgeom.kernels.attention_stats.bias import AlibiBias, RelativeBias
    from bertgeom.kernels.cone_angles.api import cone_sums, pairwise_angle_histogram
    from bertgeom.kernels.stations.api import station_statistics, statistics_of_stations
    from bertgeom.kernels.stations.moments import stream_moments

_HOMES = {
    "AlibiBias": "attention_stats.bias",
    "AttentionStats": "attention_stats.api",
    "ImplementationUnavailableError": "_dispatch",
    "RelativeBias": "attention_stats.bias",
    "attention_stats": "attention_stats.api",
    "cone_sums": "cone_angles.api",
    "pairwise_angle_histogram": "cone_angles.api",
    "station_statistics": "stations.api",
    "statistics_of_stations": "stations.api",
    "stream_moments": "stations.moments",
}

__all__ = [
    "AlibiBias",
    "AttentionStats",
    "ImplementationUnavailableError",
    "RelativeBias",
    "attention_stats",
    "cone_sums",
    "pairwise_angle_histogram",
    "station_statistics",
    "statistics_of_stations",
    "stream_moments",
]


class _Kernels(ModuleType):
    """An operation has the name of its folder: the attribute is the operation."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Kernels


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
