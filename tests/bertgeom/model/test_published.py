"""Published checkpoints with code of their own: this package's classes compute what they define."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import published_models
import pytest
import torch
from published_models import CONFIGS, LAYERS, VOCABULARY

import bertgeom
from bertgeom.analysis.weights import head_projections
from bertgeom.errors import ModelError
from bertgeom.model.architectures.published import PUBLISHED, published
from bertgeom.model.loading import read_model
from bertgeom.testing import eager_attention_statistics, eager_forward

LENGTHS = (23, 14)


def batch(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Two windows, the second padded on the right; some tokens are the mask token of an ESM."""
    rng = np.random.default_rng(1)
    ids = rng.integers(4, VOCABULARY, (2, max(LENGTHS)))
    ids[:, 3] = 2
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids[~mask] = config["pad_token_id"]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask).long()}


def folder_of(name: str, place: Path) -> Path:
    config = CONFIGS[name]
    return published_models.write(place, config, published_models.random_weights(config))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_states_and_maps_are_those_of_the_definition(
    name: str, implementation: str, tmp_path: Path
) -> None:
    config = CONFIGS[name]
    model = bertgeom.load_model(folder_of(name, tmp_path)).double()
    model.set_attn_implementation(implementation)
    inputs = batch(config)
    weights = published_models.random_weights(config)
    with torch.inference_mode():
        found = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(found.hidden_states) == LAYERS + 1
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    for b, n in enumerate(LENGTHS):
        ids = inputs["input_ids"][b, :n].numpy()
        expected = published_models.forward(config, weights, ids)
        states = torch.stack(found.hidden_states)[:, b, :n].numpy()
        np.testing.assert_allclose(states, expected.states, rtol=0, atol=1e-9)
        if implementation == "eager":
            maps = torch.stack(found.attentions)[:, b, :, :n, :n].numpy()
            np.testing.assert_allclose(maps, expected.maps, rtol=0, atol=1e-9)
            assert expected.maps.max() > 0.5, "attention is nearly uniform: nothing is tested"


@pytest.mark.parametrize("name", CONFIGS)
def test_statistics_and_stations_are_those_of_the_definition(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    model = bertgeom.load_model(folder_of(name, tmp_path))
    inputs = batch(config)
    mask = inputs["attention_mask"]
    plain = eager_forward(model, inputs["input_ids"], mask)
    special = torch.zeros_like(mask, dtype=torch.bool)
    special[:, 0] = True
    with bertgeom.record(special_tokens_mask=special) as recorder:
        found = model(**inputs)
    torch.testing.assert_close(found[0], plain[0], rtol=1e-4, atol=1e-4)
    dataset = recorder.dataset()
    expected = eager_attention_statistics(
        plain.attentions, mask, special, dataset.sizes["offset"] // 2
    )
    for statistic in ("attention_entropy", "attention_top1", "gate_mass", "attention_distance"):
        np.testing.assert_allclose(
            dataset[statistic].values, expected[statistic], rtol=2e-4, atol=2e-4, err_msg=statistic
        )
    # The last hidden state is after the final norm, and no station.
    for stage, state in enumerate(plain.hidden_states[:-1]):
        norm = (state.norm(dim=-1) * mask).amax(1)
        np.testing.assert_allclose(dataset.stream_norm_max[:, 2 * stage], norm, rtol=1e-5)
    weights = published_models.random_weights(config)
    for b, n in enumerate(LENGTHS):
        one = {key: value[b : b + 1, :n] for key, value in inputs.items()}
        alone = bertgeom.measure(model, **one, special_tokens_mask=special[b : b + 1, :n])
        np.testing.assert_allclose(
            alone.attention_entropy[0], dataset.attention_entropy[b], rtol=1e-4, atol=1e-5
        )
        maps = published_models.forward(config, weights, one["input_ids"][0].numpy()).maps
        entropy = -np.where(maps > 0, maps * np.log(np.where(maps > 0, maps, 1)), 0).sum(-1)
        np.testing.assert_allclose(
            alone.attention_entropy[0], entropy.mean(-1), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_of_heads_are_found(name: str, tmp_path: Path) -> None:
    model = bertgeom.load_model(folder_of(name, tmp_path))
    heads = CONFIGS[name]["num_attention_heads"]
    layers = head_projections(model)
    assert [layer.query.shape for layer in layers] == [(heads, 48 // heads, 48)] * LAYERS
    stored = published_models.random_weights(CONFIGS[name])
    packed = stored.get("bert.encoder.layer.1.attention.self.Wqkv.weight")
    if packed is not None:
        np.testing.assert_array_equal(layers[1].key.flatten(0, 1), packed[48:96])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_is_read_and_none_is_made_up(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    model, missing = read_model(str(folder))
    assert not missing
    stored = published_models.random_weights(CONFIGS[name])
    prefix = model.base_model_prefix
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), stored[f"{prefix}.{key}"])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_is_recognised_and_the_same(name: str, tmp_path: Path) -> None:
    model = bertgeom.load_model(folder_of(name, tmp_path / "original"))
    model.save_pretrained(tmp_path / "saved")
    again = bertgeom.load_model(tmp_path / "saved")
    assert type(again) is type(model)
    inputs = batch(CONFIGS[name])
    for one in (model, again):
        one.set_attn_implementation("eager")
    with torch.inference_mode():
        assert torch.equal(again(**inputs)[0], model(**inputs)[0])


@pytest.mark.parametrize("name", ["mosaic-4", "gena", "nucleotide"])
def test_a_fine_tuned_classifier_keeps_its_head(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    known = published(config)
    assert known is not None
    made = known.config.from_dict(
        {k: v for k, v in config.items() if k != "model_type"} | {"num_labels": 3}
    )
    made._attn_implementation = "eager"
    original = known.classifier(made).eval()
    original.save_pretrained(tmp_path)
    # As the authors' code writes it: the name of its class, and their model_type.
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["architectures"] = [
        "EsmForSequenceClassification" if name == "nucleotide" else "BertForSequenceClassification"
    ]
    raw.pop("model_type")
    raw |= {k: config[k] for k in ("model_type", "auto_map") if k in config}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    loaded = bertgeom.load_model(tmp_path)
    loaded.set_attn_implementation("eager")
    inputs = batch(config)
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs).logits, original(**inputs).logits)
        assert loaded(**inputs, return_dict=False)[0].shape == (2, 3)
    head = [n for n, _ in loaded.named_parameters() if n.startswith("classifier.")]
    assert {n.split(".")[1] for n in head} == (
        {"dense", "out_proj"} if name == "nucleotide" else {"weight", "bias"}
    )


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("gena", {"sparse_attention": {"block": 64}}, "block-sparse"),
        ("gena", {"position_embedding_type": "rotary"}, "'absolute'.*found 'rotary'"),
        ("nucleotide", {"position_embedding_type": "absolute"}, "'rotary'.*found 'absolute'"),
        ("nucleotide", {"intermediate_size": 81}, "another size"),
        ("mosaic-4", {"num_hidden_layers": 3}, "missing"),
        ("mosaic-4", {"num_hidden_layers": 1}, "more of an encoder"),
        ("mosaic-4", {"num_hidden_layers": 0}, "at least 1"),
    ],
)
def test_other_variants_are_refused_in_one_line(
    name: str, changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = folder_of(name, tmp_path)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name] | changed))
    with pytest.raises(ModelError, match=message) as caught:
        bertgeom.load_model(folder)
    assert "\n" not in str(caught.value)


def test_models_that_transformers_has_are_left_to_it() -> None:
    for raw in (
        {"model_type": "bert"},
        {"model_type": "bert", "pre_layer_norm": False},
        {"model_type": "esm", "position_embedding_type": "rotary"},
        {"model_type": "bert", "auto_map": {"AutoModel": "modeling_bert.JinaBertModel"}},
        {"model_type": "modernbert", "auto_map": None},
        {},
    ):
        assert published(raw) is None, raw
    assert len({known.config.model_type for known in PUBLISHED}) == len(PUBLISHED)


REFERENCE = Path(os.environ.get("BERTGEOM_REFERENCE_MODELS", "nowhere"))


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="BERTGEOM_REFERENCE_MODELS names no folder")
def test_results_are_those_that_the_authors_code_gave() -> None:
    folders = sorted(p.parent for p in REFERENCE.glob("*/expected.npz"))
    assert folders
    for folder in folders:
        expected = np.load(folder / "expected.npz")
        mask = torch.tensor(expected["attention_mask"])
        model = bertgeom.load_model(folder).double()
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            found = model(
                torch.tensor(expected["input_ids"]),
                attention_mask=mask,
                output_hidden_states=True,
                output_attentions=True,
            )
        valid = mask.bool()
        for state, other in zip(found.hidden_states, expected["hidden_states"], strict=False):
            assert float((state - torch.tensor(other))[valid].abs().max()) < 1e-5, folder
        for weights, other in zip(found.attentions, expected["attentions"], strict=True):
            difference = (weights - torch.tensor(other)).abs() * valid[:, None, :, None]
            assert float(difference.max()) < 1e-5, folder
