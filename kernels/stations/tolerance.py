"""How far an implementation may be from the oracle of the stream, derived from the input itself.

Twice the error of the oracle's formulas in float32, and a rounding band. The participation ratio
is made of products of vectors, which may be rounded to a type of their own: their relative
rounding error is its bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bertgeom.kernels.cone_angles.tolerance import compare
from bertgeom.kernels.stations import reference


def stream_disagreements(
    x: Tensor, lengths: Tensor, values: dict[str, Tensor], working: torch.dtype = torch.float32
) -> list[str]:
    """One line for every value of `stream_moments` that is out of bounds.

    Args:
        x: (B, N, D). lengths: (B,).
        values: (B,) each.
        working: type of the vectors that the implementation multiplies.
    """
    exact = reference.stream_moments(x, lengths)
    plain = reference.stream_moments(x, lengths, dtype=torch.float32)
    ratio = exact["stream_participation_ratio"]
    rounding = torch.finfo(working).eps * ratio.abs().nan_to_num(0).max()
    plain["stream_participation_ratio"] = ratio + rounding
    return compare(exact, plain, values)
