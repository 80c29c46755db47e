"""Proteins and text: what is read, what is refused, and with which remedy."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from bertgeom.errors import InputError
from bertgeom.sequences.alphabets import ALPHABETS, NUCLEOTIDES, PROTEINS, TEXT, Alphabet
from bertgeom.sequences.fasta import read_chunks
from bertgeom.sequences.shards import Sequences, write_sequences
from bertgeom.sequences.sources import expand_sources
from bertgeom.store import root_file, zarr_io
from bertgeom.store.storage import Storage


def read(path: Path, data: bytes, alphabet: Alphabet) -> list[tuple[str, str, bytes]]:
    """Id, description and bases of every record."""
    path.write_bytes(data)
    found: list[tuple[str, str, bytes]] = []
    parts: list[bytes] = []
    for chunk in read_chunks(path, alphabet=alphabet):
        parts.append(chunk.bases.tobytes())
        if chunk.last:
            found.append((chunk.id, chunk.description, b"".join(parts)))
            parts = []
    return found


def test_every_letter_of_a_protein_is_kept_and_u_is_no_t(tmp_path: Path) -> None:
    data = b">p1 one\nACDEFGHIKLMNPQRS\r\ntvwyuobjzx\n>p2\nM*-.?\n"
    assert read(tmp_path / "p.faa", data, PROTEINS) == [
        ("p1", "one", b"ACDEFGHIKLMNPQRSTVWYUOBJZX"),
        ("p2", "", b"M---X"),
    ]
    fastq = b"@p\nMKUL\n+\nIIII\n"
    assert read(tmp_path / "p.fq", fastq, PROTEINS) == [("p", "", b"MKUL")]


@pytest.mark.parametrize("data", [b">p\nMKV\n1\n", b">p\nMK\xc3\xa9\n", b"@p\nM1\n+\nII\n"])
def test_what_is_no_residue_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected residues, found"):
        read(tmp_path / "p.fa", data, PROTEINS)


def test_a_protein_read_as_nucleotides_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --alphabet protein"):
        read(tmp_path / "p.fa", b">p\nMKLE\n", NUCLEOTIDES)
    with pytest.raises(InputError, match="--alphabet text"):
        read(tmp_path / "p.fa", b"Once upon a time\n", NUCLEOTIDES)


def test_a_line_is_a_document_where_there_are_no_headers(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf First one. \r\n\n\t\n@second > line\nGr\xc3\xbc\xc3\x9fe"
    expected = [
        ("1", "", b"First one."),
        ("4", "", b"@second > line"),
        ("5", "", "Grüße".encode()),
    ]
    assert read(tmp_path / "t.txt", data, TEXT) == expected
    assert read(tmp_path / "t.txt.gz", gzip.compress(data), TEXT) == expected


def test_a_document_follows_every_header(tmp_path: Path) -> None:
    data = b"\n>a The first\nOne line.\n\nAnother.\n>b\n>c  \n x y \n"
    assert read(tmp_path / "t.txt", data, TEXT) == [
        ("a", "The first", b"One line.\nAnother."),
        ("b", "", b""),
        ("c", "", b"x y"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b" \n\n", "an empty file"),
        (b"fine\nGr\xfc\xdfe\n", r"line 2: expected text in UTF-8, found byte 0xfc"),
        (b"a\0b\n", "found a zero byte"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path / "t.txt", data, TEXT)


def test_folders_give_the_files_of_the_alphabet(tmp_path: Path) -> None:
    for name in ("g.fna", "p.faa", "p.faa.gz", "t.txt", "both.fa"):
        (tmp_path / name).write_text("")
    taken = {
        name: {Path(s.url).name for s in expand_sources(tmp_path, alphabet=name)}
        for name in ALPHABETS
    }
    assert taken == {
        "nucleotide": {"g.fna", "both.fa"},
        "protein": {"p.faa", "p.faa.gz", "both.fa"},
        "text": {"t.txt"},
    }
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"expected a folder with text files.*\.txt"):
        expand_sources(tmp_path / "none", alphabet="text")


def test_shards_know_their_alphabet_and_older_ones_are_nucleotides(tmp_path: Path) -> None:
    found = {}
    for name, alphabet in ALPHABETS.items():
        source = tmp_path / f"{name}.fa"
        source.write_bytes(b">a\nACGNX\n")
        storage = Storage(str(tmp_path / f"{name}.zarr"))
        zarr_io.create_root(storage, root_file.SEQUENCE_FORMAT)
        write_sequences(storage, read_chunks(source, alphabet=alphabet), [], alphabet)
        shards = Sequences(storage)
        assert shards.alphabet == name
        found[name] = int(zarr_io.Arrays(storage).read("n_ambiguous")[0])
        assert ("alphabet" in shards.attributes) == (name != "nucleotide")
    # N and X are open in DNA, X alone is in a protein (N is asparagine).
    assert found == {"nucleotide": 2, "protein": 1, "text": 0}


def test_folding_changes_no_byte_of_a_text() -> None:
    every = bytes(range(256))
    assert every.translate(TEXT.fold) == every
    assert TEXT.wrong(every) == b""
    letters = np.frombuffer(PROTEINS.letters, np.uint8)
    assert set(PROTEINS.letters) == {*range(ord("A"), ord("Z") + 1), ord("-")}
    assert PROTEINS.ambiguous[letters].sum() == len("BJZX-")
