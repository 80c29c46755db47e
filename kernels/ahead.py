"""Compile CPU kernels in a process beside this one, while it loads a model.

Compiling keeps one core busy, whatever the number of threads. The process compiles stations, cones
and angles; the attention, about as much again, is left to whoever starts it. Both find each other's
code on disk (`_cpu/disk_cache.py`), so that neither has to wait, and neither has to be right.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Of a folder of compiled code: what this process compiles is there.
_MARK = "stations"


@contextmanager
def compiling_beside() -> Iterator[None]:
    """While the block runs, compile kernels in another process, unless they are on disk.

    The process ends with the block, done or not.

    Example:
        >>> from bertgeom.kernels.ahead import compiling_beside
        >>> with compiling_beside():
        ...     pass  # load a model
    """
    process = None
    if not _mark().exists():
        # Where no process can be started, all is compiled here.
        with suppress(OSError):
            process = subprocess.Popen(  # noqa: S603 - this module
                [sys.executable, "-m", __name__],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.wait()


def _mark() -> Path:
    from bertgeom.kernels._cpu.disk_cache import shared_folder, source_stamp

    return shared_folder(source_stamp(Path(__file__).parent)) / _MARK


def main() -> None:
    """Call what is to be compiled, on next to nothing."""
    import torch

    from bertgeom.kernels import cone_sums, pairwise_angle_histogram, statistics_of_stations

    torch.set_num_threads(1)
    x = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    statistics_of_stations([x, x], angles=[True, False], impl="numba")
    with suppress(OSError):
        _mark().touch()
    cone_sums(x, impl="numba")
    pairwise_angle_histogram(x, impl="numba")
    pairwise_angle_histogram(x, x, impl="numba")


if __name__ == "__main__":
    main()
