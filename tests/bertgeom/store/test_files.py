"""Result files are there whole or not at all, whatever ends the writing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bertgeom.errors import StoreError, UsageError
from bertgeom.store import files
from bertgeom.store.files import replacing, replacing_folder, write_text

FAULTS: dict[str, Callable[[], BaseException]] = {
    "full disk": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "broken disk": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "interrupt": KeyboardInterrupt,
    "fault of the program": lambda: KeyError("bug"),
}
#: Where it strikes: in the block, when the draft goes to disk, when it gets its name.
MOMENTS = ("write", "fsync", "replace")


@pytest.fixture(params=[None, "{}\n"], ids=["new", "there before"])
def old(request: pytest.FixtureRequest) -> str | None:
    """What lay there before."""
    return request.param


def strike(monkeypatch: pytest.MonkeyPatch, moment: str, fault: BaseException) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise fault

    if moment == "write":
        monkeypatch.setattr(Path, "write_text", fail)
    else:
        monkeypatch.setattr(files.os, moment, fail)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_fails_leaves_the_old_one_and_no_draft(
    name: str, moment: str, old: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fault = tmp_path / "x.json", FAULTS[name]()
    if old is not None:
        path.write_text(old)
    with monkeypatch.context() as patch:
        strike(patch, moment, fault)
        expected = StoreError if isinstance(fault, OSError) else type(fault)
        with pytest.raises(expected) as caught:
            write_text(path, '{"new": 1}\n')
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["x.json"])
    assert old is None or path.read_text() == old
    if isinstance(fault, OSError):
        text = str(caught.value)
        assert str(path) in text
        assert ".partial" not in text
        assert os.strerror(fault.errno or 0) in text
        assert "\n" not in text
    write_text(path, '{"new": 1}\n')
    assert path.read_text() == '{"new": 1}\n'


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_that_fails_leaves_the_old_one_and_no_draft(
    name: str, old: str | None, tmp_path: Path
) -> None:
    path, fault = tmp_path / "x", FAULTS[name]()
    if old is not None:
        path.mkdir()
        (path / "mine").write_text(old)

    def write(error: BaseException | None) -> None:
        with replacing_folder(path, lambda folder: (folder / "mine").exists()) as draft:
            (draft / "mine").write_text("new")
            if error is not None:
                raise error

    with pytest.raises(StoreError if isinstance(fault, OSError) else type(fault)):
        write(fault)
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["x"])
    assert old is None or (path / "mine").read_text() == old
    write(None)
    assert (path / "mine").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("nth", [1, 2])
def test_a_folder_that_cannot_get_its_name_keeps_the_old_one(
    nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.mkdir()
    (path / "mine").write_text("old")
    rename, calls = Path.rename, []

    def fail(self: Path, target: Path) -> Path:
        calls.append(1)
        if len(calls) == nth:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StoreError), replacing_folder(path, lambda folder: True) as draft:
        (draft / "mine").write_text("new")
    assert (path / "mine").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match=r"x\.json: expected .* found nothing written"),
        replacing(tmp_path / "x.json"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["itself", "link", "hard link", "other spelling"])
def test_an_input_is_never_replaced(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.tsv", tmp_path / "out.tsv"
    source.write_text("a\tb\n")
    if kind == "itself":
        out = source
    elif kind == "link":
        out.symlink_to(source)
    elif kind == "hard link":
        out.hardlink_to(source)
    else:
        monkeypatch.chdir(tmp_path)
        out = Path("./in.tsv")
    with pytest.raises(UsageError, match="an input of this command"):
        write_text(out, "new\n", inputs=[source])
    assert source.read_text() == "a\tb\n"


def test_a_file_inside_of_an_input_is_never_replaced(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="inside of an input"):
        write_text(model / "config.json", "{}", inputs=[model])
    with (
        pytest.raises(UsageError, match="an input of this command"),
        replacing_folder(model, lambda folder: True, inputs=[model]),
    ):
        pass
    assert (model / "config.json").read_text() == "{}"
