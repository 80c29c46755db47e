"""`--import`: models of a package run from the first command to the last, and only if asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from bertgeom.model import packages
from bertgeom.model.architectures import table
from bertgeom.pipelines.cli.main import command_group, main
from bertgeom.testing import tiny_model

#: BERT under another name, which no installed package knows.
CODE = """
import transformers
from bertgeom import register_architecture
from bertgeom.model.architectures import Architecture
from transformers.models.bert.modeling_bert import BertLayer


class OddConfig(transformers.BertConfig):
    model_type = "odd-bert"


class OddLayer(BertLayer):
    pass


class OddModel(transformers.BertModel):
    config_class = OddConfig


transformers.AutoConfig.register("odd-bert", OddConfig)
transformers.AutoModel.register(OddConfig, OddModel)
transformers.AutoTokenizer.register(OddConfig, fast_tokenizer_class=transformers.BertTokenizer)
register_architecture(
    Architecture(
        "Odd",
        model_types=("odd-bert",),
        layers=("OddLayer",),
        norm="attention.output.LayerNorm",
        pre_norm=False,
        like=("attention.self", "attention.output.dense"),
    )
)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the package `odd_models`, a model that needs it, and a sequence."""
    (tmp_path / "odd_models.py").write_text(CODE)
    tiny_model("bert", n_layers=1, hidden=16, vocabulary=69, max_tokens=38).save_pretrained(
        tmp_path / "model"
    )
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {"model_type": "odd-bert", "architectures": ["OddModel"]}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["".join(letters) for letters in product("ATCG", repeat=3)]
    (tmp_path / "model/vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "x.fa").write_text(">a\n" + "ACGTTGCATT" * 6 + "\n>b\n" + "GGATCCATGA" * 4 + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packages, "_done", set())
    before = list(table._registered)
    yield tmp_path
    sys.modules.pop("odd_models", None)
    table._registered[:] = before
    table._forget()


def test_every_command_that_takes_a_model_has_the_option() -> None:
    lacking = []
    for name, command in command_group().commands.items():
        options = {option for p in command.params for option in p.opts}
        if "--model" in options and "--import" not in options:
            lacking.append(name)
    assert lacking == []
    assert "--import" in {o for p in command_group().commands["check"].params for o in p.opts}


def test_a_model_of_a_package_runs_from_the_first_command_to_the_last(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "--model", "model"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "odd-bert" in line
    assert line.endswith("where a package registers it, give --import PACKAGE")
    assert "odd_models" not in sys.modules

    assert main(["weights", "--model", "model", "--import", "absent_models"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a package 'absent_models'" in line

    (place / "x.toml").write_text('import = ["odd_models"]\nwindow = 20\n')
    run = ["run", "x.fa", "--model", "model", "--out", "x.zarr", "--threads", "1"]
    asked = ["--import", "odd_models"]
    for command in (
        [*run, "--config", "x.toml"],
        ["verify", "x.zarr", "--windows", "1", *asked],
        ["spectra", "x.zarr", "--windows", "1", *asked],
        ["rollout", "x.zarr", "--windows", "1", *asked],
        ["weights", "--model", "model", *asked],
        ["plan", "x.fa", "--model", "model", "--no-measure", *asked],
        ["check", "model", "--windows", "1", "--tokens", "16", "--device", "cpu", *asked],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert "odd_models" in sys.modules
    # What it was made with is nothing that a store could make others import.
    assert "odd_models" not in (place / "x.zarr/run/run.json").read_text()
