"""Loading encoders, and measuring batches of windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertgeom.config import MeasureSettings
from bertgeom.errors import ModelError, UsageError
from bertgeom.model.encoder import Encoder, TokenBatch, load_encoder
from bertgeom.testing import save_tiny_classifier, tiny_model
from bertgeom.variables import VARIABLES, flag_bit, select

SETTINGS = MeasureSettings(n_offset_side=7, keep=("block_map", "cls", "logits", "tracks"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_classifier(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(folder, device="cpu")


def batch(*lengths: int, slots: int = 40) -> TokenBatch:
    rng = np.random.default_rng(0)
    n = np.array(lengths)
    valid = np.arange(slots) < n[:, None]
    ids = np.where(valid, rng.integers(5, 69, valid.shape), 0).astype(np.int32)
    special = valid & ((np.arange(slots) == 0) | (np.arange(slots) == n[:, None] - 1))
    return TokenBatch(ids, n, special)


def test_what_is_known_of_a_loaded_model(encoder: Encoder, folder: Path) -> None:
    assert (encoder.n_layers, encoder.n_heads, encoder.head_dim, encoder.hidden) == (2, 2, 16, 32)
    assert encoder.max_tokens == 64
    assert encoder.class_names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert encoder.dtype == torch.float32
    assert encoder.model_id == str(folder)


def test_the_fingerprint_is_that_of_weights_and_configuration(
    encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    assert load_encoder(folder).fingerprint == encoder.fingerprint
    same = save_tiny_classifier(tmp_path / "same")
    assert load_encoder(same).fingerprint == encoder.fingerprint
    other = save_tiny_classifier(tmp_path / "other", seed=1)
    assert load_encoder(other).fingerprint != encoder.fingerprint


def test_every_declared_array_comes_in_its_shape(encoder: Encoder) -> None:
    found = encoder.measure(batch(40, 17, 2), SETTINGS)
    sizes = {
        "window": 3,
        "layer": 2,
        "head": 2,
        "station": 5,
        "angle_station": 3,
        "head_station": 4,
        "hidden_state": 3,
        "hidden": 32,
        "gate": 8,
        "offset": 15,
        "angle": 90,
        "class": 3,
        "query_block": 16,
        "key_block": 16,
        "token": 40,
    }
    expected = {v.name: v for v in select("full", SETTINGS.keep) if v.kind != "window"}
    expected.pop("attention_group_mass")
    assert set(found) == set(expected) | {"flags"}
    for name, variable in expected.items():
        assert found[name].shape == tuple(sizes[d] for d in variable.dims), name
        kind = np.dtype(VARIABLES[name].dtype).kind
        assert found[name].dtype.kind == kind, name


def test_groups_are_measured_where_there_are_groups(encoder: Encoder) -> None:
    tokens = batch(40, 17)
    groups = np.where(tokens.special, 1, 2).astype(np.int32)
    settings = MeasureSettings(n_offset_side=7, n_groups=2)
    found = encoder.measure(replace(tokens, groups=groups), settings)
    np.testing.assert_allclose(
        found["attention_group_mass"][..., 0], found["attention_special"], atol=1e-6
    )
    np.testing.assert_allclose(found["attention_group_mass"].sum(-1), 1, atol=1e-5)


def test_rows_do_not_depend_on_padding_or_company(encoder: Encoder) -> None:
    tokens = batch(40, 17, 2)
    together = encoder.measure(tokens, SETTINGS)
    alone = TokenBatch(tokens.ids[1:2, :17], tokens.lengths[1:2], tokens.special[1:2, :17])
    single = encoder.measure(alone, SETTINGS)
    for name, expected in single.items():
        found = together[name][1:2]
        if VARIABLES[name].dims[-1] == "token":
            found = found[..., :17]
        if expected.dtype.kind == "f":
            scale = np.maximum(np.abs(expected), 1)
            assert (np.abs(found - expected) / scale).max() <= 1e-5, name
        else:
            np.testing.assert_array_equal(found, expected, err_msg=name)


def test_the_same_batch_gives_the_same_bytes(encoder: Encoder) -> None:
    first, second = (encoder.measure(batch(40, 17), SETTINGS) for _ in range(2))
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


def test_an_empty_window_is_a_flagged_row_of_missing_values(encoder: Encoder) -> None:
    found = encoder.measure(batch(9, 0), SETTINGS)
    assert list(found["flags"]) == [0, flag_bit("empty")]
    assert np.isnan(found["attention_entropy"][1]).all()
    assert found["angle_histogram"][1].sum() == 0
    only = encoder.measure(batch(0), SETTINGS)
    assert set(only) == set(found)
    assert np.isnan(only["cone_index"]).all()


def test_overflow_in_half_precision_is_computed_again_in_a_wider_type(encoder: Encoder) -> None:
    wide = encoder.measure(batch(30, 12), SETTINGS)
    half = load_encoder(encoder.model_id, dtype="float16")
    with torch.no_grad():
        # 1e5 does not fit into float16; layer norm takes the factor out again.
        bert: Any = half.model.bert
        embeddings = bert.embeddings
        embeddings.word_embeddings.weight.copy_(embeddings.word_embeddings.weight)
        bert.encoder.layer[0].attention.output.dense.bias += 60000
        bert.encoder.layer[0].attention.output.dense.weight *= 2000
    found = half.measure(batch(30, 12), SETTINGS)
    assert (found["flags"] & flag_bit("recomputed")).all()
    assert np.isfinite(found["attention_entropy"]).all()
    assert wide["attention_entropy"].shape == found["attention_entropy"].shape


def test_what_stays_not_finite_is_quarantined(folder: Path) -> None:
    broken = load_encoder(folder)
    with torch.no_grad():
        bert: Any = broken.model.bert
        bert.embeddings.word_embeddings.weight[7] = torch.nan
    tokens = batch(12, 12)
    tokens.ids[0, 3], tokens.ids[1, :12] = 7, 9
    found = broken.measure(tokens, SETTINGS)
    assert list(found["flags"]) == [flag_bit("quarantined"), 0]
    assert np.isnan(found["cone_index"][0]).all()
    assert np.isfinite(found["cone_index"][1]).all()


def test_logits_need_a_classification_head(minilm: Path) -> None:
    with pytest.raises(UsageError, match="classification head"):
        load_encoder(minilm).measure(batch(5), SETTINGS)


def test_a_folder_without_a_model_is_a_readable_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a transformers encoder"):
        load_encoder(tmp_path / "nowhere")


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_encoder(folder)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny_classifier(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights.pop("classifier.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"classifier\.weight"):
        load_encoder(folder)


def test_more_tokens_than_positions_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="at most 64"):
        load_encoder(folder, max_tokens=100)


def test_tiny_models_are_what_they_say() -> None:
    assert tiny_model("bert", n_layers=3).config.num_hidden_layers == 3
    with pytest.raises(ValueError, match="expected one of"):
        tiny_model("gpt")


@pytest.mark.parametrize(("device", "dtype"), [("quantum", "auto"), ("cpu", "float8")])
def test_unknown_devices_and_dtypes_are_usage_errors(folder: Path, device: str, dtype: str) -> None:
    with pytest.raises(UsageError, match="expected a d"):
        load_encoder(folder, device=device, dtype=dtype)
