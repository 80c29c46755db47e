"""MosaicBERT (Portes et al. 2023, arXiv 2312.17482): DNABERT-2, DNABERT-S, BiRNA-BERT.

Post-norm BERT without position embeddings. Attention adds ALiBi (Press et al. 2022, arXiv
2108.12409): -slope |i - j| to the logit of query i and key j, with one slope a head. The
feed-forward block is a gated linear unit: gelu(first half) * second half of one linear map.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig

from bertgeom.kernels import AlibiBias
from bertgeom.model.architectures.blocks import (
    BertClassifier,
    BertEmbeddings,
    PublishedEncoder,
    attention,
    split_heads,
)
from bertgeom.model.masks import NAME


class MosaicBertConfig(BertConfig):
    """The configuration of BERT; `max_position_embeddings` limits nothing."""

    model_type = "mosaicbert"

    def __post_init__(self, **kwargs: Any) -> None:
        base: Any = super()
        base.__post_init__(**kwargs)
        # Published files say "absolute", which is not so.
        self.position_embedding_type = "alibi"


def alibi_slopes(n_heads: int) -> tuple[float, ...]:
    """Slope of every head: 2^(-8 i / H) for i = 1 to H, where H is a power of two.

    For another H: those of the next lower power of two, then every second one of twice as many.

    Example:
        >>> from bertgeom.model.architectures.mosaic import alibi_slopes
        >>> alibi_slopes(4), alibi_slopes(6)[4:]
        ((0.25, 0.0625, 0.015625, 0.00390625), (0.5, 0.125))
    """
    power = 1 << int(math.log2(n_heads))
    own = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-8 * i / (2 * power)) for i in range(1, 2 * power + 1, 2)]
    return tuple(own + between[: n_heads - power])


class MosaicBertSelfAttention(nn.Module):
    """Self-attention with one linear map for queries, keys and values, and ALiBi."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dropout = float(config.attention_probs_dropout_prob)
        #: By head. Not a tensor: modules are built without memory when weights are loaded.
        self.slopes = alibi_slopes(config.num_attention_heads)

    @property
    def bertgeom_bias(self) -> AlibiBias:
        """ALiBi, for this project's attention."""
        return AlibiBias(torch.tensor(self.slopes, device=self.Wqkv.weight.device))

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) in; (B, N, D) and the maps out."""
        query, key, value = (
            split_heads(part, self.config.num_attention_heads)
            for part in self.Wqkv(x).chunk(3, dim=-1)
        )
        return attention(self, query, key, value, mask, scaling=query.shape[-1] ** -0.5)


class MosaicBertSelfOutput(nn.Module):
    """What follows the heads: a linear map, the residual, the norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(B, N, D) from the heads and from the stream."""
        return self.LayerNorm(self.dropout(self.dense(z)) + x)  # type: ignore[no-any-return]


class MosaicBertAttention(nn.Module):
    """The attention block."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self = MosaicBertSelfAttention(config)
        self.output = MosaicBertSelfOutput(config)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The stream (B, N, D) after the block, and the maps."""
        z, weights = self.self(x, mask)
        return self.output(z, x), weights


class MosaicBertMlp(nn.Module):
    """The feed-forward block: a gated linear unit, the residual, the norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gated_layers = nn.Linear(width, 2 * inner, bias=False)
        self.wo = nn.Linear(inner, width)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) in and out."""
        gate, values = self.gated_layers(x).chunk(2, dim=-1)
        inner = self.dropout(nn.functional.gelu(gate) * values)
        return self.layernorm(self.wo(inner) + x)  # type: ignore[no-any-return]


class MosaicBertLayer(nn.Module):
    """Attention block and feed-forward block, both post-norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = MosaicBertAttention(config)
        self.mlp = MosaicBertMlp(config)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The stream (B, N, D), and the maps."""
        x, weights = self.attention(x, mask)
        return self.mlp(x), weights


class MosaicBertLayers(nn.Module):
    """The layers, under the name that the weights have."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(MosaicBertLayer(config) for _ in range(config.num_hidden_layers))


class MosaicBertModel(PublishedEncoder):
    """MosaicBERT's encoder."""

    config_class = MosaicBertConfig
    base_model_prefix = "bert"

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config, positions=False)
        self.encoder = MosaicBertLayers(config)
        self.post_init()

    def prepare(self, x: Tensor, mask: Any) -> tuple[Any, ...]:
        """The mask with ALiBi in it; this project's attention gets `bertgeom_bias` instead."""
        if self.config._attn_implementation == NAME:
            return (mask,)
        place = torch.arange(x.shape[1], device=x.device)
        slopes = torch.tensor(alibi_slopes(self.config.num_attention_heads), device=x.device)
        distance = (place[:, None] - place[None, :]).abs()
        bias = (-slopes[:, None, None] * distance).to(x.dtype)[None]
        if mask is None:
            return (bias.expand(len(x), -1, -1, -1),)
        if mask.dtype == torch.bool:
            return (bias.masked_fill(~mask, torch.finfo(x.dtype).min),)
        # The sum of the largest negative number and a bias is no number.
        return ((bias + mask).clamp(min=torch.finfo(x.dtype).min),)


class MosaicBertForSequenceClassification(BertClassifier):
    """MosaicBERT with a classification head."""

    config_class = MosaicBertConfig
    encoder_class = MosaicBertModel
