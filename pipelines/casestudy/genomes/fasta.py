"""FASTA files, compressed by their suffix, equal bytes for equal records."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from xopen import xopen

_LINE = 80


class _Gzip(gzip.GzipFile):
    def __init__(self, path: Path) -> None:
        self._raw = path.open("wb")
        super().__init__("", "wb", 9, self._raw, mtime=0)

    def close(self) -> None:
        super().close()
        self._raw.close()


def open_fasta(path: Path) -> BinaryIO:
    """A file to write records into; gzip carries no time stamp."""
    if path.suffix == ".gz":
        # Neither name nor time in the header: equal records, equal bytes.
        return cast(BinaryIO, _Gzip(path))
    return xopen(path, "wb", threads=0)


def write_record(out: BinaryIO, name: str, bases: np.ndarray) -> None:
    """One record of uint8 ASCII bases, 80 a line."""
    text = bases.tobytes()
    out.write(f">{name}\n".encode())
    out.writelines(text[i : i + _LINE] + b"\n" for i in range(0, len(text), _LINE))
