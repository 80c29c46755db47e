"""Plain text as records: a document after every header, or a document a line.

A file whose first line begins with > has headers like FASTA: the lines of a record, up to the next
header, are one document, joined by line feeds. In any other file every line with a letter is a
document, and its id is the number of the line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bertgeom.errors import InputError

#: id, description, first base, bases, whether the record ends.
Piece = tuple[str, str, int, np.ndarray, bool]

_BOM = b"\xef\xbb\xbf"
_MAX_DOCUMENT = 64 << 20


def read_text(read_line: Callable[[], bytes], url: str) -> Iterator[Piece]:
    """The documents of a text file, each in one piece.

    Args:
        read_line: gives the next line, empty at the end.

    Raises:
        InputError: for bytes that are not UTF-8, a zero byte, a document of more than 64 MiB, or a
            file without one.
    """
    lines = _lines(read_line, url)
    first = next(lines, None)
    if first is None:
        raise InputError(
            "at least one document",
            "an empty file",
            source=url,
            remedy="take it out of the sources",
        )
    if not first[1].startswith(b">"):
        yield _piece(str(first[0]), "", first[1])
        yield from (_piece(str(number), "", line) for number, line in lines)
        return
    header, size = first[1], 0
    document: list[bytes] = []
    for number, line in lines:
        if line.startswith(b">"):
            yield _document(header, document)
            header, document, size = line, [], 0
            continue
        document.append(line)
        size += len(line)
        if size > _MAX_DOCUMENT:
            raise _too_long(url, number)
    yield _document(header, document)


def _lines(read_line: Callable[[], bytes], url: str) -> Iterator[tuple[int, bytes]]:
    """Number and content of every line that is not blank."""
    number = 0
    while raw := read_line():
        number += 1
        line = raw.removeprefix(_BOM) if number == 1 else raw
        line = line.strip(b" \t\r\n\f\v")
        if not line:
            continue
        if len(line) > _MAX_DOCUMENT:
            raise _too_long(url, number)
        found = "a zero byte" if b"\0" in line else None
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"byte 0x{line[error.start]:02x}"
        if found:
            raise InputError(
                "text in UTF-8",
                found,
                source=url,
                line=number,
                remedy="convert the file, for instance with iconv -f latin1 -t utf-8",
            )
        yield number, line


def _too_long(url: str, number: int) -> InputError:
    return InputError(
        "documents of at most 64 MiB",
        "a longer one",
        source=url,
        line=number,
        remedy="split it",
    )


def _document(header: bytes, lines: list[bytes]) -> Piece:
    words = header[1:].decode("utf-8").split(maxsplit=1)
    name = words[0] if words else ""
    return _piece(name, words[1].strip() if len(words) > 1 else "", b"\n".join(lines))


def _piece(name: str, description: str, text: bytes) -> Piece:
    return name, description, 0, np.frombuffer(text, dtype=np.uint8), True
