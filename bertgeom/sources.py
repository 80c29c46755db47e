"""Where sequences come from: files, folders, globs and fsspec URLs, compressed or not."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertgeom.errors import InputError

_SUFFIXES = ("fa", "fasta", "fna", "ffn", "frn", "fas", "fsa", "fq", "fastq")
_COMPRESSED = ("", ".gz", ".bgz", ".bz2", ".xz", ".zst")
#: What a file of a folder must end with to be taken; a file named by itself may end in anything.
ENDINGS = tuple(f".{suffix}{packed}" for suffix in _SUFFIXES for packed in _COMPRESSED)

#: First bytes -> what xopen calls the compression.
_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
_BUFFER = 1 << 20


@dataclass(frozen=True, order=True)
class Source:
    """One file of sequences.

    Attributes:
        url: a path or an fsspec URL.
        size: bytes as stored, None where the file system cannot tell.
    """

    url: str
    size: int | None = None


def expand_sources(
    sources: str | os.PathLike[str] | Source | Iterable[str | os.PathLike[str] | Source],
) -> list[Source]:
    """Files behind files, folders (with all below them), globs and fsspec URLs.

    A file that is named twice counts once. The result is sorted, so that the order in which
    sources are given changes nothing.

    Raises:
        InputError: for a source that does not exist, a glob without a match, or a folder
            without a file that ends like FASTA or FASTQ.
    """
    if isinstance(sources, str | os.PathLike | Source):
        sources = [sources]
    found: dict[str, Source] = {}
    for source in sources:
        some = [source] if isinstance(source, Source) else list(_expand(os.fspath(source)))
        for one in some:
            found.setdefault(_identity(one.url), one)
    if not found:
        raise InputError("at least one source of sequences", "none")
    return sorted(found.values(), key=lambda source: source.url)


@contextmanager
def open_source(source: Source | str | os.PathLike[str]) -> Iterator[Any]:
    """The uncompressed bytes of a source; the compression is told by the content.

    The stream has `read` and `peek`.

    Raises:
        InputError: if it cannot be opened.
    """
    url = source.url if isinstance(source, Source) else os.fspath(source)
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(open_raw(url))
            kind = _compression(stream.peek(8))
            if kind is not None:
                from xopen import xopen

                # In this process and thread: no helper program, same bytes everywhere.
                stream = stack.enter_context(xopen(stream, "rb", threads=0, format=kind))
        except (OSError, ImportError, ValueError) as error:
            raise _cannot_open(url, error) from error
        yield stream


@contextmanager
def open_raw(url: str) -> Iterator[Any]:
    """The stored bytes of a path or URL, buffered, as for a checksum."""
    if not is_url(url):
        with open(url, "rb", buffering=_BUFFER) as file:
            yield file
        return
    import fsspec

    with fsspec.open(url, "rb") as file, io.BufferedReader(file, _BUFFER) as buffered:
        yield buffered


def is_url(source: str) -> bool:
    """Whether fsspec, and not the operating system, has to open it."""
    return "://" in source or "::" in source


def _compression(head: bytes) -> str | None:
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _identity(url: str) -> str:
    return url if is_url(url) else os.path.realpath(url)


def _expand(source: str) -> Iterator[Source]:
    if is_url(source):
        yield from _expand_url(source)
        return
    path = Path(source)
    if path.is_dir():
        inside = [str(p) for p in path.rglob("*") if _is_sequences(p.name) and p.is_file()]
        if not inside:
            raise _empty_folder(source)
        yield from (Source(p, os.path.getsize(p)) for p in inside)
    elif path.exists():
        yield Source(source, os.path.getsize(source))
    elif glob.has_magic(source):
        matches = glob.glob(source, recursive=True)
        if not matches:
            raise InputError("a file that matches", "none", source=source)
        for match in matches:
            yield from _expand(match)
    else:
        raise InputError(
            "a file, folder, glob or URL", "nothing there", source=source, remedy="check the path"
        )


def _expand_url(source: str) -> Iterator[Source]:
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(source)
        if "::" not in source and glob.has_magic(path) and not files.exists(path):
            matches = [files.unstrip_protocol(match) for match in files.glob(path)]
            if not matches:
                raise InputError("a file that matches", "none", source=source)
            for match in matches:
                yield from _expand_url(match)
            return
        info = files.info(path)
        if info.get("type") == "directory":
            inside = [p for p in files.find(path) if _is_sequences(p.rsplit("/", 1)[-1])]
            if not inside:
                raise _empty_folder(source)
            for p in inside:
                yield Source(files.unstrip_protocol(p), files.info(p).get("size"))
            return
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _cannot_open(source, error) from error
    yield Source(source, info.get("size"))


def _is_sequences(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(ENDINGS)


def _empty_folder(source: str) -> InputError:
    return InputError(
        "a folder with FASTA or FASTQ files",
        "none",
        source=source,
        remedy=f"files must end like {ENDINGS[0]}, {ENDINGS[6]} or {ENDINGS[7]}; name others one "
        "by one",
    )


def _cannot_open(url: str, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError("a file", "nothing there", source=url, remedy="check the path")
    reason = " ".join(str(error).split()) or type(error).__name__
    remedy = (
        "install it" if isinstance(error, ImportError) else "check the path and the permissions"
    )
    return InputError("a file that can be opened", reason, source=url, remedy=remedy)
