"""What the encoders of this folder share: the frame of a forward pass, attention, and heads.

An encoder here is embeddings, a list of layers and sometimes a final norm, under the names that
the published weights have. Attention goes through transformers' AttentionInterface.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(scaling Q K^T + mask) V by definition: (B, N, H, d), and the maps (B, H, N, N)."""
    logits = scaling * (query @ key.mT)
    if attention_mask is not None:
        logits = logits + attention_mask
    weights = nn.functional.dropout(logits.softmax(-1), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention by the implementation that the module's configuration names.

    Args:
        module: has `config`, and `dropout`, the share of weights dropped in training.
        query, key, value: (B, N, H d), heads side by side.
        mask: as transformers makes it for the implementation.
        scaling: of the logits.

    Returns:
        (B, N, H d), and the maps (B, H, N, N) or None where the implementation has none.
    """
    compute = ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention
    )
    output, weights = compute(
        module,
        query,
        key,
        value,
        mask,
        scaling=scaling,
        dropout=module.dropout if module.training else 0.0,
        **options,
    )
    return output.flatten(2), weights


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, N, H d) as (B, H, N, d)."""
    return x.view(*x.shape[:-1], n_heads, -1).transpose(1, 2)


class ProjectedAttention(nn.Module):
    """Queries, keys and values by three linear maps; attention among all valid tokens."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = float(config.attention_probs_dropout_prob)

    def forward(
        self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) in; (B, N, D) and the maps out. `rotary` has cosines and sines (N, d)."""
        query, key, value = (
            split_heads(project(x), self.config.num_attention_heads)
            for project in (self.query, self.key, self.value)
        )
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        return attention(self, query, key, value, mask, scaling=query.shape[-1] ** -0.5)


def rotary_angles(
    n: int, d: int, base: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (n, d) of rotary positions (Su et al. 2021): position * base^(-2 i / d)."""
    # In float64: the product of a large position and a rounded frequency is off by whole steps.
    frequency = base ** (-torch.arange(0, d, 2, device=device, dtype=torch.float64) / d)
    angle = torch.arange(n, device=device)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    wide = dtype if dtype == torch.float64 else torch.float32
    return angle.cos().to(wide), angle.sin().to(wide)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) of (B, H, N, d) by the angles of their positions."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cosine + turned * sine).to(x.dtype)


class _UsesInterface(PreTrainedModel):
    """Attention goes through transformers' AttentionInterface."""

    _supports_sdpa = True
    _supports_attention_backend = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for its interface in the source of a class's own module.
        return True

    def post_init(self) -> None:
        """What transformers does after a model is built."""
        base: Any = super()
        base.post_init()


class PublishedEncoder(_UsesInterface):
    """The frame of an encoder: token ids and a mask in, hidden states out.

    A subclass sets `embeddings` and `encoder`, whose `layer` is a list of layers. A layer takes the
    stream and the mask and returns the stream and the attention maps.
    """

    embeddings: Any
    encoder: Any

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        table: nn.Module = self.embeddings.word_embeddings
        return table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of token embeddings."""
        self.embeddings.word_embeddings = value

    def prepare(self, x: Tensor, mask: Any) -> tuple[Any, ...]:
        """What every layer gets beside the stream (B, N, D): the mask, and what depends on N."""
        return (mask,)

    def finish(self, x: Tensor) -> Tensor:
        """What follows the last layer."""
        return x

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """One forward pass.

        Args:
            input_ids: (B, N). attention_mask: (B, N), 1 at valid tokens; None: all are.
            token_type_ids: (B, N), for models that have them; None: 0.

        Returns:
            `last_hidden_state` (B, N, D); on request `hidden_states`, the embedding and the output
            of every layer, and `attentions` (B, H, N, N) by layer. With a final norm, the last
            hidden state is after it.
        """
        wants_maps = (
            self.config.output_attentions if output_attentions is None else output_attentions
        )
        wants_states = (
            self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states
        )
        x = self.embeddings(input_ids, attention_mask, token_type_ids)
        mask = create_bidirectional_mask(self.config, x, attention_mask)
        beside = self.prepare(x, mask)
        states, maps = [x], []
        for layer in self.encoder.layer:
            x, weights = layer(x, *beside)
            states.append(x)
            maps.append(weights)
        x = self.finish(x)
        states[-1] = x
        output = BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if wants_states else None,
            attentions=tuple(maps) if wants_maps else None,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


class BertEmbeddings(nn.Module):
    """Token, token type and, on request, position embeddings, summed and normalised."""

    def __init__(self, config: Any, *, positions: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(
            config.vocab_size, width, padding_idx=config.pad_token_id
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        if positions:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.positions = positions
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        """(B, N) ids as vectors (B, N, D)."""
        x: Tensor = self.word_embeddings(ids)
        types = torch.zeros_like(ids) if types is None else types
        x = x + self.token_type_embeddings(types)
        if self.positions:
            x = x + self.position_embeddings(torch.arange(ids.shape[1], device=ids.device))
        x = self.LayerNorm(x)
        return self.dropout(x)  # type: ignore[no-any-return]


class BertPooler(nn.Module):
    """tanh of a linear map of the first token's vector."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) as (B, D)."""
        return torch.tanh(self.dense(x[:, 0]))


class PublishedClassifier(_UsesInterface):
    """The frame of a sequence classifier: a head on an encoder.

    A subclass sets the encoder under its `base_model_prefix`, and defines `head`.
    """

    def head(self, x: Tensor) -> Tensor:
        """(B, N, D) as logits (B, labels)."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """`logits` (B, labels), and what `PublishedEncoder.forward` gives on request."""
        found = self.base_model(input_ids, attention_mask, return_dict=True, **options)
        output = SequenceClassifierOutput(
            logits=self.head(found.last_hidden_state),
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


class BertClassifier(PublishedClassifier):
    """A sequence classifier as BERT has it: a linear map of the pooled first token."""

    base_model_prefix = "bert"
    #: The class of the encoder.
    encoder_class: Any = None

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = self.encoder_class(config)
        self.bert.pooler = BertPooler(config)
        share = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(config.hidden_dropout_prob if share is None else share)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def head(self, x: Tensor) -> Tensor:
        """(B, N, D) as logits (B, labels)."""
        logits: Tensor = self.classifier(self.dropout(self.bert.pooler(x)))
        return logits
