"""Every declared architecture gives its own output and its own numbers, all others are refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architecture_cases import CASES, Case, batch
from torch import nn

import bertgeom
from bertgeom.errors import ModelError, UsageError
from bertgeom.model.architectures import (
    ARCHITECTURES,
    UNSUPPORTED,
    Architecture,
    architecture_of,
    architecture_of_config,
    refuse_by_name,
    station_of,
    table,
)
from bertgeom.model.architectures.published import PUBLISHED
from bertgeom.model.discovery import check_declaration, propose
from bertgeom.model.loading import max_positions
from bertgeom.model.probe import probe
from bertgeom.testing import eager_attention_statistics
from bertgeom.variables import n_offset_side

SINKS: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
#: Sizes beside those of `Case`.
REFUSED: dict[str, dict[str, Any]] = {
    "Tapas": {"max_position_embeddings": 66},
    "SqueezeBert": {"embedding_size": 32},
    "IBert": {},
    "Longformer": {"attention_window": 8},
    "Nystromformer": {},
    "DebertaV2": {},
    "FNet": {},
    "MobileBert": {"intra_bottleneck_size": 16, "true_hidden_size": 16, "embedding_size": 32},
    "CLIPText": {"bos_token_id": 1, "eos_token_id": 2},
    "OpenAIPrivacyFilter": SINKS,
    "Deberta": {},
    "Yoso": {},
    "Mra": {},
    "Canine": {},
}
every = pytest.mark.parametrize("case", CASES, ids=str)
#: Largest error of float32 against float64, as a share of the largest number.
RELATIVE = 1e-5


@lru_cache(maxsize=2)
def models(case: Case) -> tuple[Any, Any]:
    return case.build()


@lru_cache(maxsize=4)
def exact(case: Case, padding: str) -> Any:
    """Eager output in float64, with hidden states and attention maps."""
    eager = copy.deepcopy(models(case)[0]).double()
    if hasattr(eager, "set_attention_type"):
        # BigBird changes its modules within the first forward pass, after they have been hooked.
        eager.set_attention_type("original_full")
    with torch.no_grad():
        return eager(**batch(padding), output_hidden_states=True, output_attentions=True)


def paddings(case: Case) -> tuple[str, ...]:
    return ("none", "right", "left") if case.padding else ("none",)


def output(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).last_hidden_state
        return found


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= RELATIVE * expected.abs().max())


@pytest.fixture
def unregistered() -> Iterator[None]:
    before = list(table._registered)
    yield
    table._registered[:] = before
    table._forget()


def test_there_is_a_case_for_every_declared_model_type() -> None:
    known = {*transformers.CONFIG_MAPPING, *(p.config.model_type for p in PUBLISHED)}
    declared = {kind for a in ARCHITECTURES for kind in a.model_types} & known
    assert {case.config().model_type for case in CASES} == declared


@every
def test_outputs_are_those_of_eager_attention(case: Case) -> None:
    eager, ours = models(case)
    for padding in paddings(case):
        inputs = batch(padding)
        expected = output(eager, inputs)
        assert same(output(ours, inputs), expected)
        with bertgeom.record() as recorder:
            assert same(output(ours, inputs), expected)
        assert recorder.dataset().sizes["layer"] == case.layers
        assert eager.config._attn_implementation == "eager"


@every
def test_statistics_are_those_of_the_own_maps_in_float64(case: Case) -> None:
    padding = paddings(case)[-1]
    inputs = batch(padding)
    mask = inputs["attention_mask"]
    found = bertgeom.measure(models(case)[0], **inputs)
    side = n_offset_side(mask.shape[1])
    maps = exact(case, padding).attentions
    assert len(maps) == case.layers
    expected = eager_attention_statistics(maps, mask, torch.zeros_like(mask).bool(), side)
    # Attention like that of a trained model: far from uniform in most heads.
    assert found.attention_entropy.values.mean() < 0.85 * np.log(mask.shape[1])
    for name in ("attention_entropy", "attention_purity", "attention_top1", "gate_mass"):
        error = np.abs(found[name].values - expected[name]).max()
        assert error <= 1e-5, (name, error)
    distance = expected["attention_distance"]
    error = np.abs(found.attention_distance.values - distance) / np.maximum(distance, 1)
    assert error.max() <= 1e-5


@pytest.mark.parametrize("case", [c for c in CASES if c.padding], ids=str)
def test_a_padded_window_is_measured_as_if_it_were_alone(case: Case) -> None:
    eager = models(case)[0]
    inputs = batch("right")
    length = int(inputs["attention_mask"][1].sum())
    options: dict[str, Any] = {"n_offset_side": 3, "angles": "all"}
    both = bertgeom.measure(eager, **inputs, **options)
    alone = bertgeom.measure(eager, input_ids=inputs["input_ids"][1:, :length], **options)
    names = ("attention_entropy", "gate_mass", "cone_index", "stream_norm_max", "head_cone_index")
    for name in names:
        found, expected = both[name].values[1:], alone[name].values
        scale = np.maximum(np.abs(expected), 1)
        assert (np.abs(found - expected) / scale).max() <= RELATIVE, name


@every
def test_stations_between_layers_are_hidden_states(case: Case) -> None:
    padding = paddings(case)[-1]
    inputs, truth = batch(padding), exact(case, padding)
    eager = models(case)[0]
    architecture = architecture_of_config(eager.config)
    assert architecture is not None
    assert architecture.n_layers(eager.config) == case.layers
    found = bertgeom.measure(eager, **inputs).stream_norm_max.values
    states = truth.hidden_states[:-1] if architecture.final_norm else truth.hidden_states
    assert len(truth.hidden_states) == case.layers + 1
    for i, state in enumerate(states):
        hidden = inputs["attention_mask"][..., None] == 0
        norms = state.masked_fill(hidden, 0).norm(dim=-1).amax(1)
        np.testing.assert_allclose(found[:, 2 * i], norms, rtol=RELATIVE)


@every
def test_the_final_norm_gets_what_the_last_layer_returns(case: Case) -> None:
    eager = models(case)[0]
    architecture = architecture_of_config(eager.config)
    assert architecture is not None
    layers = [m for m in eager.modules() if station_of(m) is not None]
    received: list[torch.Tensor] = []
    returned: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, result: Any) -> None:
        returned.append(result[0] if isinstance(result, tuple) else result)

    inside = {id(m) for layer in layers for m in layer.modules()}
    handles = [layer.register_forward_hook(keep) for layer in layers]
    for name, module in eager.named_modules():
        tail = name.rpartition(".")[2]
        if id(module) not in inside and architecture.final_norm and tail == architecture.final_norm:
            handles.append(module.register_forward_pre_hook(lambda _, x: received.append(x[0])))
    last = output(eager, batch("none"))
    for handle in handles:
        handle.remove()
    if architecture.final_norm:
        assert any(torch.equal(x, returned[-1]) for x in received)
    else:
        assert torch.equal(last, returned[-1])


@pytest.mark.parametrize("case", [c for c in CASES if c.padding], ids=str)
def test_the_declaration_is_found_out_and_a_wrong_one_is_refused(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = models(case)[1]
    probe(ours, pad_id=0, max_tokens=60)
    declared = next(a for m in ours.modules() if (a := architecture_of(m)) is not None)
    inputs = batch("right")
    found = propose(ours, inputs)
    if case.name != "Albert":  # its layers are shared, and the layers of a group are one list
        assert found is not None
        assert (found.norm, found.pre_norm) == (declared.norm, declared.pre_norm)
    wrong = replace(declared, pre_norm=not declared.pre_norm)
    monkeypatch.setattr(table, "ARCHITECTURES", (wrong,))
    table._forget()
    try:
        with pytest.raises(ModelError, match=r"expected the stream .* declares, found"):
            check_declaration(ours, inputs)
    finally:
        table._forget()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_and_never_different(name: str) -> None:
    eager, ours = Case(name, REFUSED[name]).build()
    for padding in ("none", "right", "left"):
        inputs = batch(padding)
        try:
            assert same(output(ours, inputs), output(eager, inputs))
        except ModelError as error:
            assert "expected" in str(error), error  # noqa: PT017
        with bertgeom.record() as recorder, pytest.raises(ModelError, match=r"expected .* found"):
            output(ours, inputs)
        assert recorder.n_forwards == 0
        with pytest.raises(ModelError, match=r"expected .* found"):
            bertgeom.measure(eager, **inputs)
    with pytest.raises(ModelError, match=r"^expected [^\n]* found [^\n]*$") as refused:
        probe(ours, pad_id=0, max_tokens=60)
    if ours.config.model_type in UNSUPPORTED:
        assert UNSUPPORTED[ours.config.model_type] in str(refused.value)


def test_other_kinds_of_attention_are_refused_by_their_configuration(tmp_path: Path) -> None:
    for kind in UNSUPPORTED:
        with pytest.raises(ModelError, match=re.escape(repr(kind))):
            refuse_by_name(SimpleNamespace(model_type=kind))
    assert not set(UNSUPPORTED) & {kind for a in ARCHITECTURES for kind in a.model_types}
    model = Case("DebertaV2").build()[1]
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="relative positions"):
        bertgeom.load_encoder(tmp_path)


def test_block_sparse_attention_limits_the_window() -> None:
    ours = Case("BigBird", {"sep_token_id": 2, "max_position_embeddings": 4096}).build()[1]
    assert max_positions(ours) == 704
    full = {"sep_token_id": 2, "max_position_embeddings": 4096, "attention_type": "original_full"}
    assert max_positions(Case("BigBird", full).build()[1]) == 4096
    ids = torch.zeros(1, 705, dtype=torch.long)
    with pytest.raises(UsageError, match="at most 704"):
        bertgeom.measure(ours, input_ids=ids)


def test_padding_that_a_convolution_reads_is_refused() -> None:
    case = next(c for c in CASES if not c.padding)
    eager, ours = models(case)
    with pytest.raises(ModelError, match="windows of one length"):
        bertgeom.measure(eager, **batch("right"))
    with pytest.raises(ModelError, match=r"may be padded, found ConvBertModel"):
        probe(ours, pad_id=0, max_tokens=60)


class OwnLayer(transformers.models.bert.modeling_bert.BertLayer):
    """A BERT layer by another name is taken for one."""


class Foreign(nn.Module):
    """A pre-norm layer that no declaration names."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.mixer: Any = layer.self_attn
        self.norm1: Any = layer.input_layernorm
        self.norm2: Any = layer.post_attention_layernorm
        self.ff: Any = layer.mlp

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        x = x + self.mixer(self.norm1(x), *args, **kwargs)[0]
        found: torch.Tensor = x + self.ff(self.norm2(x))
        return found


def foreign_model() -> Any:
    ours = Case("Esmc").build()[1]
    ours.layers = nn.ModuleList([Foreign(layer) for layer in ours.layers])
    return ours


def test_an_undeclared_model_is_refused_with_the_declaration_that_would_do() -> None:
    with pytest.raises(ModelError) as error:
        probe(foreign_model(), pad_id=0, max_tokens=60)
    text = str(error.value)
    assert "\n" not in text
    assert "layers=('Foreign',), norm='norm2', pre_norm=True" in text


@pytest.mark.usefixtures("unregistered")
def test_a_registered_architecture_is_measured() -> None:
    model = foreign_model()
    inputs = batch("right")
    with pytest.raises(ModelError, match="register_architecture"):
        bertgeom.measure(model, **inputs)
    bertgeom.register_architecture(
        Architecture("Foreign", layers=("Foreign",), norm="norm2", pre_norm=True)
    )
    assert bertgeom.measure(model, **inputs).sizes["station"] == 5
    # A second one of the same name takes its place, and the check finds the mistake.
    bertgeom.register_architecture(
        Architecture("Foreign", layers=("Foreign",), norm="norm1", pre_norm=True)
    )
    with pytest.raises(ModelError, match="input of norm1, as the architecture Foreign declares"):
        check_declaration(model, inputs)


def test_layers_of_another_class_are_known_by_their_build() -> None:
    bert = Case("Bert").build()[1]
    bert.encoder.layer[0].__class__ = type(
        "Unheard", (nn.Module,), dict(vars(OwnLayer.__bases__[0]))
    )
    assert architecture_of(bert.encoder.layer[0]) is ARCHITECTURES[0]
    own: Any = OwnLayer(bert.config)
    assert architecture_of(own) is ARCHITECTURES[0]


@pytest.mark.usefixtures("unregistered")
def test_a_registered_likeness_counts_for_layers_that_were_asked_before() -> None:
    layer = foreign_model().layers[0]
    assert architecture_of(layer) is None
    alike = Architecture("Alike", layers=("None",), norm="norm2", pre_norm=True, like=("mixer",))
    bertgeom.register_architecture(alike)
    assert architecture_of(layer) is alike


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers": "MyLayer"}, "as a tuple of names"),
        ({"layers": ()}, "the class of its layers"),
        ({"norm": ""}, "the norm after the attention"),
    ],
)
def test_a_declaration_that_says_too_little_is_an_error(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Architecture(**{"name": "x", "layers": ("L",), "norm": "n", "pre_norm": True, **fields})


def test_only_declarations_are_registered() -> None:
    with pytest.raises(UsageError, match=r"expected a bertgeom.*, found str"):
        bertgeom.register_architecture("BERT")
