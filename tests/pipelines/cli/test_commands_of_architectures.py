"""Commands that run a model, with models of every architecture."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from architecture_cases import CASES, Case
from sweeps import sample

import bertgeom
from bertgeom import variables
from bertgeom.pipelines.cli.main import main

#: One of each sort: layers in groups, grouped keys, adapters, biases of both kinds, rotary
#: positions, sliding windows, classes of this package. A store takes seconds to make.
CHOSEN = (
    "MosaicBERT",
    "GENA-LM",
    "Albert-inner-groups",
    "ModernBert",
    "EuroBert-grouped",
    "MegatronBert",
    "BigBird",
    "T5",
    "MPNet",
)
#: A run refuses those whose windows cannot be padded.
PADDED = [case for case in CASES if case.padding]
RUN = {*sample([str(case) for case in PADDED], 1), *CHOSEN}


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    letters = np.random.default_rng(0).choice(list("ACGT"), 90)
    path = tmp_path / "x.fa"
    path.write_text(">a\n" + "".join(letters) + "\n")
    return path


def save(case: Case, folder: Path) -> Path:
    """The model with a vocabulary of 3-mers."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["".join(letters) for letters in product("ATCG", repeat=3)]
    case.build()[0].save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.mark.parametrize("case", PADDED, ids=str)
def test_every_architecture_can_be_trusted(
    case: Case, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outputs, stations and attention in float64, every statistic by the oracle, all in a batch."""
    model = str(save(case, tmp_path / "model"))
    limits = ["--windows", "3", "--tokens", "24", "--device", "cpu"]
    assert main(["check", model, str(fasta), *limits, "--json"]) == 0, capsys.readouterr()
    found = json.loads(capsys.readouterr().out)
    assert found["layers"] == case.layers
    assert found["lengths"][:2] == [24, 24]
    assert found["lengths"][2] < 24  # the batch has padding
    for name in ("output", "hidden_states", "stations"):
        assert found["eager"][name] <= 1e-5, name
    # Float32 queries and keys: the error of a weight is that of its logit.
    assert found["eager"]["attention"] <= 5e-5
    arrays = {c["array"]: c for c in found["arrays"]}
    wanted = variables.select("full", ("block_map", "tracks"))
    assert arrays.keys() == {v.name for v in wanted if v.kind != "window"}
    assert all(c["agrees"] for c in arrays.values())
    assert main(["weights", "--model", model]) == 0, capsys.readouterr()


@pytest.mark.parametrize("case", [c for c in PADDED if str(c) in RUN], ids=str)
def test_commands_that_run_the_model(
    case: Case, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, store = str(save(case, tmp_path / "model")), str(tmp_path / "x.zarr")
    run = ["run", str(fasta), "--model", model, "--out", store, "--window", "24", "--threads", "1"]
    for command in (
        run,
        ["verify", store, "--windows", "2"],
        ["spectra", store, "--windows", "2"],
        ["rollout", store, "--windows", "2"],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    dataset = bertgeom.open(store)
    assert dataset.sizes["layer"] == case.layers
    assert np.isfinite(dataset.attention_entropy.values).all()


def test_a_model_that_cannot_be_observed_leaves_nothing_behind(
    fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ConvBert", "DebertaV2"):
        case = next((c for c in CASES if c.name == name), Case(name))
        model, store = str(save(case, tmp_path / name)), tmp_path / f"{name}.zarr"
        assert main(["run", str(fasta), "--model", model, "--out", str(store)]) != 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "expected" in line]
        assert "found" in line
        assert not store.exists()
