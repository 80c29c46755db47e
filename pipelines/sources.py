"""The files a run reads: which they are, how large, and with which contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from bertgeom.fasta import Record, expand_sources, read_records

_BLOCK = 2**22


def list_files(sources: Sequence[str]) -> list[str]:
    """Files and URLs behind the sources: folders and globs expanded, in a fixed order.

    Raises:
        InputError: for a source that is not there or holds no sequence file.
    """
    return [file for source in sources for file in expand_sources(source)]


def source_facts(files: Sequence[str]) -> list[dict[str, Any]]:
    """Name, size in bytes and SHA-256 of every file."""
    return [_facts(file) for file in files]


def read_all(files: Sequence[str]) -> Iterator[tuple[int, Record]]:
    """The records of all files in order, each with the number of its file."""
    for number, file in enumerate(files):
        for record in read_records(file):
            yield number, record


def _facts(file: str) -> dict[str, Any]:
    from fsspec import open as open_url

    digest, size = hashlib.sha256(), 0
    with open_url(file, "rb", compression=None) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"name": file.rsplit("/", 1)[-1], "size": size, "sha256": digest.hexdigest()}
