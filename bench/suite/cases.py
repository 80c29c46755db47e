"""What is timed: shapes, ways of doing it, and the least work that any way has to do."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

from bench.run import tile_unit
from bench.workloads import without_tile_unit

#: Ways that need something of the machine, and what is said where it is missing.
NEEDS = {
    "numba, tile unit": "a CPU with a tile unit (AMX)",
    "triton": "a CUDA device",
    "flex twice": "a CUDA device: compiled for a CPU, FlexAttention returns no log-sum-exp",
}


@dataclass(frozen=True)
class Case:
    """One line of a table.

    Attributes:
        way: the implementation.
        shape: what the others of its group share: sizes by their letter, the dtype.
        base: whether the others of its group are stated as multiples of it.
    """

    way: str
    shape: dict[str, Any] = field(default_factory=dict)
    base: bool = False

    def __str__(self) -> str:
        return "-".join(
            [self.way.replace(", ", "_").replace(" ", "_"), self.title.replace(" ", "_")]
        )

    @property
    def title(self) -> str:
        """The shape in words."""
        return " ".join(f"{k}{v}" if len(k) <= 2 else str(v) for k, v in self.shape.items())

    def __getitem__(self, name: str) -> Any:
        return self.shape[name]


@dataclass(frozen=True)
class Cost:
    """The least that has to be done, by any way.

    Attributes:
        amount, unit: of what one run handles, for the throughput.
        flop: multiplications and additions of the products. bytes: read and written once.
    """

    amount: float
    unit: str
    flop: float = 0.0
    bytes: float = 0.0


def cases(ways: list[str], base: str | None = None, **sizes: list[Any]) -> list[Case]:
    """Every way that this machine has, over the product of the sizes."""
    shapes = [dict(zip(sizes, values, strict=True)) for values in product(*sizes.values())]
    return [Case(way, shape, way == base) for shape in shapes for way in ways if available(way)]


def available(way: str) -> bool:
    """Whether this machine can do it that way."""
    if way in ("triton", "flex twice"):
        return torch.cuda.is_available()
    if way.startswith("numba"):
        return not torch.cuda.is_available() and (way != "numba, tile unit" or tile_unit())
    return True


def by_blas(way: str) -> AbstractContextManager[Any]:
    """A context in which the tile unit is left alone, unless the way asks for it."""
    return nullcontext() if way == "numba, tile unit" else without_tile_unit()


def device() -> str:
    """Where tensors are made."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def implementation(way: str) -> str:
    """The name that `impl=` takes."""
    return way.split(",")[0]
