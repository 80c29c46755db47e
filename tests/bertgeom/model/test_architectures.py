"""Every architecture gives its own output with this attention, or is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

import bertgeom
from bertgeom.errors import ModelError

V = 60
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
T5: dict[str, Any] = {
    "vocab_size": V,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
}
SINKS: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
#: Name of the architecture, sizes beside SIZES, and the word of the refusal; None: observed.
MEASURED: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {},
    "XLMRoberta": {},
    "XLMRobertaXL": {},
    "Camembert": {},
    "Data2VecText": {},
    "RobertaPreLayerNorm": {},
    "Electra": {"embedding_size": 32},
    "Albert": {"embedding_size": 32},
    "Ernie": {},
    "Splinter": {},
    "RoCBert": {},
}
REFUSED: dict[str, dict[str, Any]] = {
    "MPNet": {},
    "MegatronBert": {},
    "RemBert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "RoFormer": {"embedding_size": 32},
    "ConvBert": {"embedding_size": 32},
    "BigBird": {},
    "SqueezeBert": {"embedding_size": 32},
    "IBert": {},
    "Longformer": {"attention_window": 8},
    "Nystromformer": {},
    "DebertaV2": {},
    "FNet": {},
    "Esmc": {},
    "EuroBert": {"num_key_value_heads": 2, "head_dim": 16},
    "NomicBert": {},
    "JinaEmbeddingsV3": {},
    "MobileBert": {"intra_bottleneck_size": 16, "true_hidden_size": 16, "embedding_size": 32},
    "CLIPText": {"bos_token_id": 1, "eos_token_id": 2},
    "OpenAIPrivacyFilter": SINKS,
}


def build(name: str, more: dict[str, Any]) -> tuple[Any, Any]:
    """The same tiny model twice: with eager attention, and with this project's."""
    if name in ("T5", "MT5", "UMT5"):
        kind, sizes = getattr(transformers, f"{name}EncoderModel"), T5
    else:
        kind, sizes = getattr(transformers, f"{name}Model"), SIZES | more
    config = getattr(transformers, f"{name}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        eager = kind._from_config(copy.deepcopy(config), attn_implementation="eager").eval()
        for weight_name, weight in eager.named_parameters():
            if "relative_attention_bias" in weight_name:
                torch.nn.init.normal_(weight, std=2)
    ours = kind._from_config(copy.deepcopy(config), attn_implementation="bertgeom").eval()
    ours.load_state_dict(eager.state_dict())
    return eager, ours


def inputs() -> list[dict[str, torch.Tensor]]:
    """Unpadded, padded on the right, padded on the left."""
    ids = torch.randint(5, V, (2, 20), generator=torch.Generator().manual_seed(0))
    masks = [torch.ones_like(ids) for _ in range(3)]
    masks[1][1, 12:] = 0
    masks[2][1, :8] = 0
    return [{"input_ids": ids, "attention_mask": mask} for mask in masks]


def output(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).last_hidden_state


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())


@pytest.mark.parametrize("name", MEASURED)
def test_outputs_are_unchanged_in_and_out_of_record(name: str) -> None:
    eager, ours = build(name, MEASURED[name])
    for batch in inputs():
        expected = output(eager, batch)
        assert same(output(ours, batch), expected)
        with bertgeom.record() as recorder:
            assert same(output(ours, batch), expected)
        assert recorder.dataset().sizes["layer"] == 2
        assert bertgeom.measure(eager, **batch).sizes["window"] == 2


@pytest.mark.parametrize("name", [*REFUSED, "T5", "MT5", "UMT5"])
def test_what_is_not_understood_is_refused_and_never_different(name: str) -> None:
    eager, ours = build(name, REFUSED.get(name, {}))
    for batch in inputs():
        try:
            assert same(output(ours, batch), output(eager, batch))
        except ModelError as error:
            assert "expected" in str(error), error  # noqa: PT017
        with bertgeom.record() as recorder, pytest.raises(ModelError, match=r"expected .* found"):
            output(ours, batch)
        assert recorder.n_forwards == 0
        with pytest.raises(ModelError, match=r"expected .* found"):
            bertgeom.measure(eager, **batch)
