"""Who hears of the events of a command: progress for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bertgeom.pipelines.context.events import Subscriber


@contextmanager
def listening() -> Iterator[list[Subscriber]]:
    """Subscribers that show progress: a bar on a terminal, lines elsewhere."""
    from bertgeom.pipelines.cli.progress import for_people

    shown = for_people()
    try:
        yield [shown]
    finally:
        close = getattr(shown, "close", None)
        if close is not None:
            close()
