"""Sequence shards: bases end to end, and the record table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray

from bertgeom.errors import InputError, StoreError
from bertgeom.sequences import shards as module
from bertgeom.sequences.fasta import Chunk, read_chunks
from bertgeom.sequences.shards import Sequences, is_complete, open_sequences, write_sequences
from bertgeom.store import root_file, zarr_io
from bertgeom.store.storage import Storage

FASTA = b">a first one\nACGTN\nACG\n>empty\n>b\nRYSWACGT\n>a again\nT\n"
FACTS = [{"name": "x.fa", "size": len(FASTA), "sha256": "0"}]


def shards(storage: Storage, source: Path) -> Sequences:
    zarr_io.create_root(storage, root_file.SEQUENCE_FORMAT)
    return write_sequences(storage, read_chunks(source), FACTS)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "x.fa"
    path.write_bytes(FASTA)
    return path


@pytest.mark.parametrize("chunk", [4, 7, 2**20])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_records_come_back_whatever_the_chunks(
    chunk: int, where: str, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BASES", chunk)
    monkeypatch.setattr(module, "CHUNK_RECORDS", 2)
    root = str(tmp_path / "db") if where == "local" else f"memory://{tmp_path.name}/db"
    found = shards(Storage(root), fasta)
    assert found.ids() == ["a", "empty", "b", "a"]
    assert found.ids(1, 3) == ["empty", "b"]
    assert found.lengths.tolist() == [8, 0, 8, 1]
    assert found.offsets.tolist() == [0, 8, 8, 16]
    joined = found.bases(0, 17).tobytes()
    assert joined == b"ACGTNACGRYSWACGTT"
    assert found.bases(6, 11).tobytes() == b"CGRYS"
    assert found.n_records == 4
    assert found.attributes["n_bases"] == 17


def test_the_table_tells_ambiguity_emptiness_and_source(fasta: Path, tmp_path: Path) -> None:
    shards(Storage(str(tmp_path / "db")), fasta)
    dataset = xarray.open_zarr(tmp_path / "db")
    assert dataset["n_ambiguous"].values.tolist() == [1, 0, 4, 0]
    assert dataset["record_flags"].values.tolist() == [0, module.EMPTY, 0, 0]
    assert dataset["description"].values.tolist() == ["first one", "", "", "again"]
    assert dataset["source"].values.tolist() == [0, 0, 0, 0]
    assert dataset["bases"].attrs["units"] == "1"
    assert dataset.attrs["sources"] == FACTS


def test_chunking_changes_neither_contents_nor_their_hash(
    fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = shards(Storage(str(tmp_path / "one")), fasta)
    monkeypatch.setattr(module, "CHUNK_BASES", 3)
    other = shards(Storage(str(tmp_path / "other")), fasta)
    assert one.attributes["content_sha256"] == other.attributes["content_sha256"]


@pytest.mark.parametrize(
    "changed",
    [
        FASTA.replace(b"RYSW", b"RYSA"),
        FASTA.replace(b">b", b">c"),
        FASTA.replace(b"first", b"fifth"),
        FASTA.replace(b"\nT\n", b"\nTT\n"),
        FASTA.replace(b"ACG\n>empty\n", b"AC\n>empty\nG\n"),
    ],
)
def test_any_change_of_the_records_changes_the_hash(
    changed: bytes, fasta: Path, tmp_path: Path
) -> None:
    one = shards(Storage(str(tmp_path / "one")), fasta)
    fasta.write_bytes(changed)
    other = shards(Storage(str(tmp_path / "other")), fasta)
    assert one.attributes["content_sha256"] != other.attributes["content_sha256"]


def test_an_ingest_that_was_stopped_is_no_shard_set_until_repeated(
    fasta: Path, tmp_path: Path
) -> None:
    def stopped() -> Iterator[Chunk]:
        for piece in read_chunks(fasta):
            if piece.id == "b":
                raise InputError("more", "nothing")
            yield piece

    storage = Storage(str(tmp_path / "db"))
    zarr_io.create_root(storage, root_file.SEQUENCE_FORMAT)
    assert not is_complete(storage)
    with pytest.raises(InputError):
        write_sequences(storage, stopped(), FACTS)
    assert not is_complete(storage)
    with pytest.raises(StoreError, match="give the same bertgeom ingest command again"):
        open_sequences(storage)
    write_sequences(storage, read_chunks(fasta), FACTS)
    assert is_complete(storage)
    assert open_sequences(storage).bases(0, 17).tobytes() == b"ACGTNACGRYSWACGTT"
    fresh = tmp_path / "fresh"
    shards(Storage(str(fresh)), fasta)
    assert {p.relative_to(fresh): p.read_bytes() for p in fresh.rglob("*") if p.is_file()} == {
        p.relative_to(tmp_path / "db"): p.read_bytes()
        for p in (tmp_path / "db").rglob("*")
        if p.is_file()
    }


def test_offsets_and_lengths_are_exact_beyond_32_bits() -> None:
    rows = [
        module._row(Chunk(0, "x", "", 0, 2**33, np.zeros(1, np.uint8), True), 2**33 + 1, 2**40, 0)
    ]
    columns = module._columns(rows)
    assert columns["length"][0] == 2**33 + 1
    assert columns["offset"][0] == 2**40
