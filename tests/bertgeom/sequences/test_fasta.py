"""FASTA and FASTQ as they come: what is read, and what stops with one line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xopen import xopen

from bertgeom.errors import InputError
from bertgeom.sequences import fasta, sources
from bertgeom.sequences.fasta import Source, expand_sources, read_chunks, read_records


class Write(Protocol):
    """Writes a file and returns its path."""

    def __call__(self, content: bytes, name: str = "x.fa") -> str: ...


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: bytes, name: str = "x.fa") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    return write


def rows(source: str | Path | Source | Sequence[Source | str]) -> list[tuple[str, str, bytes]]:
    return [(r.id, r.description, r.bases.tobytes()) for r in read_records(source)]


# What works as a user expects.


READ = {
    "plain": (b">a\nACGT\n>b\nGG\nCC\n", [("a", "", b"ACGT"), ("b", "", b"GGCC")]),
    "no newline at the end": (b">a\nACGT", [("a", "", b"ACGT")]),
    "CRLF": (b">a x\r\nAC\r\nGT\r\n>b\r\nA\r\n", [("a", "x", b"ACGT"), ("b", "", b"A")]),
    "CR": (b">a x\rAC\rGT\r>b\rA\r", [("a", "x", b"ACGT"), ("b", "", b"A")]),
    "mixed line ends": (b">a\r\nAC\nGT\r>b\nA", [("a", "", b"ACGT"), ("b", "", b"A")]),
    "blank lines": (
        b"\n\n>a\n\nAC\n\n\nGT\n\n>b\n\nA\n\n",
        [("a", "", b"ACGT"), ("b", "", b"A")],
    ),
    "soft-masked": (b">a\nacgtNNryACGT\n", [("a", "", b"ACGTNNRYACGT")]),
    "RNA": (b">a\nACGUu\n", [("a", "", b"ACGTT")]),
    "gaps keep their place": (b">a\nA-C..G__T~*A\n", [("a", "", b"A-C--G--T--A")]),
    "masked with X, missing as ?": (b">a\nACxXG?T\n", [("a", "", b"ACNNGNT")]),
    "all ambiguity codes": (b">a\nRYSWKMBDHVN\n", [("a", "", b"RYSWKMBDHVN")]),
    "spaces and tabs in lines": (b">a\nACGT ACGT\tAC \n AC\n", [("a", "", b"ACGTACGTACAC")]),
    "an empty record": (
        b">a\n>b\nAC\n>c\n",
        [("a", "", b""), ("b", "", b"AC"), ("c", "", b"")],
    ),
    "an empty record at the end, no newline": (b">a\nA\n>c", [("a", "", b"A"), ("c", "", b"")]),
    "duplicate ids": (b">a\nA\n>a\nC\n", [("a", "", b"A"), ("a", "", b"C")]),
    "> inside a header": (b">a x>y >z\nAC\n", [("a", "x>y >z", b"AC")]),
    "description": (b">a  two  words \nAC\n", [("a", "two  words", b"AC")]),
    "tab in a header": (b">a\tb c\nAC\n", [("a", "b c", b"AC")]),
    "space before the id": (b"> a b\nAC\n", [("a", "b", b"AC")]),
    "no id": (b">\nAC\n", [("", "", b"AC")]),
    "UTF-8 header": (">ä β-CoV\nAC\n".encode(), [("ä", "β-CoV", b"AC")]),
    "control-A of a merged header": (b">a x\x01b y\nAC\n", [("a", "x\x01b y", b"AC")]),
    "byte order mark": (b"\xef\xbb\xbf>a\nAC\n", [("a", "", b"AC")]),
    "FASTQ": (
        b"@a x\nACgt\n+\nIIII\n@b\nUN\n+b\nII\n",
        [("a", "x", b"ACGT"), ("b", "", b"TN")],
    ),
    "FASTQ with CRLF": (b"@a x\r\nAC\r\n+\r\nII\r\n", [("a", "x", b"AC")]),
    "FASTQ without newline at the end": (b"@a\nAC\n+\nII", [("a", "", b"AC")]),
    "FASTQ with blank lines at the end": (b"@a\nAC\n+\nII\n\n\n", [("a", "", b"AC")]),
    "FASTQ with a blank CRLF line at the end": (b"@a\r\nAC\r\n+\r\nII\r\n\r\n", [("a", "", b"AC")]),
    "FASTQ with CR": (b"@a x\rAC\r+\rII\r@b\rG\r+\rI\r", [("a", "x", b"AC"), ("b", "", b"G")]),
    "FASTQ with a byte order mark": (b"\xef\xbb\xbf@a\nAC\n+\nII\n", [("a", "", b"AC")]),
    "FASTQ behind blank lines": (b"\n \n@a\nAC\n+\nII\n", [("a", "", b"AC")]),
    "FASTQ behind CRLF lines": (b"\xef\xbb\xbf\r\n\r\n@a\r\nAC\r\n+\r\nII\r\n", [("a", "", b"AC")]),
    "FASTQ behind very many blank lines": (
        b"\n" * (3 << 20) + b"@a\nAC\n+\nII\n",
        [("a", "", b"AC")],
    ),
    "FASTA behind very many blank lines": (b"\n" * (3 << 20) + b">a\nAC\n", [("a", "", b"AC")]),
    "empty FASTQ record": (b"@a\n\n+\n\n@b\nA\n+\nI\n", [("a", "", b""), ("b", "", b"A")]),
}


@pytest.mark.parametrize("case", READ)
def test_reads(write: Write, case: str) -> None:
    content, expected = READ[case]
    assert rows(write(content)) == expected


@pytest.mark.parametrize("block", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "content",
    [
        b">a x\r\nAC\r\n\r\nGT\r\n>b\r\nA\r\n>c\r\n>d\r\nACGTACGTACGT",
        b">a x\rAC\r\rGT\r>b\rA\r>c\r>d\rACGTACGTACGT",
        b"\xef\xbb\xbf\n>a x\nAC\n\nGT\n>b\nA\n>c\n>d\nACGTACGTACGT\n",
    ],
)
def test_where_a_block_ends_changes_nothing(
    write: Write, monkeypatch: pytest.MonkeyPatch, content: bytes, block: int
) -> None:
    source = write(content)
    monkeypatch.setattr(fasta, "_BLOCK", block)
    assert rows(source) == [
        ("a", "x", b"ACGT"),
        ("b", "", b"A"),
        ("c", "", b""),
        ("d", "", b"ACGT" * 3),
    ]


def test_chunks_of_a_record_follow_each_other_in_bounded_pieces(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fasta, "_BLOCK", 1000)
    bases = np.random.default_rng(1).choice(np.frombuffer(b"ACGT", np.uint8), 12_345).tobytes()
    lines = b"\n".join(bases[i : i + 60] for i in range(0, len(bases), 60))
    source = write(b">a x\n" + lines + b"\n>b\n")
    chunks = list(read_chunks(source))
    of_a = [c for c in chunks if c.index == 0]
    assert b"".join(c.bases.tobytes() for c in of_a) == bases
    assert [c.start for c in of_a] == np.cumsum([0, *(c.bases.size for c in of_a)])[:-1].tolist()
    assert [c.last for c in of_a] == [False] * (len(of_a) - 1) + [True]
    assert max(c.bases.size for c in of_a) <= 1000
    assert [(c.id, c.description, c.bases.size, c.last) for c in chunks if c.index == 1] == [
        ("b", "", 0, True)
    ]


def test_records_are_numbered_over_all_sources(write: Write) -> None:
    first, second = write(b">a\nA\n>b\nC\n", "1.fa"), write(b">c\nG\n", "2.fa")
    found = list(read_records([first, Source(second)]))
    assert [(r.index, r.id, r.source) for r in found] == [(0, "a", 0), (1, "b", 0), (2, "c", 1)]
    assert all(r.bases.dtype == np.uint8 for r in found)


letters = st.text("ACGTN", max_size=30)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp", "Cs")), min_size=1
)


@settings(max_examples=50, deadline=None)
@given(
    records=st.lists(st.tuples(names, letters), min_size=1, max_size=5),
    width=st.integers(1, 40),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    block=st.integers(1, 40),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[str, str]],
    width: int,
    end: str,
    block: int,
) -> None:
    text = "".join(
        f">{name}{end}" + "".join(s[i : i + width] + end for i in range(0, len(s), width))
        for name, s in records
    )
    path = tmp_path_factory.mktemp("fasta") / "x.fa"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "_BLOCK", block)
        found = rows(path)
    assert found == [(name, "", s.encode()) for name, s in records]


# What stops, and with which line.


STOP = {
    "no header": (b"ACGTACGT\nACGT\n", "line 1: .*bases without a header.*>name"),
    "no header after blank lines": (b"\n\nACGT\n", "line 3: .*bases without a header"),
    "another text format": (b"LOCUS  X\n", "line 1: .*'LOCUS  X'; convert it"),
    "binary": (b"\x00\x01\x02\x03ELF\n", "binary data"),
    "zip": (b"PK\x03\x04xxxx", "zip archive; unpack it"),
    "tar": (b"x.fa".ljust(257, b"\0") + b"ustar\0", "tar archive; unpack it"),
    "UTF-16": (">a\nAC\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
    "BAM": (b"BAM\x01\0\0", "BAM file; convert it with samtools"),
    "empty": (b"", "at least one record, found an empty file"),
    "blank lines only": (b"\n \n\r\n", "at least one record, found an empty file"),
    "bad UTF-8 in a header": (
        b">a\nAC\n>caf\xe9 x\nAC\n",
        r"line 3: expected a header in UTF-8, found byte 0xe9 at column 5; .*iconv",
    ),
    "zero byte in a header": (b">a\0b\nAC\n", "line 1: .*zero byte"),
    "a header without end": (b">" + b"x" * (2 << 20), "line 1: .*at most 1 MiB"),
    "> inside a sequence line": (
        b">a\nACGT\nAC>b\nACGT\n",
        "record 'a', line 3: expected bases, found '>' inside a line",
    ),
    "indented header": (b">a\nAC\n  >b\nAC\n", "record 'a', line 3: .*'>' inside a line"),
    "protein": (b">a\nACG\nMEFL\n", "record 'a', line 3: expected bases, found 'E'; .*protein"),
    "digits": (b">a\n1 ACGT\n", "record 'a', line 2: .*'1'"),
    "comment line": (b">a\n;x\nAC\n", "record 'a', line 2: .*';'"),
    "zero byte in a sequence": (b">a\nAC\0GT\n", "line 2: .*byte 0x00"),
    "latin-1 in a sequence": (b">a\nAC\xe9\n", "line 2: .*byte 0xe9"),
    "line numbers with CRLF": (b">a\r\nAC\r\nA!\r\n", "line 3: .*'!'"),
    "line numbers with CR": (b">a\rAC\rA!\r", "line 3: .*'!'"),
    "truncated FASTQ": (b"@a\nAC\n+\n", "line [34]: expected FASTQ records of four lines"),
    "FASTQ of unequal lengths": (b"@a\nAC\n+\nI\n", "expected FASTQ records of four lines"),
    "FASTQ of several lines": (
        b"@a\nAC\nGT\n+\nIIII\n",
        "expected FASTQ records of four lines",
    ),
    "wrong letter in FASTQ": (
        b"@a\nAC\n+\nII\n@b\nA!\n+\nII\n",
        "record 'b', line 6: expected bases, found '!'",
    ),
    "line numbers of FASTQ behind blank lines": (
        b"\n\n@a\nAC\n+\nII\n@b\nA!\n+\nII\n",
        "record 'b', line 8: expected bases, found '!'",
    ),
    "line numbers of bad FASTQ behind blank lines": (
        b"\n\n@a\nAC\n+\nII\nb\nA\n+\nI\n",
        "line 7: expected FASTQ records of four lines",
    ),
    "line numbers behind very many blank lines": (
        b"\n" * (2 << 20) + b">a\nA!\n",
        f"line {(2 << 20) + 2}: .*'!'",
    ),
    "FASTQ cut off": (b"@a\nAC\n+\nII\n@b\nA" + b"C" * 9999, "line 6: expected FASTQ .{1,300}$"),
    "non-ASCII header in FASTQ": ("@ä\nAC\n+\nII\n".encode(), "FASTQ|whole file"),
}


@pytest.mark.parametrize("case", STOP)
def test_stops_with_one_line(write: Write, case: str) -> None:
    content, message = STOP[case]
    source = write(content)
    with pytest.raises(InputError) as caught:
        rows(source)
    text = str(caught.value)
    assert text.startswith(source)
    assert "\n" not in text
    assert "; " in text
    assert re.search(message, text), text


# Compression.


def zst(content: bytes, path: str) -> bytes:
    with xopen(path, "wb", threads=0, format="zst") as stream:
        stream.write(content)
    with open(path, "rb") as stream:
        return stream.read()


def packed(kind: str, content: bytes, folder: Path) -> bytes:
    if kind == "gz":
        return gzip.compress(content)
    if kind == "bgz":
        # Blocks of their own and an empty one at the end, as bgzip writes them.
        return gzip.compress(content[:9]) + gzip.compress(content[9:]) + gzip.compress(b"")
    if kind == "bz2":
        return bz2.compress(content)
    if kind == "xz":
        return lzma.compress(content)
    return zst(content, str(folder / "packed.zst"))


KINDS = ("gz", "bgz", "bz2", "xz", "zst")
BASES = np.random.default_rng(3).choice(np.frombuffer(b"ACGT", np.uint8), 5000).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.fa.{}", "x.fa"])
def test_compression_is_told_by_content(write: Write, tmp_path: Path, kind: str, name: str) -> None:
    source = write(packed(kind, b">a b\n" + BASES + b"\n", tmp_path), name.format(kind))
    assert rows(source) == [("a", "b", BASES)]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_that_is_named_compressed_is_read(write: Write, kind: str) -> None:
    assert rows(write(b">a\nAC\n", f"x.fa.{kind}")) == [("a", "", b"AC")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.98])
def test_truncated_files_stop(write: Write, tmp_path: Path, kind: str, share: float) -> None:
    content = packed(kind, b">a\n" + BASES + b"\n", tmp_path)
    if kind == "bgz":
        content = content.removesuffix(gzip.compress(b""))
    source = write(content[: int(len(content) * share)], f"x.fa.{kind}")
    with pytest.raises(
        InputError, match="expected a whole file, found a damaged or truncated"
    ) as caught:
        rows(source)
    assert str(caught.value).startswith(source)


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_compressed_data_is_no_end_in_silence(
    write: Write, tmp_path: Path, kind: str
) -> None:
    """A second stream is read, one that is damaged or is none stops, zeros are padding."""
    one, two = (packed(kind, data, tmp_path) for data in (b">a\nAC\n", b">b\nGT\n"))
    assert rows(write(one + two, f"x.fa.{kind}")) == [("a", "", b"AC"), ("b", "", b"GT")]
    if kind != "zst":
        padded = one + b"\0" * 512
        assert rows(write(padded, f"x.fa.{kind}")) == [("a", "", b"AC")]
    for more in (b"garbage", b"\n", b"?" + two[1:], two[: len(two) // 2], two[:3]):
        source = write(one + more, f"x.fa.{kind}")
        with pytest.raises(InputError, match="found a damaged or truncated one") as caught:
            rows(source)
        assert str(caught.value).startswith(source)


@pytest.mark.parametrize("kind", ["bz2", "xz"])
@pytest.mark.parametrize("size", [8, 13, 1 << 20])
def test_streams_may_end_anywhere(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    monkeypatch.setattr(sources, "_BUFFER", size)
    lines = [b">r%d\n%s\n" % (i, BASES[i : 700 + i]) for i in range(5)]
    content = b"".join(packed(kind, line, tmp_path) + b"\0" * 4 for line in lines)
    expected = [(f"r{i}", "", BASES[i : 700 + i]) for i in range(5)]
    assert rows(write(content)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_stop(write: Write, tmp_path: Path, kind: str) -> None:
    content = bytearray(packed(kind, b">a\n" + BASES + b"\n", tmp_path))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(InputError):
        rows(write(bytes(content), f"x.fa.{kind}"))


# Files, folders, globs, URLs.


def test_a_folder_is_its_sequence_files_sorted(write: Write, tmp_path: Path) -> None:
    for name in ("b.fa", "a.FASTA", "sub/c.fna.gz", "notes.txt", ".hidden.fa", "sub/d.fastq.zst"):
        write(b">a\nA\n", name)
    assert [os.path.relpath(s.url, tmp_path) for s in expand_sources(tmp_path)] == [
        "a.FASTA",
        "b.fa",
        "sub/c.fna.gz",
        "sub/d.fastq.zst",
    ]
    assert {s.size for s in expand_sources(tmp_path)} == {5}


def test_the_order_of_sources_changes_nothing_and_none_counts_twice(
    write: Write, tmp_path: Path
) -> None:
    a, b = write(b">a\nA\n", "a.fa"), write(b">b\nA\n", "b.fa")
    expected = [Source(a, 5), Source(b, 5)]
    assert expand_sources([b, a]) == expected
    assert expand_sources([b, tmp_path, a, str(tmp_path / "*.fa")]) == expected
    assert expand_sources(expected) == expected


def test_globs(write: Write, tmp_path: Path) -> None:
    write(b">a\nA\n", "x1.fa")
    write(b">a\nA\n", "deep/er/x2.fa")
    found = expand_sources(str(tmp_path / "**" / "x?.fa"))
    assert [os.path.basename(s.url) for s in found] == ["x2.fa", "x1.fa"]


def test_a_file_named_like_a_glob_is_that_file(write: Write) -> None:
    source = write(b">a\nA\n", "x[1].fa")
    assert expand_sources(source) == [Source(source, 5)]


def test_any_file_may_be_named_by_itself(write: Write) -> None:
    source = write(b">a\nA\n", "genome.txt")
    assert expand_sources(source)[0].url == source


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.fa", "expected a file, folder, glob or URL, found nothing there"),
        ("*.fa", "expected a file that matches, found none"),
        ("folder", "expected a folder with FASTA or FASTQ files, found none"),
    ],
)
def test_sources_that_are_not_there(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        expand_sources(str(tmp_path / name))


def test_no_source_at_all() -> None:
    with pytest.raises(InputError, match="at least one source"):
        expand_sources([])


@pytest.fixture
def memory() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    files.pipe("/bertgeom-test/b.fa.gz", gzip.compress(b">b\nAC\n"))
    files.pipe("/bertgeom-test/a.fa", b">a\nAC\n")
    files.pipe("/bertgeom-test/readme.txt", b"no")
    yield "memory://bertgeom-test"
    files.rm("/bertgeom-test", recursive=True)


@pytest.mark.parametrize("what", ["", "/*.fa*"])
def test_urls_of_folders_and_globs(memory: str, what: str) -> None:
    sources = expand_sources(memory + what)
    assert [s.url.rsplit("/", 1)[-1] for s in sources] == ["a.fa", "b.fa.gz"]
    assert rows(sources) == [("a", "", b"AC"), ("b", "", b"AC")]
    assert all(s.size for s in sources)


@pytest.mark.parametrize("name", ["missing.fa", "*.fna"])
def test_urls_that_are_not_there(memory: str, name: str) -> None:
    with pytest.raises(InputError, match=r"found (nothing there|none)"):
        expand_sources(f"{memory}/{name}")


def test_unknown_protocols_are_named() -> None:
    with pytest.raises(InputError, match="nowhere"):
        expand_sources("nowhere://x.fa")


def test_a_file_that_vanished_stops_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing there"):
        rows(Source(str(tmp_path / "x.fa"), 1))
