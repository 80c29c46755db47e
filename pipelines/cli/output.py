"""Printing for people: names of the user's own appear as they are written.

rich reads brackets as markup and colons as emoji; labels and ids may hold both. Every console
of the command line is made here, with both switched off.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bertgeom.urls import without_secrets

if TYPE_CHECKING:
    import xarray
    from rich.console import Console
    from rich.table import Table


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


def print_json(value: Any) -> None:
    """Print a result for a program."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    typer.echo(without_secrets(json.dumps(value, indent=2, default=str)))


def show(
    result: xarray.Dataset,
    out: Path | None,
    as_json: bool,
    table: Callable[[xarray.Dataset], Table],
) -> None:
    """The result of a command in a file, as JSON, or as a table."""
    from bertgeom.pipelines.catalogue.results import as_json as json_of
    from bertgeom.pipelines.catalogue.results import write_dataset

    if out is not None:
        typer.echo(str(write_dataset(result, out)))
    elif as_json:
        print_json(json_of(result))
    else:
        print_rich(table(result))


@contextmanager
def pairs_bar() -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.progress import Progress

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("pairs", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
