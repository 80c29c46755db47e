"""Which rows of a batch are valid: checks, and valid rows first."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_vectors(name: str, x: Tensor) -> None:
    """Raises TypeError for a dtype and ValueError for a shape that no kernel takes."""
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, found {x.dtype}")
    if x.dim() < 2 or 0 in x.shape:
        raise ValueError(f"{name}: expected (B, ..., N, D), none of them 0, found {tuple(x.shape)}")


def valid_rows(
    name: str, x: Tensor, lengths: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x (B, H, N, D) with its valid rows first, and their number (B,) int64 on x's device.

    Raises:
        ValueError: for both `lengths` and `mask`, or shapes or numbers that do not fit.
    """
    batch, n_slots = x.shape[0], x.shape[2]
    if lengths is not None and mask is not None:
        raise ValueError(f"{name}: expected lengths or a mask, found both; leave one out")
    if mask is not None:
        return _valid_first(name, x, mask)
    if lengths is None:
        return x, torch.full((batch,), n_slots, dtype=torch.int64, device=x.device)
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(
            f"{name}: expected {batch} integer lengths, found shape {tuple(lengths.shape)} "
            f"of {lengths.dtype}"
        )
    if lengths.device.type != "cpu":
        return x, lengths.to(x.device, torch.int64).clamp(0, n_slots)
    numbers = lengths.tolist()
    if min(numbers) < 0 or max(numbers) > n_slots:
        raise ValueError(f"{name}: expected lengths of 0 to {n_slots}, found {numbers}")
    # Contiguous, as all arrays of compiled code: another layout would be compiled anew.
    return x, lengths.to(x.device, torch.int64).contiguous()


def _valid_first(name: str, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    batch, n_slots = x.shape[0], x.shape[2]
    if mask.shape != (batch, n_slots) or mask.is_floating_point():
        raise ValueError(
            f"{name}: expected a mask ({batch}, {n_slots}) of booleans, "
            f"found {tuple(mask.shape)} of {mask.dtype}"
        )
    mask = mask.bool()
    lengths = mask.sum(1)
    if torch.equal(mask, torch.arange(n_slots, device=mask.device) < lengths[:, None]):
        return x, lengths
    order = torch.argsort(~mask, dim=1, stable=True)
    return x.gather(2, order[:, None, :, None].expand_as(x)), lengths
