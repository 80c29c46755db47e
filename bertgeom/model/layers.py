"""Which modules are encoder layers, and where inside them the residual stream is read.

The residual after the attention block is

    the output of `attention`        BERT and its relatives, ALBERT, ESM: the block adds it
    the output of `sa_layer_norm`    DistilBERT
    the input of `mlp_norm`          ModernBERT
    the input of `post_attention_ln` GENA-LM

Other layers are not recognised: if a layer adds the residual after its `attention`, the output of
`attention` is not the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

#: Submodules of the attention of ALBERT, which projects, adds and normalises in one module.
_ALBERT = {"query", "key", "value", "dense"}


@dataclass(frozen=True)
class AttentionBlock:
    """Where the residual after the attention is read.

    Attributes:
        module: the module that holds it.
        at_input: whether its input is the residual, not its output.
    """

    module: nn.Module
    at_input: bool


def attention_block(module: nn.Module) -> AttentionBlock | None:
    """The attention block of an encoder layer; None if the module is not a known layer."""
    children = module._modules
    mlp_norm, attn = children.get("mlp_norm"), children.get("attn")
    if mlp_norm is not None and attn is not None:
        return AttentionBlock(mlp_norm, at_input=True)
    attention = children.get("attention")
    if attention is None:
        return None
    if (norm := children.get("post_attention_ln")) is not None:
        return AttentionBlock(norm, at_input=True)
    norm = children.get("sa_layer_norm")
    if norm is not None:
        return AttentionBlock(norm, at_input=False)
    return AttentionBlock(attention, at_input=False) if _adds_residual(attention) else None


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a known encoder layer."""
    return attention_block(module) is not None


def _adds_residual(attention: nn.Module) -> bool:
    """Whether an attention module normalises, and therefore adds the residual itself."""
    children: dict[str, Any] = attention._modules
    if _has_norm(children) and children.keys() >= _ALBERT:
        return True
    output = children.get("output")
    if output is None or "self" not in children:
        return False
    return "dense" in output._modules and (_has_norm(children) or _has_norm(output._modules))


def _has_norm(children: dict[str, Any]) -> bool:
    return any(name.lower().replace("_", "").endswith("layernorm") for name in children)
