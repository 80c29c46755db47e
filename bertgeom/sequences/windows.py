"""How a record is cut into windows. Pure arithmetic: same lengths and settings, same windows.

record      0                                       100
size 40     [------ 0..40 ------]
stride 25            [------ 25..65 ------]
                              [------ 50..90 ------]
the tail                               [- 75..100 -]
"""

from __future__ import annotations

import numpy as np


def count_windows(
    lengths: np.ndarray | int, size: int, stride: int, min_length: int = 1
) -> np.ndarray:
    """int64, shaped as `lengths`: how many windows `windows_of` gives.

    Raises:
        ValueError: for a size, stride or min_length below 1.
    """
    _check(size, stride, min_length)
    lengths = np.asarray(lengths, dtype=np.int64)
    full = np.maximum(lengths - size, 0) // stride + 1
    rest = lengths - full * stride
    reached = (full - 1) * stride + size >= lengths
    tail = ~reached & ((stride <= size) | (rest >= min_length))
    return np.where(lengths < min_length, 0, full + tail)


def windows_of(length: int, size: int, stride: int, min_length: int = 1) -> np.ndarray:
    """Windows of a record, in order.

    Args:
        length: bases of the record.
        size: bases of a window.
        stride: bases from one window's start to the next.
        min_length: records shorter than this have no window, and no window is
            shorter, unless `size` is.

    Returns:
        int64 (n, 2): start and stop, 0-based, half-open. A record shorter than `size` is one
        short window; an empty one has none. Unless the stride leaves gaps on purpose (longer
        than `size`), every base is in a window: what is left after the last full window is a
        short window, or, if that were shorter than `min_length`, a full one that ends with
        the record.

    Raises:
        ValueError: for a size, stride or min_length below 1.
    """
    n = int(count_windows(length, size, stride, min_length))
    start = np.arange(n, dtype=np.int64) * stride
    stop = np.minimum(start + size, length)
    if n > 1 and stop[-1] - start[-1] < min(min_length, size):
        start[-1] = max(length - size, 0)
    return np.stack([start, stop], axis=1)


def _check(size: int, stride: int, min_length: int) -> None:
    for name, value in (("size", size), ("stride", stride), ("min_length", min_length)):
        if value < 1:
            raise ValueError(f"expected a {name} of at least 1 base, found {value}")
