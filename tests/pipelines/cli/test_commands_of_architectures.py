"""Commands that run a model, with models of several architectures."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from architecture_cases import CASES, Case

import bertgeom
from bertgeom.pipelines.cli.main import main

#: One of each sort: pre-norm and post-norm, an adapter, grouped keys, several layers in a group.
CHOSEN = ("Albert-inner-groups", "EuroBert-grouped", "MegatronBert", "NomicBert", "BigBird")


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


@pytest.mark.parametrize("case", [c for c in CASES if str(c) in CHOSEN], ids=str)
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
        ["weights", "--model", model],
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
