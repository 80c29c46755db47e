"""Weight statistics against their definitions on the full D x D form W = W_q^T W_k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModel

from bertgeom.analysis.weights import HeadProjections, head_projections, weight_statistics
from bertgeom.errors import ModelError

SMALL = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
DISTIL = {"vocab_size": 40, "dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 32}
ALBERT = {"embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Bert": SMALL,
    "Roberta": SMALL,
    "Electra": SMALL,
    "Albert": SMALL | ALBERT,
    "DistilBert": DISTIL,
    "Esm": SMALL | {"position_embedding_type": "rotary", "mask_token_id": 3},
    "ModernBert": SMALL | {"global_attn_every_n_layers": 2, "local_attention": 8},
}


def small_model(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
    model = getattr(transformers, f"{name}Model")(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def naive_directionality(w: np.ndarray) -> tuple[float, float]:
    totals = []
    for axis in (0, 1):
        norms = np.sqrt((w**2).sum(axis=axis))
        threshold = norms.mean() + 2 * norms.std()
        beyond = norms[norms > threshold]
        totals.append((beyond.sum(), (beyond - threshold).sum()))
    (column, column_excess), (row, row_excess) = totals

    def score(c: float, r: float) -> float:
        return (c - r) / (c + r) if c + r > 0 else 0.0

    return score(column, row), score(column_excess, row_excess)


def naive_head(wq: np.ndarray, wk: np.ndarray) -> dict[str, np.ndarray]:
    d = len(wq)
    w = wq.T @ wk
    symmetric, skew = (w + w.T) / 2, (w - w.T) / 2
    singular = np.linalg.svd(w, compute_uv=False)
    eigenvalues = np.linalg.eigvals(w)
    largest = np.abs(eigenvalues).max()
    nonzero = eigenvalues[np.abs(eigenvalues) > 1e-7 * largest]
    spectrum = np.linalg.eigvalsh(symmetric)
    column_score, excess_score = naive_directionality(w)
    bases = [np.linalg.svd(x, full_matrices=False)[2].T for x in (wq, wk)]
    return {
        "weight_symmetry": ((symmetric**2).sum() - (skew**2).sum()) / (w**2).sum(),
        "weight_directionality": column_score,
        "weight_directionality_excess": excess_score,
        "weight_subspace_cosines": np.linalg.svd(bases[0].T @ bases[1], compute_uv=False),
        "weight_eigen_positive": (nonzero.real > 0).sum(),
        "weight_eigen_negative": (nonzero.real < 0).sum(),
        "weight_eigen_complex": (np.abs(nonzero.imag) > 1e-7 * largest).sum(),
        "weight_symmetric_positive_share": spectrum[spectrum > 0].sum() / np.abs(spectrum).sum(),
        "weight_singular_values": singular[:d],
        "weight_rank": np.linalg.matrix_rank(w),
        "weight_effective_rank": (singular**2).sum() ** 2 / (singular**4).sum(),
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_statistics_equal_those_of_the_full_form(name: str) -> None:
    model = small_model(name)
    dataset = weight_statistics(model)
    for layer, projections in enumerate(head_projections(model)):
        for head in range(3):
            wq, wk = (x[head].numpy() for x in (projections.query, projections.key))
            for statistic, expected in naive_head(wq, wk).items():
                found = dataset[statistic].values[layer, head]
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_projections_give_the_queries_and_keys_that_the_model_computes(name: str) -> None:
    model = small_model(name)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attention(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        seen.append((query, value))
        return value.transpose(1, 2), None

    inputs: list[torch.Tensor] = []
    layers = head_projections(model)
    modules = dict(model.named_modules())

    def keep_input(
        module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
    ) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])

    for module in {modules[layer.name] for layer in layers}:
        module.register_forward_pre_hook(keep_input, with_kwargs=True)
    transformers.AttentionInterface.register("capture", attention)
    model.set_attn_implementation("capture")
    model(input_ids=torch.arange(4, 16)[None])

    assert len(seen) == len(layers) == len(inputs)
    for (query, value), layer, x in zip(seen, layers, inputs, strict=True):
        x = x[0].double()
        expected_value = x @ layer.value.mT + layer.value_bias[:, None]
        torch.testing.assert_close(value[0].double(), expected_value, rtol=1e-4, atol=1e-4)
        if name not in ("Esm", "ModernBert"):  # rotary positions turn queries and keys
            expected_query = x @ layer.query.mT + layer.query_bias[:, None]
            torch.testing.assert_close(query[0].double(), expected_query, rtol=1e-4, atol=1e-4)


def test_rotary_models_have_the_projected_queries_up_to_a_rotation() -> None:
    model = small_model("ModernBert")
    layer = head_projections(model)[0]
    w = model.layers[0].attn.Wqkv.weight.detach().double()
    torch.testing.assert_close(layer.query[2], w[16:24])
    torch.testing.assert_close(layer.key[0], w[24:32])
    torch.testing.assert_close(layer.value[1], w[56:64])


def test_layers_that_share_weights_are_repeated_in_order() -> None:
    model = small_model("Albert")
    names = [layer.name for layer in head_projections(model)]
    assert len(names) == 3
    assert names[0] == names[1] != names[2]


def test_a_trained_model_has_the_shapes_units_and_bounds(minilm: Path) -> None:
    model = AutoModel.from_pretrained(minilm)
    dataset = weight_statistics(model)
    assert dict(dataset.sizes) == {"layer": 6, "head": 12, "component": 32, "projection": 3}
    assert all(x.attrs["units"] and x.attrs["description"] for x in dataset.data_vars.values())
    cosines = dataset.weight_subspace_cosines.values
    assert ((cosines >= 0) & (cosines <= 1)).all()
    assert (np.diff(cosines, axis=-1) <= 1e-12).all()
    assert (np.abs(dataset.weight_symmetry) <= 1).all()
    assert (dataset.weight_eigen_positive + dataset.weight_eigen_negative == 32).all()
    layer, head = head_projections(model)[4], 7
    expected = naive_head(layer.query[head].numpy(), layer.key[head].numpy())
    for statistic, value in expected.items():
        np.testing.assert_allclose(dataset[statistic].values[4, head], value, rtol=1e-8, atol=1e-9)
    query = model.encoder.layer[4].attention.self.query
    norm = query.bias.detach().double().reshape(12, 32)[head].norm()
    assert dataset.projection_bias_norm.sel(layer=4, head=head, projection="query") == norm
    rows = query.weight.detach().double()[head * 32 : head * 32 + 32]
    np.testing.assert_allclose(
        dataset.projection_singular_values.sel(layer=4, head=head, projection="query"),
        np.linalg.svd(rows, compute_uv=False),
    )


def test_equal_projections_are_symmetric_and_share_their_subspace() -> None:
    model = small_model("Bert")
    attention = model.encoder.layer[0].attention.self
    attention.key.weight.data.copy_(attention.query.weight)
    first = weight_statistics(model).isel(layer=0)
    np.testing.assert_allclose(first.weight_symmetry, 1)
    np.testing.assert_allclose(first.weight_subspace_cosines, 1)
    np.testing.assert_allclose(first.weight_symmetric_positive_share, 1)
    assert (first.weight_eigen_positive == 8).all()
    attention.key.weight.data.mul_(-1)
    assert (weight_statistics(model).isel(layer=0).weight_eigen_negative == 8).all()


def test_a_dominating_input_column_shows_in_the_directionality() -> None:
    model = small_model("Bert")
    attention = model.encoder.layer[0].attention.self
    attention.key.weight.data[:, 5] *= 50
    columns = weight_statistics(model).isel(layer=0)
    assert (columns.weight_directionality > 0).all()
    assert (columns.weight_directionality_excess > 0.5).all()
    attention.query, attention.key = attention.key, attention.query
    rows = weight_statistics(model).isel(layer=0)
    for name in ("weight_directionality", "weight_directionality_excess"):
        np.testing.assert_allclose(rows[name], -columns[name], rtol=1e-12)


def test_missing_directions_leave_cosines_undefined() -> None:
    model = small_model("Bert")
    query = model.encoder.layer[0].attention.self.query
    query.weight.data[3:8] = 0
    first = weight_statistics(model).isel(layer=0, head=0)
    assert first.weight_rank == 3
    assert first.projection_rank.values.tolist() == [3, 8, 8]
    assert np.isfinite(first.weight_subspace_cosines[:3]).all()
    assert np.isnan(first.weight_subspace_cosines[3:]).all()


def test_half_precision_weights_are_read_exactly() -> None:
    model = small_model("Bert").to(torch.bfloat16)
    layer = head_projections(model)[1]
    weight = model.encoder.layer[1].attention.self.key.weight
    assert layer.key.dtype == torch.float64
    assert torch.equal(layer.key.reshape(24, 24), weight.double())


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(ModelError, match="found none in Sequential"):
        head_projections(nn.Sequential(nn.Linear(3, 3)))


def test_quantised_projections_are_refused() -> None:
    model = small_model("Bert")
    model.encoder.layer[0].attention.self.query = nn.Identity()
    with pytest.raises(ModelError, match=r"nn.Linear at encoder.layer.0.*Identity"):
        head_projections(model)


def test_grouped_key_heads_are_repeated() -> None:
    class Grouped(nn.Module):
        num_attention_heads = 4

        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj = nn.Linear(8, 16), nn.Linear(8, 8, bias=False)
            self.v_proj = nn.Linear(8, 8)

    model = nn.ModuleDict({"attention": Grouped()})
    (layer,) = head_projections(model)
    assert isinstance(layer, HeadProjections)
    assert layer.key.shape == (4, 4, 8)
    assert torch.equal(layer.key[0], layer.key[1])
    assert not torch.equal(layer.key[1], layer.key[2])
    assert not layer.key_bias.any()
