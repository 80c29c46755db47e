"""Architectures with a bias of relative positions: what their adapters hand over is the bias."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from architecture_cases import VOCABULARY, Case, batch
from torch import Tensor, nn

from bertgeom import kernels
from bertgeom.model.architectures import adapters, table
from bertgeom.model.masks import AttentionMask, attention_mask

_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
CASES = (
    Case("T5", _T5, model="T5EncoderModel"),
    Case("MT5", _T5, model="MT5EncoderModel"),
    Case("UMT5", _T5, model="UMT5EncoderModel"),
    Case("MPNet"),
)
#: The kernels know no bias yet; with them the cases move to `architecture_cases.CASES`.
pytestmark = pytest.mark.skipif(
    not hasattr(kernels, "RelativeBias"), reason="needs kernels that add a bias"
)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Plain attention with a relative bias, written out."""
    assert isinstance(attention_mask, AttentionMask)
    at = torch.arange(query.shape[2])
    bias = position_bias.table[:, position_bias.buckets(at[None, :] - at[:, None])]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = scale * query @ key.mT + bias
    assert isinstance(attention_mask, AttentionMask)
    valid = attention_mask.valid()
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None, None, :], -torch.inf)
    return (logits.softmax(-1) @ value).transpose(1, 2), None


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An attention implementation of that name which takes a bias; adapters are put back after."""
    from transformers import AttentionInterface, AttentionMaskInterface

    before = dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)
    monkeypatch.setattr(adapters, "_installed", set())
    AttentionInterface.register("bertgeom", attend)
    AttentionMaskInterface.register("bertgeom", attention_mask)
    yield
    AttentionInterface._global_mapping.clear()
    AttentionInterface._global_mapping.update(before[0])
    AttentionMaskInterface._global_mapping.clear()
    AttentionMaskInterface._global_mapping.update(before[1])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_are_those_of_eager_attention(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    eager, ours = case.build()
    for name, weight in eager.named_parameters():
        if "relative_attention_bias" in name:
            nn.init.normal_(weight, std=2)
    ours.load_state_dict(copy.deepcopy(eager.state_dict()))
    (declared,) = (a for a in table.BIASED if a.name == case.name)
    for path in declared.adapters:
        where, owner, method = path.rsplit(".", 2)
        cls = getattr(importlib.import_module(where), owner)
        monkeypatch.setattr(cls, method, getattr(cls, method))
    adapters.install(declared.adapters, attend)
    for padding in ("none", "right", "left"):
        inputs = batch(padding)
        with torch.no_grad():
            expected = eager(**inputs).last_hidden_state
            found = ours(**inputs).last_hidden_state
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
