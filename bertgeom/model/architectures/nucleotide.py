"""Nucleotide Transformer v2 (Dalla-Torre et al. 2024, doi 10.1038/s41592-024-02523-z).

ESM's pre-norm layers with rotary positions and a gated feed-forward block, silu(first half) *
second half of one linear map. No position embeddings; `emb_layer_norm_after` follows the last
layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import EsmConfig

from bertgeom.errors import ModelError
from bertgeom.model.architectures.blocks import (
    ProjectedAttention,
    PublishedClassifier,
    PublishedEncoder,
    rotary_angles,
)

#: Share of tokens that were masked in training, and of these the share replaced by the mask token
#: (Lin et al. 2022, ESM-2): `token_dropout` scales embeddings as if it still were so.
_MASKED = 0.15 * 0.8
#: Base of the rotary frequencies.
_BASE = 10_000.0


class NucleotideConfig(EsmConfig):
    """The configuration of ESM, with `add_bias_fnn`."""

    model_type = "nucleotide-transformer-v2"


def check_nucleotide(model: str, raw: dict[str, Any]) -> None:
    """Refuse what is not rotary.

    Raises:
        ModelError: for these.
    """
    kind = raw.get("position_embedding_type", "absolute")
    if kind != "rotary":
        raise ModelError(
            f"expected position_embedding_type 'rotary' in config.json of {model!r}, as the "
            f"Nucleotide Transformer v2 has, found {kind!r}; this variant is not supported"
        )


class NucleotideEmbeddings(nn.Module):
    """Token embeddings, zero at padding."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        if config.emb_layer_norm_before:
            self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        """(B, N) ids as vectors (B, N, D); there are no token types."""
        x: Tensor = self.word_embeddings(ids)
        valid = torch.ones_like(ids) if mask is None else mask
        if self.config.token_dropout:
            masked = ids == self.config.mask_token_id
            share = masked.sum(-1) / valid.sum(-1)
            scale = (1 - _MASKED) / (1 - share)
            x = (x.masked_fill(masked[..., None], 0.0) * scale[:, None, None]).to(x.dtype)
        if self.config.emb_layer_norm_before:
            x = self.layer_norm(x)
        return (x * valid[..., None]).to(x.dtype)


class _Linear(nn.Module):
    """One linear map and the residual, under the name that the weights have."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, n_out, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """A block's (B, N, inner) and the stream (B, N, D)."""
        return self.dropout(self.dense(z)) + x  # type: ignore[no-any-return]


class _Gate(nn.Module):
    """The gated half of the feed-forward block."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, 2 * n_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) as (B, N, inner)."""
        gate, values = self.dense(x).chunk(2, dim=-1)
        return nn.functional.silu(gate) * values  # type: ignore[no-any-return]


class NucleotideAttention(nn.Module):
    """The attention block: norm, heads, linear map, residual."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.self = ProjectedAttention(config)
        self.output = _Linear(width, width, bias=True, dropout=config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The stream (B, N, D) after the block, and the maps."""
        z, weights = self.self(self.LayerNorm(x), mask, rotary)
        return self.output(z, x), weights


class NucleotideLayer(nn.Module):
    """Attention block and feed-forward block, both pre-norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.attention = NucleotideAttention(config)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        bias = bool(getattr(config, "add_bias_fnn", True))
        self.intermediate = _Gate(width, inner, bias=bias)
        self.output = _Linear(inner, width, bias=bias, dropout=config.hidden_dropout_prob)

    def forward(
        self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The stream (B, N, D), and the maps."""
        x, weights = self.attention(x, mask, rotary)
        return self.output(self.intermediate(self.LayerNorm(x)), x), weights


class NucleotideLayers(nn.Module):
    """The layers and the final norm, under the names that the weights have."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(NucleotideLayer(config) for _ in range(config.num_hidden_layers))
        self.emb_layer_norm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class NucleotideModel(PublishedEncoder):
    """The encoder of the Nucleotide Transformer v2."""

    config_class = NucleotideConfig
    base_model_prefix = "esm"

    def __init__(self, config: NucleotideConfig) -> None:
        super().__init__(config)
        self.embeddings = NucleotideEmbeddings(config)
        self.encoder = NucleotideLayers(config)
        self.post_init()

    def prepare(self, x: Tensor, mask: Any) -> tuple[Any, ...]:
        """The mask, and the rotary angles of all positions."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        return mask, rotary_angles(x.shape[1], head_dim, _BASE, x.dtype, x.device)

    def finish(self, x: Tensor) -> Tensor:
        """The final norm."""
        return self.encoder.emb_layer_norm_after(x)  # type: ignore[no-any-return]


class _Head(nn.Module):
    """ESM's classification head, on the first token."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) as (B, labels)."""
        pooled = torch.tanh(self.dense(self.dropout(x[:, 0])))
        return self.out_proj(self.dropout(pooled))  # type: ignore[no-any-return]


class NucleotideForSequenceClassification(PublishedClassifier):
    """The Nucleotide Transformer v2 with a classification head."""

    config_class = NucleotideConfig
    base_model_prefix = "esm"

    def __init__(self, config: NucleotideConfig) -> None:
        super().__init__(config)
        self.esm = NucleotideModel(config)
        self.classifier = _Head(config)
        self.post_init()

    def head(self, x: Tensor) -> Tensor:
        """(B, N, D) as logits (B, labels)."""
        logits: Tensor = self.classifier(x)
        return logits
