"""The disk cache of compiled functions: where they are stored, and when they are reused.

One file holds one compiled signature. Its name is a hash of everything that decides the machine
code, so one name always means the same code, and there is no index that can be damaged.
The file begins with a checksum; a damaged file is compiled again.

The folder belongs to the user, not to an installation: `bertgeom/kernels-STAMP` in the user's cache
folder, or below `NUMBA_CACHE_DIR`. Every environment with the same sources finds the code there,
and so do the workers of a cluster that share a home or that folder; the CPU is part of the names.
The folders of other sources are deleted when they have not been used for a month.

Failures of the cache never stop a computation. If no usual folder is writable, code is stored in a
private folder of the system's temporary directory; if that fails too, it stays in memory.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    _CacheLocator,
    _SourceFileBackedLocatorMixin,
)
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

_LOG = logging.getLogger("bertgeom.kernels")
#: Of its own, so that a command line can show it and leave the rest alone.
_COMPILING = logging.getLogger("bertgeom.kernels.compiling")
_DAYS = 30
_REMEDY = "set NUMBA_CACHE_DIR to a folder that can be written"
_DIGEST_BYTES = 32


def keep_on_disk(dispatcher: Any, function: Callable[..., Any]) -> None:
    """Make a compiled function load its machine code from disk, and store it there."""
    try:
        dispatcher._cache = _Cache(function)
    except (OSError, RuntimeError) as error:
        _warn_once(f"compiled code is kept only in memory ({error}); {_REMEDY}")


@functools.cache
def source_stamp(folder: Path) -> str:
    """Digest of the sources that compiled code depends on: of a folder and of all of `kernels`.

    Numba itself checks only the file of a function, and misses changes of the functions that it
    calls and of constants from other files.
    """
    digest = hashlib.sha256()
    kernels = Path(__file__).parents[1]
    sources = [(kernels, kernels.rglob("*.py"))]
    if not folder.is_relative_to(kernels):
        sources.append((folder, folder.glob("*.py")))
    for of, paths in sources:
        for path in sorted(paths):
            # By its path below the folder: the same tree in another place has the same code.
            source = path.read_bytes()
            digest.update(f"{path.relative_to(of)}\0{len(source)}\0".encode())
            digest.update(source)
    return digest.hexdigest()


@functools.cache
def _warn_once(text: str) -> None:
    # A warning, not a log record: those are silent until a program asks for them.
    warnings.warn(text, RuntimeWarning, stacklevel=2)


@functools.cache
def _private_folder() -> str:
    """A folder in the temporary directory that nobody else can write to.

    All processes of a user share it, unless something else has that name.

    Raises:
        OSError: if none can be made.
    """
    path = os.path.join(tempfile.gettempdir(), f"bertgeom-compiled-{_user()}")
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        found = os.lstat(path)
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == _user()
        if not own or stat.S_IMODE(found.st_mode) & 0o077:
            path = tempfile.mkdtemp(prefix="bertgeom-compiled-")
    _warn_once(f"no cache folder can be written, compiled code goes to {path}; {_REMEDY}")
    return path


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def shared_folder(stamp: str) -> Path:
    """Where all environments of this user, or all that share `NUMBA_CACHE_DIR`, keep code."""
    base = config.CACHE_DIR or os.path.join(AppDirs("bertgeom", appauthor=False).user_cache_dir)
    return Path(base, f"kernels-{stamp[:16]}")


@functools.cache
def _used(folder: Path) -> None:
    """Mark a folder as used, and delete those beside it that nobody has used for a month."""
    oldest = time.time() - _DAYS * 86400
    try:
        os.utime(folder)
        for other in folder.parent.glob("kernels-*"):
            if other.stat().st_mtime < oldest:
                shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        _LOG.debug("old compiled code is not looked for: %s", error)


@functools.cache
def _say_compiling() -> None:
    _COMPILING.info("compiling the CPU kernels for this machine, once: a minute or two")


class _SharedLocator(_SourceFileBackedLocatorMixin, _CacheLocator):
    """The folder of `shared_folder`."""

    def __init__(self, function: Any, file: str) -> None:
        self._py_file = file
        self._lineno = function.__code__.co_firstlineno
        self._folder = shared_folder(source_stamp(Path(file).parent))

    def get_cache_path(self) -> str:
        return str(self._folder)

    def ensure_cache_path(self) -> None:
        super().ensure_cache_path()
        _used(self._folder)


class _PrivateLocator(_SourceFileBackedLocatorMixin, _CacheLocator):
    """The private folder of `_private_folder`, used when all other folders fail."""

    def __init__(self, function: Any, file: str) -> None:
        self._py_file = file
        self._lineno = function.__code__.co_firstlineno
        self._folder = self.get_suitable_cache_subpath(file)

    def get_cache_path(self) -> str:
        return os.path.join(_private_folder(), self._folder)


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (
        _SharedLocator,
        *CompileResultCacheImpl._locator_classes,
        _PrivateLocator,
    )


class _Cache(FunctionCache):
    _impl_class = _Implementation

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = source_stamp(Path(function.__code__.co_filename).parent)
        # Functions of all modules lie in one folder.
        base = f"{function.__module__.rpartition('.')[0]}.{self._impl.filename_base}"
        self._cache_file = _Files(self._cache_path, base.removeprefix("."), stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = None
        try:
            found = super().load_overload(sig, target_context)
        # Whatever the error is, compiling again is always correct.
        except Exception as error:
            _LOG.debug("compiled code is not used: %s", error)
        if found is None:
            _say_compiling()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once(f"compiled code cannot be kept in {self._cache_path} ({error}); {_REMEDY}")
            self.disable()


class _Files:
    """One file per signature, instead of Numba's index and numbered files.

    With these, two processes that compile different signatures at once use the same number.
    """

    def __init__(self, folder: str, base: str, stamp: str) -> None:
        self._folder, self._base, self._stamp = folder, base, stamp

    def load(self, key: Any) -> Any:
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        digest, code = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        # Pickle is safe here: whoever can write to a cache of code can run code as this user.
        return pickle.loads(code) if hashlib.sha256(code).digest() == digest else None  # noqa: S301

    def save(self, key: Any, data: Any) -> None:
        code = dumps(data)
        path = self._path(key)
        number, temporary = tempfile.mkstemp(dir=self._folder, prefix=path.name)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def flush(self) -> None:
        """Delete the code of this function."""
        for path in Path(self._folder).glob(f"{self._base}.*.nbc"):
            path.unlink(missing_ok=True)

    def _path(self, key: Any) -> Path:
        what = (numba.__version__, self._base, self._stamp, bool(config.BOUNDSCHECK), key)
        name = hashlib.sha256(repr(what).encode()).hexdigest()[:24]
        return Path(self._folder, f"{self._base}.{name}.nbc")
