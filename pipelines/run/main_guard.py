"""Scripts that start worker processes: each of these imports the script again.

Python starts a worker by importing the module that was started as a program. A script that calls
`bertgeom.run(..., workers=2)` outside of `if __name__ == "__main__":` would be run again by every
worker. This is found before anything is started, or by the worker itself.
"""

from __future__ import annotations

import ast
import multiprocessing
import sys
from pathlib import Path
from types import FrameType

from bertgeom.errors import UsageError

_GUARDS = {"__name__", "current_process", "parent_process"}
GUARD = 'put the call of bertgeom under `if __name__ == "__main__":`'


def check_script(workers: int) -> None:
    """Refuse several workers where each of them would run the calling script again.

    Raises:
        UsageError: for a call at the top of a script.
        SystemExit: in a worker that imports such a script.
    """
    if workers < 2:
        return
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(
            f"error: expected this script to start its {workers} workers once, found that each of "
            f"them runs the script again; {GUARD}"
        )
    line = _unguarded_line()
    if line is not None:
        raise UsageError(
            f"{line}: expected a script that its {workers} workers can import, found a call that "
            f"each of them would make again; {GUARD}"
        )


def _unguarded_line() -> str | None:
    """Place of a call at the top of the main script, without a guard; None if there is none."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if path is None or not _is_imported_by_workers(main, path):
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            line = frame.f_lineno
            return None if _is_guarded(path, line) else f"{path}, line {line}"
        frame = frame.f_back
    return None


def _is_imported_by_workers(main: object, path: str) -> bool:
    """As multiprocessing.spawn decides it."""
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return not (name == "__main__" or name.endswith(".__main__"))
    return Path(path).stem != "ipython"


def _is_guarded(path: str, line: int) -> bool:
    """Whether the top of a script asks who runs it, around or before this line."""
    try:
        body = ast.parse(Path(path).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return True
    return any(
        _asks(node.test) for node in body if isinstance(node, ast.If) and node.lineno <= line
    )


def _asks(test: ast.expr) -> bool:
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute)}
    return bool(names & _GUARDS)
