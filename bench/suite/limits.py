"""What the machine could do: the two ceilings of a roofline, measured once a session."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.suite.cases import Cost


@dataclass(frozen=True)
class Limits:
    """Ceilings of this machine, of all threads that torch uses.

    Attributes:
        flops: of float32 products by torch (BLAS on a CPU; a tile unit can pass it), a second.
        bytes: read and written by a copy of 256 MB, a second.
    """

    flops: float
    bytes: float

    def least_seconds(self, cost: Cost) -> float:
        """No run can be faster: its products and its bytes at the ceilings, side by side."""
        return max(cost.flop / self.flops, cost.bytes / self.bytes)

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def measured(device: str, size: int = 2048, n_bytes: int = 1 << 28) -> Limits:
    """Best of five products of size x size, and of five copies."""
    a = torch.rand(size, size, device=device)
    b = torch.rand(size, size, device=device)
    x = torch.rand(n_bytes // 4, device=device)
    y = torch.empty_like(x)
    product = _best(lambda: torch.mm(a, b, out=torch.empty_like(a)), device)
    copy = _best(lambda: y.copy_(x), device)
    return Limits(2 * size**3 / product, 2 * n_bytes / copy)


def _best(run: Callable[[], Any], device: str) -> float:
    seconds = []
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
