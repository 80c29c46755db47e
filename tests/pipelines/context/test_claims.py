"""Where a store may be made, who may make it, and what is taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertgeom.errors import InputError, ModelError, StoreError, UsageError
from bertgeom.pipelines.context import leases
from bertgeom.pipelines.context.claims import check_place, claimed
from bertgeom.pipelines.run import stages
from bertgeom.store import root_file, zarr_io
from bertgeom.store.storage import Storage

Run = Callable[..., Any]


def snapshot(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def prepare(folder: Path, fasta: Path) -> None:
    """Places of all kinds that are not for a new store."""
    (folder / "folder").mkdir()
    (folder / "folder" / "thesis.partial").write_text("years of work")
    (folder / "run folder" / "run").mkdir(parents=True)
    (folder / "run folder" / "run" / "notes.txt").write_text("mine")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "to file").symlink_to(fasta)
    (folder / "genomes").mkdir()
    (folder / "genomes" / "a.fa").write_bytes(fasta.read_bytes())
    zarr_io.create_root(Storage(str(folder / "shards")), root_file.SEQUENCE_FORMAT)


@pytest.mark.parametrize(
    ("out", "found"),
    [
        ("x.fa", "a file"),
        ("x.fa/", "a file"),
        ("x.fa/below.zarr", "below the file"),
        ("folder", "thesis.partial"),
        ("run folder", "other contents"),
        ("dangling", "symbolic link to nothing"),
        ("loop", "symbolic links"),
        ("to file", "a file"),
        ("genomes", "other contents"),
        ("genomes/x.zarr", "lies in the input"),
        ("shards/x.zarr", "inside of the store"),
        ("n" * 300, "name too long"),
    ],
)
def test_what_is_not_for_a_store_is_refused_and_left_alone(
    out: str, found: str, run: Run, fasta: Path, tmp_path: Path
) -> None:
    prepare(tmp_path, fasta)
    before = snapshot(tmp_path)
    source = tmp_path / "genomes"
    place = f"{tmp_path}/{out}"
    for start in (
        lambda: stages.run(source, model="fake", out=place),
        lambda: stages.ingest(source, place),
    ):
        with pytest.raises(StoreError, match="(?i)" + found) as caught:
            start()
        assert "choose another --out" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_a_place_without_a_name_is_refused(run: Run, fasta: Path) -> None:
    for out in ("", " ", "a\0b"):
        with pytest.raises(UsageError, match="empty name"):
            stages.run(fasta, model="fake", out=out)


def test_a_store_of_another_kind_is_refused(run: Run, fasta: Path, tmp_path: Path) -> None:
    stages.ingest(fasta, tmp_path / "shards")
    before = snapshot(tmp_path)
    with pytest.raises(StoreError, match="expected a store of format 'bertgeom', found"):
        run("shards")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("place", ["new", "deep/new", "empty", "to empty"])
def test_a_failed_run_takes_back_what_it_made_and_no_more(
    place: str, run: Run, fasta: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "to empty").symlink_to(tmp_path / "empty")
    bad = tmp_path / "bad.fa"
    bad.write_bytes(b">a\nACGT\n\x00\n")
    before = snapshot(tmp_path)
    with pytest.raises(InputError):
        run(place, source=bad)
    assert snapshot(tmp_path) == before
    with pytest.raises(InputError):
        stages.ingest(bad, tmp_path / place)
    assert snapshot(tmp_path) == before


def test_what_another_puts_there_meanwhile_stays(tmp_path: Path) -> None:
    place = Storage(str(tmp_path / "x.zarr"))

    def fail() -> None:
        with claimed(place, root_file.FORMAT) as noted:
            zarr_io.create_root(noted)
            (tmp_path / "x.zarr" / "thesis.txt").write_text("years of work")
            raise StoreError("broken")

    with pytest.raises(StoreError, match="broken"):
        fail()
    assert snapshot(tmp_path / "x.zarr") == {"thesis.txt": b"years of work"}


def test_what_a_killed_start_left_can_be_used(tmp_path: Path, run: Run) -> None:
    """Killed after the lock, or while the first metadata was being written."""
    (tmp_path / "x.zarr" / "run").mkdir(parents=True)
    (tmp_path / "x.zarr" / "run" / "lock").touch()
    (tmp_path / "x.zarr" / "zarr.0123abcd.partial").write_bytes(b"{")
    assert run().complete


def test_a_model_that_is_refused_leaves_nothing(run: Run, encoder: Any, tmp_path: Path) -> None:
    def refuse() -> None:
        raise ModelError("expected an encoder, found a decoder")

    encoder.probe = refuse
    with pytest.raises(ModelError, match="found a decoder"):
        run("deep/x.zarr")
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("url", ["folder", "memory"])
def test_the_loser_touches_nothing(url: str, tmp_path: Path) -> None:
    place = Storage(str(tmp_path / "x") if url == "folder" else f"memory://{tmp_path.name}/x")
    for kind in (root_file.FORMAT, root_file.SEQUENCE_FORMAT):
        here = place.child(kind)
        with claimed(here, kind) as noted:
            noted.write(
                "zarr.json",
                b'{"node_type": "group", "attributes": {"format": "%s", '
                b'"format_version": "1.0", "complete": false}}' % kind.encode(),
            )
            with pytest.raises(StoreError, match="found another one at work"), claimed(here, kind):
                pytest.fail("two at work")
            assert here.exists("zarr.json")
        with claimed(here, kind):
            pass


def test_an_ingest_leaves_no_lock(fasta: Path, tmp_path: Path) -> None:
    stages.ingest(fasta, tmp_path / "shards")
    assert not list(tmp_path.glob("shards/*lock*"))


def test_a_file_system_without_locks_has_a_lease(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import fcntl

    def unsupported(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    place = Storage(str(tmp_path / "y"))
    with claimed(place, root_file.FORMAT):
        assert place.exists("run/lease.json")
        with (
            pytest.raises(StoreError, match="found another one at work"),
            claimed(place, root_file.FORMAT),
        ):
            pytest.fail("two at work")
    assert not place.exists("run/lease.json")


@pytest.mark.parametrize(
    ("age", "host", "void"), [(0, "elsewhere", False), (301, "elsewhere", True), (0, "", True)]
)
def test_a_lease_is_void_when_its_owner_is_gone(
    age: float, host: str, void: bool, tmp_path: Path
) -> None:
    import socket

    place = Storage(f"memory://{tmp_path.name}/lease")
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    facts = {
        "owner": "other",
        "host": host or socket.gethostname(),
        "process": int(gone.stdout),
        "time": time.time() - age,
    }
    place.write("lease.json", json.dumps(facts).encode())
    if void:
        with leases.lease(place, "lease.json"):
            pass
    else:
        with pytest.raises(StoreError, match="on elsewhere"), leases.lease(place, "lease.json"):
            pytest.fail("held by another")


def test_a_lease_that_was_taken_over_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.02)
    place = Storage(f"memory://{tmp_path.name}/taken")

    def lose() -> None:
        with leases.lease(place, "lease.json"):
            facts = json.loads(place.read("lease.json"))
            place.write("lease.json", json.dumps({**facts, "owner": "other"}).encode())
            time.sleep(0.3)

    with pytest.raises(StoreError, match="taken over"):
        lose()
    assert json.loads(place.read("lease.json"))["owner"] == "other"


def test_a_missing_table_is_named_and_nothing_is_made(run: Run, tmp_path: Path) -> None:
    for option in ("labels", "annotations"):
        with pytest.raises(InputError, match=r"missing\.tsv") as caught:
            run(**{option: tmp_path / "missing.tsv"})
        assert "x.zarr" not in str(caught.value)
    assert not (tmp_path / "x.zarr").exists()


def test_a_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.fa").touch()
    with pytest.raises(StoreError, match="found a file"):
        check_place(Storage("~/x.fa"), root_file.FORMAT)


def test_of_two_that_make_one_store_one_wins(root: Path, tmp_path: Path) -> None:
    script = root / "tests" / "helpers" / "races.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "5", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for race in json.loads(done.stdout.splitlines()[-1]):
        lost = [text for text in race["messages"] if text]
        for text in lost:
            assert "at work" in text or "expected bases" in text or "sha256" in text, race
        if len(lost) < 2:
            assert race["records"], race
            assert race["records"][0] == race["records"][1], race
            assert "ingest.lock" not in race["left"], race
        else:
            assert any("expected bases" in text for text in lost), race
            assert set(race["left"]) <= {"run"}, race
