"""From sources to sequence shards, once: what is there already is compared and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bertgeom import store
from bertgeom.config import check_same
from bertgeom.errors import UsageError
from bertgeom.fasta import Chunk, read_chunks
from bertgeom.sequences import Sequences, is_complete, open_sequences, write_sequences
from bertgeom.sources import Digest, Source, expand_sources, open_source
from bertgeom.storage import Storage
from bertgeom.urls import shown_url

from .events import Bus, Event, FilesLeftOut, Ingested, Ingesting
from .workplace import SEQUENCES, lasting_path

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
    shards = [s for s in listed if store.is_store(Storage(s), store.SEQUENCE_FORMAT)]
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
    return lasting_path(url)


def ingest_into(
    storage: Storage, sources: Sources | None, elsewhere: str | None, bus: Bus
) -> Sequences:
    if elsewhere is not None:
        found = open_sequences(Storage(elsewhere))
        facts = found.attributes
        bus.send(Ingested(facts["n_records"], facts["n_bases"], True))
        return found
    inner = storage.child(SEQUENCES)
    store.create_root(inner, store.SEQUENCE_FORMAT)
    return ingest_sources(inner, sources, bus)


def ingest_sources(storage: Storage, sources: Sources | None, bus: Bus) -> Sequences:
    left_out: list[str] = []
    files = expand_sources(as_list(sources), left_out)
    if left_out:
        bus.send(FilesLeftOut(len(left_out), sorted(left_out)[0]))
    if is_complete(storage):
        found = Sequences(storage)
        facts = source_facts(files)
        check_same(storage.url, _by_number(found.attributes["sources"]), _by_number(facts))
        bus.send(Ingested(found.attributes["n_records"], found.attributes["n_bases"], True))
        return found
    # The facts are there when the last piece was read: a pipe can be read once only.
    digests: list[Digest] = []
    facts = []
    pieces = _with_facts(read_chunks(files, digests), files, digests, facts)
    found = write_sequences(storage, _told(pieces, bus.send), facts)
    bus.send(Ingested(found.attributes["n_records"], found.attributes["n_bases"], False))
    return found


def _with_facts(
    pieces: Iterable[Chunk],
    files: Sequence[Source],
    digests: Sequence[Digest],
    facts: list[dict[str, Any]],
) -> Iterator[Chunk]:
    """The same pieces; at their end `facts` has what is known of every file."""
    yield from pieces
    facts += [d.facts(source) for d, source in zip(digests, files, strict=True)]


def _by_number(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Size and hash by position: a file may be called otherwise and still be the same."""
    return {
        f"source {i}": {"size": entry["size"], "sha256": entry["sha256"]}
        for i, entry in enumerate(facts)
    }


def _told(pieces: Iterable[Chunk], send: Callable[[Event], None]) -> Iterator[Chunk]:
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
