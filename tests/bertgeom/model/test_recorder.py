"""What record() and measure() do to a model: nothing, from several threads too."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import bertgeom
from bertgeom.errors import ModelError, UsageError
from bertgeom.model.attention import attend
from bertgeom.testing import TINY_MODELS, eager_forward, tiny_model


def batch(lengths: tuple[int, ...] = (20, 12)) -> dict[str, Tensor]:
    ids = torch.randint(
        5, 60, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0)
    )
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def ours(kind: str = "bert", **options: Any) -> Any:
    model = tiny_model(kind, **options)
    model.set_attn_implementation("bertgeom")
    return model


@pytest.mark.parametrize("kind", TINY_MODELS)
def test_outputs_at_padding_are_unchanged_too(kind: str) -> None:
    model = tiny_model(kind)
    plain = eager_forward(model, batch()["input_ids"], batch()["attention_mask"]).last_hidden_state
    model.set_attn_implementation("bertgeom")
    with bertgeom.record():
        found = model(**batch()).last_hidden_state
    assert (found - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_a_forward_that_raises_does_not_spoil_the_next() -> None:
    model = ours()
    expected = bertgeom.measure(model, **batch(), n_offset_side=10)
    handle = model.encoder.layer[1].output.register_forward_pre_hook(_fail)
    with bertgeom.record() as recorder:
        with pytest.raises(RuntimeError, match="broken"):
            model(**batch())
        handle.remove()
        assert recorder.n_forwards == 0
        model(**batch())
    np.testing.assert_array_equal(recorder.dataset().cone_index, expected.cone_index)


def _fail(*_: Any) -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("other", [{"n_layers": 3}, {"n_heads": 4}, {"hidden": 48}])
def test_two_models_in_one_record_are_refused(other: dict[str, Any]) -> None:
    with bertgeom.record() as recorder:
        ours()(**batch())
        with pytest.raises(ModelError, match="one model in one record"):
            ours(**other)(**batch())
    assert recorder.dataset().sizes["window"] == 2


@pytest.mark.parametrize("kind", TINY_MODELS)
def test_forward_without_a_call_of_the_model_is_recorded(kind: str) -> None:
    model = ours(kind)
    expected = bertgeom.measure(model, **batch(), n_offset_side=10)
    with bertgeom.record() as recorder:
        model.forward(**batch())
        model.forward(**batch())
    found = recorder.dataset()
    assert found.sizes["window"] == 4
    for half in (slice(0, 2), slice(2, 4)):
        np.testing.assert_array_equal(found.cone_index[half], expected.cone_index)


def test_sentence_transformers_are_recorded(minilm: Path) -> None:
    sentence = pytest.importorskip("sentence_transformers")
    model = sentence.SentenceTransformer(
        str(minilm), device="cpu", model_kwargs={"attn_implementation": "bertgeom"}
    )
    texts = ["a short one", "and a sentence of some more words than that", "three"]
    plain = model.encode(texts)
    with bertgeom.record() as recorder:
        found = model.encode(texts)
    np.testing.assert_allclose(found, plain, atol=1e-6)
    assert recorder.dataset().sizes["window"] == 3


@pytest.mark.parametrize("part", ["all", "one"])
def test_train_mode_is_refused_where_there_is_dropout(part: str) -> None:
    model = ours()
    (model if part == "all" else model.encoder.layer[1].output).train()
    with bertgeom.record(), pytest.raises(UsageError, match=r"model\.eval"):
        model(**batch())


def test_train_mode_without_dropout_is_recorded() -> None:
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel._from_config(config, attn_implementation="bertgeom").train()
    with bertgeom.record() as recorder:
        model(**batch())
    assert recorder.n_forwards == 1


def test_a_model_with_another_attention_is_told_how_to_load() -> None:
    with bertgeom.record(), pytest.raises(ModelError, match="loaded with 'eager'"):
        tiny_model("bert")(**batch())


def test_padding_between_tokens_of_a_sliding_window_is_refused() -> None:
    asked = batch((30, 30))
    asked["attention_mask"][1, 5:9] = 0
    with bertgeom.record(), pytest.raises(ModelError, match="side by side"):
        ours("modernbert")(**asked)


def test_a_ready_made_mask_of_padding_is_understood_and_another_one_refused() -> None:
    model, asked = ours(), batch()
    whole = asked["attention_mask"][:, None, None, :].bool().expand(2, 1, 20, 20)
    expected = bertgeom.measure(model, **batch(), n_offset_side=10)
    for mask in (whole, torch.where(whole, 0.0, torch.finfo(torch.float32).min)):
        with bertgeom.record() as recorder:
            model(input_ids=asked["input_ids"], attention_mask=mask)
        np.testing.assert_array_equal(recorder.dataset().cone_index, expected.cone_index)
    with bertgeom.record(), pytest.raises(ModelError, match="differs between queries"):
        model(input_ids=asked["input_ids"], attention_mask=whole.tril())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("s_aux", torch.ones(2)),
        ("softcap", 30.0),
        ("cu_seq_lens_q", torch.tensor([0, 4])),
        ("of_the_future", "x"),
    ],
)
def test_arguments_that_change_the_logits_are_refused_by_name(name: str, value: Any) -> None:
    x = torch.randn(1, 2, 4, 8)
    module = nn.Module()
    with pytest.raises(ModelError, match=name):
        attend(module, x, x, x, None, **{name: value})
    for nothing in (None, False, 0, 0.0):
        unused: dict[str, Any] = {name: nothing}
        attend(module, x, x, x, None, **unused)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"sliding_window": 2}])
def test_what_no_mask_says_is_refused(options: dict[str, Any]) -> None:
    x = torch.randn(1, 2, 4, 8)
    with pytest.raises(ModelError, match=r"causal|sliding_window"):
        attend(nn.Module(), x, x, x, None, **options)


class OwnConfig(BertConfig):
    model_type = "own-bert"


class OwnModel(BertModel):
    """transformers guesses from the source of a package that it has no interface."""

    config_class = OwnConfig
    _can_set_attn_implementation_cached_value = False


def test_measure_accepts_what_record_accepts() -> None:
    sizes = tiny_model("bert").config.to_dict()
    sizes.pop("model_type")
    model = OwnModel._from_config(OwnConfig(**sizes), attn_implementation="sdpa").eval()
    assert not OwnModel._can_set_attn_implementation()
    assert bertgeom.measure(model, **batch()).sizes["layer"] == 2


def test_threads_share_a_model_and_find_it_unchanged() -> None:
    model = tiny_model("bert").train()
    expected = bertgeom.measure(model, **batch()).cone_index.values

    def measured(_: int) -> bool:
        return np.array_equal(bertgeom.measure(model, **batch()).cone_index.values, expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(measured, range(60)))
    assert model.config._attn_implementation == "eager"
    assert all(module.training for module in model.modules())


def test_records_in_threads_do_not_see_each_other() -> None:
    models = [ours(n_layers=n) for n in (1, 2, 3)]

    def recorded(n: int) -> tuple[int, int]:
        with bertgeom.record() as recorder:
            for _ in range(3):
                models[n % 3](**batch())
        return recorder.n_forwards, recorder.dataset().sizes["layer"]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(recorded, range(12))) == [(3, n % 3 + 1) for n in range(12)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x["input_ids"].fill_(60), "token ids below 60"),
        (lambda x: x.update(attention_mask=torch.ones(2, 7)), "attention_mask of shape"),
        (lambda x: x.update(special_tokens_mask=torch.ones(1, 20)), "special_tokens_mask of shape"),
        (lambda x: x.update(input_ids=torch.ones(1, 140).long(), attention_mask=None), "at most"),
    ],
)
def test_inputs_that_do_not_fit_are_usage_errors(
    change: Callable[[dict[str, Any]], None], words: str
) -> None:
    asked = batch()
    change(asked)
    with pytest.raises(UsageError, match=words):
        bertgeom.measure(tiny_model("bert"), **asked)
