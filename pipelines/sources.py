"""What identifies the files a run reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from bertgeom.sources import Source, open_raw

_BLOCK = 2**22


def source_facts(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Name without folders, size in bytes and SHA-256 of every file, as stored."""
    return [_facts(source.url) for source in sources]


def _facts(url: str) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with open_raw(url) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"name": url.rsplit("/", 1)[-1], "size": size, "sha256": digest.hexdigest()}
