"""Pickled weights become safetensors without running code, and nobody else is asked for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bertgeom
from bertgeom.errors import BertgeomError, ModelError, UsageError
from bertgeom.model.convert import convert, read_pickle
from bertgeom.model.loading import read_model
from bertgeom.testing import tiny_model

SETTINGS = {"config.json", "tokenizer.json", "vocab.txt", "README.md"}


def pickled(folder: Path, *, parts: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """A model folder as it was written before safetensors; returns its weights."""
    model = tiny_model("bert", seed=seed)
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    for name in ("tokenizer.json", "vocab.txt", "README.md"):
        (folder / name).write_text("{}\n")
    weights: dict[str, torch.Tensor] = dict(model.state_dict())
    # Tied, as the weights of a language model's head are.
    weights["cls.predictions.decoder.weight"] = weights["embeddings.word_embeddings.weight"]
    if parts == 1:
        torch.save(weights, folder / "pytorch_model.bin")
        return weights
    where: dict[str, str] = {}
    for i in range(parts):
        name = f"pytorch_model-{i + 1:05d}-of-{parts:05d}.bin"
        chosen = dict(list(weights.items())[i::parts])
        torch.save(chosen, folder / name)
        where |= dict.fromkeys(chosen, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return weights


@pytest.mark.parametrize("parts", [1, 3])
def test_weights_are_the_same_bits_under_the_same_names(parts: int, tmp_path: Path) -> None:
    weights = pickled(tmp_path / "old", parts=parts)
    found = convert(tmp_path / "old", tmp_path / "new")
    stored: dict[str, torch.Tensor] = {}
    for file in sorted((tmp_path / "new").glob("*.safetensors")):
        stored |= load_file(file)
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], weights[name]) for name in weights)
    assert (found.n_weights, found.n_files) == (len(weights), parts)
    assert found.n_bytes == sum(4 * w.numel() for w in weights.values() if w.is_floating_point())
    others = {f.name for f in (tmp_path / "new").iterdir() if "safetensors" not in f.name}
    assert others == SETTINGS
    loaded, missing = read_model(str(tmp_path / "new"))
    assert not missing
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_views_and_transposed_weights_are_written_whole(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = {"a": base[1:3], "b": base.T, "c": base, "d": base, "e": torch.empty(0, 3)}
    (tmp_path / "old").mkdir()
    torch.save(views, tmp_path / "old" / "pytorch_model.bin")
    convert(tmp_path / "old", tmp_path / "new")
    stored = load_file(tmp_path / "new" / "model.safetensors")
    assert {k: v.tolist() for k, v in stored.items()} == {k: v.tolist() for k, v in views.items()}


def test_the_old_format_of_torch_is_read(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    assert read_pickle(tmp_path / "x.bin")["x"].tolist() == [1, 1, 1]


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_does_not_run(new_format: bool, tmp_path: Path) -> None:
    old, made = tmp_path / "old", tmp_path / "made"
    pickled(old)
    torch.save(
        {"x": torch.ones(2), "y": Malicious(made)},
        old / "pytorch_model.bin",
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(ModelError, match="may run its code") as caught:
        convert(old, tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not made.exists()
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_converted_is_named_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def broken(name: str, parts: int = 1) -> Path:
        pickled(tmp_path / name, parts=parts)
        return tmp_path / name

    cut = broken("cut") / "pytorch_model.bin"
    cut.write_bytes(cut.read_bytes()[:2000])
    empty = broken("empty") / "pytorch_model.bin"
    empty.write_bytes(b"")
    text = broken("text") / "pytorch_model.bin"
    text.write_text("version https://git-lfs.github.com/spec/v1\n")
    nested = broken("nested") / "pytorch_model.bin"
    torch.save({"model": {"x": torch.ones(1)}}, nested)
    alone = broken("alone") / "pytorch_model.bin"
    torch.save(torch.ones(3), alone)
    lost = broken("lost", parts=3) / "pytorch_model-00002-of-00003.bin"
    lost.unlink()
    twice = broken("twice", parts=2)
    shutil.copyfile(
        twice / "pytorch_model-00001-of-00002.bin", twice / "pytorch_model-00002-of-00002.bin"
    )
    fewer = broken("fewer", parts=2) / "pytorch_model-00002-of-00002.bin"
    torch.save({"other": torch.ones(1)}, fewer)
    (tmp_path / "nothing").mkdir()
    for name, message in {
        "cut": "damaged",
        "empty": "damaged",
        "text": "damaged",
        "nested": "state_dict",
        "alone": "tensors by name",
        "lost": "1 of 3 missing",
        "twice": "in two",
        "fewer": "missing, the first",
        "nothing": "no weights",
        "nowhere": "no such folder",
    }.items():
        with pytest.raises(ModelError, match=message) as caught:
            convert(tmp_path / name, tmp_path / "new")
        assert "\n" not in str(caught.value), name
        assert not list(tmp_path.glob("*new*")), name
        assert not list(tmp_path.glob(".*partial*")), name


def test_a_folder_with_contents_or_with_safetensors_is_left_alone(tmp_path: Path) -> None:
    pickled(tmp_path / "old")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for out in (tmp_path / "full", tmp_path / "old", tmp_path / "old" / "new"):
        with pytest.raises(UsageError, match="another --out"):
            convert(tmp_path / "old", out)
    assert [f.name for f in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    convert(tmp_path / "old", tmp_path / "new")
    with pytest.raises(UsageError, match="needs no conversion"):
        convert(tmp_path / "new", tmp_path / "newer")


def test_pickled_weights_are_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    pickled(tmp_path / "old")
    with pytest.raises(ModelError, match=r"bertgeom convert .*/old --out FOLDER") as caught:
        bertgeom.load_model(tmp_path / "old")
    assert "\n" not in str(caught.value)


def hub(home: Path, revisions: dict[str, Path]) -> None:
    """A cache of the hub with the model someone/model, a snapshot for each revision."""
    place = home / "hub" / "models--someone--model"
    (place / "refs").mkdir(parents=True)
    for i, (revision, folder) in enumerate(revisions.items()):
        commit = f"{i:x}" * 40
        (place / "refs" / revision).write_text(commit)
        shutil.copytree(folder, place / "snapshots" / commit)


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "bertgeom.pipelines.cli.main", *arguments],
        env=environment | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_revision_chooses_the_weights_and_the_conversion(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 1)):
        pickled(tmp_path / name, seed=seed)
        convert(tmp_path / name, tmp_path / f"{name}-safe")
    hub(
        tmp_path / "home",
        {
            "main": tmp_path / "first-safe",
            "v2": tmp_path / "second-safe",
            "old": tmp_path / "second",
        },
    )
    results = {}
    for revision in ("main", "v2"):
        out = tmp_path / f"{revision}.json"
        done = command(
            tmp_path / "home",
            "weights",
            "-m",
            "someone/model",
            "--revision",
            revision,
            "-o",
            str(out),
        )
        assert done.returncode == 0, done.stderr
        results[revision] = out.read_text()
    done = command(
        tmp_path / "home", "weights", "-m", "someone/model", "-o", str(tmp_path / "x.json")
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.json").read_text() == results["main"] != results["v2"]
    done = command(tmp_path / "home", "weights", "-m", "someone/model", "--revision", "old")
    assert done.returncode == 1
    assert "bertgeom convert someone/model --revision old --out FOLDER" in done.stderr
    done = command(
        tmp_path / "home",
        "convert",
        "someone/model",
        "--revision",
        "old",
        "-o",
        str(tmp_path / "made"),
    )
    assert done.returncode == 0, done.stderr
    done = command(
        tmp_path / "home", "weights", "-m", str(tmp_path / "made"), "-o", str(tmp_path / "y.json")
    )
    assert (tmp_path / "y.json").read_text() == results["v2"]
    done = command(tmp_path / "home", "weights", "-m", "someone/model", "--revision", "v3")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that transformers would have had converted; the hub is there and has no weights."""
    from transformers import modeling_utils

    found: list[str] = []

    def note(name: str, *_: Any, **__: Any) -> None:
        found.append(name)
        raise OSError("no network in tests")

    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    monkeypatch.setattr(modeling_utils, "auto_conversion", note)
    monkeypatch.setattr(modeling_utils, "is_offline_mode", lambda: False)
    monkeypatch.setattr(modeling_utils, "cached_file", lambda *_, **__: None)
    return found


def test_nobody_is_asked_to_convert_weights(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel, PreTrainedConfig

    config = tiny_model("bert").config
    raw = config.to_dict()
    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", lambda *_, **__: (dict(raw), {}))
    threads = set(threading.enumerate())
    with pytest.raises(BertgeomError):
        bertgeom.load_model("someone/model")
    assert asked == []
    assert set(threading.enumerate()) <= threads
    assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ
    # Without the switch it would be asked: else this test could not fail.
    with pytest.raises(OSError, match="no network"):
        AutoModel.from_pretrained("someone/model", config=config, use_safetensors=True)
    assert asked == ["someone/model"]
