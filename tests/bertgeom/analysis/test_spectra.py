"""Spectra against the direct decomposition of the n x n matrices, by definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from bertgeom import variables
from bertgeom.analysis.spectra import (
    layer_spectra,
    paper_shannon_entropy,
    paper_von_neumann_entropy,
    singular_values,
    spectra_dataset,
    spectral_entropy,
    window_spectra,
)
from bertgeom.analysis.weights import head_projections
from bertgeom.errors import UsageError

N_TOKENS = 40


@pytest.fixture(scope="module")
def trained(minilm: Path) -> dict[str, torch.Tensor]:
    """Float64 Q, K, V, Z, A and output of layer 3 of MiniLM, as the model computes them."""
    model = AutoModel.from_pretrained(minilm, attn_implementation="eager").double()
    ids = torch.randint(1000, 20000, (1, N_TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(input_ids=ids, output_attentions=True, output_hidden_states=True)
    x, layer = out.hidden_states[3][0], head_projections(model)[3]
    q, k, v = (
        x @ w.mT + b[:, None]
        for w, b in (
            (layer.query, layer.query_bias),
            (layer.key, layer.key_bias),
            (layer.value, layer.value_bias),
        )
    )
    a = out.attentions[3][0]
    return {"q": q, "k": k, "v": v, "a": a, "z": a @ v, "output": out.hidden_states[4][0]}


@pytest.fixture(scope="module")
def spectra(trained: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return layer_spectra(*(trained[x] for x in "qkv"), output=trained["output"])


def direct(x: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(x.numpy(), compute_uv=False)


def test_singular_values_equal_those_of_the_full_matrices(
    trained: dict[str, torch.Tensor], spectra: dict[str, np.ndarray]
) -> None:
    logits = trained["q"] @ trained["k"].mT
    for name, matrix in (("attention", "a"), ("value", "v"), ("head", "z")):
        expected = direct(trained[matrix])
        np.testing.assert_allclose(spectra[f"{name}_singular_values"], expected, atol=1e-12)
    np.testing.assert_allclose(
        spectra["logit_singular_values"], direct(logits)[:, :32], rtol=1e-10, atol=1e-9
    )
    np.testing.assert_allclose(
        spectra["output_singular_values"], direct(trained["output"]), atol=1e-11
    )


def test_summaries_follow_numpys_rules(
    trained: dict[str, torch.Tensor], spectra: dict[str, np.ndarray]
) -> None:
    logits = trained["q"] @ trained["k"].mT
    matrices = (trained["a"], trained["v"], trained["z"], logits)
    for i, matrix in enumerate(matrices):
        values = direct(matrix)[:, : N_TOKENS if i == 0 else 32]
        power = values**2 / (values**2).sum(-1, keepdims=True)
        entropy = -(power * np.log(np.where(power > 0, power, 1))).sum(-1)
        np.testing.assert_array_equal(
            spectra["spectrum_rank"][:, i], np.linalg.matrix_rank(matrix.numpy())
        )
        np.testing.assert_array_equal(spectra["spectrum_small"][:, i], (values < 1e-3).sum(-1))
        np.testing.assert_allclose(spectra["spectral_entropy"][:, i], entropy, rtol=1e-9)
        condition = values[:, 0] / values[:, -1]
        np.testing.assert_allclose(spectra["spectrum_condition"][:, i], condition, rtol=1e-6)


def test_logit_eigenvalues_equal_those_of_the_n_by_n_matrix(
    trained: dict[str, torch.Tensor], spectra: dict[str, np.ndarray]
) -> None:
    for head in range(12):
        logits = (trained["q"][head] @ trained["k"][head].T).numpy()
        expected = np.linalg.eigvals(logits)
        found = (
            spectra["logit_eigenvalues_real"][head]
            + 1j * (spectra["logit_eigenvalues_imaginary"][head])
        )
        scale = np.abs(expected).max()
        distances = np.abs(found[:, None] - expected[None, :])
        assert distances.min(axis=1).max() < 1e-8 * scale
        assert (np.abs(expected) > 1e-8 * scale).sum() == 32
        np.testing.assert_allclose(found.sum().real, np.trace(logits), rtol=1e-9)
        p = np.abs(expected) / np.sqrt((np.abs(expected) ** 2).sum())
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum()
        np.testing.assert_allclose(spectra["paper_von_neumann_entropy"][head], entropy, rtol=1e-6)


def test_symmetric_eigenvalues_equal_those_of_the_n_by_n_matrix(
    trained: dict[str, torch.Tensor],
) -> None:
    q, k = trained["q"][:, :, :12], trained["k"][:, :, :12]
    found = layer_spectra(q, k, q, n_threads=1)["logit_symmetric_eigenvalues"]
    logits = (q @ k.mT).numpy()
    expected = np.linalg.eigvalsh((logits + logits.transpose(0, 2, 1)) / 2)
    order = np.argsort(-np.abs(expected), axis=-1)[:, :24]
    largest = np.sort(np.take_along_axis(expected, order, axis=-1), axis=-1)
    np.testing.assert_allclose(found, largest, atol=1e-10 * np.abs(expected).max())
    companion = torch.cat([k, q], dim=-1).mT @ torch.cat([q, k], dim=-1) / 2
    from_companion = np.sort(np.linalg.eigvals(companion.numpy()).real, axis=-1)
    np.testing.assert_allclose(found, from_companion, atol=1e-8 * np.abs(expected).max())


def test_shannon_entropy_is_that_of_numpys_histogram(
    trained: dict[str, torch.Tensor], spectra: dict[str, np.ndarray]
) -> None:
    for head in range(12):
        counts, _ = np.histogram(trained["a"][head].numpy(), bins=20)
        p = counts[counts > 0] / counts.sum()
        expected = -(p * np.log(p)).sum()
        np.testing.assert_allclose(spectra["paper_shannon_entropy"][head], expected, rtol=1e-12)


def test_short_windows_have_as_many_values_as_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 8, generator=generator).double().unbind()
    out = layer_spectra(q, k, v, output=torch.randn(5, 16, generator=generator).double())
    assert out["attention_singular_values"].shape == (2, 5)
    assert out["value_singular_values"].shape == (2, 5)
    assert out["logit_singular_values"].shape == (2, 5)
    assert out["logit_symmetric_eigenvalues"].shape == (2, 5)
    logits = (q @ k.mT).numpy()
    np.testing.assert_allclose(
        out["logit_symmetric_eigenvalues"],
        np.linalg.eigvalsh((logits + logits.transpose(0, 2, 1)) / 2),
        atol=1e-12,
    )
    assert out["logit_eigenvalues_real"].shape == (2, 8)
    np.testing.assert_allclose(out["logit_eigenvalues_real"][:, 5:], 0, atol=1e-13)


def test_a_single_token_has_one_singular_value_of_one() -> None:
    x = torch.ones(1, 1, 4)
    out = layer_spectra(x, x, x)
    assert out["attention_singular_values"].tolist() == [[1.0]]
    assert out["paper_shannon_entropy"].tolist() == [0.0]
    assert out["spectral_entropy"][0, 0] == 0


def test_sliding_windows_and_grouped_heads_are_those_of_the_model() -> None:
    q = torch.randn(4, 20, 8, generator=torch.Generator().manual_seed(2)).double()
    k, v = q[:2] * 0.7 + 0.1, q[:2] + 1
    found = layer_spectra(q, k, v, window=3, scale=0.2)
    position = np.arange(20)
    for head in range(4):
        logits = 0.2 * (q[head] @ k[head // 2].T).numpy()
        weights = np.where(np.abs(position[:, None] - position) <= 3, np.exp(logits), 0)
        weights /= weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(
            found["attention_singular_values"][head],
            np.linalg.svd(weights, compute_uv=False),
            atol=1e-13,
        )
        np.testing.assert_allclose(
            found["head_singular_values"][head],
            np.linalg.svd(weights @ v[head // 2].numpy(), compute_uv=False),
            atol=1e-12,
        )


def test_single_precision_inputs_are_ranked_in_single_precision() -> None:
    low_rank = torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(0))
    v = low_rank @ torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    q = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(3))
    assert layer_spectra(q, q, v)["spectrum_rank"][0, 1] == 2
    assert np.linalg.matrix_rank(v.double().numpy()).item() > 2


def test_entropies_of_known_spectra() -> None:
    equal = torch.full((4,), 2.0, dtype=torch.float64)
    assert spectral_entropy(equal) == pytest.approx(np.log(4))
    assert paper_von_neumann_entropy(equal) == pytest.approx(2 * np.log(2))
    assert spectral_entropy(torch.zeros(3, dtype=torch.float64)) == 0
    assert paper_shannon_entropy(torch.full((6, 6), 1 / 6)) == 0
    assert paper_shannon_entropy(torch.eye(2)) == pytest.approx(np.log(2))


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (5, 5), (6, 5)])
def test_singular_values_of_any_shape(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    np.testing.assert_allclose(singular_values(x), np.linalg.svd(x.numpy(), compute_uv=False))


def test_the_number_of_threads_is_restored_and_changes_nothing() -> None:
    x = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(5))
    before = torch.get_num_threads()
    one, two = (layer_spectra(x, x, x, n_threads=i) for i in (1, 2))
    assert torch.get_num_threads() == before
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name])


def test_samples_of_unequal_length_are_padded_with_nan() -> None:
    samples = []
    for n in (6, 9):
        x = torch.randn(2, n, 4, generator=torch.Generator().manual_seed(n))
        layer = layer_spectra(x, x, x, output=x[0])
        samples.append(window_spectra([layer, layer]))
    dataset = spectra_dataset(samples, [3, 17])
    declared = {v.name: v for v in variables.SPECTRUM_VARIABLES}
    assert set(dataset.data_vars) == set(declared)
    assert dataset.window_index.values.tolist() == [3, 17]
    for name, array in dataset.data_vars.items():
        assert array.dims == declared[str(name)].dims
        assert array.dtype == declared[str(name)].dtype
        assert array.attrs["units"]
    assert np.isnan(dataset.attention_singular_values[0, ..., 6:]).all()
    assert np.isfinite(dataset.attention_singular_values[1]).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(3, 5, 4)
    with pytest.raises(UsageError, match=r"expected query \(H, n, d\)"):
        layer_spectra(x, x[:2], x[:2])
    with pytest.raises(UsageError, match=r"expected output \(5, D\)"):
        layer_spectra(x, x, x, output=torch.zeros(4, 4))
    with pytest.raises(UsageError, match="expected head_output"):
        layer_spectra(x, x, x, head_output=torch.zeros(2, 5, 4))
