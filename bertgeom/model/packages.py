"""Packages that register models with transformers, imported when a user names them, never else.

A package may also offer a name of its own in the entry-point group `bertgeom.architectures`: a
module, or a function without arguments that registers what it has.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from bertgeom.errors import UsageError

#: Entry points of other packages that `import_packages` knows by name.
GROUP = "bertgeom.architectures"
_done: set[str] = set()


def import_packages(names: Iterable[str]) -> tuple[str, ...]:
    """Import packages, each once a process; they run their own code.

    Args:
        names: of entry points in the group `bertgeom.architectures`, else of modules.

    Returns:
        The names, without repeated ones.

    Raises:
        UsageError: for a package that is not there, or whose import fails.

    Example:
        >>> from bertgeom.model.packages import import_packages
        >>> import_packages(["json"])
        ('json',)
    """
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in _done:
            _import(name)
            _done.add(name)
    return wanted


def _import(name: str) -> None:
    offered = {point.name: point for point in entry_points(group=GROUP)}
    if name not in offered and not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"expected --import as the name of a package, found {name!r}")
    try:
        _load(offered.get(name), name)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        known = f"; packages that offer models: {', '.join(sorted(offered))}" if offered else ""
        raise UsageError(
            f"expected a package {name!r} for --import that can be imported, found: {reason}; "
            f"install it where bertgeom is installed{known}"
        ) from error


def _load(offered: EntryPoint | None, name: str) -> None:
    if offered is None:
        importlib.import_module(name)
        return
    found = offered.load()
    if callable(found):
        found()
