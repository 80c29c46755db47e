"""Sequence shards: the bases of all records end to end, and the record table.

    bases    AACCGTT|ACG|...         one array, chunk by chunk
    offset   0       7   10
    length   7       3

A shard set is a group of a run's store (`sequences`) or a store of its own, made by
`bertgeom ingest`, which several runs can share. `xarray.open_zarr` reads both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.errors import DamagedError, StoreError
from bertgeom.sequences.alphabets import NUCLEOTIDES, Alphabet
from bertgeom.sequences.fasta import Chunk
from bertgeom.store import root_file
from bertgeom.store.manifest import REMEDY_OF_SHARDS, difference, entries, has_checksums
from bertgeom.store.storage import Storage

if TYPE_CHECKING:
    from bertgeom.store import zarr_io

#: Bases of a chunk; compressed to about a quarter on disk.
CHUNK_BASES = 32 * 2**20
#: Records of a chunk of the record table.
CHUNK_RECORDS = 2**16

#: name -> (dtype, unit, description); the order is that of `_row`.
TABLE = {
    "id": ("string", "1", "id of the record; ids may repeat, the index is the key"),
    "description": ("string", "1", "what follows the id in the header"),
    "length": ("uint64", "base", "bases of the record"),
    "offset": ("uint64", "base", "where the record begins in `bases`"),
    "source": ("uint32", "1", "index of the source in the attribute `sources`"),
    "n_ambiguous": ("uint64", "base", "bases that are not A, C, G, T or U"),
    "record_flags": ("uint8", "1", "bit 0: the record is empty"),
}
BASES = ("uint8", "1", "ASCII bases of all records end to end")
#: All arrays of a shard set.
MEMBERS = (*TABLE, "bases")
EMPTY = 1


@dataclass(frozen=True)
class Sequences:
    """A finished shard set, read lazily.

    Attributes:
        storage: the folder or URL of its group.
    """

    storage: Storage

    @cached_property
    def _arrays(self) -> zarr_io.Arrays:
        # Who only asks for the attributes does not wait for the import of zarr.
        from bertgeom.store import zarr_io

        return zarr_io.Arrays(self.storage, read_only=True)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """`sources`, `content_sha256`, `n_records`, `n_bases`...

        Raises:
            DamagedError: if they cannot be read.
        """
        try:
            return root_file.attributes_of(self.storage)
        except StoreError as error:
            text = str(error).partition(": ")[2].partition(";")[0]
            raise DamagedError(
                f"{self.storage.shown}/{root_file.METADATA}: {text}; {REMEDY_OF_SHARDS}"
            ) from error

    @cached_property
    def lengths(self) -> np.ndarray:
        """(records,) int64."""
        return self._arrays.read("length").astype(np.int64)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(records,) int64."""
        return self._arrays.read("offset").astype(np.int64)

    @property
    def alphabet(self) -> str:
        """What the records are made of: the name of an `Alphabet`."""
        return str(self.attributes.get("alphabet", NUCLEOTIDES.name))

    @property
    def n_records(self) -> int:
        return int(self.attributes["n_records"])

    def ids(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Ids of records start..stop."""
        return [str(x) for x in self._arrays.read("id", start, stop)]

    def bases(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) uint8 of the joined bases."""
        return self._arrays.read("bases", start, stop)


def is_complete(storage: Storage) -> bool:
    """Whether there is a finished shard set."""
    try:
        return bool(root_file.attributes_of(storage).get("complete"))
    except StoreError:
        return False


def open_sequences(storage: Storage) -> Sequences:
    """A shard set in a store of its own.

    Raises:
        StoreError: if there is none, or it was not finished.
    """
    attributes = root_file.check_format(storage, root_file.SEQUENCE_FORMAT)
    if not attributes.get("complete"):
        raise StoreError(
            f"{storage.shown}: expected finished sequence shards, found an ingest that was "
            "stopped; give the same bertgeom ingest command again"
        )
    return Sequences(storage)


def write_sequences(
    storage: Storage,
    pieces: Iterable[Chunk],
    sources: Sequence[Mapping[str, Any]],
    alphabet: Alphabet = NUCLEOTIDES,
) -> Sequences:
    """Write records as a shard set; the rest of an earlier attempt is replaced.

    Args:
        storage: a group made by `store.create_root(..., SEQUENCE_FORMAT)`.
        pieces: records in pieces, in order, as `bertgeom.sequences.fasta.read_chunks` gives them.
        sources: name, size and SHA-256 of every file.
        alphabet: what the records are made of.

    Raises:
        InputError: from `pieces`.
    """
    from bertgeom.store import zarr_io

    version = (root_file.written_by(storage) or root_file.writers())["format_version"]
    checked = has_checksums(version)
    arrays = zarr_io.Arrays(storage, format_version=version)
    _create(arrays)
    digest = hashlib.sha256()
    n_records = n_bases = 0
    for rows, bases in _blocks(pieces, digest, alphabet.ambiguous):
        for name in TABLE:
            if len(rows[name]):
                arrays.extend(name, rows[name])
        if len(bases):
            arrays.extend("bases", bases)
        n_records += len(rows["id"])
        n_bases += len(bases)
    arrays.update_attributes(
        {
            "sources": [dict(source) for source in sources],
            "n_records": n_records,
            "n_bases": n_bases,
            "content_sha256": digest.hexdigest(),
            "files": {
                key: list(facts)
                for key, facts in sorted(arrays.written.items())
                if (key != root_file.METADATA if checked else not key.endswith(root_file.METADATA))
            },
            "coordinates": "id",
            "complete": True,
            # Absent where it always was: older shards are nucleotides.
            **({} if alphabet is NUCLEOTIDES else {"alphabet": alphabet.name}),
        }
    )
    zarr_io.consolidate(storage, MEMBERS)
    if checked:
        root_file.seal(storage)
    return Sequences(storage)


def damage(storage: Storage) -> list[str]:
    """What is wrong with the files of a finished shard set, one line each; reads all of them."""
    try:
        attributes = Sequences(storage).attributes
        listed = entries(attributes["files"])
    except (StoreError, KeyError, ValueError) as error:
        return [str(error)]
    found = []
    for key, entry in listed.items():
        try:
            data = storage.read(key)
        except FileNotFoundError:
            data = None
        wrong = difference(data, entry)
        found += [f"{key} {wrong}"] if wrong else []
    for key in storage.sizes():
        if "/c/" in key and key not in listed:
            found.append(f"{key} is no part of the shards")
    return found


def _create(arrays: zarr_io.Arrays) -> None:
    for name, (dtype, unit, description) in TABLE.items():
        arrays.create(
            name,
            ("record",),
            (0,),
            (CHUNK_RECORDS,),
            dtype,
            "" if dtype == "string" else 0,
            {"units": unit, "description": description},
        )
    dtype, unit, description = BASES
    arrays.create(
        "bases",
        ("base",),
        (0,),
        (CHUNK_BASES,),
        dtype,
        0,
        {"units": unit, "description": description},
    )


def _blocks(
    pieces: Iterable[Chunk], digest: Any, ambiguous: np.ndarray
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Table rows and bases in blocks that fill whole chunks of bases, except the last."""
    rows: list[tuple[Any, ...]] = []
    pending: list[np.ndarray] = []
    n_pending = offset = n_ambiguous = 0
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece.bases))
        n_ambiguous += int(np.count_nonzero(ambiguous[piece.bases]))
        n_pending += len(piece.bases)
        pending.append(piece.bases)
        if piece.last:
            length = piece.start + len(piece.bases)
            rows.append(_row(piece, length, offset, n_ambiguous))
            digest.update(json.dumps([piece.id, piece.description, length]).encode())
            offset, n_ambiguous = offset + length, 0
        if n_pending >= CHUNK_BASES or len(rows) >= CHUNK_RECORDS:
            joined = np.concatenate(pending)
            whole = n_pending // CHUNK_BASES * CHUNK_BASES
            yield _columns(rows), joined[:whole]
            rows, pending, n_pending = [], [joined[whole:]], n_pending - whole
    yield _columns(rows), np.concatenate([*pending, np.zeros(0, np.uint8)])


def _row(last: Chunk, length: int, offset: int, n_ambiguous: int) -> tuple[Any, ...]:
    flags = 0 if length else EMPTY
    return last.id, last.description, length, offset, last.source, n_ambiguous, flags


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, np.ndarray]:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(TABLE)
    return {
        name: np.array(column, dtype=object if dtype == "string" else dtype)
        for (name, (dtype, _, _)), column in zip(TABLE.items(), columns, strict=True)
    }
