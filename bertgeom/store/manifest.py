"""Checksums of the files of a store: where they are listed, and the check of a file.

Every file of a finished store is in one list, `run/manifest.json`: size and SHA-256 by key. Of
an unfinished store, and of one of format 1.0, which had no such list, the completion records of
its row groups list the chunks. Sequence shards list their files in an attribute.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bertgeom.errors import DamagedError
from bertgeom.store.storage import Storage

#: Folder of a store with the bookkeeping of its run.
FOLDER = "run"
KEY = f"{FOLDER}/manifest.json"
#: Files without a checksum: the list itself, and files that contain times or process ids.
_UNLISTED = (KEY, f"{FOLDER}/history.jsonl", f"{FOLDER}/lock", f"{FOLDER}/lease.json")
REMEDY = "bertgeom verify --repair restores it"
REMEDY_OF_SHARDS = (
    "the bertgeom run command of this store, given again, restores it from its sources (shards of "
    "their own: bertgeom ingest)"
)
#: First format version with the list, with a checksum in the zstd frame of every chunk, and with
#: one in the metadata of shards.
_WITH_CHECKSUMS = (1, 1)
_SEAL = "checksum"
_GROUPS = f"{FOLDER}/groups"
_METADATA = "zarr.json"
#: Small files that are read in parallel, because every request to a remote store takes time.
_AT_ONCE = 8

#: Size in bytes and SHA-256 of a file.
Entry = tuple[int, str]


def sealed(facts: Mapping[str, Any], indent: int | None = 2) -> bytes:
    """JSON that holds the checksum of its own content."""
    return json.dumps({**facts, _SEAL: _checksum(facts)}, indent=indent).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The content that `sealed` got; JSON without a checksum is accepted as it is.

    Raises:
        ValueError: for anything else.
    """
    facts = json.loads(data)
    if not isinstance(facts, dict):
        raise ValueError("not a JSON object")
    seal = facts.pop(_SEAL, None)
    if seal is not None and seal != _checksum(facts):
        raise ValueError("another content than its checksum says")
    return facts


def read_facts(storage: Storage, key: str, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object of a stored file, compared with the checksum that it holds, if it does.

    Raises:
        DamagedError: if the file is missing or damaged; says `what` it is, and the remedy.
    """
    try:
        return unsealed(storage.read(key))
    except (FileNotFoundError, ValueError) as error:
        lost = isinstance(error, FileNotFoundError)
        found = "no such file" if lost else f"a damaged file ({error})"
        raise DamagedError(
            f"{storage.url}/{key}: expected {what}, found {found}; {remedy}"
        ) from error


def read_facts_at_once(
    storage: Storage, keys: Sequence[str], what: str, remedy: str
) -> list[dict[str, Any]]:
    """`read_facts` of many small files in parallel; results in their order."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda key: read_facts(storage, key, what, remedy), keys))


def _checksum(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def entry_of(data: bytes) -> Entry:
    """Size and SHA-256."""
    return len(data), hashlib.sha256(data).hexdigest()


def difference(data: bytes | None, entry: Entry) -> str | None:
    """What is wrong with the bytes of a file, None if they are as written."""
    if data is None:
        return "is missing"
    if len(data) != entry[0]:
        return f"has {len(data)} bytes in place of {entry[0]}"
    if hashlib.sha256(data).hexdigest() != entry[1]:
        return "was changed: another checksum"
    return None


def entries(listed: Mapping[str, Any]) -> dict[str, Entry]:
    """Entries as JSON gives them.

    Raises:
        ValueError: for anything else.
    """
    try:
        return {str(key): (int(size), str(digest)) for key, (size, digest) in listed.items()}
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not a list of files: {error}") from error


def has_checksums(version: str) -> bool:
    """Whether a store of this format version holds checksums of its own."""
    try:
        return tuple(int(part) for part in version.split(".")) >= _WITH_CHECKSUMS
    except ValueError:
        return False


def is_listed(key: str) -> bool:
    """Whether a file belongs in the list of a finished store."""
    return not key.startswith(_UNLISTED)


def write(storage: Storage, files: Mapping[str, Entry]) -> None:
    """Write the list of a finished store."""
    facts = {"files": {key: list(files[key]) for key in sorted(files)}}
    storage.write(KEY, sealed(facts, indent=None))


def read(storage: Storage) -> dict[str, Entry] | None:
    """The list of a store; None if there is none.

    Raises:
        DamagedError: if it cannot be read.
    """
    try:
        return entries(unsealed(storage.read(KEY))["files"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        raise DamagedError(
            f"{storage.shown}/{KEY}: expected the checksums of the store, found a damaged file "
            f"({error}); {REMEDY}"
        ) from error


@dataclass(frozen=True)
class Checks:
    """Compares what a reader reads with what was written.

    Attributes:
        storage: a store, or a group with sequence shards.
    """

    storage: Storage

    @cached_property
    def _listed(self) -> tuple[dict[str, Entry], bool]:
        """Files by key, and whether the list is complete, so that no other chunk may exist."""
        attributes = self._attributes()
        complete = bool(attributes.get("complete"))
        if "files" in attributes:
            try:
                return entries(attributes["files"]), False
            except ValueError:
                return {}, False
        files = read(self.storage) if complete else None
        if files is not None:
            return files, True
        if complete and has_checksums(str(attributes.get("format_version"))):
            raise DamagedError(f"{self.storage.url}/{KEY}: the file is missing; {REMEDY}")
        return recorded_files(self.storage), False

    def _attributes(self) -> dict[str, Any]:
        try:
            found = json.loads(self.storage.read(_METADATA)).get("attributes")
        except (OSError, ValueError, AttributeError):
            return {}
        return found if isinstance(found, dict) else {}

    def check(self, key: str, data: bytes | None) -> None:
        """Compare a file with its entry; a file without an entry passes.

        Raises:
            DamagedError: if it is missing, changed, or no part of the store.
        """
        files, whole = self._listed
        entry = files.get(key)
        if entry is not None:
            wrong = difference(data, entry)
        else:
            array, _, place = key.partition("/c/")
            alien = whole and data is not None and place and f"{array}/{_METADATA}" in files
            wrong = "is no part of the store" if alien else None
        if wrong:
            shards = key.startswith("sequences/") or "files" in self._attributes()
            remedy = REMEDY_OF_SHARDS if shards else REMEDY
            raise DamagedError(f"{self.storage.shown}/{key}: the file {wrong}; {remedy}")

    def __getstate__(self) -> dict[str, Any]:
        """Other processes read the list themselves."""
        return {"storage": self.storage}


def recorded_files(storage: Storage) -> dict[str, Entry]:
    """Chunk files that the completion records of row groups list; unreadable ones do not count."""
    names = [name for name in storage.names(_GROUPS) if name.endswith(".json")]
    found: dict[str, Entry] = {}
    for data in read_many(storage, (f"{_GROUPS}/{name}" for name in names)):
        try:
            found |= entries(unsealed(data)["files"])
        except (ValueError, KeyError):
            continue
    return found


def read_many(storage: Storage, keys: Iterable[str]) -> list[bytes]:
    """Small files in order; one that is missing is empty."""

    def read_one(key: str) -> bytes:
        try:
            return storage.read(key)
        except FileNotFoundError:
            return b""

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(read_one, keys))
