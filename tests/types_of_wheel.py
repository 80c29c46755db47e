"""Check types on the layout that is installed: mypy does not follow `package-dir`.

The three folders are linked into one package in a temporary folder, beside the tests, their
helpers and the benchmarks, and mypy reads that.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Folders of tests that are no modules: helpers are imported by their own names, and what made the
#: old stores belongs to old versions.
APART = ("helpers", "data")


def link(place: Path) -> list[str]:
    """Lay out what mypy reads; returns the options that name it."""
    helpers = sorted((ROOT / "tests" / "helpers").glob("*.py"))
    entries = [
        *((entry, f"bertgeom/{entry.name}") for entry in (ROOT / "bertgeom").iterdir()),
        *((ROOT / name, f"bertgeom/{name}") for name in ("kernels", "pipelines")),
        *((e, f"tests/{e.name}") for e in (ROOT / "tests").iterdir() if e.name not in APART),
        *((helper, helper.name) for helper in helpers),
        (ROOT / "bench", "bench"),
    ]
    for entry, name in entries:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).symlink_to(entry)
    packages = [option for name in ("bertgeom", "tests", "bench") for option in ("-p", name)]
    return packages + [option for helper in helpers for option in ("-m", helper.stem)]


def main() -> int:
    """Run mypy; its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        what = link(Path(folder))
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
        return subprocess.run([*command, *cache, *what], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
