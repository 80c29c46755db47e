from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from bertgeom import data


def test_reference_is_the_genbank_sequence() -> None:
    bases = data.reference()
    assert bases.dtype == np.uint8
    assert bases.shape == (29903,)
    assert hashlib.sha256(bases.tobytes()).hexdigest() == data.REFERENCE_SHA256
    assert data.REFERENCE_SHA256.startswith("7d5621cd3b3e498d0c27fcca9d3d3c51")


def test_reference_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        data.reference()[0] = 65


def test_all_shipped_files_are_there() -> None:
    for path in (
        data.reference_path(),
        data.lineage_mutations(),
        data.sublineages(),
        data.demo_genomes(),
        data.demo_labels(),
        data.demo_model() / "config.json",
        data.demo_model() / "model.safetensors",
        data.demo_model() / "vocab.txt",
        data.demo_model() / "bertgeom_tokenizer.json",
    ):
        assert path.stat().st_size > 0, path


def test_shipped_model_is_small_and_has_no_pickle() -> None:
    files = [path for path in data.demo_model().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert {path.suffix for path in files} <= {".json", ".txt", ".safetensors", ".md"}


def test_demo_labels_name_every_demo_genome() -> None:
    import gzip

    rows = data.demo_labels().read_text().splitlines()
    with gzip.open(data.demo_genomes(), "rt") as lines:
        ids = [line[1:].split()[0] for line in lines if line.startswith(">")]
    assert [row.split("\t")[0] for row in rows[1:]] == ids
    classes = json.loads((data.demo_model() / "config.json").read_text())["label2id"]
    assert {row.split("\t")[1] for row in rows[1:]} == set(classes)
