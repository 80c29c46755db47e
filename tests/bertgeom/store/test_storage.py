"""Named bytes: whole or not at all, patient with remote stores, frank about full disks."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from bertgeom.errors import InputError, StoreError
from bertgeom.store import storage as module
from bertgeom.store.journal import Journal
from bertgeom.store.storage import (
    PARTIAL,
    Storage,
    explain_write_errors,
    shown_url,
    with_retries,
    without_secrets,
)


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "root"))
    return Storage(f"memory://{tmp_path.name}/root")


def test_what_was_written_is_read(storage: Storage) -> None:
    storage.write("a/b", b"0123456789")
    assert storage.read("a/b") == b"0123456789"
    assert storage.read("a/b", 2, 5) == b"234"
    assert storage.read("a/b", 8) == b"89"
    storage.write("a/b", b"new")
    assert storage.read("a/b") == b"new"
    assert storage.exists("a/b")
    assert not storage.exists("a"), "a folder is no file"
    assert not storage.exists("a/c")


def test_names_are_sorted_and_leave_out_unfinished_files(storage: Storage) -> None:
    for key in ("d/b", "d/a", f"d/c.1{PARTIAL}"):
        storage.write(key, b"x")
    assert storage.names("d") == ["a", "b"]
    assert storage.names("nothing") == []


def test_append_makes_lines_and_remove_takes_files_and_folders(storage: Storage) -> None:
    storage.append("log", "one\n")
    storage.append("log", "two\n")
    assert storage.read("log") == b"one\ntwo\n"
    storage.write("d/e/f", b"x")
    storage.remove("d")
    storage.remove("log")
    storage.remove("never there")
    assert not storage.exists("d")
    assert not storage.exists("log")


def test_a_missing_key_is_file_not_found(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")


def test_a_child_lies_below(storage: Storage) -> None:
    storage.child("inner").write("key", b"x")
    assert storage.read("inner/key") == b"x"


def test_a_failed_write_leaves_the_old_bytes_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write("key", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        storage.write("key", b"new")
    assert storage.read("key") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_sweep_takes_only_what_killed_writers_left(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a/key", b"x")
    (tmp_path / "a" / f"0.4711{PARTIAL}").write_bytes(b"torn")
    storage.sweep()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["key"]


def test_a_failed_request_does_not_mean_that_there_is_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    storage = Storage(f"memory://{tmp_path.name}/root")
    storage.write("a", b"x")
    plain, failures = MemoryFileSystem.info, [ConnectionError("reset by peer")]

    def info(self: MemoryFileSystem, path: str, **options: object) -> object:
        if failures:
            raise failures.pop()
        return plain(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "info", info)
    assert storage.exists("a")
    assert failures == []


def test_short_failures_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    calls = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError(errno.ECONNRESET, "connection reset")
        return "done"

    assert with_retries(flaky, "s3://b/x") == "done"
    assert len(calls) == 3


def test_a_place_that_stays_silent_is_one_line_after_the_stated_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.1)
    calls = []

    def broken() -> None:
        calls.append(1)
        raise OSError(errno.EIO, "500 Internal Server Error at https://me:pw@host/x?token=secret")

    with pytest.raises(StoreError, match=r"s3://b/x: expected an answer within") as caught:
        with_retries(broken, "s3://b/x")
    assert len(calls) > 2
    assert "https://host/x" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "pw" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [FileNotFoundError("x"), FileExistsError("x"), KeyError("bug")])
def test_an_answer_is_not_asked_for_again(error: Exception) -> None:
    calls = []

    def answer() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        with_retries(answer, "s3://b/x")
    assert len(calls) == 1


def test_a_forbidden_place_is_reported_at_once() -> None:
    def forbidden() -> None:
        raise PermissionError(errno.EACCES, "Forbidden")

    with pytest.raises(
        StoreError, match=r"s3://b/x: expected access.*Forbidden; check the address"
    ):
        with_retries(forbidden, "s3://b/x")


def test_urls_are_shown_without_secrets() -> None:
    assert shown_url("https://me:pw@host:80/a/b.fa?sig=1#x") == "https://host:80/a/b.fa"
    assert shown_url("s3://key:secret@bucket/a") == "s3://bucket/a"
    assert shown_url("zip://a.fa::https://me@h/x.zip?t=1") == "zip://a.fa::https://h/x.zip"
    assert shown_url("/tmp/a#b?c@d") == "/tmp/a#b?c@d"
    assert without_secrets("at 'https://u:p@h/x?y' and tcp://u:p@h:1") == (
        "at 'https://h/x' and tcp://h:1"
    )


def test_a_draft_of_somebody_else_is_seen_and_never_swept(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (tmp_path / "thesis.partial").write_text("years of work")
    storage.sweep()
    assert storage.names("") == ["thesis.partial"]


def test_a_name_is_taken_once(storage: Storage) -> None:
    assert storage.create("lock", b"first")
    assert not storage.create("lock", b"second")
    assert storage.read("lock") == b"first"


def test_what_was_made_is_taken_back_and_nothing_else(storage: Storage) -> None:
    storage.write("theirs/a", b"x")
    journal = Journal()
    noted = Storage(storage.url, journal)
    noted.write("ours/deep/b", b"x")
    noted.write("theirs/c", b"x")
    if storage.folder is not None:
        noted.write("theirs/a", b"y")
    storage.write("ours/d", b"x")
    journal.take_back()
    assert not storage.exists("ours/deep")
    assert storage.exists("ours/d")
    assert storage.names("theirs") == ["a"]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "choose another --out"),
        (errno.EACCES, "make the folder writable"),
        (errno.EIO, "fix the cause"),
    ],
)
def test_a_failure_to_write_is_one_line_with_a_remedy(code: int, remedy: str) -> None:
    with pytest.raises(StoreError) as caught, explain_write_errors("x.zarr"):
        raise OSError(code, "reason of the system")
    text = str(caught.value)
    assert "x.zarr" in text
    assert "reason of the system" in text
    assert remedy in text
    assert "give the same command again" in text
    assert "\n" not in text


def test_a_file_elsewhere_is_named_as_the_culprit(tmp_path: Path) -> None:
    missing = tmp_path / "labels.tsv"
    with (
        pytest.raises(InputError, match=r"labels\.tsv: expected a file that can be read") as caught,
        explain_write_errors(tmp_path / "x.zarr"),
    ):
        missing.read_text()
    assert "x.zarr" not in str(caught.value)
