"""What a context knows without a look at the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertgeom.pipelines.context.run_context import open_context
from bertgeom.pipelines.run.progress import status
from bertgeom.sequences.shards import Sequences
from bertgeom.store import root_file
from bertgeom.store.storage import Storage


def test_the_root_of_a_store_says_how_many_windows_there_are(whole: Path) -> None:
    context = open_context(str(whole))
    counted = context.plan
    told = context.pieces(root_file.attributes_of(Storage(str(whole)))["n_windows"])
    assert told is not counted
    for name in ("n_windows", "n_partitions", "n_groups"):
        assert getattr(told, name) == getattr(counted, name)
    for piece in range(counted.n_partitions):
        assert told.partition(piece) == counted.partition(piece)
        assert told.group_of(piece) == counted.group_of(piece)


@pytest.mark.parametrize("wrong", [None, "27", 27.0, True])
def test_what_is_no_count_is_not_believed(wrong: object, whole: Path) -> None:
    context = open_context(str(whole))
    assert context.pieces(wrong) is context.plan


def test_status_reads_no_record(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = status(str(whole))
    monkeypatch.setattr(Sequences, "lengths", property(lambda self: pytest.fail("a record")))
    assert status(str(whole)) == expected


def test_status_counts_where_the_root_does_not_say(copied: Path) -> None:
    expected = status(str(copied))
    storage = Storage(str(copied))
    root = root_file.group_metadata(storage)
    del root["attributes"]["n_windows"]
    storage.write(root_file.METADATA, root_file.to_bytes(root))
    assert status(str(copied)) == expected
