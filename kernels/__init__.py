"""Arrays in, statistics out: the kernels of bertgeom.

This package knows no model, no file and no store. Importing it loads neither Triton nor
Numba; the first call does. Every operation is a folder with the same files: `api.py`
(validation, dispatch), `reference.py` (float64 oracle), `cpu.py` (Numba), `gpu.py` (Triton).
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "AttentionStats": "attention_stats.api",
    "attention_stats": "attention_stats.api",
    "cone_sums": "cone_angles.api",
    "pairwise_angle_histogram": "cone_angles.api",
    "stream_moments": "stream_moments.api",
    "ImplementationUnavailableError": "_dispatch",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
