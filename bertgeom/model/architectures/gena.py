"""GENA-LM (Fishman et al. 2025, doi 10.1093/nar/gkae1310): BERT with the norms before the blocks.

    x + attention(pre_attention_ln(x)), then x + feed_forward(post_attention_ln(x));
    last_layer_ln follows the last layer

The embeddings keep their norm. Sparse and rotary variants are refused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import BertConfig
from transformers.activations import ACT2FN

from bertgeom.errors import ModelError
from bertgeom.model.architectures.blocks import (
    BertClassifier,
    BertEmbeddings,
    ProjectedAttention,
    PublishedEncoder,
)


class GenaConfig(BertConfig):
    """The configuration of BERT."""

    model_type = "gena-lm"


def check_gena(model: str, raw: dict[str, Any]) -> None:
    """Refuse the variants whose attention is sparse, or whose positions are not absolute.

    Raises:
        ModelError: for these.
    """
    if raw.get("sparse_config_cls") or raw.get("sparse_attention"):
        raise ModelError(
            f"expected full attention in config.json of {model!r}, found block-sparse attention "
            "(sparse_attention), which cannot be observed; choose a GENA-LM with full attention"
        )
    kind = raw.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ModelError(
            f"expected position_embedding_type 'absolute' in config.json of {model!r}, found "
            f"{kind!r}; this variant of GENA-LM is not supported"
        )


class _Dense(nn.Module):
    """One linear map, under the name that the weights have."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)  # type: ignore[no-any-return]


class GenaAttention(nn.Module):
    """Heads and the linear map that joins them; no norm and no residual."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self = ProjectedAttention(config)
        self.output = _Dense(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) in; (B, N, D) and the maps out."""
        z, weights = self.self(x, mask)
        return self.output(z), weights


class GenaLayer(nn.Module):
    """Attention block and feed-forward block, both pre-norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.pre_attention_ln = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = GenaAttention(config)
        self.post_attention_ln = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.intermediate = _Dense(width, inner)
        self.activation = ACT2FN[config.hidden_act]
        self.output = _Dense(inner, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The stream (B, N, D), and the maps."""
        z, weights = self.attention(self.pre_attention_ln(x), mask)
        x = x + self.dropout(z)
        inner = self.activation(self.intermediate(self.post_attention_ln(x)))
        return x + self.dropout(self.output(inner)), weights


class GenaLayers(nn.Module):
    """The layers and the final norm, under the names that the weights have."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(GenaLayer(config) for _ in range(config.num_hidden_layers))
        self.last_layer_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class GenaModel(PublishedEncoder):
    """GENA-LM's encoder."""

    config_class = GenaConfig
    base_model_prefix = "bert"

    def __init__(self, config: GenaConfig) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config, positions=True)
        self.encoder = GenaLayers(config)
        self.post_init()

    def finish(self, x: Tensor) -> Tensor:
        """The final norm."""
        return self.encoder.last_layer_ln(x)  # type: ignore[no-any-return]


class GenaForSequenceClassification(BertClassifier):
    """GENA-LM with a classification head."""

    config_class = GenaConfig
    encoder_class = GenaModel
