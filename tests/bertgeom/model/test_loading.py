"""Checkpoints that are not what they say are refused with one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bertgeom.errors import BertgeomError, ModelError
from bertgeom.model.encoder import load_encoder
from bertgeom.model.loading import max_positions, read_model
from bertgeom.testing import save_tiny_classifier, tiny_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
Change = Callable[[Path], Any]


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        entries = json.loads((folder / "config.json").read_text()) | changes
        kept = {name: value for name, value in entries.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        held = edit(held) or held
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def without(word: str) -> Change:
    return weights(lambda held: {k: v for k, v in held.items() if word not in k})


def set_number(name: str, number: float) -> Change:
    return weights(lambda held: held[name].view(-1)[3:4].fill_(number) and None)


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:5000])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def sharded(folder: Path) -> None:
    model, _ = read_model(str(folder))
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    next(iter(sorted(folder.glob("model-*")))).unlink()


BAD: dict[str, tuple[Change, str]] = {
    "truncated": (cut, "truncated file of 5000 bytes"),
    "no bytes": (text("model.safetensors", ""), "truncated file of 0 bytes"),
    "pointer": (text("model.safetensors", POINTER), "Git LFS"),
    "pointer config": (text("config.json", POINTER), "Git LFS"),
    "pickle": (pickled, "pickled weights"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), r"without config\.json"),
    "empty": (emptied, "empty folder"),
    "half a config": (text("config.json", "{"), "expected JSON"),
    "a list": (text("config.json", "[]"), "JSON object"),
    "binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "expected JSON"),
    "no type": (config(model_type=None), "model_type"),
    "unknown type": (config(model_type="foobar"), "foobar"),
    "foreign type": (config(model_type="roberta"), "'roberta' and architecture Bert"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers"),
    "words": (config(num_hidden_layers="two"), "num_hidden_layers"),
    "activation": (config(hidden_act="nope"), "nope"),
    "half the layers": (config(num_hidden_layers=1), r"16 more .* bert\.encoder\.layer\.1"),
    "twice the layers": (config(num_hidden_layers=4), "32 missing"),
    "hidden size": (config(hidden_size=64), r"another size, the first bert\.embeddings"),
    "vocabulary": (config(vocab_size=30), "word_embeddings"),
    "labels": (config(id2label={"0": "a"}, label2id={"a": 0}), r"classifier\.bias"),
    "no pooler": (without("pooler"), r"bert\.pooler"),
    "no classifier": (without("classifier"), r"classifier\.bias"),
    "NaN": (set_number("bert.encoder.layer.1.output.dense.weight", torch.nan), "finite"),
    "infinite": (set_number("bert.embeddings.word_embeddings.weight", torch.inf), "finite"),
    "a lost part": (sharded, "parts missing"),
    "no vocabulary": (lambda f: (f / "vocab.txt").unlink(), "expected a tokenizer"),
    "more words": (
        lambda f: (f / "vocab.txt").write_text((f / "vocab.txt").read_text() + "zzz\n" * 50),
        "tokenizer does not belong",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_is_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny_classifier(tmp_path / "model")
    change, words = BAD[name]
    change(folder)
    capfd.readouterr()
    with pytest.raises(ModelError, match=words) as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("place", ["", "./nowhere", "no-such/model", "a b/../c"])
def test_a_place_without_a_model_is_one_line(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BertgeomError, match="expected"):
        load_encoder(place)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path)
    with pytest.raises(ModelError, match="found a file"):
        load_encoder(folder / "config.json")


def test_weights_of_roberta_under_a_configuration_of_bert_are_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, RobertaConfig, RobertaModel

    sizes: dict[str, Any] = {
        "vocab_size": 69,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
        "pad_token_id": 1,
    }
    RobertaModel(RobertaConfig(**sizes)).save_pretrained(tmp_path)
    BertConfig(**sizes).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="as RoBERTa has"):
        read_model(str(tmp_path))


def test_known_harmless_weights_are_left_out(tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path)
    more = {
        "bert.embeddings.position_ids": torch.arange(64)[None].clone(),
        "cls.predictions.transform.dense.weight": torch.ones(2, 2),
        "cls.predictions.decoder.bias": torch.ones(2),
    }
    weights(lambda held: held.update(more))(folder)
    assert load_encoder(folder).n_layers == 2


@pytest.mark.parametrize(
    "name",
    ["Roberta", "XLMRoberta", "XLMRobertaXL", "Camembert", "Data2VecText", "RobertaPreLayerNorm"],
)
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_positions_counted_from_the_padding_limit_a_window(name: str, pad: int) -> None:
    import transformers

    built = getattr(transformers, f"{name}Config")(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        pad_token_id=pad,
    )
    model = getattr(transformers, f"{name}Model")._from_config(built).eval()
    limit = max_positions(model)
    assert limit == 39 - pad
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 9))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 9))


def test_a_probe_passes_and_changes_nothing(tmp_path: Path) -> None:
    encoder = load_encoder(save_tiny_classifier(tmp_path))
    encoder.probe()
    config: Any = encoder.model.config
    assert config._attn_implementation == "bertgeom"


@pytest.mark.parametrize(
    "kind", ["roberta", "electra", "albert", "distilbert", "esm", "modernbert"]
)
def test_a_probe_accepts_what_is_observed(kind: str) -> None:
    from bertgeom.model.probe import probe

    model = tiny_model(kind)
    model.set_attn_implementation("bertgeom")
    probe(model, pad_id=0, max_tokens=60)


@pytest.mark.parametrize(("name", "words"), [("Tapas", "tapas"), ("Nystromformer", "landmarks")])
def test_a_probe_refuses_by_name(name: str, words: str) -> None:
    import transformers

    from bertgeom.model.probe import probe

    built = getattr(transformers, f"{name}Config")(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=66,
    )
    kind = getattr(transformers, f"{name}Model")
    model = kind._from_config(built, attn_implementation="bertgeom").eval()
    with pytest.raises(ModelError, match=words):
        probe(model, pad_id=0, max_tokens=60)


def test_a_probe_refuses_outputs_that_are_not_finite() -> None:
    from bertgeom.model.probe import probe

    model = tiny_model("bert")
    model.set_attn_implementation("bertgeom")
    model.encoder.layer[1].register_forward_hook(lambda module, args, out: out * torch.nan)
    with pytest.raises(ModelError, match="finite"):
        probe(model, pad_id=0, max_tokens=60)


def with_one_weight(folder: Path, value: float) -> Path:
    """A model of which one number is this."""

    def edit(held: dict[str, torch.Tensor]) -> None:
        held["bert.encoder.layer.1.output.dense.weight"][3, 5] = value

    weights(edit)(save_tiny_classifier(folder))
    return folder


@pytest.mark.parametrize("value", [70_000.0, -1e6])
def test_weights_beyond_float16_are_refused_with_what_holds_them(
    value: float, tmp_path: Path
) -> None:
    folder = with_one_weight(tmp_path / "model", value)
    with pytest.raises(ModelError, match=r"^[^\n]*--dtype bfloat16 or --dtype float32$") as error:
        load_encoder(folder, device="cpu", dtype="float16")
    for text in ("at most 65504", "layer.1.output.dense.weight", f"{abs(value):.3g}"):
        assert text in str(error.value)
    for dtype in ("float32", "bfloat16"):
        assert load_encoder(folder, device="cpu", dtype=dtype).n_layers == 2


def test_the_largest_number_of_float16_is_within_its_range(tmp_path: Path) -> None:
    folder = with_one_weight(tmp_path / "model", 65_504.0)
    assert load_encoder(folder, device="cpu", dtype="float16").dtype == torch.float16
