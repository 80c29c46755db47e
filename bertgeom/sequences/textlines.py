"""Lines of small text files that a user gives: labels, regions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bertgeom.errors import InputError
from bertgeom.sequences.sources import open_source

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: str | Path, what: str) -> Iterator[tuple[int, str]]:
    """Numbers from 1 and text of all lines, without their ends (LF, CRLF or CR).

    The file may be compressed (detected from its content), an fsspec URL or a pipe.

    Args:
        path: the file.
        what: what the file should be, for the message: "a table of labels".

    Raises:
        InputError: for a file that is missing, empty, a folder, unreadable or not UTF-8 text.
    """
    source = str(path)
    data = _content(source, what)
    if data.startswith(_UTF16) or b"\0" in data[: 1 << 16]:
        kind = "UTF-16 text" if data.startswith(_UTF16) or _wide(data) else "binary data"
        raise InputError(
            f"{what} in UTF-8 text", kind, source=source, remedy="save it as UTF-8 text"
        )
    for number, line in enumerate(data.removeprefix(_BOM).splitlines(), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{what} in UTF-8 text",
                f"byte 0x{line[error.start]:02x} at column {error.start + 1}",
                source=source,
                line=number,
                remedy="convert the file, for instance with iconv -f latin1 -t utf-8",
            ) from error


def _content(source: str, what: str) -> bytes:
    if not source.strip():
        raise InputError(what, "an empty name", remedy="give the name of a file")
    if os.path.isdir(source):
        raise InputError(what, "a folder", source=source, remedy="give a file of it")
    with open_source(source) as stream:
        try:
            data = bytes(stream.read())
        except MemoryError:
            raise
        except Exception as error:
            # Every decompressor and file system has exceptions of its own.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                "a whole file", f"a damaged or truncated one ({reason})", source=source
            ) from error
    if not data.strip():
        raise InputError(what, "an empty file", source=source)
    return data


def _wide(data: bytes) -> bool:
    """Whether every other byte of the beginning is zero, as in UTF-16 without a mark."""
    head = data[:64]
    return not any(head[1::2]) or not any(head[::2])
