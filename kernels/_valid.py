"""Which rows of a batch are valid: checks, and valid rows first."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_vectors(name: str, x: Tensor) -> None:
    """Raise TypeError for a dtype, and ValueError for a shape, that no kernel accepts."""
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, found {x.dtype}")
    if x.dim() < 2 or 0 in x.shape:
        raise ValueError(f"{name}: expected (B, ..., N, D), none of them 0, found {tuple(x.shape)}")


def valid_rows(
    name: str, x: Tensor, lengths: Tensor | None, mask: Tensor | None, *, clamp: bool = True
) -> tuple[Tensor, Tensor]:
    """x (B, H, N, D) with its valid rows first, and their number (B,) int64 on x's device.

    Args:
        clamp: whether lengths on a GPU, which cannot be checked, are put within [0, N]; not
            needed for kernels that do so themselves.

    Raises:
        ValueError: for both `lengths` and `mask`, or wrong shapes or numbers.
    """
    batch, n_slots = x.shape[0], x.shape[2]
    if lengths is not None and mask is not None:
        raise ValueError(f"{name}: expected lengths or a mask, found both; leave one out")
    if mask is not None:
        return _masked_rows(name, x, mask)
    if lengths is None:
        return x, all_rows(batch, n_slots, x.device)
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(
            f"{name}: expected {batch} integer lengths, found shape {tuple(lengths.shape)} "
            f"of {lengths.dtype}"
        )
    if lengths.device.type != "cpu":
        lengths = lengths.to(x.device, torch.int64)
        return x, lengths.clamp(0, n_slots) if clamp else lengths
    numbers = lengths.tolist()
    if min(numbers) < 0 or max(numbers) > n_slots:
        raise ValueError(f"{name}: expected lengths of 0 to {n_slots}, found {numbers}")
    # Contiguous, like all arrays of compiled code: other layouts would be compiled separately.
    return x, lengths.to(x.device, torch.int64).contiguous()


def all_rows(batch: int, n_slots: int, device: torch.device) -> Tensor:
    """Lengths (B,) int64 of full windows. On a GPU they are kept: to fill them is a launch."""
    filled = _full_windows.__wrapped__ if device.type == "cpu" else _full_windows
    return filled(batch, n_slots, device)


@functools.lru_cache(maxsize=16)
def _full_windows(batch: int, n_slots: int, device: torch.device) -> Tensor:
    return torch.full((batch,), n_slots, dtype=torch.int64, device=device)


def _masked_rows(name: str, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    batch, n_slots = x.shape[0], x.shape[2]
    if mask.shape != (batch, n_slots) or mask.is_floating_point():
        raise ValueError(
            f"{name}: expected a mask ({batch}, {n_slots}) of booleans, "
            f"found {tuple(mask.shape)} of {mask.dtype}"
        )
    lengths, order = valid_first(mask.bool())
    return (x if order is None else reordered(x, order)), lengths


def valid_first(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Lengths, and the order (B, N) that puts valid rows first; None if they are.

    On a GPU there always is an order: to see that none is needed would wait for the device.

    Args:
        mask: (B, N) bool.
    """
    lengths = mask.sum(1)
    if mask.device.type == "cpu" and torch.equal(
        mask, torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    ):
        return lengths, None
    return lengths, mask.logical_not().argsort(dim=1, stable=True)


def reordered(x: Tensor, order: Tensor) -> Tensor:
    """The rows of x (B, H, N, D) in another order (B, N)."""
    return x.gather(2, order[:, None, :, None].expand_as(x))
