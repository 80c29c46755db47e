from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import softmax

from bertgeom import data
from bertgeom.errors import InputError, ModelError
from bertgeom.pipelines.casestudy.classifier.calibrate import (
    OTHER,
    Decision,
    choose_threshold,
    fit_temperature,
)
from bertgeom.pipelines.casestudy.classifier.classify import (
    Prediction,
    VariantClassifier,
    load_classifier,
)
from bertgeom.pipelines.casestudy.classifier.evaluate import (
    Outcome,
    evaluate,
    outcomes,
    read_labels,
)
from bertgeom.pipelines.casestudy.classifier.metrics import (
    calibration,
    class_table,
    confusion_matrix,
    macro_f1,
    matthews,
)
from bertgeom.pipelines.casestudy.genomes.lineages import CLASSES
from bertgeom.pipelines.casestudy.genomes.simulate import simulate
from bertgeom.sequences.fasta import read_records

TRUTH = ["a", "a", "a", "b", "b", "c"]
ANSWER = ["a", "a", "b", "b", "c", "c"]


def test_confusion_matrix_counts_truth_by_row() -> None:
    counts = confusion_matrix(TRUTH, ANSWER, "abc", "abc")
    assert counts.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_class_table_on_literal_numbers() -> None:
    table = class_table(TRUTH, ANSWER, "abcd")
    assert table["a"] == {"n": 3, "precision": 1.0, "recall": 2 / 3, "f1": 0.8}
    assert table["b"] == {"n": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert table["c"]["f1"] == pytest.approx(2 / 3)
    assert table["d"] == {"n": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert macro_f1(table) == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


def test_matthews_is_phi_for_two_classes() -> None:
    true_positive, missed, false_alarm, true_negative = 40, 10, 5, 45
    counts = np.array([[true_positive, missed], [false_alarm, true_negative]])
    phi = (40 * 45 - 10 * 5) / np.sqrt(50 * 50 * 45 * 55)
    assert matthews(counts) == pytest.approx(phi)


def test_matthews_is_one_zero_or_undefined_as_zero() -> None:
    assert matthews(np.diag([3, 1, 7])) == pytest.approx(1.0)
    assert matthews(np.full((4, 4), 5)) == pytest.approx(0.0)
    assert matthews(np.array([[5, 0], [0, 0]])) == 0.0


def test_calibration_error_on_literal_numbers() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55, 1.0])
    correct = np.array([True, True, True, False, True])
    found = calibration(confidence, correct)
    # bin 0.5-0.6: 2 of 5, |0.5 - 0.55|; bin 0.9-1.0: 3 of 5, |1 - 2.9 / 3|
    assert found["ece"] == pytest.approx(0.4 * 0.05 + 0.6 * (1 - 2.9 / 3))
    assert [row["n"] for row in found["reliability"]] == [2, 3]


def test_temperature_recovers_a_known_scale() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(4000, 5)) * 2
    truth = np.array([random.choice(5, p=p) for p in softmax(logits, axis=-1)])
    assert fit_temperature(logits * 3, truth) == pytest.approx(3, rel=0.1)


def test_threshold_is_the_least_that_keeps_the_risk() -> None:
    confidence = np.array([0.99, 0.9, 0.8, 0.7, 0.6, 0.55])
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
    truth = np.array([0, 0, 0, 0, 1, 0])
    assert choose_threshold(logits, truth, risk=0.0) == 0.7
    assert choose_threshold(logits, truth, risk=0.2) == 0.55
    assert choose_threshold(logits, truth, risk=0.2, bounds=(0.6, 0.9)) == 0.6
    assert choose_threshold(logits, 1 - truth, risk=0.0) == 0.9


def prediction(name: str, answer: str, best: str, confidence: float) -> Prediction:
    rest = (1 - confidence) / 2
    probabilities = np.full(3, rest)
    probabilities["abc".index(best)] = confidence
    return Prediction(name, answer, best, probabilities, "" if answer != OTHER else "doubt")


def test_figures_count_other_and_skipped_as_they_say() -> None:
    results = [
        Outcome("1", "a", prediction("1", "a", "a", 0.9), ""),
        Outcome("2", "a", prediction("2", OTHER, "a", 0.5), "doubt"),
        Outcome("3", "b", prediction("3", OTHER, "a", 0.5), "doubt"),
        Outcome("4", "b", prediction("4", "b", "b", 0.9), ""),
        Outcome("5", "c", None, "empty sequence"),
    ]
    figures = evaluate(results, ("a", "b", "c"))
    assert (figures["n"], figures["n_skipped"]) == (5, 1)
    assert figures["forced"]["accuracy"] == pytest.approx(3 / 5)
    assert figures["decided"]["accuracy"] == pytest.approx(2 / 5)
    assert figures["covered"]["share"] == pytest.approx(2 / 5)
    assert figures["covered"]["accuracy"] == 1.0
    assert figures["decided"]["confusion"]["counts"] == [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    assert [row["id"] for row in figures["wrong"]] == ["2", "3"]
    assert figures["skipped"] == [{"id": "5", "reason": "empty sequence"}]
    json.dumps(figures)


def test_no_labelled_genome_is_an_error() -> None:
    with pytest.raises(InputError, match="labelled genomes"):
        evaluate([], CLASSES)


def test_labels_are_read_and_relabelled(tmp_path: Path) -> None:
    table = tmp_path / "labels.tsv"
    table.write_text("record_id\tclass\nx\tgh\ny\tother_G\nz\talpha\n")
    found = read_labels(table, CLASSES, {"gh": "background"})
    assert found == {"x": "background", "y": "background", "z": "alpha"}
    with pytest.raises(InputError, match=r"line 4: expected a class of .*'alpha'"):
        read_labels(table, ("background", "gh"))
    table.write_text("strain,clade\nx,gh\n")
    assert read_labels(table, CLASSES, {"gh": "background"}) == {"x": "background"}
    table.write_text("id\tclass\n")
    with pytest.raises(InputError, match="at least one labelled record"):
        read_labels(table, CLASSES)


def test_folder_without_a_classifier_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a sequence classifier"):
        load_classifier(tmp_path)


@pytest.fixture(scope="module")
def shipped() -> VariantClassifier:
    return load_classifier(data.demo_model())


def test_shipped_model_classifies_its_demo_genomes(shipped: VariantClassifier) -> None:
    labels = read_labels(data.demo_labels(), shipped.classes)
    results = outcomes(shipped, read_records(data.demo_genomes()), labels)
    figures = evaluate(results, shipped.classes)
    assert figures["n"] == 36
    assert figures["n_skipped"] == 0
    assert figures["forced"]["accuracy"] >= 35 / 36


def test_shipped_model_on_held_out_simulated_genomes(shipped: VariantClassifier) -> None:
    samples = list(simulate(180, 2_000_001, balanced=True))
    results = outcomes(shipped, samples, {sample.id: sample.label for sample in samples})
    figures = evaluate(results, shipped.classes)
    assert figures["forced"]["accuracy"] >= 0.98
    assert figures["covered"]["accuracy"] >= 0.99


def test_sequences_that_are_no_spike_get_no_class(shipped: VariantClassifier) -> None:
    random = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT", np.uint8)
    spike = data.reference()[21562:25384]
    nearly_empty = np.full(3822, ord("N"), np.uint8)
    nearly_empty[1000:1300] = spike[1000:1300]
    foreign = [
        letters[random.integers(0, 4, 3822)],
        data.reference()[5000:8822],
        np.full(3822, ord("N"), np.uint8),
        nearly_empty,
    ]
    answers = list(shipped.classify([SimpleNamespace(id="x", bases=b) for b in foreign]))
    assert [p.answer for p in answers] == [OTHER] * 4
    assert all("k-mers" in p.reason for p in answers)


def test_answers_do_not_depend_on_the_batch(shipped: VariantClassifier) -> None:
    spikes = [SimpleNamespace(id=s.id, bases=s.bases) for s in simulate(9, 5, balanced=True)]
    together = list(shipped.classify(spikes, batch_size=9))
    alone = list(shipped.classify(spikes, batch_size=1))
    for a, b in zip(together, alone, strict=True):
        assert np.allclose(a.probabilities, b.probabilities, atol=1e-5)


def test_decision_defaults_are_never_more_lenient_than_one_half() -> None:
    assert Decision().min_confidence >= 0.5


@pytest.mark.skipif(
    "BERTGEOM_REAL_GENOMES" not in os.environ,
    reason="set BERTGEOM_REAL_GENOMES to a .fasta.xz or .gz with a label table (.tsv) beside it",
)
def test_shipped_model_on_real_genomes(shipped: VariantClassifier) -> None:
    pytest.importorskip("mappy", reason="needs the extra 'casestudy'")
    path = Path(os.environ["BERTGEOM_REAL_GENOMES"])
    table = path.with_name(path.name.split(".fasta")[0] + ".tsv")
    # Open genomes called `gh` are B.1+Q57H, whose spike is background.
    labels = read_labels(table, shipped.classes, {"gh": "background"})
    figures = evaluate(outcomes(shipped, read_records(path), labels), shipped.classes)
    with table.open() as lines:
        assert figures["n"] == sum(1 for _ in csv.reader(lines)) - 1
    assert figures["forced"]["macro_f1"] >= 0.97
    assert figures["decided"]["macro_f1"] >= 0.97
    assert figures["calibration"]["ece"] < 0.05
