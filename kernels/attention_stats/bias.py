"""Additive biases: what a model adds to scale Q K^T before the softmax.

Two kinds depend on the offset j - i of a key from its query alone, and need O(N) numbers a head:
ALiBi and tables of relative positions. The third is a tensor with a number for every cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AlibiBias:
    """Attention with linear biases (Press et al., arXiv 2108.12409): -slopes[h] |i - j|.

    Attributes:
        slopes: (H,) of any floating dtype, one a head.

    Example:
        >>> import torch
        >>> from bertgeom.kernels import AlibiBias, attention_stats
        >>> query, key, value = torch.randn(3, 1, 8, 50, 32)
        >>> bias = AlibiBias(0.5 ** torch.arange(1.0, 9.0))
        >>> attention_stats(query, key, value, bias=bias).output.shape
        torch.Size([1, 8, 50, 32])
    """

    slopes: Tensor


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """A table of relative positions, as of T5 (Raffel et al., arXiv 1910.10683).

    Attributes:
        table: (H, M) of any floating dtype.
        buckets: turns offsets j - i, int64 of any shape, into columns of the table, 0 to M - 1.
            None: M is odd, the middle column is offset 0, and farther offsets than the table has
            take its first or last column.

    Example:
        >>> import torch
        >>> from bertgeom.kernels import RelativeBias, attention_stats
        >>> query, key, value = torch.randn(3, 1, 2, 50, 32)
        >>> bias = RelativeBias(torch.randn(2, 7))  # offsets -3 to 3
        >>> attention_stats(query, key, value, bias=bias).output.shape
        torch.Size([1, 2, 50, 32])
    """

    table: Tensor
    buckets: Callable[[Tensor], Tensor] | None = None


#: What `attention_stats` takes; a tensor is (1 or B, 1 or H, N, N).
Bias = AlibiBias | RelativeBias | Tensor


def tensor_of(bias: Bias | None) -> Tensor | None:
    """The tensor that a bias holds; None for anything else than a bias."""
    held = bias
    if isinstance(bias, AlibiBias):
        held = bias.slopes
    elif isinstance(bias, RelativeBias):
        held = bias.table
    return held if isinstance(held, Tensor) else None


def checked_bias(bias: Bias, batch: int, n_heads: int, n_slots: int) -> Bias:
    """The bias without gradients.

    Raises:
        TypeError: for another kind of bias, or a tensor that is not floating.
        ValueError: for a shape that does not fit.
    """
    held = tensor_of(bias)
    if held is None:
        raise TypeError(
            f"bias: expected AlibiBias, RelativeBias or a tensor, found {type(bias).__name__}"
        )
    if not held.is_floating_point():
        raise TypeError(f"bias: expected a floating dtype, found {held.dtype}")
    held, found = held.detach(), tuple(held.shape)
    if isinstance(bias, AlibiBias):
        if found != (n_heads,):
            raise ValueError(f"bias: expected slopes ({n_heads},), found {found}")
        return AlibiBias(held)
    if isinstance(bias, RelativeBias):
        if held.dim() != 2 or found[0] != n_heads or found[1] == 0:
            raise ValueError(f"bias: expected a table ({n_heads}, M), found {found}")
        if bias.buckets is None and found[1] % 2 == 0:
            raise ValueError(
                f"bias: expected a table of an odd number of offsets or buckets, found {found}"
            )
        return RelativeBias(held, bias.buckets)
    shapes = [(b, h, n_slots, n_slots) for b in (1, batch) for h in (1, n_heads)]
    if found not in shapes:
        raise ValueError(
            f"bias: expected shape (1 or {batch}, 1 or {n_heads}, {n_slots}, {n_slots}), "
            f"found {found}"
        )
    return held


def at_offsets(bias: AlibiBias | RelativeBias, offsets: Tensor) -> Tensor:
    """The bias of every head at some offsets j - i: (H, *offsets.shape), floating.

    Args:
        offsets: int64, any shape.

    Raises:
        ValueError: for buckets that the table does not have.
    """
    if isinstance(bias, AlibiBias):
        single = torch.promote_types(bias.slopes.dtype, torch.float32)
        slopes = bias.slopes.to(single).view(-1, *([1] * offsets.dim()))
        return -slopes * offsets.abs()
    last = bias.table.shape[1] - 1
    if bias.buckets is None:
        columns = (offsets + last // 2).clamp(0, last)
    else:
        columns = bias.buckets(offsets).to(torch.int64)
        if columns.device.type == "cpu" and columns.numel():
            least, most = int(columns.min()), int(columns.max())
            if columns.shape != offsets.shape or least < 0 or most > last:
                raise ValueError(
                    f"bias: expected a bucket of 0 to {last} for every offset, found shape "
                    f"{tuple(columns.shape)} with {least} to {most}"
                )
    return bias.table[:, columns]


def bias_matrix(bias: Bias, n_slots: int) -> Tensor:
    """Every cell of a bias, (1 or B, 1 or H, N, N) floating, for attention without statistics."""
    if isinstance(bias, Tensor):
        return bias
    at = torch.arange(n_slots, device=tensor_of(bias).device)  # type: ignore[union-attr]
    return at_offsets(bias, at[None, :] - at[:, None])[None]
