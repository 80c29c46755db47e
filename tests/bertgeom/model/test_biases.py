"""Biases of the logits that models hand over, against eager attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

import bertgeom
from bertgeom.errors import ModelError
from bertgeom.kernels import AlibiBias, RelativeBias
from bertgeom.kernels.attention_stats.bias import Bias, bias_matrix
from bertgeom.model.attention import attend
from bertgeom.model.biases import by_offset, split_mask
from bertgeom.model.capture import capture
from bertgeom.testing import eager_attention_statistics, eager_forward, tiny_model

N = 20
LEAST = torch.finfo(torch.float32).min
BIASES: dict[str, Bias] = {
    "alibi": AlibiBias(torch.tensor([0.5, 0.06])),
    "table": RelativeBias(torch.randn(2, 7, generator=torch.Generator().manual_seed(0))),
    "tensor": torch.randn(1, 2, N, N, generator=torch.Generator().manual_seed(1)),
}


def batch(side: str = "right", gap: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and special mask of windows of 20 and 12 tokens."""
    ids = torch.randint(5, 60, (2, N), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, 12:] = 0
    if side == "left":
        mask = mask.flip(1)
    if gap:
        mask[1, 5:7] = 0
    return ids, mask, torch.zeros(2, N, dtype=torch.bool)


def additive(mask: Tensor, bias: Bias) -> Tensor:
    """Padding and a bias as one mask (B, H, N, N)."""
    padding = torch.where(mask[:, None, None, :].bool(), 0.0, LEAST)
    return (padding + bias_matrix(bias, N)).clamp(min=LEAST)


@pytest.mark.parametrize("way", ["mask", "module"])
@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("side", ["right", "left", "gap"])
def test_outputs_and_statistics_are_those_of_eager_attention(
    name: str, way: str, side: str
) -> None:
    model, bias = tiny_model("bert"), BIASES[name]
    ids, mask, special = batch(side, gap=side == "gap")
    whole = additive(mask, bias)
    plain = eager_forward(model, ids, whole)
    model.set_attn_implementation("bertgeom")
    handed = whole
    if way == "module":
        handed = mask
        for layer in model.encoder.layer:
            layer.attention.self.bertgeom_bias = bias
    with torch.inference_mode():
        outside = model(input_ids=ids, attention_mask=handed).last_hidden_state
        with bertgeom.record(special_tokens_mask=special, n_offset_side=6) as recorder:
            inside = model(input_ids=ids, attention_mask=handed).last_hidden_state
    for found in (outside, inside):
        torch.testing.assert_close(found, plain.last_hidden_state, rtol=1e-5, atol=2e-5)
    dataset = recorder.dataset()
    expected = eager_attention_statistics(plain.attentions, mask, special, 6)
    for statistic in ("attention_entropy", "attention_distance", "attention_k90_median"):
        np.testing.assert_allclose(dataset[statistic], expected[statistic], rtol=1e-4, atol=1e-4)


def test_a_mask_is_split_into_padding_and_a_bias() -> None:
    bias = bias_matrix(BIASES["alibi"], N)
    _, mask, _ = batch()
    for least in (LEAST, -torch.inf, -1e9):
        padding = torch.where(mask[:, None, None, :].bool(), 0.0, least)
        parts = split_mask(padding + bias)
        assert parts is not None
        valid, found = parts
        assert torch.equal(valid, mask.bool())
        assert torch.equal(found, bias)
        table = by_offset(found, 2)
        assert isinstance(table, RelativeBias)
        assert torch.equal(bias_matrix(table, N), bias)


def test_windows_that_are_all_padded_keep_a_bias_each() -> None:
    bias = bias_matrix(BIASES["alibi"], N)
    _, mask, _ = batch()
    mask[0, -1] = 0
    parts = split_mask(additive(mask, BIASES["alibi"]))
    assert parts is not None
    valid, found = parts
    assert torch.equal(valid, mask.bool())
    assert torch.equal(found, bias * valid[:, None, None, :])
    assert by_offset(found, 2) is found


@pytest.mark.parametrize("least", [LEAST, -torch.inf, torch.nan])
def test_a_mask_that_hides_keys_of_some_queries_is_none(least: float) -> None:
    mask = torch.zeros(1, 1, N, N).masked_fill(torch.ones(N, N).triu(1).bool(), least)
    assert split_mask(mask) is None


def test_a_steep_bias_hides_no_token() -> None:
    bias = bias_matrix(AlibiBias(torch.tensor([2000.0])), N)
    parts = split_mask(bias)
    assert parts is not None
    assert parts[0].all()
    assert torch.equal(parts[1], bias)


@pytest.mark.parametrize("name", BIASES)
def test_a_capture_keeps_the_bias_of_its_layer(name: str) -> None:
    model, bias = tiny_model("bert"), BIASES[name]
    model.set_attn_implementation("bertgeom")
    model.encoder.layer[1].attention.self.bertgeom_bias = bias
    ids, mask, _ = batch()
    with capture(model) as captured:
        model(input_ids=ids, attention_mask=mask)
    first, second = captured.calls
    assert first.bias is None
    assert second.bias is not None
    torch.testing.assert_close(bias_matrix(second.bias, N), bias_matrix(bias, N))


def test_only_a_bias_is_taken_for_one() -> None:
    x, module = torch.randn(1, 2, 4, 8), nn.Module()
    for wrong in (3.0, torch.ones(4, 4), torch.ones(1, 2, 4, 4).bool()):
        with pytest.raises(ModelError, match="expected a position bias as AlibiBias"):
            attend(module, x, x, x, None, position_bias=wrong)  # type: ignore[arg-type]


def test_outputs_of_t5_are_those_of_eager_attention() -> None:
    config = T5Config(
        vocab_size=60,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        initializer_factor=3.0,
    )
    torch.manual_seed(0)
    model: Any = T5EncoderModel(config).eval()
    ids, mask, _ = batch()
    plain = eager_forward(model, ids, mask).last_hidden_state
    model.set_attn_implementation("bertgeom")
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask).last_hidden_state
    valid = mask.bool()
    torch.testing.assert_close(found[valid], plain[valid], rtol=1e-5, atol=1e-5)
