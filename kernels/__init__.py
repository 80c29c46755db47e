"""Arrays in, statistics out: the kernels of bertgeom.

This package knows no model, no file and no store. Importing it loads neither Triton nor
Numba; the first call does. Every operation is a folder with the same files: `api.py`
(validation, dispatch), `reference.py` (float64 oracle), `cpu.py` (Numba), `gpu.py` (Triton).
"""

from bertgeom.kernels._dispatch import ImplementationUnavailableError
from bertgeom.kernels.attention_stats.api import AttentionStats, attention_stats
from bertgeom.kernels.cone_angles.api import cone_sums, pairwise_angle_histogram
from bertgeom.kernels.stations import station_statistics, statistics_of_stations
from bertgeom.kernels.stream_moments.api import stream_moments

__all__ = [
    "AttentionStats",
    "ImplementationUnavailableError",
    "attention_stats",
    "cone_sums",
    "pairwise_angle_histogram",
    "station_statistics",
    "statistics_of_stations",
    "stream_moments",
]
