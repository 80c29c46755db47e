"""Both ways in which the CPU multiplies matrices, and guards around the memory of its code."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from bertgeom.kernels._cpu import amx
from bertgeom.kernels._cpu import memory as _memory


@pytest.fixture(scope="module", params=["blas", "tile unit"] if amx.usable() else ["blas"])
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tests of a module by BLAS, and again on the tile unit if the CPU has one."""
    with mock.patch.object(amx, "usable", return_value=request.param == "tile unit"):
        yield


@pytest.fixture
def in_interpreter(root: Path) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Runs a test file under Triton's interpreter, in a process that starts with it."""

    def run(cases: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-k", "interpreter", str(cases)],
            cwd=root,
            env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    return run


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Guards:
    """Hands out memory as `_memory` does, with guard words on both sides of every array.

    A guard word is NaN as float32 and as float64, and negative as an integer. So is what nobody
    has written yet: reading either shows in the results.
    """

    WORD = 0xFFF5_A5A5
    #: Bytes of one guard: many rows of the kernels' small arrays.
    SIZE = 1 << 14

    def __init__(self) -> None:
        self._guards: list[np.ndarray] = []
        #: How many arrays were handed out.
        self.arrays = 0

    def check(self) -> None:
        """Fails where a guard is not what it was."""
        assert self.arrays
        for guard in self._guards:
            assert (guard == self.WORD).all()

    def _between(self, n_bytes: int) -> np.ndarray:
        """(n_bytes,) uint8 on a cache line, ends with the last whole word before a guard."""
        n_words = -(-n_bytes // 4)
        guard = self.SIZE // 4
        raw = np.full(n_words + 2 * guard + 64, self.WORD, np.uint32)
        skip = -(raw.ctypes.data // 4) % 64
        words = raw[skip : skip + n_words + 2 * guard]
        self._guards += [words[:guard], words[guard + n_words :]]
        self.arrays += 1
        return words[guard : guard + n_words].view(np.uint8)[:n_bytes]

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float64) -> np.ndarray:
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        kind = np.dtype(dtype)
        return self._between(math.prod(shape) * kind.itemsize).view(kind).reshape(shape)

    def zeros(self, shape: int | Sequence[int], dtype: Any = np.float64) -> np.ndarray:
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def tensor(self, shape: Sequence[int], zeroed: bool = False) -> torch.Tensor:
        make = self.zeros if zeroed else self.empty
        return torch.from_numpy(make(shape, np.float32))

    def scratch_memory(self, n_floats: int) -> np.ndarray:
        return self.empty(n_floats, np.float32)

    def scratch_address(self, rows: int, n_floats: int) -> tuple[int, int]:
        """Rows have guards between them, too."""
        pitch = -(-n_floats // 64) * 64 + self.SIZE // 4
        memory = self.empty((rows, pitch), np.float32).view(np.uint32)
        self._guards.append(memory[:, n_floats:])
        return memory.ctypes.data, pitch


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    """Guards around all that `_memory` hands out; checked once more at the end of the test."""
    guarded = Guards()
    for name in ("empty", "zeros", "tensor", "scratch_memory", "scratch_address"):
        monkeypatch.setattr(_memory, name, getattr(guarded, name))
    yield guarded
    guarded.check()
