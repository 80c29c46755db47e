"""The package `bertgeom` from the three folders of a checkout, without an installation."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Folders of the checkout that the package holds under their own names.
INNER = ("kernels", "pipelines")
#: Folders beside the package that processes started in the folder of links find there.
BESIDE = ("bench", "tests")


def link(folder: Path) -> Path:
    """Links that look like an installed package; returns the folder to import from."""
    package = folder / "bertgeom"
    package.mkdir(parents=True, exist_ok=True)
    targets = {package / entry.name: entry for entry in (ROOT / "bertgeom").iterdir()}
    targets |= {package / name: ROOT / name for name in INNER}
    targets |= {folder / name: ROOT / name for name in BESIDE}
    for place, target in targets.items():
        if not place.is_symlink():
            place.symlink_to(target)
    return folder


def use(folder: Path) -> None:
    """Import `bertgeom` and `bench` from a folder of links, here and in processes started later.

    Raises:
        RuntimeError: if another `bertgeom` was imported already.
    """
    if "bertgeom" in sys.modules:
        raise RuntimeError("bertgeom: expected no import before its folders are linked")
    # The checkout itself must not be searched: its folder `kernels` has the name of a package that
    # transformers looks for, and its folder `bertgeom` is a part of the package only.
    kept = [path for path in sys.path if Path(path or os.curdir).resolve() != ROOT]
    sys.path[:] = [str(link(folder)), *kept]
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([str(folder), *before]),
        "PYTHONSAFEPATH": "1",
    }
    importlib.invalidate_caches()
