"""Result files: written under a temporary name and renamed, so that no file is ever half written.

Only a file of the same kind, judged by its first bytes, is replaced. Folders, files of other
kinds, inputs of the command and anything inside of a store are rejected.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bertgeom.errors import StoreError, UsageError
from bertgeom.store.storage import explain_write_errors, local_path, reason

#: Ending -> how a file of this kind begins, in lower case; other files are not checked.
_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    ".html": (b"<!doctype html", b"<html"),
    ".json": (b"{", b"["),
    ".parquet": (b"par1",),
    ".gz": (b"\x1f\x8b",),
    ".safetensors": (),
}


@contextmanager
def replacing(
    path: str | Path, *, kind: str | None = None, inputs: Sequence[str | Path] = ()
) -> Iterator[Path]:
    """A temporary name next to `path`, with its endings; renamed to `path` if the block succeeds.

    Args:
        kind: ending that says what may be replaced; default: that of `path`.
        inputs: files and folders that are read: the file must be none of them, nor in one.

    Raises:
        UsageError: as `check_target`. StoreError: if the file cannot be written.
    """
    target = check_target(path, kind=kind, inputs=inputs)
    if target.exists() and not target.is_file():
        # A pipe or /dev/stdout: nothing to rename.
        with explain_write_errors(target):
            yield target
        return
    endings = "".join(target.suffixes[-2:])[-20:]
    draft = target.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.partial{endings}")
    try:
        with _explained(target):
            yield draft
            if not draft.exists():
                raise StoreError(f"{target}: expected a file to be written, found nothing written")
            _flush(draft)
            if target.exists():
                shutil.copymode(target, draft)
            os.replace(draft, target)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_text(
    path: str | Path, text: str, *, kind: str | None = None, inputs: Sequence[str | Path] = ()
) -> None:
    """Write a text file atomically; arguments and errors as `replacing`."""
    with replacing(path, kind=kind, inputs=inputs) as draft:
        draft.write_text(text, "utf-8")


def check_target(
    path: str | Path, *, kind: str | None = None, inputs: Sequence[str | Path] = ()
) -> Path:
    """The file to write, links followed; see `replacing` for the arguments.

    Raises:
        UsageError: for a folder, a file of another kind, an input, a place inside of a store, a
            folder that does not exist, or a file that must not be written.
    """
    shown = str(path)
    if not shown.strip() or "\0" in shown:
        raise UsageError("expected a file to write, found an empty name")
    target = Path(os.path.realpath(local_path(shown)))
    found = None
    try:
        if clash := _clash(target, inputs):
            found = clash
        elif target.is_dir():
            found = "a folder"
        elif not target.parent.is_dir():
            found = f"no folder {target.parent}; make it"
        elif os.path.lexists(target):
            target.stat()
            found = _why_not(target, kind or target.suffix)
        elif not os.access(target.parent, os.W_OK):
            found = f"that the folder {target.parent} is not writable"
        else:
            os.stat(target.parent)
            found = _store_around(target)
    except OSError as error:
        found = reason(error)
    if found is not None:
        raise UsageError(f"{shown}: expected a file to write, found {found}; choose another --out")
    return target


def _clash(target: Path, inputs: Sequence[str | Path]) -> str | None:
    """How an input conflicts with the file to be written, None if it does not."""
    for given in inputs:
        if "://" in str(given):
            continue
        name = str(local_path(str(given)))
        for one in [name, *(glob.glob(name) if glob.has_magic(name) else [])]:
            path = Path(os.path.realpath(one))
            same = path.exists() and target.exists() and path.samefile(target)
            if same or path == target:
                return "an input of this command"
            if path.is_dir() and target.is_relative_to(path):
                return f"a place inside of an input of this command, {one}"
    return None


def _why_not(target: Path, kind: str) -> str | None:
    """Why a file must not be replaced, None if it may."""
    if not os.access(target, os.W_OK):
        return "a file that is not writable"
    if not target.is_file():
        return None
    beginnings = _BEGINNINGS.get(kind)
    if beginnings:
        with target.open("rb") as file:
            head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if head and not head.startswith(beginnings):
            return f"a file there that is no {kind} file"
    return _store_around(target)


def _store_around(target: Path) -> str | None:
    from bertgeom.store import root_file
    from bertgeom.store.storage import Storage

    for parent in target.parents:
        inner = Storage(str(parent))
        with suppress(OSError):
            formats = (root_file.FORMAT, root_file.SEQUENCE_FORMAT)
            if any(root_file.is_store(inner, name) for name in formats):
                return f"a place inside of the store {parent}"
    return None


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Report errors of the draft as errors of the file itself."""
    with explain_write_errors(target):
        try:
            yield
        except OSError as error:
            name = error.filename
            if name is None or ".partial" in os.path.basename(str(name)):
                error.filename = str(target)
            raise


def sync_folder(folder: Path) -> None:
    """Flush all files of a folder to disk, so that a rename then shows complete files."""
    for file in folder.rglob("*"):
        if file.is_file():
            _flush(file)


def _flush(draft: Path) -> None:
    with draft.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def replacing_folder(
    path: str | Path, is_ours: Callable[[Path], bool], *, inputs: Sequence[str | Path] = ()
) -> Iterator[Path]:
    """A temporary folder next to `path`, renamed to `path` if the block succeeds.

    Args:
        is_ours: whether a folder is of the same kind, and may be replaced.
        inputs: files and folders that are read.

    Raises:
        UsageError: as `check_folder`. StoreError: if it cannot be written.
    """
    target = check_folder(path, is_ours, inputs=inputs)
    draft, old = (
        target.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.partial") for _ in range(2)
    )
    try:
        with _explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            draft.mkdir()
            yield draft
            sync_folder(draft)
            if target.exists():
                target.rename(old)
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def check_folder(
    path: str | Path, is_ours: Callable[[Path], bool], *, inputs: Sequence[str | Path] = ()
) -> Path:
    """The folder to write, links followed; see `replacing_folder` for the arguments.

    Raises:
        UsageError: for a file, a folder that is neither empty nor of this kind, a place inside of
            a store, or a place that is, holds or lies in an input.
    """
    target = Path(os.path.realpath(local_path(str(path))))
    found = _clash(target, inputs) or _store_around(target / "x")
    if any(Path(os.path.realpath(one)).is_relative_to(target) for one in map(str, inputs)):
        found = found or "a folder that holds an input of this command"
    elif os.path.lexists(target) and not target.is_dir():
        found = "a file"
    elif target.is_dir() and any(target.iterdir()) and not is_ours(target):
        found = "a folder with other contents"
    if found is not None:
        raise UsageError(
            f"{path}: expected a new folder or one of the same kind, found {found}; choose "
            "another --out"
        )
    return target


@contextmanager
def system_errors() -> Iterator[None]:
    """Raise system errors that safetensors reports (a full disk, no access) as OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code)) from error
