"""A place of one's own: checked, locked before anything is made there, taken back on failure.

    absent, empty  -->  folder + lock  -->  look again  -->  work  -->  unlock
                              |                                |
                      somebody else's: touch nothing     failed before its first result:
                                                         what this process made is deleted

The lock of a folder is held by the operating system, that of a killed process is void. An
object store has a lease instead, see `leases`.

Tasks of a batch system share the place (`shared_lock`), and each holds the row groups that it works
on (`row_group_claim`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from bertgeom.errors import BertgeomError, DamagedError, StoreError, UsageError
from bertgeom.pipelines.context.folder import RunFolder
from bertgeom.pipelines.context.leases import LEASE, lease
from bertgeom.sequences.shards import is_complete
from bertgeom.store import root_file
from bertgeom.store.journal import DRAFT, Journal
from bertgeom.store.manifest import FOLDER
from bertgeom.store.storage import Storage, explain_write_errors, reason

#: Where the lock lies: that of a run stays, that of an ingest goes with it.
LOCKS = {root_file.FORMAT: f"{FOLDER}/lock", root_file.SEQUENCE_FORMAT: "ingest.lock"}
#: Where the claims of row groups lie while tasks work on them.
TASKS = f"{FOLDER}/tasks"
LEASES = {kind: f"{key.removesuffix('lock')}{LEASE}" for kind, key in LOCKS.items()}
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
#: Attempts to lock a place that another process is taking back at the same time.
_ATTEMPTS = 100


@contextmanager
def claimed(storage: Storage, kind: str, inputs: Iterable[str] = ()) -> Iterator[Storage]:
    """Hold a place alone while the block works in it; see `check_place` for the arguments.

    If the block fails with a `BertgeomError` before the store is set up, what it made in a place
    that was new is deleted again. Nothing else is ever deleted.

    Yields:
        The storage to write through: it notes what is made.

    Raises:
        StoreError: if another process works there, or as `check_place`.
    """
    inputs = list(inputs)
    check_place(storage, kind, inputs)
    journal = Journal()
    noted = Storage(storage.url, journal)
    with ExitStack() as stack:
        with explain_write_errors(storage.url):
            stack.enter_context(exclusive_lock(noted, kind, journal))
        try:
            fresh = check_place(storage, kind, inputs)
            if not fresh:
                journal.close()
            yield noted
        except BertgeomError:
            if not _is_set_up(storage, kind):
                journal.take_back()
            raise


@contextmanager
def exclusive_lock(storage: Storage, kind: str, journal: Journal) -> Iterator[None]:
    """Keep other processes off a place; the lock of a killed process is void.

    Args:
        journal: notes the folders and the lock file that this call has made.

    Raises:
        StoreError: if another process has it.
    """
    folder = storage.folder
    if folder is None:
        with lease(storage, LEASES[kind]):
            yield
        return
    file = _locked(storage, folder / LOCKS[kind], journal)
    if file is None:
        with lease(storage, LEASES[kind]):
            yield
        return
    with file:
        try:
            yield
        finally:
            # Unlinked while it is held: who gets it next looks whether it is still the file here.
            path = folder / LOCKS[kind]
            if kind == root_file.SEQUENCE_FORMAT and _is_file(path, file):
                with suppress(OSError):
                    path.unlink()


@contextmanager
def shared_lock(storage: Storage) -> Iterator[None]:
    """Work on a run beside other tasks: nobody else may hold the place alone meanwhile.

    On an object store, and on a file system without locks, only the row groups are claimed: no
    other command may write to the store while tasks do.

    Raises:
        StoreError: if another process holds the place alone.
    """
    folder = storage.folder
    file = None
    if folder is not None:
        path = folder / LOCKS[root_file.FORMAT]
        with explain_write_errors(storage.url):
            file = _locked(storage, path, Journal(), shared=True)
    with file if file is not None else nullcontext():
        yield


@contextmanager
def row_group_claim(storage: Storage, group: int) -> Iterator[bool]:
    """Hold a row group while the block works on it; False if another task has it."""
    key, folder = f"{TASKS}/{group:08d}", storage.folder
    with ExitStack() as stack:
        try:
            file = None
            if folder is not None:
                (folder / TASKS).mkdir(parents=True, exist_ok=True)
                file = _locked(storage, folder / f"{key}.lock", Journal())
            if file is None:
                stack.enter_context(lease(storage, f"{key}.json"))
            else:
                stack.enter_context(file)
        except StoreError:
            yield False
            return
        yield True
        if file is not None and folder is not None:
            # Unlinked while it is held, see `exclusive_lock`.
            with suppress(OSError):
                (folder / f"{key}.lock").unlink()


def forget_tasks(storage: Storage) -> None:
    """Delete what killed tasks left; call it only while the place is held alone."""
    storage.remove(TASKS)


def _locked(
    storage: Storage, path: Path, journal: Journal, *, shared: bool = False
) -> IO[bytes] | None:
    """The open lock file, None on a file system without locks.

    Raises:
        StoreError: if another process has it.
    """
    import fcntl

    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    for _ in range(_ATTEMPTS):
        try:
            journal.note_path(path)
            file = path.open("ab")
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in _UNSUPPORTED:
                return None
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise StoreError(
                f"{storage.shown}: expected to be the only one at work on this store, found "
                "another one at work; wait for it or choose another --out"
            ) from None
        if _is_file(path, file):
            return file
        file.close()
    raise StoreError(
        f"{storage.shown}: expected to lock {path.name}, found it gone {_ATTEMPTS} times; other "
        "processes make and delete this store, choose another --out"
    )


def _is_file(path: Path, file: IO[bytes]) -> bool:
    """Whether an open file still has its name: the holder before may have deleted it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _is_set_up(storage: Storage, kind: str) -> bool:
    with suppress(BertgeomError, OSError):
        if kind == root_file.SEQUENCE_FORMAT:
            return is_complete(storage)
        return storage.exists(f"{FOLDER}/run.json")
    return True


def check_place(storage: Storage, kind: str, inputs: Iterable[str] = ()) -> bool:
    """Refuse to write into something else; whether the place is new: nothing is there yet.

    Args:
        kind: format of the store that is to be written.
        inputs: paths and URLs that are read: the place must not be one of them, nor inside one,
            nor around one.

    Raises:
        StoreError: for anything but an absent place, an empty folder, or a store of this kind
            and version.
        UsageError: for a place without a name.
    """
    if not storage.url.strip() or "\0" in storage.url:
        raise UsageError("expected a folder or URL for --out, found an empty name")
    folder = storage.folder
    if folder is not None:
        _check_folder(storage.shown, folder)
    names = storage.names("", drafts=True)
    if kind == root_file.FORMAT and names and _has_lost_root(storage):
        return False
    if root_file.METADATA in names:
        root_file.check_format(storage, kind)
        return False
    if not _is_unborn(storage, kind, names):
        raise StoreError(
            f"{storage.shown}: expected a new folder or a store, found a folder with other "
            f"contents ({_some(names)}); choose another --out"
        )
    _check_inputs(storage, inputs)
    return True


def _has_lost_root(storage: Storage) -> bool:
    """Whether a run lies there whose root metadata is missing or cannot be read."""
    try:
        if RunFolder(storage).read_run() is None:
            return False
    except StoreError:
        return False
    try:
        root_file.check_format(storage, root_file.FORMAT)
    except DamagedError:
        return True
    except StoreError:
        return not storage.exists(root_file.METADATA)
    return False


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_unborn(storage: Storage, kind: str, names: list[str]) -> bool:
    """Whether there is nothing but the lock of a store that was never begun."""
    own = {LOCKS[kind], LEASES[kind]}
    listed = list(names)
    if kind == root_file.FORMAT and FOLDER in names:
        listed.remove(FOLDER)
        listed += [f"{FOLDER}/{name}" for name in storage.names(FOLDER, drafts=True)]
    begun = any(key in own for key in listed)
    torn = {name for name in listed if begun and _is_torn_metadata(name)}
    return not set(listed) - own - torn


def _is_torn_metadata(name: str) -> bool:
    return bool(DRAFT.fullmatch(name)) and name.startswith(("zarr.", LEASE))


def _check_folder(shown: str, folder: Path) -> None:
    """Refuse a name that cannot be, or is not, a folder.

    Raises:
        StoreError: names what is there.
    """
    found = None
    try:
        if folder.is_symlink() and not os.path.exists(folder):
            folder.stat()
        mode = folder.stat() if os.path.lexists(folder) else None
        if mode is not None and not folder.is_dir():
            found = "a file"
    except FileNotFoundError:
        found = "a symbolic link to nothing"
    except OSError as error:
        found = f"a path that cannot be used: {reason(error)}"
    if found is None:
        found = _above(folder)
    if found is not None:
        raise StoreError(
            f"{shown}: expected a new folder or a store, found {found}; choose another --out"
        )
    if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise StoreError(
            f"{shown}: expected a folder that can be written, found: Permission denied; make the "
            "folder writable or choose another --out"
        )


def _above(folder: Path) -> str | None:
    """What is wrong with the folders that it lies in."""
    for parent in Path(os.path.realpath(folder)).parents:
        if os.path.lexists(parent) and not parent.is_dir():
            return f"a path below the file {parent}"
        inner = Storage(str(parent))
        with suppress(OSError):
            if any(root_file.is_store(inner, kind) for kind in LOCKS):
                return f"a path inside of the store {parent}"
    return None


def _check_inputs(storage: Storage, inputs: Iterable[str]) -> None:
    """Refuse a place that is what is read, inside of it or around it.

    Raises:
        StoreError: names the input.
    """
    here = _absolute(storage.url)
    for source in inputs:
        if "://" not in source and not os.path.lexists(source):
            continue
        there = _absolute(source)
        if here == there or _is_inside(here, there) or _is_inside(there, here):
            raise StoreError(
                f"{storage.shown}: expected a place of its own, found one that is, holds or lies "
                f"in the input {Storage(source).shown}; choose another --out"
            )


def _absolute(place: str) -> str:
    folder = Storage(place).folder
    return place.rstrip("/") if folder is None else os.path.realpath(folder)


def _is_inside(inner: str, outer: str) -> bool:
    return inner.startswith(outer.rstrip("/") + "/")
