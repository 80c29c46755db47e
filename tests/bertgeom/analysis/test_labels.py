"""Tables of labels from many tools: their header, their keys, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertgeom.analysis.labels import LabelledRecords, label_records, read_labels
from bertgeom.errors import InputError

IDS = ["r0", "r1", "r2", "r3"]


def labelled(path: Path, text: str | bytes, ids: list[str] = IDS) -> LabelledRecords:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return label_records(read_labels(path), ids)


@pytest.mark.parametrize("name", ["strain", "seqName", "Accession ID", "isolate", "genome"])
@pytest.mark.parametrize("separator", ["\t", ","])
def test_a_header_of_any_name_is_no_cohort(tmp_path: Path, name: str, separator: str) -> None:
    rows = [(name, "clade"), ("r0", "a"), ("r1", "a"), ("r3", "b"), ("gone", "c")]
    found = labelled(tmp_path / "t", "\n".join(separator.join(row) for row in rows))
    assert found.names == ("a", "b")
    assert found.codes.tolist() == [0, 0, -1, 1]
    assert found.summary.header == f"{name}, clade"
    assert (found.summary.labelled, found.summary.unknown) == (3, 1)
    assert found.summary.dropped == ("c",)
    assert "3 of 4 records" in found.summary.lines()[0]


@pytest.mark.parametrize(
    "text",
    [
        "r0\ta, b\nr1\tc\n",
        '"r0","a, b"\n"r1",c\n',
        '"r0"\t"a, b"\n"r1"\tc\n',
        "\ufeffid\tlabel\rr0\ta, b  \rr1\tc\r",
        "r0 some text\ta, b\r\n>r1\tc\r\n",
        "idx\tlabel\n0\ta, b\n1\tc\n",
        'strain,id,date,class\nx,r0,2020,"a, b"\ny,r1,2021,c\n',
        "r0\ta, b\nr1\tc\nr0\ta, b\n",
    ],
)
def test_many_ways_to_say_the_same(tmp_path: Path, text: str) -> None:
    found = labelled(tmp_path / "t", text)
    assert found.names == ("a, b", "c")
    assert found.codes.tolist() == [0, 1, -1, -1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x\ta\ny\tb\n", "none of them among 4 record ids; the first record is 'r0'"),
        (b"r0\tall\n", "labels other than all.*found 'all'"),
        (b"r0\tunlabelled\n", "rename the label"),
        (b"r0\ta\nr0 text\tb\n", "line 2: expected one label per record"),
        (b"r0\tn\xe9\n", "line 1: expected a table of labels in UTF-8.*0xe9"),
        ("r0\ta\n".encode("utf-16"), "UTF-16"),
        ("r0\ta\n".encode("utf-16-le"), "UTF-16"),
        (b"\x89PNG\0\1\2", "binary"),
        (b"", "an empty file"),
        (b'"r0,a\n', "two tab-separated fields|quotes closed"),
        (b"99999999999999999999\ta\n", "record indices from 0 to 3"),
        (b"1\ta\n01\tb\n", "line 2: expected one label per record"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labelled(tmp_path / "t", data)


def test_tables_that_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path, "found a folder"),
        (tmp_path / "none.tsv", "nothing there"),
        (tmp_path / "loop", "symbolic links"),
    ):
        with pytest.raises(InputError, match=message):
            read_labels(path)


def test_a_missing_version_suffix_is_hinted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is 'NC_045512' the record 'NC_045512.2'\?"):
        labelled(tmp_path / "t", "NC_045512\ta\n", ["NC_045512.2"])
    with pytest.raises(InputError, match=r"is 'NC_045512.3' the record 'NC_045512.2'\?"):
        labelled(tmp_path / "t", "NC_045512.3\ta\n", ["NC_045512.2"])
