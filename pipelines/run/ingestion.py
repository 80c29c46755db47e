"""From sources to sequence shards, once: what is there already is compared and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bertgeom.config import check_same
from bertgeom.errors import StoreError, UsageError
from bertgeom.pipelines.context.events import Bus, Damaged, Event, FilesLeftOut, Ingested, Ingesting
from bertgeom.pipelines.context.folder import RunFolder
from bertgeom.pipelines.context.run_context import SEQUENCES, absolute_path
from bertgeom.sequences.alphabets import NUCLEOTIDES, Alphabet
from bertgeom.sequences.fasta import Chunk, read_chunks
from bertgeom.sequences.shards import (
    Sequences,
    damage,
    is_complete,
    open_sequences,
    write_sequences,
)
from bertgeom.sequences.sources import Digest, Source, expand_sources, open_source
from bertgeom.store import root_file, zarr_io
from bertgeom.store.storage import Storage
from bertgeom.urls import shown_url

#: One source or several: files, folders, globs, fsspec URLs, a store of sequence shards.
Sources = str | Path | Sequence[str | Path]


def outside_shards(sources: Sources | None, sequences: str | Path | None) -> str | None:
    """URL of sequence shards that lie outside the store, None if sources are to be read."""
    if sequences is not None:
        if sources:
            raise UsageError("expected either sources or --sequences, found both")
        return _kept(str(sequences))
    listed = as_list(sources)
    if not listed:
        raise UsageError(
            "expected at least one source, found none; give FASTA files or --sequences"
        )
    shards = [s for s in listed if root_file.is_store(Storage(s), root_file.SEQUENCE_FORMAT)]
    if shards and len(listed) > 1:
        raise UsageError(
            f"expected one store of sequence shards as the only source, found {len(listed)} sources"
        )
    return _kept(shards[0]) if shards else None


def _kept(url: str) -> str:
    """Where shards lie, as the store keeps it: whoever opens the store reads it.

    Raises:
        UsageError: for a URL that carries a password or a token.
    """
    if shown_url(url) != url:
        raise UsageError(
            f"expected the URL of sequence shards without user, password or query, found some in "
            f"{url}; give credentials by the environment, the store keeps this URL"
        )
    return absolute_path(url)


def ingest_into(
    storage: Storage,
    sources: Sources | None,
    elsewhere: str | None,
    bus: Bus,
    alphabet: Alphabet = NUCLEOTIDES,
) -> Sequences:
    if elsewhere is not None:
        found = open_sequences(Storage(elsewhere))
        check_alphabet(found, alphabet)
        facts = found.attributes
        bus.send(Ingested(facts["n_records"], facts["n_bases"], True))
        return found
    inner = storage.child(SEQUENCES)
    known, written_by = _known_sources(storage), root_file.written_by(storage)
    return ingest_sources(inner, sources, bus, known, written_by, alphabet)


def check_alphabet(found: Sequences, alphabet: Alphabet) -> None:
    """Shards hold the letters that they were read with."""
    if found.alphabet != alphabet.name:
        raise UsageError(
            f"{found.storage.shown}: expected shards of {alphabet.name} sequences, found "
            f"{found.alphabet}; give the --alphabet that they were ingested with"
        )


def ingest_sources(
    storage: Storage,
    sources: Sources | None,
    bus: Bus,
    known: Sequence[dict[str, Any]] | None = None,
    written_by: Mapping[str, str] | None = None,
    alphabet: Alphabet = NUCLEOTIDES,
) -> Sequences:
    """Shards of these sources; finished ones are kept if no file of them is damaged.

    Args:
        known: facts of the sources that a run was made of; damaged shards are only written
            again from the same. written_by: what wrote the store that the shards are part of.
        alphabet: what the sequences are made of.

    Raises:
        MismatchError: if the shards were made of other sources.
    """
    left_out: list[str] = []
    files = expand_sources(as_list(sources), left_out, alphabet.name)
    if left_out:
        bus.send(FilesLeftOut(len(left_out), sorted(left_out)[0]))
    complete = is_complete(storage)
    damaged = damage(storage) if complete else []
    if complete:
        known = Sequences(storage).attributes["sources"]
    # A pipe can be read once only: into new shards, or to be compared with finished ones.
    once = any(file.once for file in files)
    if known is not None and (not once or (complete and not damaged)):
        check_same(storage.url, _by_number(known), _by_number(source_facts(files)))
    if complete and not damaged:
        found = Sequences(storage)
        check_alphabet(found, alphabet)
        bus.send(Ingested(found.attributes["n_records"], found.attributes["n_bases"], True))
        return found
    for line in damaged:
        bus.send(Damaged(f"{storage.shown}: {line}; the sources are read again"))
    # Until the last write the shards count as unfinished.
    written_by = root_file.written_by(storage) or written_by
    storage.remove(root_file.METADATA)
    zarr_io.create_root(storage, root_file.SEQUENCE_FORMAT, written_by)
    digests: list[Digest] = []
    facts: list[dict[str, Any]] = []

    def pieces() -> Iterator[Chunk]:
        """All pieces; at their end `facts` has what is known of every file."""
        yield from read_chunks(files, digests, alphabet)
        facts.extend(d.facts(source) for d, source in zip(digests, files, strict=True))
        if known is not None:
            check_same(storage.url, _by_number(known), _by_number(facts))
            # A file may be called otherwise now; the shards keep its name.
            for entry, old in zip(facts, known, strict=True):
                entry["name"] = old["name"]

    found = write_sequences(storage, _announced(pieces(), bus.send), facts, alphabet)
    bus.send(Ingested(found.attributes["n_records"], found.attributes["n_bases"], False))
    return found


def _known_sources(storage: Storage) -> list[dict[str, Any]] | None:
    """Facts of the sources of a run, None before it was set up."""
    with suppress(StoreError):
        facts = RunFolder(storage).read_run()
        if facts is not None and facts.sources is not None:
            return [dict(source) for source in facts.sources]
    with suppress(StoreError):
        return root_file.check_format(storage, root_file.FORMAT).get("sources")
    return None


def _by_number(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Size and hash by position: a file may be called otherwise and still be the same."""
    return {
        f"source {i}": {"size": entry["size"], "sha256": entry["sha256"]}
        for i, entry in enumerate(facts)
    }


def _announced(pieces: Iterable[Chunk], send: Callable[[Event], None]) -> Iterator[Chunk]:
    """The same pieces, with an event about every second."""
    bases, last = 0, time.monotonic()
    for piece in pieces:
        bases += len(piece.bases)
        if time.monotonic() - last > 1:
            last = time.monotonic()
            send(Ingesting(piece.index + piece.last, bases))
        yield piece


def as_list(sources: Sources | None) -> list[str]:
    """One source or many as a list of paths and URLs."""
    if sources is None:
        return []
    many = [sources] if isinstance(sources, str | Path) else sources
    return [str(source) for source in many]


def source_facts(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Name without folders, size in bytes and SHA-256 of every file, as stored."""
    return [_facts(source) for source in sources]


def _facts(source: Source) -> dict[str, Any]:
    digests: list[Digest] = []
    with open_source(source, digests):
        pass
    return digests[0].facts(source)
