"""Rows of an additive bias, for what builds logits again from queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

from bertgeom.kernels.attention_stats.bias import (
    AlibiBias,
    Bias,
    RelativeBias,
    at_offsets,
    tensor_of,
)


def bias_rows(bias: Bias, head: int, rows: slice, n: int) -> Tensor:
    """The bias of some queries of one head and all keys.

    Offsets are counted on the device of the bias; no cell of another head or query is computed.

    Args:
        bias: of H heads, or a tensor (1 or B, 1 or H, N, N).
        head: its number.
        rows: the queries, consecutive.
        n: tokens of the window; what a tensor has beyond them is left out.

    Returns:
        (1 or B, rows, n), floating, without gradients: a table is a weight of the model.

    Example:
        >>> import torch
        >>> from bertgeom.analysis.biases import bias_rows
        >>> from bertgeom.kernels import AlibiBias
        >>> bias_rows(AlibiBias(torch.tensor([1.0, 0.5])), 1, slice(0, 2), 3).abs().tolist()
        [[[0.0, 0.5, 1.0], [0.5, 0.0, 0.5]]]
    """
    if isinstance(bias, Tensor):
        return bias.detach()[:, head if bias.shape[1] > 1 else 0, rows, :n]
    one: AlibiBias | RelativeBias
    if isinstance(bias, AlibiBias):
        one = AlibiBias(bias.slopes[head : head + 1])
    else:
        one = RelativeBias(bias.table[head : head + 1], bias.buckets)
    place = torch.arange(n, device=tensor_of(bias).device)  # type: ignore[union-attr]
    return at_offsets(one, place[None, :] - place[rows, None]).detach()


def add_bias(logits: Tensor, bias: Bias | None, head: int, rows: slice) -> None:
    """Add the bias of one head to logits (..., rows, n) in place, in their dtype and place."""
    if bias is not None:
        found = bias_rows(bias, head, rows, logits.shape[-1]).to(logits.device, logits.dtype)
        logits.add_(found if logits.ndim == 3 else found[0])
