"""Arrays in, statistics out: the kernels of bertgeom.

This package knows no model, no file and no store. Importing it loads neither Triton nor
Numba; the first call does. Every operation is a folder with the same files: `api.py`
(validation, dispatch), `reference.py` (float64 oracle), `cpu.py` (Numba), `gpu.py` (Triton).
"""

from __future__ import annotations

import importlib
from typing import Any

# At once, not on demand: loading a folder binds its name here, and that name is the function's.
from .attention_stats.api import AttentionStats, attention_stats

_HOME = {
    "cone_sums": "cone_angles.api",
    "pairwise_angle_histogram": "cone_angles.api",
    "stream_moments": "stream_moments.api",
    "ImplementationUnavailableError": "_dispatch",
}

__all__ = [
    "AttentionStats",
    "ImplementationUnavailableError",
    "attention_stats",
    "cone_sums",
    "pairwise_angle_histogram",
    "stream_moments",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
