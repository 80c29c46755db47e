"""Records of FASTA and FASTQ, streamed; malformed input raises a one-line error.

What is a base, unless another alphabet is asked for: A, C, G, T, U and the ambiguity codes of IUPAC
in any case; `-`, `.`, `_`, `~` and `*` as gaps; X and `?` as unknown. Case is folded, U is T, every
gap is `-`, X and `?` are N. A gap keeps its place, and the tokenizer's rule decides what becomes of
it. Spaces and tabs inside sequence lines are skipped. Everything else, including digits, is an
error. Of a protein every letter from A to Z is one; the same signs are gaps, and `?` is X.

Lines end with LF, CRLF or CR; blank lines are skipped. The id of a record is the first word
of its header, the description the rest. Ids may repeat or be missing: the index is the key.
"""

from __future__ import annotations

import io
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from bertgeom.errors import InputError
from bertgeom.sequences.alphabets import NUCLEOTIDES, TEXT, Alphabet
from bertgeom.sequences.sources import Digest, Source, expand_sources, open_source
from bertgeom.sequences.text import Piece, read_text

__all__ = ["Chunk", "Record", "Source", "expand_sources", "read_chunks", "read_records"]

T = TypeVar("T")

_BLOCK = 4 << 20
_MAX_HEADER = 1 << 20
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, eq=False)
class Record:
    """One sequence.

    Attributes:
        index: number of the record over all sources, from 0.
        id: first word of the header.
        description: what follows it.
        bases: uint8 (n,) ASCII, upper case, read-only.
        source: index of its source in the list that was read.
    """

    index: int
    id: str
    description: str
    bases: np.ndarray
    source: int


@dataclass(frozen=True, eq=False)
class Chunk:
    """A piece of a record, for reading in bounded memory.

    Attributes:
        index, id, description, source: those of the record.
        start: first base of the piece in its record.
        bases: uint8 (n,) ASCII, upper case, read-only; at most some megabytes, possibly none.
        last: whether the record ends with this piece.
    """

    index: int
    id: str
    description: str
    source: int
    start: int
    bases: np.ndarray
    last: bool


Sources = str | os.PathLike[str] | Source | Iterable[str | os.PathLike[str] | Source]


def read_records(sources: Sources) -> Iterator[Record]:
    """Records of one source or of several, in order; a record is held as a whole.

    Args:
        sources: a path, URL or `Source`, or several, each one file (see `expand_sources`).

    Raises:
        InputError: for a source that is not FASTA or FASTQ, with file, record and line.
    """
    parts: list[np.ndarray] = []
    for chunk in read_chunks(sources):
        parts.append(chunk.bases)
        if chunk.last:
            bases = parts[0] if len(parts) == 1 else _join(parts)
            yield Record(chunk.index, chunk.id, chunk.description, bases, chunk.source)
            parts = []


def read_chunks(
    sources: Sources, digests: list[Digest] | None = None, alphabet: Alphabet = NUCLEOTIDES
) -> Iterator[Chunk]:
    """The same records in pieces: one or more per record, in order, the last one marked.

    Args:
        sources: as in `read_records`.
        digests: gets the digest of every source's stored bytes after it was read.
        alphabet: what the sequences are made of. Text is read as `bertgeom.sequences.text` says.

    Raises:
        InputError: as `read_records`.
    """
    if isinstance(sources, str | os.PathLike | Source):
        sources = [sources]
    index = 0
    for number, source in enumerate(sources):
        url = source.url if isinstance(source, Source) else os.fspath(source)
        for name, description, start, bases, last in _read_source(url, digests, alphabet):
            yield Chunk(index, name, description, number, start, bases, last)
            index += last


def _read_source(url: str, digests: list[Digest] | None, alphabet: Alphabet) -> Iterator[Piece]:
    with open_source(url, digests) as stream:
        if alphabet is TEXT:
            yield from read_text(lambda: guarded(stream.readline, url, None), url)
            return

        def peek() -> bytes:
            return bytes(guarded(lambda: stream.peek(1 << 12), url, None))

        if peek().startswith(_BOM):
            stream.read(len(_BOM))
        blank = b""
        while (head := peek()) and not head.lstrip():
            blank += stream.read(len(head))
        if head.lstrip().startswith(b"@"):
            blank += stream.read(len(head) - len(head.lstrip()))
            yield from _read_fastq(stream, url, _newlines(blank), alphabet)
        else:
            yield from _read_fasta(_Blocks(stream, url, 1 + _newlines(blank), alphabet))


def _read_fasta(blocks: _Blocks) -> Iterator[Piece]:
    blocks.begin()
    while (header := blocks.header()) is not None:
        start, ended = 0, False
        while not ended:
            bases, ended = blocks.bases()
            yield *header, start, np.frombuffer(bases, dtype=np.uint8), ended
            start += len(bases)


class _Blocks:
    """A FASTA stream, block by block.

    `block[place:]` is still to be read and `line` is the number of the line that `place` is
    in. A block never ends between CR and LF.
    """

    def __init__(self, stream: Any, url: str, line: int, alphabet: Alphabet) -> None:
        self.stream, self.url, self.alphabet = stream, url, alphabet
        self.block, self.place, self.line = b"", 0, line
        self.line_start = True
        self.record: str | None = None

    def begin(self) -> None:
        """Go to the first header."""
        while len(self.block) < len(_BOM) and self._more():
            pass
        if self.block.startswith(_BOM):
            self.place = len(_BOM)
        while not (rest := self.block[self.place :].lstrip()):
            self._pass(len(self.block))
            if not self._more():
                raise InputError(
                    "at least one record",
                    "an empty file",
                    source=self.url,
                    remedy="take it out of the sources",
                )
        self._pass(len(self.block) - len(rest))
        if not rest.startswith(b">"):
            raise self._error("FASTA or FASTQ, a header that starts with > or @", *_describe(rest))

    def header(self) -> tuple[str, str] | None:
        """Id and description of the record that begins here; None at the end."""
        if not self._left():
            return None
        self.record = None
        while (end := _line_end(self.block, self.place)) < 0:
            if self._left() > _MAX_HEADER:
                raise self._error(
                    "a header of at most 1 MiB", "a longer one", "is this line a sequence?"
                )
            if not self._more():
                end = len(self.block)
                break
        raw = self.block[self.place + 1 : end]
        if b"\0" in raw:
            raise self._error("a header in text", "a zero byte", "the file is binary or damaged")
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise self._error(
                "a header in UTF-8",
                f"byte 0x{raw[error.start]:02x} at column {error.start + 2}",
                "convert the file, for instance with iconv -f latin1 -t utf-8",
            ) from error
        header = _split_header(text)
        self.record = header[0]
        self._pass(end + 1 + (self.block[end : end + 2] == b"\r\n"))
        return header

    def bases(self) -> tuple[bytes, bool]:
        """Bases up to the next header or the end of the block, and whether the record ended."""
        if not self._left() and not self._more():
            return b"", True
        end = self.block.find(b">", self.place)
        if end >= 0 and self._starts_line(end):
            piece, ended = self.block[self.place : end], True
        else:
            piece, ended = self.block[self.place :], False
        bases = piece.translate(self.alphabet.fold, _SPACE)
        if self.alphabet.wrong(bases):
            raise self._not_bases(piece)
        self._pass(self.place + len(piece))
        return bases, ended or (not self._left() and not self._more())

    def _starts_line(self, place: int) -> bool:
        return self.line_start if place == self.place else self.block[place - 1] in b"\r\n"

    def _left(self) -> int:
        return len(self.block) - self.place

    def _more(self) -> bool:
        """Read the next bytes of the stream; False at its end."""
        new = self._read(_BLOCK)
        while new.endswith(b"\r") and (next_byte := self._read(1)):
            new += next_byte
        self.block, self.place = self.block[self.place :] + new, 0
        return bool(new)

    def _read(self, size: int) -> bytes:
        return bytes(guarded(lambda: self.stream.read(size), self.url, self.record))

    def _pass(self, end: int) -> None:
        passed = self.block[self.place : end]
        if passed:
            self.line += _newlines(passed)
            self.line_start = passed[-1] in b"\r\n"
        self.place = min(end, len(self.block))

    def _not_bases(self, piece: bytes) -> InputError:
        folded = np.frombuffer(piece.translate(self.alphabet.fold), dtype=np.uint8)
        allowed = np.frombuffer(self.alphabet.letters + _SPACE, dtype=np.uint8)
        first = int((~np.isin(folded, allowed)).argmax())
        self.line += _newlines(piece[:first])
        found = _describe_letter(piece[first], self.alphabet)
        return self._error(self.alphabet.noun, *found)

    def _error(self, expected: str, found: str, remedy: str) -> InputError:
        return InputError(
            expected, found, source=self.url, record=self.record, line=self.line, remedy=remedy
        )


class _NewLines(io.RawIOBase):
    """A stream with CR as line end, read as if it were LF."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(piece)] = piece
        return len(piece)


def _read_fastq(stream: Any, url: str, skipped: int, alphabet: Alphabet) -> Iterator[Piece]:
    """Records of a stream that begins with @, `skipped` lines after the start of the file."""
    import dnaio

    first = stream.peek(1 << 12)
    end = _line_end(first, 0)
    if end >= 0 and first[end] == ord("\r") and first[end : end + 2] != b"\r\n":
        stream = io.BufferedReader(_NewLines(stream), _BLOCK)
    reader = guarded(lambda: dnaio.FastqReader(stream), url, None)
    rows = iter(reader)
    number = 0
    while (row := guarded(lambda: _next_row(rows), url, None, skipped)) is not None:
        name, description = _split_header(row.name)
        bases = row.sequence.encode("ascii").translate(alphabet.fold, _SPACE)
        if wrong := alphabet.wrong(bases):
            found, remedy = _describe_letter(wrong[0], alphabet)
            raise InputError(
                alphabet.noun,
                found,
                source=url,
                record=name,
                line=skipped + 4 * number + 2,
                remedy=remedy,
            )
        number += 1
        yield name, description, 0, np.frombuffer(bases, dtype=np.uint8), True


def _next_row(rows: Iterator[Any]) -> Any:
    """The next FASTQ record; None at the end, where blank lines are allowed."""
    try:
        return next(rows, None)
    except Exception as error:
        if re.search(r"incomplete final record was: '(\\[rn])+'", str(error)):
            return None
        raise


def guarded(read: Callable[[], T], url: str, record: str | None, skipped: int = 0) -> T:
    """The result of `read`; what a decompressor or a parser raises becomes an InputError.

    Every decompressor and every file system has exceptions of its own, hence `Exception`.
    """
    try:
        return read()
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(getattr(error, "message", error)).split()) or type(error).__name__
        reason = textwrap.shorten(reason, 200, placeholder=" ...")
        line = getattr(error, "line", None)
        if line is not None:
            raise InputError(
                "FASTQ records of four lines",
                reason,
                source=url,
                line=skipped + line + 1,
                remedy="repair or remove the record",
            ) from error
        raise InputError(
            "a whole file",
            f"a damaged or truncated one ({reason})",
            source=url,
            record=record,
            remedy="copy or download it again",
        ) from error


def _line_end(block: bytes, start: int) -> int:
    """Where the line's LF or CR is, -1 if it is not in the block."""
    end = block.find(b"\n", start)
    carriage = block.find(b"\r", start, end if end >= 0 else len(block))
    return carriage if carriage >= 0 else end


def _newlines(text: bytes) -> int:
    if b"\r" in text:
        return text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")
    return text.count(b"\n")


def _split_header(text: str) -> tuple[str, str]:
    """Id and description."""
    words = text.split(maxsplit=1)
    return (words[0] if words else ""), (words[1].strip() if len(words) > 1 else "")


def _join(parts: list[np.ndarray]) -> np.ndarray:
    bases = np.concatenate(parts)
    bases.setflags(write=False)
    return bases


def _describe(start: bytes) -> tuple[str, str]:
    """The kind of a file that is not FASTA, from its first bytes, and the remedy."""
    for magic, kind, remedy in (
        (b"PK\x03\x04", "a zip archive", "unpack it"),
        (b"\x1f\x9d", "a .Z file", "uncompress it"),
        (b"BAM\x01", "a BAM file", "convert it with samtools fasta"),
        (b"\xff\xfe", "UTF-16", "save it as UTF-8 or ASCII"),
        (b"\xfe\xff", "UTF-16", "save it as UTF-8 or ASCII"),
    ):
        if start.startswith(magic):
            return kind, remedy
    if start[257:262] == b"ustar":
        return "a tar archive", "unpack it"
    line = start[:40].splitlines()[0]
    if any(byte < 9 or 13 < byte < 32 or byte > 126 for byte in line):
        return f"binary data ({line[:8].hex(' ')} ...)", "give FASTA or FASTQ"
    text = line.decode("ascii")
    if not NUCLEOTIDES.wrong(text.encode().translate(NUCLEOTIDES.fold, _SPACE)):
        return f"bases without a header ({text[:20]!r})", "put a line such as >name in front"
    return repr(text), "convert it to FASTA; plain text needs --alphabet text"


def _describe_letter(byte: int, alphabet: Alphabet) -> tuple[str, str]:
    shown = repr(chr(byte)) if 32 < byte < 127 else f"byte 0x{byte:02x}"
    if alphabet is NUCLEOTIDES and chr(byte).upper() in "EFILPQZJO":
        return shown, "is this a protein? then give --alphabet protein"
    if byte == ord(">"):
        return f"{shown} inside a line", "a header must start its line"
    return shown, "remove or replace it"
