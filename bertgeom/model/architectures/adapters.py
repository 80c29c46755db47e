"""Attention modules that do not go through transformers' interface, handed to the kernels.

An adapter replaces one method of a class of transformers, once a process, as soon as a model of
that architecture is run with this project's attention. It computes queries, keys and values with
the module's own weights and calls the attention function. Where the mask is not this project's
(every other attention implementation), the original method runs.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from bertgeom import kernels
from bertgeom.errors import ModelError
from bertgeom.model.architectures.declaration import Attend, Replacement
from bertgeom.model.masks import NAME, AttentionMask

_lock = threading.Lock()
#: Methods that have been replaced.
_installed: set[str] = set()


def install(adapters: Mapping[str, Replacement], attend: Attend) -> None:
    """Replace the methods of these adapters, unless it has been done.

    Raises:
        ModelError: if the installed transformers has no such method.
    """
    for path, replacement in adapters.items():
        with _lock:
            if path not in _installed:
                _replace(path, replacement, attend)
                _installed.add(path)


def _replace(path: str, replacement: Replacement, attend: Attend) -> None:
    where, owner, name = path.rsplit(".", 2)
    try:
        cls = getattr(importlib.import_module(where), owner)
        original = getattr(cls, name)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"expected {owner}.{name} in {where}, found none in this version of transformers; "
            "install the one that bertgeom's requirements name"
        ) from error

    @wraps(original)
    def replaced(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return replacement(attend, original, self, *args, **kwargs)

    setattr(cls, name, replaced)


def _heads(module: Any, projected: Tensor) -> Tensor:
    """(B, N, H d) as (B, H, N, d)."""
    shape = (*projected.shape[:-1], -1, int(module.attention_head_size))
    return projected.reshape(shape).transpose(1, 2)


def _projected(module: Any, x: Tensor, *names: str) -> tuple[Tensor, ...]:
    """Queries, keys and values (B, H, N, d) of the stream, by the linear maps of these names."""
    return tuple(_heads(module, getattr(module, name)(x)) for name in names)


def _dropout(module: Any) -> float:
    return float(module.dropout.p) if module.training else 0.0


def _ours(mask: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a call is self-attention under this project's mask."""
    others = ("encoder_hidden_states", "past_key_values")
    return isinstance(mask, AttentionMask) and all(arguments.get(n) is None for n in others)


def _bert_attention(
    attend: Attend,
    original: Any,
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """BERT's attention: three projections, softmax(Q K^T / sqrt(d)) V."""
    if args or not _ours(attention_mask, kwargs):
        return original(module, hidden_states, attention_mask, *args, **kwargs)
    query, key, value = _projected(module, hidden_states, "query", "key", "value")
    output, _ = attend(module, query, key, value, attention_mask, dropout=_dropout(module))
    return output.flatten(2), None


def _rotary_attention(
    attend: Attend,
    original: Any,
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    sinusoidal_pos: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """RoFormer's attention: queries and keys, on request values too, are rotated."""
    if args or sinusoidal_pos is None or not _ours(attention_mask, kwargs):
        return original(module, hidden_states, attention_mask, sinusoidal_pos, *args, **kwargs)
    query, key, value = _projected(module, hidden_states, "query", "key", "value")
    rotate = module.apply_rotary_position_embeddings
    if module.rotary_value:
        query, key, value = rotate(sinusoidal_pos, query, key, value)
    else:
        query, key = rotate(sinusoidal_pos, query, key)
    output, _ = attend(module, query, key, value, attention_mask, dropout=_dropout(module))
    return output.flatten(2), None


def _mixed_attention(
    attend: Attend,
    original: Any,
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """ConvBERT's mixed attention: heads of attention, then heads of span-based convolution.

    The convolution (Jiang et al. 2020, arXiv 2008.02496): its kernel, one a token and a head, is
    a softmax over a linear map of the query times the span's key, a separable convolution.
    """
    if args or not _ours(attention_mask, kwargs):
        return original(module, hidden_states, attention_mask, *args, **kwargs)
    if attention_mask is not None and attention_mask.padded:  # type: ignore[attr-defined]
        raise ModelError(
            "expected windows of one length for ConvBERT, found padding, which its convolution "
            "reads as if it were tokens; pass windows of one length together"
        )
    query = module.query(hidden_states)
    output, _ = attend(
        module,
        _heads(module, query),
        _heads(module, module.key(hidden_states)),
        _heads(module, module.value(hidden_states)),
        attention_mask,
        dropout=_dropout(module),
    )
    width, n_heads = module.conv_kernel_size, module.num_attention_heads
    half = (width - 1) // 2
    span = module.key_conv_attn_layer(hidden_states.mT).mT
    kernel = module.conv_kernel_layer(span * query)
    kernel = kernel.reshape(*query.shape[:2], n_heads, width).softmax(-1)
    values = nn.functional.pad(module.conv_out_layer(hidden_states), (0, 0, half, half))
    near = values.unfold(1, width, 1).reshape(*query.shape[:2], n_heads, -1, width)
    convolved = torch.einsum("bnhdw,bnhw->bnhd", near, kernel)
    return torch.cat([output, convolved], dim=2).flatten(2), None


def _biased_attention(
    attend: Attend,
    original: Any,
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """MPNet's attention: a bias of relative positions is added to the logits."""
    if args or not _ours(attention_mask, kwargs):
        return original(module, hidden_states, attention_mask, position_bias, *args, **kwargs)
    query, key, value = _projected(module, hidden_states, "q", "k", "v")
    output, _ = attend(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=_dropout(module),
        position_bias=position_bias,
    )
    return (module.o(output.flatten(2)),)


def _mpnet_bias(
    attend: Attend, original: Any, module: Any, x: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """MPNet's table of relative positions, in place of an N x N tensor."""
    if args or kwargs or module.config._attn_implementation != NAME:
        return original(module, x, *args, **kwargs)
    return kernels.RelativeBias(
        module.relative_attention_bias.weight.T, module.relative_position_bucket
    )


def _whole_window(module: Any, n_queries: int, n_keys: int, arguments: Mapping[str, Any]) -> bool:
    """Whether the positions of an encoder's whole window are asked for, by this project."""
    ours = module.config._attn_implementation == NAME and not module.is_decoder
    return bool(ours and n_queries == n_keys and not arguments.get("past_seen_tokens"))


def _t5_bias(
    attend: Attend, original: Any, module: Any, n_queries: int, n_keys: int, **kwargs: Any
) -> Any:
    """T5's table of relative positions, in place of an N x N tensor; layers hand it on."""
    if not _whole_window(module, n_queries, n_keys, kwargs):
        return original(module, n_queries, n_keys, **kwargs)
    sizes = {
        "num_buckets": module.relative_attention_num_buckets,
        "max_distance": module.relative_attention_max_distance,
    }

    def buckets(offsets: Tensor) -> Tensor:
        bucket: Tensor = module._relative_position_bucket(offsets, **sizes)
        return bucket

    return kernels.RelativeBias(module.relative_attention_bias.weight.T, buckets)


def _umt5_bias(
    attend: Attend, original: Any, module: Any, n_queries: int, n_keys: int, **kwargs: Any
) -> Any:
    """UMT5's table of relative positions, one a layer."""
    if not _whole_window(module, n_queries, n_keys, kwargs):
        return original(module, n_queries, n_keys, **kwargs)
    return kernels.RelativeBias(
        module.relative_attention_bias.weight.T, module._relative_position_bucket
    )


def _self_attention(model: str, owner: str, replacement: Replacement) -> dict[str, Replacement]:
    return {f"transformers.models.{model}.modeling_{model}.{owner}.forward": replacement}


REMBERT = _self_attention("rembert", "RemBertSelfAttention", _bert_attention)
MEGATRON = _self_attention("megatron_bert", "MegatronBertSelfAttention", _bert_attention)
BIGBIRD = _self_attention("big_bird", "BigBirdSelfAttention", _bert_attention)
ROFORMER = _self_attention("roformer", "RoFormerSelfAttention", _rotary_attention)
CONVBERT = _self_attention("convbert", "ConvBertSelfAttention", _mixed_attention)
MPNET = _self_attention("mpnet", "MPNetSelfAttention", _biased_attention) | {
    "transformers.models.mpnet.modeling_mpnet.MPNetEncoder.compute_position_bias": _mpnet_bias
}
T5 = {"transformers.models.t5.modeling_t5.T5Attention.compute_bias": _t5_bias}
MT5 = {"transformers.models.mt5.modeling_mt5.MT5Attention.compute_bias": _t5_bias}
UMT5 = {"transformers.models.umt5.modeling_umt5.UMT5Attention.compute_bias": _umt5_bias}
