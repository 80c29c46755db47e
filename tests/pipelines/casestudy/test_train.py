from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from bertgeom import data
from bertgeom.errors import DamagedError, MismatchError, StoreError, UsageError
from bertgeom.pipelines.casestudy.classifier import checkpoint, stream
from bertgeom.pipelines.casestudy.classifier.settings import PRESETS, TrainSettings
from bertgeom.pipelines.casestudy.classifier.train import learning_rate, train
from bertgeom.pipelines.casestudy.genomes.lineages import CLASSES
from bertgeom.pipelines.casestudy.genomes.simulate import draw
from bertgeom.tokens.select import PaperKmer, load_kmer_tokenizer

#: Folder, figures and losses of a whole run.
Whole = tuple[Path, dict[str, Any], list[float]]

TINY = TrainSettings(
    seed=3,
    steps=12,
    batch_size=8,
    learning_rate=5e-3,
    evaluate_every=4,
    n_validation=18,
    vocabulary_samples=60,
    vocabulary_size=700,
    hidden=16,
    layers=1,
    heads=2,
    intermediate=16,
    outliers=0.1,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out = tmp_path_factory.mktemp("whole")
    losses: list[float] = []
    figures = train(out, TINY, device="cpu", report=lambda p: losses.append(p.loss))
    assert figures is not None
    return out, figures, losses


def test_loss_goes_down(whole: Whole) -> None:
    _, figures, losses = whole
    assert len(losses) == TINY.steps
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert [v["step"] for v in figures["validations"]] == [4, 8, 12]


@pytest.mark.parametrize("stop", [3, 4])
def test_interrupted_run_ends_with_the_same_bytes(whole: Whole, tmp_path: Path, stop: int) -> None:
    out, figures, _ = whole
    assert train(tmp_path, TINY, device="cpu", stop_after=stop) is None
    assert not (tmp_path / "model").exists()
    assert train(tmp_path, TINY, device="cpu") == figures
    for name in ("model.safetensors", "config.json", "vocab.txt", "training.json"):
        assert (tmp_path / "model" / name).read_bytes() == (out / "model" / name).read_bytes()


def test_finished_run_is_not_trained_again(whole: Whole) -> None:
    out, figures, _ = whole
    steps: list[Any] = []
    assert train(out, TINY, device="cpu", report=steps.append) == figures
    assert steps == []


def test_checkpoint_of_other_settings_is_refused(whole: Whole) -> None:
    out, _, _ = whole
    with pytest.raises(MismatchError, match=r"expected learning_rate = 0\.001.*0\.005"):
        train(out, TINY.changed(learning_rate=1e-3), device="cpu")


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    settings = TINY.changed(learning_rate=3.0, warmup=0.0, evaluate_every=1, patience=2, steps=40)
    figures = train(tmp_path, settings, device="cpu")
    assert figures is not None
    assert figures["steps"] == figures["best_step"] + 2 < 40
    losses = [v["loss"] for v in figures["validations"]]
    assert losses[figures["best_step"] - 1] == min(losses)


def test_no_file_of_a_run_is_a_pickle(whole: Whole) -> None:
    out, _, _ = whole
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".txt", ".safetensors"}


def test_half_precision_file_loads_as_float32(whole: Whole) -> None:
    out, _, _ = whole
    stored = load_file(out / "model" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert [model.config.id2label[i] for i in range(9)] == list(CLASSES)
    assert set(model.config.bertgeom_decision) == {
        "min_confidence",
        "min_known_tokens",
        "max_unknown",
    }


def test_training_on_given_sequences(tmp_path: Path) -> None:
    samples = [draw(1, i) for i in range(20)]
    given = stream.LabelledSequences(
        [s.bases for s in samples], [CLASSES.index(s.label) for s in samples]
    )
    settings = TINY.changed(samples=20, steps=2, outliers=0.0, min_count=1)
    figures = train(tmp_path, settings, given=given, device="cpu")
    assert figures is not None
    assert figures["steps"] == 2
    tokenizer = load_kmer_tokenizer(tmp_path / "model")
    assert len(tokenizer.vocabulary) == 700


def test_given_sequences_are_part_of_what_a_checkpoint_is_of(tmp_path: Path) -> None:
    samples = [draw(1, i) for i in range(6)]
    labels = [CLASSES.index(s.label) for s in samples]
    settings = TINY.changed(samples=6, steps=4, min_count=1)
    one = stream.LabelledSequences([s.bases for s in samples], labels)
    other = stream.LabelledSequences([s.bases for s in samples], labels[::-1])
    assert train(tmp_path, settings, given=one, device="cpu", stop_after=1) is None
    with pytest.raises(MismatchError, match="expected data = "):
        train(tmp_path, settings, given=other, device="cpu")


def test_training_goes_on_from_a_model_of_ones_own(whole: Whole, tmp_path: Path) -> None:
    start = whole[0] / "model"
    figures = train(tmp_path, TINY.changed(init=str(start), steps=1), device="cpu")
    assert figures is not None
    assert figures["n_kmers"] == 700
    assert (tmp_path / "model" / "vocab.txt").read_bytes() == (start / "vocab.txt").read_bytes()


def test_kmers_are_added_behind_the_vocabulary_of_a_foreign_model(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=150,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=512,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "foreign")
    settings = TINY.changed(init=str(tmp_path / "foreign"), steps=1, vocabulary_size=40)
    train(tmp_path / "out", settings, device="cpu")
    tokenizer = load_kmer_tokenizer(tmp_path / "out" / "model")
    assert sorted(tokenizer.vocabulary.values()) == list(range(150, 190))
    stored = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert stored["bert.embeddings.word_embeddings.weight"].shape == (190, 16)


def test_batches_depend_on_the_step_alone() -> None:
    tokenizer = PaperKmer(stream.vocabulary(stream.training_sequences(TINY), TINY))
    one, other = (stream.training_batch(TINY, 5, tokenizer) for _ in range(2))
    assert np.array_equal(one.ids, other.ids)
    assert np.array_equal(one.targets, other.targets)
    assert not np.array_equal(one.ids, stream.training_batch(TINY, 6, tokenizer).ids)
    assert np.allclose(one.targets.sum(axis=1), 1)
    assert (one.ids[:, 0] == tokenizer.special_ids["cls"]).all()
    last = one.mask.sum(axis=1) - 1
    assert (one.ids[np.arange(8), last] == tokenizer.special_ids["sep"]).all()


def test_early_batches_see_a_share_of_the_tokens_at_their_own_positions() -> None:
    tokenizer = PaperKmer(stream.vocabulary(stream.training_sequences(TINY), TINY))
    settings = TINY.changed(keep_tokens=0.3, whole_share=0.5, unknown_rate=0.0)
    whole = settings.changed(keep_tokens=1.0)
    for step in range(TINY.steps):
        some, all_ = (stream.training_batch(s, step, tokenizer) for s in (settings, whole))
        if step >= TINY.steps / 2:
            assert np.array_equal(some.ids, all_.ids)
            continue
        share = some.mask.sum() / all_.mask.sum()
        assert 0.25 < share < 0.65
        for row in range(TINY.batch_size):
            there = some.mask[row] == 1
            places = some.positions[row, there]
            assert (np.diff(places) > 0).all()
            assert places[0] == 0
            assert places[-1] == all_.mask[row].sum() - 1
            assert np.array_equal(some.ids[row, there], all_.ids[row, places])


def test_every_epoch_visits_every_training_sequence_once() -> None:
    settings = TINY.changed(samples=10)
    seen = [stream.index_in_epoch(settings, i, 10) for i in range(30)]
    assert [sorted(seen[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert seen[:10] != seen[10:20]


def test_vocabulary_keeps_the_most_frequent_kmers() -> None:
    bases = np.frombuffer(b"ACGTACGTACGT" * 3, np.uint8)
    settings = TINY.changed(vocabulary_size=2, min_count=1)
    kmers = stream.vocabulary(iter([bases, bases[:12], bases[:12]]), settings)
    assert kmers == ["acgtacgtacgt", "cgtacgtacgta"]
    assert stream.vocabulary(iter([bases]), settings.changed(min_count=99)) == []


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    settings = TrainSettings(steps=100, warmup=0.1, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_paper_preset_is_the_published_configuration() -> None:
    paper = PRESETS["paper"]
    assert (paper.hidden, paper.layers, paper.heads, paper.intermediate) == (768, 12, 12, 3072)
    assert (paper.k, paper.stride, paper.batch_size, paper.learning_rate) == (12, 9, 4, 2e-5)
    assert paper.steps * paper.batch_size == 2 * paper.samples


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(UsageError, match="colour"):
        TINY.changed(colour="red")


def test_shipped_model_says_how_it_was_trained() -> None:
    figures = json.loads((data.demo_model() / "training.json").read_text())
    assert figures["settings"] == PRESETS["small"].as_dict()
    assert figures["classes"] == list(CLASSES)


def test_a_checkpoint_killed_between_its_renames_is_found_again(
    whole: Whole, tmp_path: Path
) -> None:
    _, figures, _ = whole
    assert train(tmp_path, TINY, device="cpu", stop_after=4) is None
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    (tmp_path / "checkpoint.new").mkdir()
    (tmp_path / "checkpoint.new" / "model.safetensors").write_bytes(b"torn")
    steps: list[int] = []
    assert train(tmp_path, TINY, device="cpu", report=lambda p: steps.append(p.step)) == figures
    assert steps[0] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "model", "tokenizer"]


@pytest.mark.parametrize("where", ["checkpoint", "model"])
def test_a_full_disk_keeps_the_last_checkpoint_and_no_half_model(
    where: str, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, figures, _ = whole
    assert train(tmp_path, TINY, device="cpu", stop_after=4) is None
    before = {p.name: p.read_bytes() for p in (tmp_path / "checkpoint").iterdir()}

    def full(*arguments: object, **options: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        if where == "checkpoint":
            patch.setattr(checkpoint, "save_file", full)
        else:
            patch.setattr(BertForSequenceClassification, "save_pretrained", full)
        with pytest.raises(StoreError, match="No space left on device; free some space"):
            train(tmp_path, TINY, device="cpu")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "tokenizer"]
    if where == "checkpoint":
        kept = {p.name: p.read_bytes() for p in (tmp_path / "checkpoint").iterdir()}
        assert kept == before
    assert train(tmp_path, TINY, device="cpu") == figures


@pytest.mark.parametrize("name", ["model", "checkpoint", "tokenizer"])
def test_folders_of_others_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("mine")
    with pytest.raises(UsageError, match="a folder with other contents"):
        train(tmp_path, TINY, device="cpu")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == [
        name,
        f"{name}/config.json",
    ]


def _without_history(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({"settings": state["settings"]}))


@pytest.mark.parametrize(
    "harm",
    [
        lambda checkpoint: (checkpoint / "state.json").write_text('{"settings"'),
        lambda checkpoint: (checkpoint / "state.json").write_text("[]"),
        lambda checkpoint: (checkpoint / "state.json").write_text("{}"),
        _without_history,
        lambda checkpoint: (checkpoint / "model.safetensors").unlink(),
        lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(b"cut"),
        lambda checkpoint: shutil.copy(
            checkpoint / "optimizer.safetensors", checkpoint / "model.safetensors"
        ),
        lambda checkpoint: shutil.copy(
            checkpoint / "model.safetensors", checkpoint / "optimizer.safetensors"
        ),
    ],
)
def test_a_damaged_checkpoint_is_one_line(harm: Callable[[Path], object], tmp_path: Path) -> None:
    assert train(tmp_path, TINY, device="cpu", stop_after=1) is None
    harm(tmp_path / "checkpoint")
    with pytest.raises(DamagedError, match=r"checkpoint: expected a checkpoint .* delete") as told:
        train(tmp_path, TINY, device="cpu")
    assert "\n" not in str(told.value)


def test_damaged_best_weights_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"cut")
    with pytest.raises(DamagedError, match=r"expected a checkpoint .* delete"):
        checkpoint.load_best(tmp_path, torch.nn.Linear(1, 1))
