"""`bertgeom check`: a good model is trusted, and whatever is spoiled is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.bert.modeling_bert import BertSelfAttention

from bertgeom import kernels
from bertgeom.errors import InputError, ModelError, UsageError
from bertgeom.kernels import AlibiBias
from bertgeom.model.probe import difference
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.run import check as module
from bertgeom.pipelines.run.check import check


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    letters = np.random.default_rng(0).choice(list("ACGT"), 400)
    path = tmp_path / "x.fa"
    path.write_text(">a\n" + "".join(letters[:250]) + "\n>b\n" + "".join(letters[250:]) + "\n")
    return path


def test_a_good_model_is_trusted(tiny_model: Path, fasta: Path) -> None:
    found = check(tiny_model, fasta, windows=3, device="cpu")
    assert found.trusted, found.problems
    assert found.lengths[:2] == (64, 64)
    assert found.lengths[2] < 64  # a batch with padding
    assert found.stations == ("embedding", "attention_0", "output_0", "attention_1", "output_1")
    assert "post-norm" in found.architecture
    assert found.coverage.returned_share == 1
    assert found.eager is not None
    for value in (found.eager.output, found.eager.hidden_states, found.eager.attention):
        assert value is not None
        assert value < 1e-5
    names = {c.array for c in found.arrays}
    assert {"attention_entropy", "gate_mass", "cone_index", "angle_mean", "query_entropy"} <= names
    assert all(c.values for c in found.arrays)
    assert found.speed is not None
    assert found.speed.ratio > 0
    assert found.speed.peak_bytes > found.speed.weight_bytes > 10_000


def test_without_input_the_windows_are_random_letters(tiny_model: Path) -> None:
    found = check(tiny_model, windows=1, tokens=16, device="cpu")
    assert found.trusted, found.problems
    assert (found.source, found.lengths) == ("random letters", (16,))


def test_windows_of_longer_tokens_are_filled(minilm: Path, tmp_path: Path) -> None:
    """A byte a token is all that is guaranteed to fit; a token of text has more."""
    text = tmp_path / "x.txt"
    text.write_text("every token of this text has more than one letter of it " * 40 + "\n")
    options: dict[str, Any] = {"alphabet": "text", "device": "cpu"}
    found = check(minilm, text, windows=2, tokens=20, **options)
    assert found.trusted, found.problems
    assert 15 <= found.lengths[0] <= 20
    assert found.coverage.bases_per_token > 1.5
    assert found.coverage.returned_share is None
    whole = check(minilm, text, windows=1, tokens=20, max_tokens=12, **options)
    assert 9 <= whole.lengths[0] <= 12


def test_attention_that_is_not_the_model_s_is_found(
    tiny_model: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Something the model's own attention does not know changes the weights."""
    bias = AlibiBias(torch.tensor([1.0, 0.5]))
    monkeypatch.setattr(BertSelfAttention, "bertgeom_bias", bias, raising=False)
    assert main(["check", str(tiny_model), str(fasta), "--json", "--device", "cpu"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["trusted"] is False
    assert "unchanged by recording" in said["problems"][0]
    assert said["eager"] is None


def test_what_is_too_small_for_the_check_of_a_run_is_found(
    tiny_model: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bias = AlibiBias(torch.tensor([2e-4, 1e-4]))
    monkeypatch.setattr(BertSelfAttention, "bertgeom_bias", bias, raising=False)
    found = check(tiny_model, fasta, device="cpu")
    assert found.eager is not None  # the check on the dummy batch let it pass
    (problem,) = [p for p in found.problems if "expected attention" in p]
    assert "eager attention in float64" in problem


def test_kernels_that_disagree_with_the_oracle_are_found(
    tiny_model: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    right = kernels.attention_stats

    def wrong(*args: Any, **options: Any) -> Any:
        found = right(*args, **options)
        if options["impl"] == "reference":
            return found
        values = dict(found.values.items())
        values["attention_distance"] = values["attention_distance"] * 1.01
        return SimpleNamespace(output=found.output, values=values)

    monkeypatch.setattr(kernels, "attention_stats", wrong)
    assert main(["check", str(tiny_model), str(fasta), "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "expected attention_distance within 1e-04 of the oracle" in said
    assert "not to be trusted" in said


def test_unknown_tokens_are_found(tiny_model: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "n.fa").write_text(">a\n" + "NNA" * 40 + "\n")
    found = check(tiny_model, tmp_path / "n.fa", windows=1, device="cpu")
    assert found.coverage.unknown_share == 1
    (problem,) = found.problems
    assert "100 % unknown" in problem
    assert "--tokenizer" in problem


def test_a_model_that_overflows_its_precision_is_found(
    tiny_model: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = module.load_model

    def large(*args: Any) -> Any:
        encoder: Any = load(*args)
        with torch.no_grad():
            encoder.model.bert.encoder.layer[0].attention.self.query.weight.mul_(1e5)
        return encoder

    monkeypatch.setattr(module, "load_model", large)
    found = check(tiny_model, fasta, device="cpu", dtype="float16")
    assert not found.trusted
    assert any("--dtype float32" in problem for problem in found.problems)


def test_the_command_says_what_it_found(tiny_model: Path, fasta: Path, capsys: Any) -> None:
    assert main(["check", str(tiny_model), str(fasta), "--windows", "2", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for text in ("can be trusted", "bases a token", "attention_entropy", "post-norm", "windows/s"):
        assert text in said
    assert main(["check", str(tiny_model), "--tokens", "16", "--json", "--device", "cpu"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["trusted"] is True
    assert facts["coverage"]["returned_share"] == 1
    assert {c["agrees"] for c in facts["arrays"]} == {True}
    assert facts["speed"]["ratio"] > 0


def test_what_cannot_be_checked_is_an_error(tiny_model: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty.fa").write_text(">a\n\n")
    with pytest.raises(InputError, match="at least one base"):
        check(tiny_model, tmp_path / "empty.fa", device="cpu")
    with pytest.raises(ModelError, match="found no such folder"):
        check(tmp_path / "none")
    with pytest.raises(UsageError, match="--windows of at least 1"):
        check(tiny_model, windows=0)
    assert main(["check", str(tmp_path / "none")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: expected a transformers encoder")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_difference_that_is_no_number_is_the_largest(value: float) -> None:
    found = torch.tensor([1.0, value])
    assert difference(found, torch.ones(2)) == float("inf")
    assert difference(torch.ones(2), found) == float("inf")
    assert difference(torch.zeros(2), torch.zeros(2)) == 0
