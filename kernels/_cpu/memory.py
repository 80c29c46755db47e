"""Memory for scratch arrays and results of the compiled CPU code.

All large arrays of compiled code are allocated here, so that tests can put guards around each of
them by replacing the functions of this module. Callers therefore import the module, not functions.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from bertgeom.kernels.arrays import Float32Array

if TYPE_CHECKING:
    from torch import Tensor

#: Float32 elements of a cache line of 256 bytes, two of most CPUs.
_LINE = 64
_memory = threading.local()
T = TypeVar("T", bound=np.generic)


def empty(shape: int | Sequence[int], dtype: type[T]) -> npt.NDArray[T]:
    """An uninitialised array."""
    return np.empty(shape, dtype)


def zeros(shape: int | Sequence[int], dtype: type[T]) -> npt.NDArray[T]:
    """An array of zeros."""
    return np.zeros(shape, dtype)


def full(shape: int | Sequence[int], value: float, dtype: type[T]) -> npt.NDArray[T]:
    """An array of one value."""
    array = empty(shape, dtype)
    array.fill(value)
    return array


def tensor(shape: Sequence[int], zeroed: bool = False) -> Tensor:
    """A float32 tensor, zeroed or uninitialised."""
    import torch

    return torch.zeros(shape) if zeroed else torch.empty(shape)


def scratch_memory(n_floats: int) -> Float32Array:
    """(n_floats,) float32 at `scratch_address`."""
    scratch_address(1, n_floats)
    floats, _ = _memory.kept
    found: Float32Array = floats[:n_floats]
    return found


def scratch_address(rows: int, n_floats: int) -> tuple[int, int]:
    """Address of rows of at least n_floats float32, on cache lines, and their distance in elements.

    Kept by the calling thread: memory fresh from the system would cost a page fault for every
    4 KiB of it, on every call. The next call returns the same memory.
    """
    pitch = -(-n_floats // _LINE) * _LINE
    kept = getattr(_memory, "kept", None)
    if kept is None or kept[0].size < rows * pitch:
        raw = np.empty(rows * pitch + _LINE, np.float32)
        skip = -(raw.ctypes.data // 4) % _LINE
        floats = raw[skip : skip + rows * pitch]
        kept = _memory.kept = (floats, floats.ctypes.data)
    return kept[1], pitch
