"""A tiny model of every architecture of the table, with weights like those of a trained one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from bertgeom.model.architectures.published import PUBLISHED

#: Ids below this are special or padding.
FIRST_ID, VOCABULARY = 5, 69
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, eq=False)
class Case:
    """One model: classes of transformers are named by `name`, sizes are those of the file."""

    name: str
    more: dict[str, Any] = field(default_factory=dict)
    layers: int = 2
    padding: bool = True
    model: str = ""
    id: str = ""

    def __str__(self) -> str:
        return self.id or self.name

    def config(self) -> Any:
        return getattr(transformers, f"{self.name}Config")(**{**_SIZES, **self.more})

    def build(self) -> tuple[Any, Any]:
        """The same model twice: with eager attention, and with this project's."""
        kind = getattr(transformers, self.model or f"{self.name}Model")
        config = self.config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            eager = kind._from_config(copy.deepcopy(config), attn_implementation="eager").eval()
            like_trained(eager)
        ours = kind._from_config(copy.deepcopy(config), attn_implementation="bertgeom").eval()
        ours.load_state_dict(eager.state_dict())
        return eager, ours


@dataclass(frozen=True, eq=False)
class PublishedCase(Case):
    """A model whose classes are part of this package, not of transformers."""

    def config(self) -> Any:
        return self._classes().config(**{**_SIZES, **self.more})

    def build(self) -> tuple[Any, Any]:
        built = []
        for implementation in ("eager", "bertgeom"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = self._classes().encoder._from_config(
                    self.config(), attn_implementation=implementation
                )
                like_trained(model)
            built.append(model.eval())
        return built[0], built[1]

    def _classes(self) -> Any:
        return next(p for p in PUBLISHED if p.name == self.name)


def like_trained(model: torch.nn.Module) -> None:
    """Give biases and norms values of their own, and norms of queries and keys large ones."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            if "q_norm" in name or "k_norm" in name:
                weight.mul_(2)
            if "relative_attention_bias" in name:
                weight.normal_(std=2)


_EMBEDDING = {"embedding_size": 32}
_MODERN = {
    "cls_token_id": 1,
    "sep_token_id": 2,
    "local_attention": 16,
    "global_attn_every_n_layers": 2,
}
#: Buckets that reach less far than a window.
_T5 = {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "initializer_factor": 2.0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
_ALL = (
    PublishedCase("MosaicBERT (DNABERT-2, DNABERT-S, BiRNA-BERT)", id="MosaicBERT"),
    PublishedCase("GENA-LM"),
    PublishedCase("Nucleotide Transformer v2", {"position_embedding_type": "rotary"}),
    Case("Bert"),
    Case("Roberta"),
    Case("XLMRoberta"),
    Case("Camembert"),
    Case("Data2VecText"),
    Case("Electra", _EMBEDDING),
    Case("Ernie"),
    Case("Splinter", {"question_token_id": 4}),
    Case("RoCBert", {"pronunciation_vocab_size": 8, "shape_vocab_size": 8}),
    Case("Albert", _EMBEDDING),
    Case(
        "Albert",
        {**_EMBEDDING, "num_hidden_groups": 2, "inner_group_num": 2},
        layers=4,
        id="Albert-inner-groups",
    ),
    Case("DistilBert"),
    Case("Esm", {"position_embedding_type": "rotary", "mask_token_id": 4}),
    Case("Esm", {"position_embedding_type": "absolute", "mask_token_id": 4}, id="Esm-absolute"),
    Case("XLMRobertaXL"),
    Case("RobertaPreLayerNorm"),
    Case("ModernBert", _MODERN),
    Case("Esmc"),
    Case("EuroBert", {"num_key_value_heads": 2, "head_dim": 16, "mask_token_id": 4}),
    Case(
        "EuroBert",
        {"num_key_value_heads": 1, "head_dim": 16, "mask_token_id": 4},
        id="EuroBert-grouped",
    ),
    Case("Ultrabert"),
    Case("NomicBert"),
    Case("Gte"),
    Case("JinaEmbeddingsV3"),
    Case("RemBert", {"input_embedding_size": 32, "output_embedding_size": 32}),
    Case("MegatronBert"),
    Case("RoFormer", _EMBEDDING),
    Case("RoFormer", {**_EMBEDDING, "rotary_value": True}, id="RoFormer-rotary-value"),
    Case("BigBird", {"attention_type": "original_full", "sep_token_id": 2}),
    Case("BigBird", {"sep_token_id": 2}, id="BigBird-short-windows"),
    Case("ConvBert", {**_EMBEDDING, "head_ratio": 1}, padding=False),
    Case("ConvBert", {**_EMBEDDING, "head_ratio": 2}, padding=False, id="ConvBert-half-heads"),
    Case("T5", _T5, model="T5EncoderModel"),
    Case("T5", {**_T5, "feed_forward_proj": "gated-gelu"}, model="T5EncoderModel", id="T5-gated"),
    Case("MT5", _T5, model="MT5EncoderModel"),
    Case("UMT5", _T5, model="UMT5EncoderModel"),
    Case("MPNet"),
)
#: Those of this package, and those that the installed transformers has.
CASES = tuple(
    case
    for case in _ALL
    if isinstance(case, PublishedCase) or hasattr(transformers, f"{case.name}Model")
)


def batch(padding: str, n: int = 20) -> dict[str, torch.Tensor]:
    """Two windows: "none", or the second one shorter, padded on the "right" or on the "left"."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(FIRST_ID, VOCABULARY, (2, n), generator=generator)
    mask = torch.ones_like(ids)
    if padding == "right":
        mask[1, n - 8 :] = 0
    elif padding == "left":
        mask[1, :8] = 0
    return {"input_ids": torch.where(mask == 1, ids, 0), "attention_mask": mask}
