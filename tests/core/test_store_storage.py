"""Named bytes: whole or not at all, patient with remote stores, frank about full disks."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from bertgeom import storage as module
from bertgeom.errors import StoreError
from bertgeom.storage import PARTIAL, Storage, patiently, writing


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
    assert storage.exists("a")
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


def test_short_failures_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    calls = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError(errno.ECONNRESET, "connection reset")
        return "done"

    assert patiently(flaky) == "done"
    assert len(calls) == 3


def test_lasting_and_hopeless_failures_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    for code, attempts in ((errno.ECONNRESET, 4), (errno.ENOSPC, 1), (errno.EROFS, 1)):
        calls = []

        def broken(code: int = code, calls: list[int] = calls) -> None:
            calls.append(1)
            raise OSError(code, "broken")

        with pytest.raises(OSError, match="broken"):
            patiently(broken)
        assert len(calls) == attempts


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "choose another --out"),
        (errno.EACCES, "make the folder writable"),
        (errno.EIO, "mend the cause"),
    ],
)
def test_a_failure_to_write_is_one_line_with_a_remedy(code: int, remedy: str) -> None:
    with pytest.raises(StoreError) as caught, writing("x.zarr"):
        raise OSError(code, "reason of the system")
    text = str(caught.value)
    assert "x.zarr" in text
    assert "reason of the system" in text
    assert remedy in text
    assert "give the same command again" in text
    assert "\n" not in text
