"""The attention mask, which says what keys a query may see, as transformers passes it on.

transformers calls `attention_mask` below for a mask, and the model passes it to the attention
function. In between it must not be used: an architecture that adds the mask to its own scores does
not use the interface. `AttentionMask` allows no arithmetic and raises an error that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bertgeom.errors import ModelError
from bertgeom.kernels.attention_stats.bias import Bias, bias_matrix

#: Name under which the attention is registered with transformers.
NAME = "bertgeom"

#: Rows of a mask function that are evaluated together.
_ROWS = 256
#: An additive mask of at most this hides a token: exp(-10000) is 0 in every precision.
HIDDEN = -10_000.0


class AttentionMask(Tensor):
    """Valid tokens (B, N) bool and the sliding window: everything that hides a key.

    Attributes:
        window: key j is visible to query i iff |i - j| <= window; None: every key is.
        padded: whether any token is not valid.
        model_type: of the model that asked for the mask, for messages.
    """

    window: int | None
    padded: bool
    model_type: str

    @classmethod
    def of(
        cls, valid: Tensor, *, window: int | None, padded: bool, model_type: str
    ) -> AttentionMask:
        mask = valid.as_subclass(cls)
        mask.window, mask.padded, mask.model_type = window, padded, model_type
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _MOVES:
                moved = func(*args, **(kwargs or {}))
                if moved.dtype == torch.bool:
                    own = args[0]
                    return cls.of(
                        moved.as_subclass(Tensor),
                        window=own.window,
                        padded=own.padded,
                        model_type=own.model_type,
                    )
            elif getattr(func, "__name__", "") == "__get__" or func in _LOOKS:
                return func(*args, **(kwargs or {}))
        own = next((x for x in args if isinstance(x, cls)), None)
        raise ModelError(
            f"expected an architecture whose attention uses transformers' AttentionInterface, "
            f"found {getattr(own, 'model_type', 'one')!r}, which works on the mask itself; "
            "load it with attn_implementation='eager', it cannot be observed"
        )

    def valid(self) -> Tensor | None:
        """(B, N) bool as a plain tensor, None where every token is valid."""
        if not self.padded:
            return None
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)


_MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.contiguous, Tensor.detach}
_LOOKS = {Tensor.size, Tensor.dim, Tensor.__len__, Tensor.is_contiguous, Tensor.__repr__}


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    *,
    config: Any = None,
    use_vmap: bool = False,
    device: Any = None,
    padded: bool | None = None,
    **_: Any,
) -> AttentionMask:
    """The mask of one forward pass, for transformers' AttentionMaskInterface.

    Args are those of `transformers.masking_utils.sdpa_mask`, and padded: whether any token is
    hidden, None: the mask is looked at, which waits for a GPU.

    Raises:
        ModelError: for a mask other than padding and a band around the diagonal.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

    kind = getattr(config, "model_type", "") or type(config).__name__
    if isinstance(attention_mask, AttentionMask):
        return attention_mask
    if q_length != kv_length or not _is_zero(q_offset) or not _is_zero(kv_offset):
        raise ModelError(
            f"expected bidirectional self-attention, found {q_length} queries and {kv_length} "
            f"keys in {kind!r}: cross attention or cached keys cannot be observed"
        )
    if mask_function is None or mask_function is causal_mask_function:
        raise ModelError(
            f"expected bidirectional self-attention, found causal attention in {kind!r}"
        )
    window = None
    if mask_function is not bidirectional_mask_function:
        window = None if use_vmap else _band(mask_function, batch_size, q_length, device)
        if window is None:
            raise ModelError(
                f"expected attention to all valid tokens or to those of a sliding window, found "
                f"another mask in {kind!r} (causal, packed or its own); it cannot be observed"
            )
    if attention_mask is None:
        valid = torch.ones(batch_size, q_length, dtype=torch.bool, device=device)
        return AttentionMask.of(valid, window=window, padded=False, model_type=kind)
    if attention_mask.ndim != 2 or attention_mask.shape[1] != q_length:
        raise ModelError(
            f"expected an attention mask of shape (batch, tokens) = ({batch_size}, {q_length}), "
            f"found {tuple(attention_mask.shape)}; pass the tokenizer's 2-D mask"
        )
    valid = attention_mask.bool().expand(batch_size, q_length)
    padded = not bool(valid.all()) if padded is None else padded
    return AttentionMask.of(valid, window=window, padded=padded, model_type=kind)


def _is_zero(offset: Any) -> bool:
    return int(offset) == 0


def _band(visible: Callable[..., Any], batch: int, n: int, device: Any) -> int | None:
    """w, if the mask function says |i - j| <= w for all windows; None for another mask."""
    index = torch.arange(n, device=device)
    windows = torch.arange(batch, device=device)[:, None, None, None]
    head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    keys = index[None, None, None, :]
    width = None
    for start in range(0, n, _ROWS):
        queries = index[None, None, start : start + _ROWS, None]
        seen = visible(windows, head, queries, keys)
        if not isinstance(seen, Tensor):
            return None
        if width is None:
            width = int(seen.expand(batch, 1, -1, n)[0, 0, 0].sum()) - 1
        if not torch.equal(seen, ((queries - keys).abs() <= width).expand_as(seen)):
            return None
    return width


def hidden_tokens(mask: Tensor, n: int) -> Tensor | None:
    """(B, N) bool, the valid tokens of a ready-made 4-D mask, if it hides nothing else.

    Args:
        mask: (B or 1, 1, N or 1, N), bool or additive.

    Returns:
        None for a mask that differs between queries or heads, or that does not hide but weigh.
    """
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[-1] != n:
        return None
    row = mask[:, 0, 0]
    if not torch.equal(mask, row[:, None, None].expand_as(mask)):
        return None
    if mask.dtype == torch.bool:
        return row
    if not mask.is_floating_point() or not bool(((row == 0) | (row <= HIDDEN)).all()):
        return None
    return row == 0


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid: Tensor | None,
    scale: float,
    window: int | None = None,
    dropout: float = 0.0,
    rows: Tensor | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """Attention without statistics, by torch.

    Args:
        query: (B, H, M, d), of all N tokens or of those in `rows`.
        key, value: (B, Hk, N, d).
        valid: (B, N) bool, or a mask with four dimensions as torch takes it.
        window: key j is visible to query i iff |i - j| <= window.
        rows: (M,) positions of the queries; None: 0 to N - 1.
        bias: added to the logits, its rows and columns all N slots.

    Returns:
        (B, H, M, d).
    """
    allowed = valid[:, None, None, :] if valid is not None and valid.ndim == 2 else valid
    n = key.shape[2]
    if window is not None and window < n - 1:
        position = torch.arange(n, device=query.device)
        queries = position if rows is None else rows
        near = (queries[:, None] - position[None, :]).abs() <= window
        allowed = near if allowed is None else near & allowed
    if bias is not None:
        allowed = _with_bias(allowed, bias, n, rows, query.dtype)
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        _expand(key, query),
        _expand(value, query),
        attn_mask=allowed,
        dropout_p=dropout,
        scale=scale,
    )


def _with_bias(
    allowed: Tensor | None, bias: Bias, n: int, rows: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """An additive mask of what is visible and a bias."""
    cells = bias_matrix(bias, n).to(dtype)
    if rows is not None:
        cells = cells[:, :, rows]
    if allowed is None:
        return cells
    if allowed.dtype != torch.bool:
        return allowed + cells
    # Not infinite: a query that sees no key has no softmax then.
    return torch.where(allowed, cells, torch.finfo(dtype).min)


def fill_padding(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    window: int | None,
    bias: Bias | None = None,
) -> None:
    """Write the attention of padded queries, which has no statistics, into the output.

    Nobody uses these rows, but a model returns them, and recording must not change its output.
    """
    slots = (~mask).any(0).nonzero()[:, 0]
    rows = plain_attention(
        query[:, :, slots],
        key,
        value,
        valid=mask,
        scale=scale,
        window=window,
        rows=slots,
        bias=bias,
    )
    output[:, :, slots] = torch.where(mask[:, None, slots, None], output[:, :, slots], rows)


def has_gaps(mask: Tensor | None) -> bool:
    """Whether padding stands between valid tokens."""
    if mask is None:
        return False
    starts = mask[:, :1].sum(1) + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
    return bool((starts > 1).any())


def _expand(x: Tensor, like: Tensor) -> Tensor:
    """Key or value heads repeated for grouped-query attention."""
    repeat = like.shape[1] // x.shape[1]
    return x if repeat == 1 else x.repeat_interleave(repeat, dim=1)
