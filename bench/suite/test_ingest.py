"""From FASTA files to sequence shards: reading alone, and all of `bertgeom.ingest`."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import sequence
from bench.suite.cases import Case, Cost, cases
from bench.suite.conftest import Timed
from bertgeom.pipelines.run.stages import ingest
from bertgeom.sequences.fasta import read_chunks
from bertgeom.sequences.shards import open_sequences
from bertgeom.store.storage import Storage

WAYS = ["read bytes", "read records", "ingest"]
FULL = cases(WAYS, "read records", file=["plain", "gz"], records=[1000])
TINY = cases(WAYS, "read records", file=["plain", "gz"], records=[3])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """A FASTA file of genomes, lines of 80 bases; written once."""
    folder = tmp_path_factory.mktemp("sources")

    def make(case: Case) -> Path:
        path = folder / f"{case['records']}.fa{'.gz' if case['file'] == 'gz' else ''}"
        plain = folder / f"{case['records']}.fa"
        if not plain.exists():
            sequence.write_fasta(plain, sequence.genomes(case["records"]))
        if not path.exists():
            with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=6) as target:
                shutil.copyfileobj(source, target)
        return path

    return make


def _all_bases(path: Path) -> int:
    return sum(chunk.bases.size for chunk in read_chunks(path))


def _ingested(folder: Path, path: Path) -> Path:
    shutil.rmtree(folder / "shards", ignore_errors=True)
    ingest(path, out=folder / "shards")
    return folder / "shards"


def test_ingest(timed: Timed, case: Case, made: Callable[[Case], Path], tmp_path: Path) -> None:
    path = made(case)
    n_bases = case["records"] * sequence.GENOME
    ways: dict[str, Callable[[Path], Any]] = {
        "read bytes": Path.read_bytes,
        "read records": _all_bases,
        "ingest": partial(_ingested, tmp_path),
    }
    if case.way == "ingest":
        shards = open_sequences(Storage(str(_ingested(tmp_path, path))))
        assert np.array_equal(shards.bases(0, sequence.GENOME), sequence.genomes(1)[0])
    assert _all_bases(path) == n_bases
    timed("ingest", case, Cost(n_bases, "base", bytes=n_bases), ways[case.way], [path])
