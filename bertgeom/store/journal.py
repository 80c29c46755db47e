"""A list of everything that a process creates, so that it can undo exactly that."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock

#: Ending of files that are being written, or were when a process was killed.
PARTIAL = ".partial"
#: Names of such files: NAME.PROCESS.partial of this package, NAME.HEX.partial of zarr.
DRAFT = re.compile(r".+\.[0-9a-f]+\.partial")
#: Seconds to wait for writes that continue in threads after a failure.
_PAUSES = (0.0, 0.1, 0.3, 0.6)


class Journal:
    """Folders, files and objects that were not there before this process made them."""

    def __init__(self) -> None:
        self._paths: dict[Path, None] = {}
        self._objects: dict[tuple[str, str], Callable[[], None]] = {}
        self._lock = Lock()
        self._closed = self._void = False

    def close(self) -> None:
        """Keep everything from now on."""
        with self._lock:
            self._closed = True
            self._paths.clear()
            self._objects.clear()

    def make_folder(self, folder: Path) -> None:
        """Make a folder and its parents; notes those that this call has made."""
        missing = []
        here = folder
        while not os.path.lexists(here):
            missing.append(here)
            here = here.parent
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir()
                self._add(path)

    def note_path(self, path: Path) -> None:
        """A local file is about to be written: note it if it is not there yet."""
        if not self._is_closed():
            self.make_folder(path.parent)
            if not os.path.lexists(path):
                self._add(path)

    def note_object(self, url: str, key: str, remove: Callable[[], None]) -> None:
        """An object is about to be written to a place that was empty before."""
        if not self._is_closed():
            with self._lock:
                self._objects[url, key] = remove

    def take_back(self) -> None:
        """Delete what was noted, one by one. What cannot be deleted stays; no error is raised."""
        with self._lock:
            paths, objects = list(self._paths), dict(self._objects)
            self._closed = self._void = True
        for pause in _PAUSES:
            time.sleep(pause)
            for path in reversed(paths):
                _delete(path)
            if not any(os.path.lexists(path) for path in paths):
                break
        for remove in reversed(objects.values()):
            with suppress(Exception):
                remove()

    def _is_closed(self) -> bool:
        # Other writes may still run in threads after a failed one; they must not start now.
        if self._void:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        return self._closed

    def _add(self, path: Path) -> None:
        with self._lock:
            if not self._closed:
                self._paths[path] = None


def _delete(path: Path) -> None:
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        for inner in path.iterdir():
            if DRAFT.fullmatch(inner.name):
                inner.unlink(missing_ok=True)
        path.rmdir()
