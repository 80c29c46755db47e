"""Log records of the library on standard error, for people at a terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bertgeom.errors import UsageError

#: The environment variable that says from which level on.
VARIABLE = "BERTGEOM_LOG"
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_LOG = logging.getLogger("bertgeom")
#: Says once that kernels are compiled, which takes a minute in which nothing else can be seen.
_COMPILING = logging.getLogger("bertgeom.kernels.compiling")


@contextmanager
def showing_logs() -> Iterator[None]:
    """Show records of `bertgeom.*` while a command runs, warnings unless told otherwise.

    Raises:
        UsageError: if the environment names a level that does not exist.
    """
    name = os.environ.get(VARIABLE, "").strip().lower() or "warning"
    if name not in LEVELS:
        raise UsageError(f"{VARIABLE}: expected {', '.join(LEVELS)}, found {name!r}")
    handler, before = logging.StreamHandler(sys.stderr), _LOG.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _LOG.addHandler(handler)
    _LOG.setLevel(LEVELS[name])
    if name != "error":
        _COMPILING.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.setLevel(before)
        _COMPILING.setLevel(logging.NOTSET)


def show_more(times: int) -> None:
    """`-v` shows what a run does, `-vv` all there is; never less than the environment asks for."""
    if times:
        _LOG.setLevel(min(_LOG.level, logging.INFO if times == 1 else logging.DEBUG))
