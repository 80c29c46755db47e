"""The root of a store: one JSON file that says what it is, without zarr.

What only asks how far a run is, or whether a folder is a store, reads this file alone: importing
zarr takes longer than such a command.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from bertgeom.errors import DamagedError, StoreError
from bertgeom.store.manifest import REMEDY
from bertgeom.store.storage import Storage

FORMAT = "bertgeom"
#: Format of sequence shards in a store of their own.
SEQUENCE_FORMAT = "bertgeom-sequences"
#: Major version: a reader rejects another one. Minor version: additions only.
FORMAT_VERSION = "1.1"
METADATA = "zarr.json"
#: Files of a zarr group or array: metadata, chunks, and what a killed write of them left.
_OF_ZARR = re.compile(r"(.*/)?(zarr\.json|c(/\d+)*|(zarr|\d+|c)\.[0-9a-f]+\.partial)")
#: Attribute of sequence shards with the checksum of all their metadata.
_SEAL = "metadata_sha256"


def check_format(storage: Storage, kind: str) -> dict[str, Any]:
    """Attributes of a store, if it is one of `kind` and of a version this code reads.

    Raises:
        StoreError: otherwise.
    """
    attributes = attributes_of(storage)
    found = attributes.get("format")
    if found != kind:
        raise StoreError(
            f"{storage.shown}: expected a store of format {kind!r}, found {found or 'another'!r}"
        )
    version = str(attributes.get("format_version", "none"))
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise StoreError(
            f"{storage.shown}: expected format version {FORMAT_VERSION}, found {version}; "
            "open it with the bertgeom version that wrote it "
            f"({attributes.get('bertgeom_version', 'unknown')})"
        )
    return attributes


def is_store(storage: Storage, kind: str) -> bool:
    """Whether there is a zarr group of `kind`, of any version."""
    try:
        return attributes_of(storage).get("format") == kind
    except StoreError:
        return False


def attributes_of(storage: Storage) -> dict[str, Any]:
    """Attributes of a group.

    Raises:
        StoreError: if there is no zarr group. DamagedError: if its file cannot be read.
    """
    return dict(group_metadata(storage)["attributes"])


def update_attributes(storage: Storage, changes: Mapping[str, Any]) -> None:
    """Set attributes of a group in one atomic write."""
    metadata = group_metadata(storage)
    metadata["attributes"].pop(_SEAL, None)
    metadata["attributes"] |= changes
    storage.write(METADATA, to_bytes(metadata))


def group_metadata(storage: Storage) -> dict[str, Any]:
    """All that the file of a group says; `attributes` is always there.

    Raises:
        StoreError: if there is no zarr group. DamagedError: if its file cannot be read.
    """
    try:
        metadata = json.loads(storage.read(METADATA))
    except FileNotFoundError as error:
        raise StoreError(
            f"{storage.shown}: expected a store, found no {METADATA} there; check the path"
        ) from error
    except ValueError as error:
        raise DamagedError(
            f"{storage.shown}/{METADATA}: expected JSON, found: {error}; {REMEDY}"
        ) from error
    if not isinstance(metadata, dict) or metadata.get("node_type") != "group":
        what = "an array" if isinstance(metadata, dict) else "other JSON"
        raise StoreError(f"{storage.shown}: expected a zarr group, found {what}")
    attributes = metadata.setdefault("attributes", {})
    if _SEAL in attributes and attributes[_SEAL] != _checksum(metadata):
        raise DamagedError(
            f"{storage.shown}/{METADATA}: the file was changed: another checksum; {REMEDY}"
        )
    return metadata


def reopen(storage: Storage) -> None:
    """Mark a finished store as unfinished, in one atomic write."""
    root = group_metadata(storage)
    root["attributes"]["complete"] = False
    root.pop("consolidated_metadata", None)
    storage.write(METADATA, to_bytes(root))


def seal(storage: Storage) -> None:
    """Put a checksum of a group's metadata into its attributes; readers compare it."""
    root = group_metadata(storage)
    root["attributes"][_SEAL] = _checksum(root)
    storage.write(METADATA, to_bytes(root))


def _checksum(root: Mapping[str, Any]) -> str:
    attributes = {k: v for k, v in root["attributes"].items() if k != _SEAL}
    text = json.dumps({**root, "attributes": attributes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def writers() -> dict[str, str]:
    """The attributes of a new store that say which version wrote it."""
    from bertgeom._version import __version__

    return {"format_version": FORMAT_VERSION, "bertgeom_version": __version__}


def written_by(storage: Storage) -> dict[str, str] | None:
    """The same attributes of an existing store; None if it cannot be read."""
    try:
        attributes = attributes_of(storage)
    except StoreError:
        return None
    return {name: str(attributes[name]) for name in writers() if name in attributes} or None


def is_of_zarr(key: str) -> bool:
    """Whether the name of a file is one that zarr groups and arrays use."""
    return bool(_OF_ZARR.fullmatch(key))


def clear(storage: Storage) -> None:
    """Delete a group or array file by file; other files in its folder stay."""
    for key in storage.sizes():
        if is_of_zarr(key):
            storage.remove(key)
    storage.prune()


def to_bytes(metadata: Mapping[str, Any]) -> bytes:
    """The file of a group that says so."""
    return json.dumps(metadata, indent=2).encode()
