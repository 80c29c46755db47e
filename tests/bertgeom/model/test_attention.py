"""Recording statistics of transformers models, against eager attention in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bertgeom
from bertgeom.errors import ModelError, UsageError
from bertgeom.model import recorder as recording
from bertgeom.testing import TINY_MODELS, eager_attention_statistics, eager_forward, tiny_model
from bertgeom.variables import GATE_MIXED, n_offset_side

N = 37
#: In tokens or counts: the absolute tolerance grows with the size of the number.
SCALED = {"attention_distance", "attention_offset"}


def tokens(
    lengths: tuple[int, ...] = (N, 20, 1), side: str = "right", low: int = 5, high: int = 60
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random ids, mask and special mask (first and last token of each window)."""
    generator = torch.Generator().manual_seed(1)
    n = max(lengths)
    ids = torch.randint(low, high, (len(lengths), n), generator=generator)
    mask = torch.zeros(len(lengths), n, dtype=torch.long)
    special = torch.zeros(len(lengths), n, dtype=torch.bool)
    for b, length in enumerate(lengths):
        first = 0 if side == "right" else n - length
        mask[b, first : first + length] = 1
        special[b, [first, first + length - 1]] = True
    ids[mask == 0] = 0
    return ids, mask, special


def cone_index(x: np.ndarray) -> float:
    """Norm of the sum of the unit vectors of x (n, D)."""
    x = x.astype(np.float64)
    return float(np.linalg.norm((x / np.linalg.norm(x, axis=1, keepdims=True)).sum(0)))


def angles(x: np.ndarray) -> np.ndarray:
    """Angles in degrees (n(n-1)/2,) between the rows of x (n, D)."""
    x = x.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = (x @ x.T)[np.triu_indices(len(x), 1)]
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def compare(dataset: Any, truth: dict[str, np.ndarray]) -> None:
    """Every statistic of the dataset within 1e-4 of the truth."""
    for name, expected in truth.items():
        if name == "block_map" or name not in dataset:
            continue
        found = dataset[name].values
        if name == "gate":
            mass = np.sort(truth["gate_mass"], axis=-1)
            clear = (np.abs(mass[..., -1] - 0.5) > 1e-4) & (mass[..., -1] - mass[..., -2] > 1e-4)
            np.testing.assert_array_equal(found[clear], expected[clear])
            assert found.max() <= GATE_MIXED
        elif name.startswith("attention_k90"):
            assert np.abs(found.astype(int) - expected).max() <= 1
            assert (found == expected).mean() > 0.98
        else:
            scale = np.maximum(np.abs(expected), 1) if name in SCALED else 1
            error = np.abs(found - expected) / scale
            # 20 sharp bins: a weight within rounding of an edge moves 1/n^2 of the count.
            budget = 2e-2 if name == "attention_value_entropy" else 1e-4
            assert error.max() <= budget, (name, error.max())


@pytest.mark.parametrize("kind", TINY_MODELS)
def test_measure_agrees_with_eager_attention_on_every_architecture(kind: str) -> None:
    model = tiny_model(kind)
    ids, mask, special = tokens()
    plain = eager_forward(model, ids, mask)
    dataset = bertgeom.measure(
        model, input_ids=ids, attention_mask=mask, special_tokens_mask=special
    )
    compare(dataset, eager_attention_statistics(plain.attentions, mask, special, n_offset_side(N)))
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", TINY_MODELS)
def test_outputs_of_a_recorded_forward_equal_eager(kind: str) -> None:
    model = tiny_model(kind)
    ids, mask, special = tokens()
    plain = eager_forward(model, ids, mask).last_hidden_state
    model.set_attn_implementation("bertgeom")
    with torch.inference_mode():
        outside = model(input_ids=ids, attention_mask=mask).last_hidden_state
        with bertgeom.record(special_tokens_mask=special) as recorder:
            inside = model(input_ids=ids, attention_mask=mask).last_hidden_state
    valid = mask.bool()
    scale = plain[valid].abs().max()
    assert (outside - plain)[valid].abs().max() <= 1e-5 * scale
    assert (inside - plain)[valid].abs().max() <= 1e-5 * scale
    assert recorder.dataset().sizes["window"] == 3


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "albert", "esm"])
def test_stations_are_the_vectors_along_the_stream(kind: str) -> None:
    model = tiny_model(kind)
    ids, mask, special = tokens((30, 30))
    after_attention: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        after_attention.append(output[0] if isinstance(output, tuple) else output)

    def keep_input(module: Any, args: Any) -> None:
        after_attention.append(args[0])

    for name, module in model.named_modules():
        tail = name.split(".")[-1]
        if tail == "mlp_norm" and kind == "modernbert":
            module.register_forward_pre_hook(keep_input)
        elif tail == ("sa_layer_norm" if kind == "distilbert" else "attention"):
            module.register_forward_hook(keep)
    plain = eager_forward(model, ids, mask)
    blocks = after_attention[:2]
    dataset = bertgeom.measure(
        model, input_ids=ids, attention_mask=mask, special_tokens_mask=special, angles="all"
    )
    assert list(dataset.station.values) == [
        "embedding",
        "attention_0",
        "output_0",
        "attention_1",
        "output_1",
    ]
    truth = [plain.hidden_states[0], blocks[0], plain.hidden_states[1], blocks[1]]
    for i, x in enumerate(truth):
        for b in range(2):
            expected = cone_index(x[b].numpy())
            assert dataset.cone_index.values[b, i] == pytest.approx(expected, abs=1e-4 * N)
            theta = angles(x[b].numpy())
            assert dataset.angle_mean.values[b, i] == pytest.approx(theta.mean(), abs=1e-2)
            assert dataset.angle_histogram.values[b, i].sum() == len(theta)


def test_stations_that_wait_for_others_are_measured_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert")
    ids, mask, special = tokens()
    asked = {"input_ids": ids, "attention_mask": mask, "special_tokens_mask": special}
    together = bertgeom.measure(model, **asked)
    one = 4 * ids.numel() * model.config.hidden_size
    for waiting in (0, 2 * one + 1):
        monkeypatch.setattr(recording, "WAITING", waiting)
        for name, x in bertgeom.measure(model, **asked).items():
            np.testing.assert_array_equal(x.values, together[name].values, err_msg=str(name))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_batch_composition_change_nothing(side: str) -> None:
    model = tiny_model("bert")
    ids, mask, special = tokens((N, 20), side)
    both = bertgeom.measure(
        model, input_ids=ids, attention_mask=mask, special_tokens_mask=special, n_offset_side=6
    )
    short = mask[1].bool()
    if side == "left":
        # BERT counts positions from the first slot, so the lone window keeps its padding.
        short = torch.ones_like(short)
    alone = bertgeom.measure(
        model,
        input_ids=ids[1:, short],
        attention_mask=mask[1:, short],
        special_tokens_mask=special[1:, short],
        n_offset_side=6,
    )
    for name in alone:
        found, expected = both[name].values[1:], alone[name].values
        scale = np.maximum(np.abs(expected), 1)
        np.testing.assert_array_less(np.abs(found - expected) / scale, 1e-5, err_msg=str(name))


def test_a_pretrained_model_agrees_with_eager_attention(minilm: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(minilm, attn_implementation="bertgeom").eval()
    ids, mask, special = tokens((48, 31), low=1000, high=20000)
    ids[special] = 102
    plain = eager_forward(model, ids, mask)
    with bertgeom.record(special_tokens_mask=special, n_offset_side=7) as recorder:
        model(input_ids=ids, attention_mask=mask)
    dataset = recorder.dataset()
    compare(dataset, eager_attention_statistics(plain.attentions, mask, special, 7))
    for b in range(2):
        valid = mask[b].bool()
        for state, ours in ((0, 0), (6, 12)):
            x = plain.hidden_states[state][b][valid].numpy()
            assert dataset.cone_index.values[b, ours] == pytest.approx(cone_index(x), rel=1e-5)
            theta = angles(x)
            bins, _ = np.histogram(theta, bins=90, range=(0, 180))
            moved = np.abs(dataset.angle_histogram.values[b, state].astype(int) - bins).sum()
            near_edge = (np.abs(theta / 2 - np.round(theta / 2)) < 1e-3).sum()
            assert moved <= 2 * near_edge


def test_two_forwards_in_one_record_are_rows_of_one_dataset() -> None:
    model = tiny_model("bert")
    model.set_attn_implementation("bertgeom")
    ids, mask, _ = tokens((N, N))
    with torch.inference_mode(), bertgeom.record(keep=("tracks", "cls")) as recorder:
        model(input_ids=ids, attention_mask=mask)
        model(input_ids=ids[:1, :11], attention_mask=mask[:1, :11])
    assert recorder.n_forwards == 2
    dataset = recorder.dataset()
    assert dataset.sizes["window"] == 3
    assert dataset.query_entropy.shape[-1] == N
    assert np.isnan(dataset.query_entropy.values[2, :, :, 11:]).all()
    assert dataset.cls.shape == (3, 3, 32)


def test_units_and_descriptions_come_along() -> None:
    dataset = bertgeom.measure(tiny_model("bert"), input_ids=tokens((9,))[0])
    assert dataset.attention_entropy.attrs["units"] == "nat"
    assert all(dataset[name].attrs["description"] for name in dataset)
    assert list(dataset.gate.dims) == ["window", "layer", "head"]


def test_core_leaves_out_what_only_full_has() -> None:
    dataset = bertgeom.measure(tiny_model("bert"), input_ids=tokens((9,))[0], tier="core")
    assert "attention_k90_median" not in dataset
    assert "attention_entropy" in dataset


def test_an_architecture_without_the_interface_is_refused() -> None:
    from transformers import TapasConfig, TapasModel

    config = TapasConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ModelError, match="AttentionInterface"):
        bertgeom.measure(TapasModel(config).eval(), input_ids=tokens((9,))[0])


def test_a_decoder_is_refused() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, is_decoder=True
    )
    with pytest.raises(ModelError, match=r"causal|2-D"):
        bertgeom.measure(BertModel(config).eval(), input_ids=tokens((9,))[0])


def test_dropout_while_recording_is_refused() -> None:
    model = tiny_model("bert").train()
    model.set_attn_implementation("bertgeom")
    with pytest.raises(UsageError, match="eval"), bertgeom.record():
        model(input_ids=tokens((9,))[0])


def test_a_record_without_a_forward_says_so() -> None:
    with bertgeom.record() as recorder:
        pass
    with pytest.raises(ModelError, match="found none"):
        recorder.dataset()


@pytest.mark.parametrize(
    "options",
    [{"tier": "everything"}, {"theta": 0.0}, {"near": -1}, {"angles": "some"}, {"keep": ("x",)}],
)
def test_wrong_options_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"), bertgeom.record(**options):
        pass
