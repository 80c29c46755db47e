"""Files under a folder or an fsspec URL, written atomically: records, spools, run history.

In a local folder a file is written under a temporary name and renamed; on an object store a single
PUT is already atomic. Failed requests to a remote store are retried for `RETRY_SECONDS`; a full or
read-only file system is reported at once.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bertgeom.errors import BertgeomError, InputError, StoreError, UsageError
from bertgeom.store.journal import DRAFT, PARTIAL, Journal
from bertgeom.urls import shown_url, without_secrets

__all__ = [
    "PARTIAL",
    "Storage",
    "explain_write_errors",
    "filesystem",
    "is_temporary",
    "shown_url",
    "with_retries",
    "with_retries_async",
    "without_secrets",
]

T = TypeVar("T")
_LOG = logging.getLogger("bertgeom.store")

#: Failed remote requests are retried for this many seconds, with growing pauses.
RETRY_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_IN_THE_WAY = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
_HOPELESS = _FULL | _FORBIDDEN | {errno.ENOENT}
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
#: Client libraries below fsspec whose own exceptions mean that a remote store did not answer.
_CLIENTS = {"aiohttp", "aiobotocore", "azure", "botocore", "gcsfs", "google", "requests", "urllib3"}
#: HTTP status codes from 400 to 499 that are worth a retry.
_PASSING_STATUS = {408, 425, 429}
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3"}


@dataclass(frozen=True)
class Storage:
    """A root folder or URL. Keys are relative paths with `/`.

    Attributes:
        url: as the user gave it: a path, `file://...`, `s3://...`, `memory://...`
        journal: notes what is created, None if nothing will be undone.
    """

    url: str
    journal: Journal | None = field(default=None, compare=False, repr=False)

    @property
    def folder(self) -> Path | None:
        """The local folder, None for a remote store."""
        if "://" not in self.url and "::" not in self.url:
            return local_path(self.url)
        scheme, _, path = self.url.partition("://")
        return Path(path) if scheme in ("file", "local") else None

    @property
    def shown(self) -> str:
        """The URL for messages and attributes: without user info, query and fragment."""
        return shown_url(self.url)

    def child(self, key: str) -> Storage:
        """The storage one level down."""
        return Storage(f"{self.url.rstrip('/')}/{key}", self.journal)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes start..stop of `key`.

        Raises:
            FileNotFoundError: if there is no file of that name, or if it is a folder.
        """
        if self.folder is not None:
            path = self.folder / key
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    return file.read(-1 if stop is None else stop - start)
            except (IsADirectoryError, NotADirectoryError) as error:
                raise FileNotFoundError(errno.ENOENT, "no file there", str(path)) from error
        data = self._asked(lambda fs, path: fs.cat_file(path, start=start, end=stop), key)
        return bytes(data)

    def write(self, key: str, data: bytes) -> None:
        """Write `data` to `key` atomically."""
        self.note(key)
        if self.folder is None:
            self._asked(lambda fs, path: fs.pipe_file(path, data), key)
            return
        path = self.folder / key
        draft = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                make_way(path)
                draft.replace(path)
            except BaseException:
                with suppress(OSError):
                    draft.unlink(missing_ok=True)
                raise

    def create(self, key: str, data: bytes) -> bool:
        """Write `data` to `key` unless it exists; returns whether this call wrote it.

        Raises:
            NotImplementedError: for a file system without exclusive writes.
        """
        self.note(key)
        if self.folder is None:
            try:
                self._asked(lambda fs, path: fs.pipe_file(path, data, mode="create"), key)
            except FileExistsError:
                # A retry may find what its first attempt has written.
                return self.read(key) == data
            except (TypeError, ValueError) as error:
                raise NotImplementedError(f"{self.shown}: no exclusive writes") from error
            return True
        path = self.folder / key
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                return False
        return True

    def append(self, key: str, text: str) -> None:
        """Add `text` to the end of `key`; one writer at a time."""
        self.note(key)
        if self.folder is not None:
            path = self.folder / key
            with naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(text)
            return
        old = self.read(key) if self.exists(key) else b""
        self.write(key, old + text.encode())

    def exists(self, key: str) -> bool:
        """Whether there is a file `key`; a folder does not count."""
        if self.folder is not None:
            return (self.folder / key).is_file()
        return self._asked(_is_file, key)

    def names(self, prefix: str, drafts: bool = False) -> list[str]:
        """Names directly under `prefix`, sorted; unfinished files only if `drafts`."""
        if self.folder is not None:
            folder = self.folder / prefix
            found = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        else:
            found = [Path(key).name for key in self._listing(prefix)]
        return sorted(name for name in found if drafts or not DRAFT.fullmatch(name))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below, by key; unfinished files too."""
        if self.folder is None:
            return self._asked(_sizes_below, "")
        # Plain strings: thousands of paths as objects cost more than the system's answers.
        sizes, start = {}, len(os.path.join(self.folder, ""))
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)
                with suppress(FileNotFoundError):
                    sizes[path[start:]] = os.lstat(path).st_size
        return sizes

    def remove(self, key: str) -> None:
        """Delete the file or folder `key`; nothing happens if there is none."""
        if self.folder is not None:
            path = self.folder / key if key else self.folder
            with naming(path):
                if path.is_dir() and not path.is_symlink():
                    _remove_tree(path)
                else:
                    path.unlink(missing_ok=True)
        else:
            # A retry may find that its first attempt has deleted it.
            with suppress(FileNotFoundError):
                self._asked(lambda fs, path: fs.rm(path, recursive=True), key)

    def prune(self) -> None:
        """Delete the empty folders below; an object store has none."""
        if self.folder is not None:
            for folder, _, _ in os.walk(self.folder, topdown=False):
                with suppress(OSError):
                    os.rmdir(folder)

    def sweep(self) -> None:
        """Delete the drafts of killed writers. Call it only while nobody else writes."""
        if self.folder is not None:
            for path in self.folder.rglob(f"*{PARTIAL}"):
                if DRAFT.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def note(self, key: str) -> None:
        """Tell the journal that `key` is about to be written."""
        if self.journal is None:
            return
        if self.folder is not None:
            self.journal.note_path(self.folder / key)
        else:
            self.journal.note_object(self.url, key, partial(self.remove, key))

    def _listing(self, prefix: str) -> list[str]:
        try:
            return self._asked(lambda fs, path: fs.ls(path, detail=False), prefix)
        except FileNotFoundError:
            return []

    def _asked(self, action: Callable[[Any, str], T], key: str) -> T:
        """The result of `action(file system, path of key)` on a remote store, with retries."""
        system, root = filesystem(self.url)
        root = root.rstrip("/")
        path = f"{root}/{key}" if key else root

        def ask() -> T:
            system.invalidate_cache()
            return action(system, path)

        return with_retries(ask, self.shown)


def local_path(text: str) -> Path:
    """A path; a leading `~` is the home folder, which shells do not expand after `--out=`."""
    if text == "~" or text.startswith("~/"):
        return Path(text).expanduser()
    return Path(text)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        UsageError: for an unknown scheme, or if the package for it is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(url)
        return system, root
    except ImportError as error:
        scheme = url.rpartition("::")[2].partition("://")[0]
        extra = _EXTRAS.get(scheme)
        remedy = f"pip install 'bertgeom[{extra}]'" if extra else _short(error)
        raise UsageError(
            f"{shown_url(url)}: expected the package that fsspec needs for {scheme}://, found it "
            f"missing; {remedy}"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{shown_url(url)}: expected a URL that fsspec understands, found: {_short(error)}; "
            "check the scheme before ://"
        ) from error


def _is_file(system: Any, path: str) -> bool:
    """Whether a remote path is a file. fsspec's `isfile` says no where a request has failed."""
    try:
        return bool(system.info(path)["type"] == "file")
    except FileNotFoundError:
        return False


def _sizes_below(system: Any, root: str) -> dict[str, int]:
    found = system.find(root, detail=True)
    return {path.removeprefix(f"{root}/"): int(about["size"]) for path, about in found.items()}


def is_temporary(error: BaseException) -> bool:
    """Whether a failure of a remote request is temporary, and worth a retry."""
    if isinstance(error, (*_FINAL, BertgeomError)):
        return False
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in _PASSING_STATUS
    if isinstance(error, OSError):
        return error.errno not in _HOPELESS
    client = type(error).__module__.partition(".")[0] in _CLIENTS
    return client and not re.search("Credential|Validation|Auth", type(error).__name__)


class _Retries:
    """When to retry a remote request, and when to give up."""

    def __init__(self, place: str) -> None:
        self._place, self._pause = place, _FIRST_PAUSE
        self._begin = time.monotonic()

    def pause(self, error: Exception) -> float:
        """Seconds to wait after a failure.

        Raises:
            StoreError: if the time is up, or access is refused. The error itself, if it is a
                valid answer: no such key, or a key that exists.
        """
        if not is_temporary(error):
            if _is_answer(error):
                raise error
            raise StoreError(
                f"{self._place}: expected access to this place, found: {_short(error)}; check the "
                "address and the credentials and give the same command again"
            ) from error
        spent = time.monotonic() - self._begin
        if spent >= RETRY_SECONDS:
            raise StoreError(
                f"{self._place}: expected an answer within {RETRY_SECONDS:.0f} s, found: "
                f"{_short(error)}; check the address and the network and give the same command "
                "again, finished work is kept"
            ) from error
        pause = min(self._pause, max(0.0, RETRY_SECONDS - spent))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        _LOG.info("%s: %s; again in %.1f s", self._place, _short(error), pause)
        return pause


def _is_answer(error: Exception) -> bool:
    """Whether the error is about a key or a bug of the program, not a failure of the store."""
    if isinstance(error, PermissionError):
        return False
    known = isinstance(error, OSError) or getattr(error, "status", None) is not None
    client = type(error).__module__.partition(".")[0] in _CLIENTS
    return isinstance(error, _FINAL) or not (known or client)


def with_retries(action: Callable[[], T], place: str) -> T:
    """The result of `action` on a remote store, retried for `RETRY_SECONDS`.

    Args:
        place: the URL for the message, without secrets.

    Raises:
        StoreError: if the store does not answer in time, or refuses access.
        FileNotFoundError, FileExistsError: as `action` does, at once.
    """
    retries = _Retries(place)
    while True:
        try:
            return action()
        except Exception as error:
            pause = retries.pause(error)
        time.sleep(pause)


async def with_retries_async(action: Callable[[], Awaitable[T]], place: str) -> T:
    """`with_retries` for coroutines."""
    # Whoever awaits this has asyncio; commands that read local files alone need it not.
    import asyncio

    retries = _Retries(place)
    while True:
        try:
            return await action()
        except Exception as error:
            pause = retries.pause(error)
        await asyncio.sleep(pause)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Set the file name in an OSError that has none, or that has the name of the draft."""
    try:
        yield
    except OSError as error:
        if error.filename is None or DRAFT.fullmatch(Path(str(error.filename)).name):
            error.filename = str(path)
        raise


@contextmanager
def explain_write_errors(place: str | Path, what: str | None = None) -> Iterator[None]:
    """Turn a failure to write to `place` into a one-line error with the remedy.

    Args:
        place: folder, file or URL that the block writes to. what: its name in the message.

    Raises:
        StoreError: for an OSError at `place`.
        InputError: for an OSError at a file that lies elsewhere; names it.
    """
    try:
        yield
    except OSError as error:
        found = reason(error)
        if _is_elsewhere(error, str(place)):
            raise InputError(
                "a file that can be read",
                found,
                source=shown_url(str(error.filename)),
                remedy="check the path and the permissions",
            ) from error
        code = error.errno or 0
        remedy = "fix the cause"
        if code in _FULL:
            remedy = "free some space"
        elif code in _FORBIDDEN:
            remedy = "make the folder writable or choose another --out"
        elif code == errno.ENAMETOOLONG:
            remedy = "choose a shorter --out"
        elif code in _IN_THE_WAY and error.filename is not None:
            remedy = f"move {shown_url(str(error.filename))} away"
        raise StoreError(
            f"expected to write {what or shown_url(str(place))}, found: {found}; {remedy} and give "
            "the same command again, finished work is kept"
        ) from error


def reason(error: BaseException) -> str:
    """What an error says, on one line and without secrets."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return without_secrets(" ".join(str(text).split()))


def _short(error: BaseException) -> str:
    text = reason(error)
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"


def _is_elsewhere(error: OSError, place: str) -> bool:
    """Whether an error names a file outside of `place`."""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    folder = Storage(place).folder
    if folder is None:
        return "://" not in str(error.filename)
    there, here = Path(os.path.abspath(error.filename)), Path(os.path.abspath(folder))
    # A parent folder that is not writable concerns this place, too.
    return not (there.is_relative_to(here) or here.is_relative_to(there))


def make_way(path: Path) -> None:
    """Delete an empty folder that has the name of a file; one with contents stays."""
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):
            path.rmdir()


def _remove_tree(path: Path) -> None:
    """Delete a folder, with retries: threads of a failed write may still be writing into it."""
    import shutil

    for pause in (0.2, 0.4, 0.8, None):
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or pause is None:
                raise
            time.sleep(pause)
        if not path.exists():
            return
