"""Printing for people: names of the user's own appear as they are written.

rich reads brackets as markup and colons as emoji; labels and ids may hold both. Every console
of the command line is made here, with both switched off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """A console that takes text literally."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_rich(value: Any) -> None:
    """Print a table."""
    console().print(value)


def plain(text: object) -> str:
    """A name for a cell: control characters, which could move the cursor, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
