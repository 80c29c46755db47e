"""Triton's compiler without a GPU, on the very arguments of a launch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.launches import ROOT, Launch


class Driver:
    """What Triton asks a device before it compiles: its number, stream and architecture."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        """The first one."""
        return 0

    def get_current_stream(self, _: Any = None) -> int:
        """The default."""
        return 0

    def get_current_target(self) -> Any:
        """An NVIDIA GPU, with warps of 32 threads."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)


def compiled(launch: Launch, capability: int = 90) -> Any:
    """What Triton compiles for a launch, specialised as in a run; on disk afterwards.

    Args:
        launch: the arguments decide, as they do in a run: which numbers are 1 or multiples of 16.
        capability: of the architecture, times ten.
    """
    import torch
    from triton.runtime import driver

    driver.set_active(Driver(capability))
    kernel = launch.kernel
    given = [launch.arguments.get(name) for name in kernel.arg_names]
    # Triton takes a dtype for a tensor that is aligned as torch aligns all of them.
    args = [getattr(torch, x["dtype"]) if isinstance(x, dict) else x for x in given]
    with own_cache():
        return kernel.warmup(*args, grid=launch.grid, **launch.options)


@contextmanager
def own_cache() -> Iterator[None]:
    """Keep what is compiled apart from that of other checkouts.

    Machine code names the files that its lines come from. Triton finds it by the source alone, so
    the code of an equal checkout would name the files of that one.
    """
    from triton import knobs

    with knobs.cache.scope():
        checkout = hashlib.sha256(str(ROOT).encode()).hexdigest()[:16]
        knobs.cache.dir = str(Path(knobs.cache.dir) / "checkouts" / checkout)
        yield
