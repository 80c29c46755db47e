"""Biases of the logits that a model hands to its attention, in the form that the kernels take.

A model may declare one (attribute `bertgeom_bias` of the attention module), hand it over as the
argument `position_bias` (T5), or add it to a ready-made mask with four dimensions.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from bertgeom.errors import ModelError
from bertgeom.kernels import AlibiBias, RelativeBias
from bertgeom.kernels.attention_stats.bias import Bias, bias_matrix
from bertgeom.model.masks import HIDDEN


def bias_of_call(module: nn.Module, position_bias: Bias | None) -> Bias | None:
    """The bias of an attention call: the module's declaration, else the argument.

    Raises:
        ModelError: for something else than a bias.
    """
    declared = getattr(module, "bertgeom_bias", None)
    found = position_bias if declared is None else declared
    if found is not None and not _is_bias(found):
        raise ModelError(
            "expected a position bias as AlibiBias, RelativeBias or a tensor (1 or batch, heads, "
            f"tokens, tokens), found {type(found).__name__} in {type(module).__name__}"
        )
    return found


def _is_bias(x: object) -> TypeGuard[Bias]:
    whole = isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()
    return whole or isinstance(x, AlibiBias | RelativeBias)


def split_mask(mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """The two parts of an additive mask (1 or B, 1 or H, N, N): padding, and a bias.

    Returns:
        valid tokens, bool (1 or B, N), and the bias, with 0 at hidden keys, one for all windows if
        they agree; None for a mask that hides keys of some valid queries only.
    """
    if mask.ndim != 4 or mask.shape[2] != mask.shape[3] or not mask.is_floating_point():
        return None
    hidden = (mask <= HIDDEN).all(2).all(1)
    seen = ~hidden[:, None, None, :] & ~hidden[:, None, :, None]
    # A bias may be below HIDDEN, far from the diagonal; what hides is about the least number.
    if bool((seen & ~(mask > torch.finfo(mask.dtype).min / 2)).any()):
        return None
    bias = mask.masked_fill(hidden[:, None, None, :], 0)
    whole = (~hidden).all(1).nonzero()
    if len(bias) > 1 and len(whole):
        one = mask[whole[0]]
        if torch.equal(one.expand_as(mask).masked_fill(hidden[:, None, None, :], 0), bias):
            bias = one
    return ~hidden, bias


def added(bias: Bias | None, other: Tensor | None, n_slots: int) -> Bias | None:
    """The sum of two biases."""
    if bias is None or other is None:
        return other if bias is None else bias
    return bias_matrix(bias, n_slots) + other


def by_offset(bias: Bias, n_heads: int) -> Bias:
    """A tensor that depends on the offset alone as a table: the kernels need O(N) numbers then."""
    if not isinstance(bias, Tensor) or len(bias) > 1:
        return bias
    if not torch.equal(bias[..., 1:, 1:], bias[..., :-1, :-1]):
        return bias
    table = torch.cat([bias[0, :, :, 0].flip(-1), bias[0, :, 0, 1:]], dim=-1)
    return RelativeBias(table.expand(n_heads, -1))
