"""Check types on the layout that is installed: mypy does not follow `package-dir`.

The three folders are linked into one package in a temporary folder, and mypy reads that.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run mypy; its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "bertgeom"
        package.mkdir()
        for entry in (ROOT / "bertgeom").iterdir():
            (package / entry.name).symlink_to(entry)
        for name in ("kernels", "pipelines"):
            (package / name).symlink_to(ROOT / name)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
        return subprocess.run([*command, *cache, "-p", "bertgeom"], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
