"""Ways in which a file gets damaged."""

from __future__ import annotations

from pathlib import Path


def flip(path: Path) -> None:
    """Change a bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    """Take the last byte away."""
    path.write_bytes(path.read_bytes()[:-1])


def longer(path: Path) -> None:
    """Add a byte."""
    path.write_bytes(path.read_bytes() + b"x")


def empty(path: Path) -> None:
    """Leave no byte."""
    path.write_bytes(b"")
