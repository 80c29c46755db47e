"""An input on a disk that fails while it is read is named; the store is not to blame."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from bertgeom.pipelines.cli.main import main


class _Sick(io.FileIO):
    """A file that opens and cannot be read; the error names no file, as the kernel's does."""

    def readinto(self, buffer: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def readall(self) -> bytes:
        return bytes(self.readinto(None))


@pytest.mark.parametrize("bad", ["x.fa", "labels.tsv", "regions.bed"])
def test_a_file_that_cannot_be_read_is_named(
    bad: str,
    encoder: Any,
    fasta: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels, regions = tmp_path / "labels.tsv", tmp_path / "regions.bed"
    labels.write_text("0\ta\n1\tb\n")
    name = fasta.read_text().split()[0].lstrip(">")
    regions.write_text(f"{name}\t0\t2\tr\n")
    healthy = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if Path(str(file)).name != bad:
            return healthy(file, mode, *args, **options)
        binary = io.BufferedReader(_Sick(file, "r"))
        return binary if "b" in mode else io.TextIOWrapper(binary, "utf-8")

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)
    inputs = ["--labels", str(labels), "--annotations", str(regions)]
    out = tmp_path / "x.zarr"
    code = main(["run", str(fasta), "--model", "fake", "--out", str(out), *inputs])
    monkeypatch.undo()
    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 1
    assert said.startswith(f"error: {tmp_path / bad}: ")
    assert "Input/output error" in said
    assert not out.exists()
