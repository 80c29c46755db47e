"""Named bytes under a folder or an fsspec URL: records, spools, run history.

A record must be there whole or not at all. In a local folder it is written beside its place
and renamed; on an object store a single PUT is atomic already. Short failures of a remote
store are tried again; a full or read-only place is not.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bertgeom.errors import StoreError

T = TypeVar("T")

#: Ending of files that were being written; what is left of a killed write.
PARTIAL = ".partial"
_HOPELESS = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENOENT}
_ATTEMPTS = 4
_FIRST_PAUSE = 0.2


@dataclass(frozen=True)
class Storage:
    """A root folder or URL. Keys are relative paths with `/`.

    Attributes:
        url: as the user gave it: a path, `file://...`, `s3://...`, `memory://...`
    """

    url: str

    @property
    def folder(self) -> Path | None:
        """The local folder, None for a remote place."""
        if "://" not in self.url:
            return Path(self.url)
        scheme, _, path = self.url.partition("://")
        return Path(path) if scheme in ("file", "local") else None

    def child(self, key: str) -> Storage:
        """The storage one level down."""
        return Storage(f"{self.url.rstrip('/')}/{key}")

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes start..stop of `key`.

        Raises:
            FileNotFoundError: where there is none.
        """
        if self.folder is not None:
            with (self.folder / key).open("rb") as file:
                file.seek(start)
                return file.read(-1 if stop is None else stop - start)
        path = self._remote_path(key)
        return patiently(lambda: self._remote().cat_file(path, start=start, end=stop))

    def write(self, key: str, data: bytes) -> None:
        """Put `data` at `key`, whole or not at all."""
        if self.folder is None:
            patiently(lambda: self._remote().pipe_file(self._remote_path(key), data))
            return
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def append(self, key: str, text: str) -> None:
        """Add `text` to the end of `key`; one writer at a time."""
        if self.folder is not None:
            path = self.folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
            return
        old = self.read(key) if self.exists(key) else b""
        self.write(key, old + text.encode())

    def exists(self, key: str) -> bool:
        """Whether there is a file or folder `key`."""
        if self.folder is not None:
            return (self.folder / key).exists()
        return patiently(lambda: self._remote().exists(self._remote_path(key)))

    def names(self, prefix: str) -> list[str]:
        """Names directly under `prefix`, sorted; unfinished files are left out."""
        if self.folder is not None:
            folder = self.folder / prefix
            found = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        else:
            found = [Path(key).name for key in self._listing(prefix)]
        return sorted(name for name in found if not name.endswith(PARTIAL))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below, by key; unfinished files too."""
        if self.folder is None:
            root = self._remote_path("")
            found = patiently(lambda: self._remote().find(root, detail=True))
            return {
                path.removeprefix(f"{root}/"): int(about["size"]) for path, about in found.items()
            }
        sizes = {}
        for folder, _, names in os.walk(self.folder):
            place = Path(folder)
            for name in names:
                path = place / name
                with suppress(FileNotFoundError):
                    sizes[path.relative_to(self.folder).as_posix()] = path.lstat().st_size
        return sizes

    def remove(self, key: str) -> None:
        """Delete the file or folder `key`; nothing happens where there is none."""
        if self.folder is not None:
            path = self.folder / key if key else self.folder
            if path.is_dir():
                _remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        elif self.exists(key):
            patiently(lambda: self._remote().rm(self._remote_path(key), recursive=True))

    def sweep(self) -> None:
        """Delete what killed writers left. Only while nobody else writes."""
        if self.folder is not None:
            for path in self.folder.rglob(f"*{PARTIAL}"):
                path.unlink(missing_ok=True)

    def _listing(self, prefix: str) -> list[str]:
        try:
            return patiently(lambda: self._remote().ls(self._remote_path(prefix), detail=False))
        except FileNotFoundError:
            return []

    def _remote(self) -> Any:
        from fsspec.core import url_to_fs

        filesystem = url_to_fs(self.url)[0]
        filesystem.invalidate_cache()
        return filesystem

    def _remote_path(self, key: str) -> str:
        from fsspec.core import url_to_fs

        root = url_to_fs(self.url)[1].rstrip("/")
        return f"{root}/{key}" if key else root


def _remove_tree(path: Path) -> None:
    """Delete a folder. A write that failed may still be finishing its neighbours in threads."""
    for attempt in range(_ATTEMPTS):
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_FIRST_PAUSE * 2**attempt)
        if not path.exists():
            return


def patiently(action: Callable[[], T]) -> T:
    """The result of `action`, tried up to four times with growing pauses.

    A missing file, a full disk and a forbidden place are reported at once.
    """
    pause = _FIRST_PAUSE
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except (OSError, TimeoutError) as error:
            hopeless = isinstance(error, FileNotFoundError) or error.errno in _HOPELESS
            if hopeless or attempt == _ATTEMPTS - 1:
                raise
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn a failure to write into one line that says how to go on.

    Raises:
        StoreError: for any OSError of the block.
    """
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "free some space",
            errno.EROFS: "make the folder writable or choose another --out",
            errno.EACCES: "make the folder writable or choose another --out",
            errno.EPERM: "make the folder writable or choose another --out",
        }.get(error.errno or 0, "mend the cause")
        reason = error.strerror or str(error) or type(error).__name__
        raise StoreError(
            f"expected to write {what}, found: {reason}; {remedy} and give the same command "
            "again, finished work is kept"
        ) from error
