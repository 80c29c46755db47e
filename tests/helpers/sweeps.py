"""Long sweeps: a fixed sample in every check, the whole of it where it is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def sample(cases: Sequence[T], n: int) -> list[T]:
    """n of the cases, the same ones every time; all of them with `BERTGEOM_TESTS=all`.

    Args:
        cases: what the sweep goes through, any at least as good as another.
        n: how many of them, evenly spread, the first and the last among them.
    """
    if os.environ.get("BERTGEOM_TESTS") == "all" or n >= len(cases):
        return list(cases)
    return [cases[i * (len(cases) - 1) // max(1, n - 1)] for i in range(n)]
