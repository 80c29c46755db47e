"""Where sequences come from: files, folders, globs, fsspec URLs and pipes, compressed or not.

A pipe (`-` is standard input) can be read only once: its bytes are hashed while they are read.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bertgeom.errors import InputError, StoreError
from bertgeom.store.storage import with_retries
from bertgeom.urls import shown_url

T = TypeVar("T")

_SUFFIXES = ("fa", "fasta", "fna", "ffn", "frn", "fas", "fsa", "fq", "fastq")
_COMPRESSED = ("", ".gz", ".bgz", ".bz2", ".xz", ".zst")
#: Endings of the files that are read from a folder, by the name of the alphabet; a file given by
#: name may have any ending.
ENDINGS = {
    alphabet: tuple(f".{suffix}{packed}" for suffix in suffixes for packed in _COMPRESSED)
    for alphabet, suffixes in (
        ("nucleotide", _SUFFIXES),
        ("protein", ("fa", "fasta", "faa", "fas", "fsa", "pep")),
        ("text", ("txt", "text")),
    )
}

#: First bytes -> what xopen calls the compression.
_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
_BUFFER = 1 << 20
#: Packages that read a kind of URL.
_PACKAGES = {
    "http": "'bertgeom[http]'",
    "https": "'bertgeom[http]'",
    "s3": "'bertgeom[s3]'",
    "s3a": "'bertgeom[s3]'",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}
#: Standard input.
STDIN = "-"
_DEVICES = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, order=True)
class Source:
    """One file of sequences.

    Attributes:
        url: a path or an fsspec URL.
        size: bytes as stored, None if unknown.
        once: whether it is a pipe, which can be read only once.
    """

    url: str
    size: int | None = None
    once: bool = False


class Digest(io.RawIOBase):
    """The bytes of a stream, counted and hashed while they are read.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._sha256, self.size = stream, hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the whole buffer except at the end: a slow pipe gives few bytes at a time."""
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view) and (piece := self._stream.read(len(view) - filled)):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        self._sha256.update(view[:filled])
        self.size += filled
        return filled

    def facts(self, source: Source) -> dict[str, Any]:
        """Name without folders, size in bytes and SHA-256 of a source that was read whole."""
        name = STDIN if source.once else shown_url(source.url).rsplit("/", 1)[-1]
        return {"name": name, "size": self.size, "sha256": self._sha256.hexdigest()}


def _decompressor(kind: str) -> Any:
    """What decompresses one stream of a bz2 or xz file."""
    if kind == "bz2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ)


#: Compressions whose readers in Python silently stop at trailing garbage.
_STREAMS = ("bz2", "xz")


class _Streams(io.RawIOBase):
    """Concatenated streams of bz2 or xz; only zero bytes may follow.

    Parallel compressors write many streams. A damaged one is an error, not the end of the file.
    """

    def __init__(self, stored: Any, kind: str) -> None:
        self._stored, self._kind = stored, kind
        self._now = _decompressor(kind)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._now.eof:
                self._rest = self._now.unused_data or self._rest
                while not (left := self._rest.lstrip(b"\0")):
                    if not (new := self._stored.read(_BUFFER)):
                        return 0
                    self._rest = new
                self._now, self._rest = _decompressor(self._kind), left
            if self._now.needs_input and not self._rest:
                self._rest = self._stored.read(_BUFFER)
                if not self._rest:
                    raise EOFError("the compressed data end too early")
            piece = self._now.decompress(self._rest, len(buffer))
            self._rest = b""
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)


class _Remote(io.RawIOBase):
    """The bytes of a URL; after a failure reading resumes at the same position, for a while.

    Raises:
        InputError: from any read, if the place does not answer in time.
    """

    def __init__(self, url: str) -> None:
        self._url, self._place, self._file = url, 0, None
        self._opened = ExitStack()
        _with_retries(url, self._open)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = _with_retries(self._url, lambda: self._read(len(view)))
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._opened.close()
        super().close()

    def _read(self, n: int) -> bytes:
        file = self._file or self._open()
        try:
            data = bytes(file.read(n))
            size = getattr(file, "size", None)
            if n and not data and isinstance(size, int) and self._place < size:
                raise ConnectionError(f"{self._place} bytes of {size}, then the end")
        except BaseException:
            self._file = None
            self._opened.close()
            raise
        return data

    def _open(self) -> Any:
        """The file, opened at the current position."""
        import fsspec

        file = self._opened.enter_context(fsspec.open(self._url, "rb"))
        if self._place and file.seekable():
            file.seek(self._place)
        left = 0 if not self._place or file.seekable() else self._place
        while left:
            skipped = len(file.read(min(left, _BUFFER)))
            if not skipped:
                raise ConnectionError(f"{self._place - left} bytes, then the end")
            left -= skipped
        self._file = file
        return file


def _with_retries(url: str, action: Callable[[], T]) -> T:
    """The result of `action` on a URL, retried for a while.

    Raises:
        InputError: if it does not answer in time, or refuses access.
    """
    try:
        return with_retries(action, "")
    except FileNotFoundError as error:
        raise _cannot_open(url, error) from error
    except StoreError as error:
        raise _cannot_open(url, error.__cause__ or error) from error


@dataclass(frozen=True)
class _Listing:
    """What is taken from folders: files with these endings; the others are noted."""

    left_out: list[str]
    endings: tuple[str, ...]

    def takes(self, name: str) -> bool:
        return not name.startswith(".") and name.lower().endswith(self.endings)


def expand_sources(
    sources: str | os.PathLike[str] | Source | Iterable[str | os.PathLike[str] | Source],
    left_out: list[str] | None = None,
    alphabet: str = "nucleotide",
) -> list[Source]:
    """All files of the given files, folders (with subfolders), globs and fsspec URLs.

    A file that is named twice counts once. The result is sorted, so that the order in which
    sources are given changes nothing.

    Args:
        sources: what the user named.
        left_out: gets the files of folders that are skipped because their ending is unknown.
        alphabet: name of that of the sequences; it decides which endings are known.

    Raises:
        InputError: for a source that does not exist, a glob without a match, or a folder
            without a file that ends like FASTA or FASTQ.
    """
    if isinstance(sources, str | os.PathLike | Source):
        sources = [sources]
    found: dict[str, Source] = {}
    files = _Listing([] if left_out is None else left_out, ENDINGS[alphabet])
    for source in sources:
        some = [source] if isinstance(source, Source) else list(_expand(os.fspath(source), files))
        for one in some:
            found.setdefault(_identity(one.url), one)
    if not found:
        raise InputError("at least one source of sequences", "none")
    return sorted(found.values(), key=lambda source: source.url)


@contextmanager
def open_source(
    source: Source | str | os.PathLike[str], digests: list[Digest] | None = None
) -> Iterator[Any]:
    """The uncompressed bytes of a source; the compression is detected from the content.

    The stream has `read` and `peek`. With `digests`, one is added that hashes the stored bytes;
    after use without an error it has seen all of them.

    Raises:
        InputError: if it cannot be opened.
    """
    url = source.url if isinstance(source, Source) else os.fspath(source)
    with ExitStack() as stack:
        try:
            digest = Digest(stack.enter_context(open_raw(url)))
            stored = io.BufferedReader(digest, _BUFFER)
            stream: Any = stored
            kind = _compression(stream.peek(8))
            if kind in _STREAMS:
                stream = io.BufferedReader(_Streams(stored, kind), _BUFFER)
            elif kind is not None:
                from xopen import xopen

                # In this process and thread: no helper program, same bytes everywhere.
                stream = stack.enter_context(xopen(stream, "rb", threads=0, format=kind))
        except InputError:
            raise
        except (OSError, ImportError, ValueError) as error:
            raise _cannot_open(url, error) from error
        yield stream
        if digests is not None:
            while stored.read(_BUFFER):
                pass
            digests.append(digest)


@contextmanager
def open_raw(url: str) -> Iterator[Any]:
    """The stored bytes of a path or URL, buffered, as for a checksum."""
    if not is_url(url):
        where: str | int = 0 if url == STDIN else url
        with open(where, "rb", buffering=_BUFFER, closefd=url != STDIN) as file:
            yield file
        return
    with _Remote(url) as stream, io.BufferedReader(stream, _BUFFER) as buffered:
        yield buffered


def is_url(source: str) -> bool:
    """Whether fsspec, and not the operating system, has to open it."""
    return "://" in source or "::" in source


def _compression(head: bytes) -> str | None:
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _identity(url: str) -> str:
    return url if is_url(url) else os.path.realpath(url)


def _expand(source: str, listing: _Listing) -> Iterator[Source]:
    if not source.strip():
        raise InputError(
            "a source of sequences", "an empty name", remedy="give a file, a folder or -"
        )
    if is_url(source):
        yield from _expand_url(source, listing)
        return
    try:
        mode = os.fstat(0).st_mode if source == STDIN else Path(source).stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        raise _cannot_open(source, error) from error
    if mode is None:
        yield from _expand_glob(source, listing)
    elif source == STDIN or stat.S_ISFIFO(mode) or _is_stdin(source):
        yield _pipe(source)
    elif stat.S_ISDIR(mode):
        yield from _expand_folder(source, listing)
    elif stat.S_IFMT(mode) in _DEVICES:
        raise InputError(
            "a file, folder, glob, URL or pipe", _DEVICES[stat.S_IFMT(mode)], source=source
        )
    else:
        yield Source(source, os.path.getsize(source))


def _is_stdin(source: str) -> bool:
    """Whether the name is that of standard input where it cannot be opened a second time."""
    return source in ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0") and not stat.S_ISREG(
        os.fstat(0).st_mode
    )


def _pipe(source: str) -> Source:
    if source == STDIN or _is_stdin(source):
        if os.isatty(0):
            raise InputError(
                "sequences on standard input",
                "a terminal",
                source=source,
                remedy="pipe a file into the command, or name files",
            )
        source = STDIN
    return Source(source, None, True)


def _expand_glob(source: str, listing: _Listing) -> Iterator[Source]:
    if os.path.islink(source):
        raise InputError("a file", "a link to nothing", source=source, remedy="check the link")
    if not glob.has_magic(source):
        raise InputError(
            "a file, folder, glob or URL", "nothing there", source=source, remedy="check the path"
        )
    matches = glob.glob(source, recursive=True)
    if not matches:
        raise InputError("a file that matches", "none", source=source)
    for match in matches:
        yield from _expand(match, listing)


def _expand_folder(source: str, listing: _Listing) -> Iterator[Source]:
    def refuse(error: OSError) -> None:
        raise _cannot_open(error.filename or source, error) from error

    inside = []
    for folder, _, names in os.walk(source, onerror=refuse):
        paths = [os.path.join(folder, name) for name in names]
        inside += [path for path in paths if listing.takes(os.path.basename(path))]
        listing.left_out.extend(p for p in paths if not listing.takes(os.path.basename(p)))
    if not inside:
        raise _empty_folder(source, listing)
    for path in inside:
        yield from _expand(path, listing)


def _expand_url(source: str, listing: _Listing) -> Iterator[Source]:
    import fsspec

    def ask(question: Callable[[str], T], path: str) -> T:
        return _with_retries(source, lambda: question(path))

    try:
        files, path = fsspec.core.url_to_fs(source)
        if "::" not in source and glob.has_magic(path) and not ask(files.exists, path):
            matches = [files.unstrip_protocol(match) for match in ask(files.glob, path)]
            if not matches:
                raise InputError("a file that matches", "none", source=source)
            for match in matches:
                yield from _expand_url(match, listing)
            return
        info = ask(files.info, path)
        if info.get("type") == "directory":
            every = ask(files.find, path)
            inside = [p for p in every if listing.takes(p.rsplit("/", 1)[-1])]
            others = (p for p in every if not listing.takes(p.rsplit("/", 1)[-1]))
            listing.left_out.extend(others)
            if not inside:
                raise _empty_folder(source, listing)
            for p in inside:
                yield Source(files.unstrip_protocol(p), ask(files.info, p).get("size"))
            return
    except InputError:
        raise
    except Exception as error:
        # Client libraries have errors of their own.
        raise _cannot_open(source, error) from error
    yield Source(source, info.get("size"))


def _empty_folder(source: str, listing: _Listing) -> InputError:
    shown = [ending for ending in listing.endings if ending.count(".") == 1]
    return InputError(
        f"a folder with {'text' if '.txt' in shown else 'FASTA or FASTQ'} files",
        "none",
        source=source,
        remedy=f"files must end like {', '.join(shown)}, or these compressed; name others one by "
        "one, or give their --alphabet",
    )


def _cannot_open(url: str, error: BaseException) -> InputError:
    cause = error.__cause__ if is_url(url) else None
    if isinstance(error, FileNotFoundError) and _says_nothing_there(cause):
        return InputError("a file", "nothing there", source=url, remedy="check the path")
    if isinstance(error, FileNotFoundError) and cause is not None:
        # fsspec raises the same error for every response of a server.
        error = cause
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        reason = "a loop of symbolic links"
    remedy = "check the path and the permissions"
    if is_url(url):
        remedy = "check the address, the network and the permissions"
    if isinstance(error, ImportError):
        scheme = url.partition("://")[0].rpartition("::")[2]
        package = _PACKAGES.get(scheme, "the package that it names")
        remedy = f"pip install {package}"
    return InputError("a file that can be opened", reason, source=url, remedy=remedy)


def _says_nothing_there(cause: BaseException | None) -> bool:
    return (
        cause is None
        or isinstance(cause, FileNotFoundError)
        or getattr(cause, "status", None) in (404, 410)
    )
