"""Architectures that add a bias to their logits: what builds logits again adds it too."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architecture_cases import CASES, Case, batch
from torch import Tensor

import bertgeom
from bertgeom.analysis.annotations import region_attention
from bertgeom.analysis.rollout import attention_rollout
from bertgeom.analysis.spectra import captured_spectra
from bertgeom.errors import UsageError
from bertgeom.kernels import AlibiBias, RelativeBias
from bertgeom.kernels.attention_stats.bias import tensor_of
from bertgeom.model.capture import Capture, capture
from bertgeom.model.loading import load_model

BIASED = [c for c in CASES if c.name.startswith(("T5", "MT5", "UMT5", "MPNet", "Mosaic"))]
N = 20
biased = pytest.mark.parametrize("case", BIASED, ids=str)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return batch("none", N)["input_ids"][:1]


def captured_and_exact(case: Case, ids: Tensor) -> tuple[Capture, tuple[Tensor, ...]]:
    """What a capture in float64 keeps, and the maps of eager attention in float64."""
    eager, ours = (copy.deepcopy(model).double() for model in case.build())
    with torch.no_grad():
        maps = eager(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True
        ).attentions
    with capture(ours) as captured:
        ours(input_ids=ids, attention_mask=torch.ones_like(ids))
    return captured, tuple(a.double() for a in maps)


@biased
def test_a_capture_keeps_the_bias_in_its_short_form(case: Case, ids: Tensor) -> None:
    captured, _ = captured_and_exact(case, ids)
    kind = AlibiBias if case.name.startswith("Mosaic") else RelativeBias
    for call in captured.calls:
        assert isinstance(call.bias, kind)
        held = tensor_of(call.bias)
        assert held is not None
        assert held.numel() < N * N


@biased
def test_spectra_are_those_of_the_model_s_maps(case: Case, ids: Tensor) -> None:
    captured, maps = captured_and_exact(case, ids)
    found = captured_spectra(captured)["attention_singular_values"]
    expected = torch.linalg.svdvals(torch.stack([a[0] for a in maps]))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    plain = Capture([replace(call, bias=None) for call in captured.calls], captured.outputs)
    without = captured_spectra(plain)["attention_singular_values"]
    assert np.abs(without - found).max() > 1e-3


@biased
@pytest.mark.parametrize("row", [0, 7])
def test_rollout_is_the_product_of_the_model_s_maps(case: Case, ids: Tensor, row: int) -> None:
    captured, maps = captured_and_exact(case, ids)
    product = torch.eye(N, dtype=torch.float64)
    for a in maps:
        product = (a[0].mean(0) + torch.eye(N)) / 2 @ product
    found = attention_rollout(
        [(call.query, call.key) for call in captured.calls],
        scale=captured.calls[0].scale,
        biases=[call.bias for call in captured.calls],
        row=row,
        block=6,
    )
    torch.testing.assert_close(found[0], product[row], rtol=1e-6, atol=1e-8)


@biased
def test_attention_on_regions_is_that_of_the_model_s_maps(case: Case, ids: Tensor) -> None:
    captured, maps = captured_and_exact(case, ids)
    groups = torch.zeros(N, dtype=torch.int32)
    groups[3:8] |= 1
    groups[6:15] |= 2
    for call, a in zip(captured.calls, maps, strict=True):
        found = region_attention(
            call.query[0], call.key[0], groups, 2, scale=call.scale, bias=call.bias, block=6
        )
        received = a[0].mean(1)
        mass = torch.stack([received[:, 3:8].sum(1), received[:, 6:15].sum(1)], dim=1)
        torch.testing.assert_close(found["mass"], mass, rtol=1e-6, atol=1e-8)
        confident = (a[0] >= 0.3)[:, :, 3:8].double().mean(1).sum(1)
        torch.testing.assert_close(found["confident_count"][:, 0], confident)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_bias_of_every_cell_is_added_to_its_own_window_and_head(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 2, N, 8, generator=generator).double()
    bias = torch.randn(*shape, N, N, generator=generator).double()
    maps = torch.softmax(query @ key.mT + bias, -1).mean(1)
    found = attention_rollout([(query, key)], scale=1.0, biases=[bias], residual=0.0, row=4)
    torch.testing.assert_close(found, maps[:, 4])


def test_biases_are_one_a_layer() -> None:
    x = torch.randn(1, 2, N, 8)
    with pytest.raises(UsageError, match="expected 1 biases, one a layer, found 2"):
        attention_rollout([(x, x)], biases=[None, None])


@pytest.mark.parametrize("name", ["T5", "MT5", "UMT5"])
def test_the_encoder_of_a_whole_model_is_loaded_alone(name: str, tmp_path: Path) -> None:
    """A folder of an encoder and a decoder gives the numbers of the encoder's own folder."""
    case = next(c for c in BIASED if c.name == name)
    whole = getattr(transformers, f"{name}ForConditionalGeneration")(case.config()).eval()
    whole.save_pretrained(tmp_path / "whole")
    encoder: Any = getattr(transformers, f"{name}EncoderModel").from_pretrained(tmp_path / "whole")
    encoder.save_pretrained(tmp_path / "encoder")
    inputs = batch("right", N)
    expected = bertgeom.measure(encoder, **inputs)
    for folder in ("whole", "encoder"):
        loaded = load_model(tmp_path / folder)
        assert type(loaded).__name__ == f"{name}EncoderModel"
        found = bertgeom.measure(loaded, **inputs)
        np.testing.assert_array_equal(found.attention_entropy, expected.attention_entropy)
        np.testing.assert_array_equal(found.stream_norm_max, expected.stream_norm_max)
