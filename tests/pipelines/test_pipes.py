"""Sources that can be read once only, and folders of which files are left out."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bertgeom.errors import InputError, MismatchError
from bertgeom.pipelines import stages
from bertgeom.sources import expand_sources

FASTA = b">a\nACGT\n>b\n>c x\nGGG\n"


def ingest(*arguments: str | Path, data: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "bertgeom.pipelines.cli", "ingest", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)


def test_standard_input_is_read_once_and_compared_later(tmp_path: Path) -> None:
    out = tmp_path / "x"
    found = ingest("-", "--out", out, data=gzip.compress(FASTA))
    assert found.returncode == 0, found.stderr
    assert b"3 records, 7 bases" in found.stdout
    assert b"1 of 3 have no bases" in found.stdout
    other = ingest("-", "--out", out, data=b">a\nACGG\n")
    assert other.returncode == 1
    assert b"expected the run this store was made by" in other.stderr
    empty = ingest("-", "--out", tmp_path / "y", data=b"")
    assert empty.returncode == 1
    assert b"an empty file" in empty.stderr


def test_a_named_pipe_gives_the_bytes_of_the_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    plain = tmp_path / "x.fa"
    plain.write_bytes(FASTA)
    kept = stages.ingest([plain], tmp_path / "file").attributes
    for data, error in ((FASTA, None), (FASTA, None), (FASTA[:9], MismatchError)):
        writer = threading.Thread(target=pipe.write_bytes, args=(data,))
        writer.start()
        if error is not None:
            with pytest.raises(error):
                stages.ingest([pipe], tmp_path / "out")
        else:
            found = stages.ingest([pipe], tmp_path / "out").attributes
            assert found["content_sha256"] == kept["content_sha256"]
            assert found["sources"] == [{**kept["sources"][0], "name": "-"}]
        writer.join()


def test_files_that_a_folder_leaves_out_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.fa").write_bytes(FASTA)
    (folder / "notes.txt").write_text("x")
    events: list[Any] = []
    stages.ingest([folder], tmp_path / "out", subscribers=[events.append])
    told = [str(e) for e in events if type(e).__name__ == "FilesLeftOut"]
    assert len(told) == 1
    assert told[0].startswith("1 files")
    assert "notes.txt" in told[0]


def test_sources_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "loop.fa").symlink_to(tmp_path / "loop.fa")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "gone.fa").symlink_to(tmp_path / "nothing")
    for source, message in (
        ("", "an empty name"),
        (str(tmp_path / "loop.fa"), "a loop of symbolic links"),
        (str(tmp_path / "in"), r"gone.fa.*link to nothing"),
        ("/dev/zero", "found a device"),
    ):
        with pytest.raises(InputError, match=message):
            expand_sources(source)
