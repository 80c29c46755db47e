"""Commands that only read a store start without torch: it costs seconds and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "status": ["status", "{store}"],
    "verify": ["verify", "{store}", "--windows", "0"],
    "report": ["report", "{store}", "-o", "{out}/x.html"],
    "export": ["export", "{store}", "-o", "{out}/x.tsv"],
}
HEAVY = ("torch", "transformers", "numba")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_reads_a_store_imports_no_torch(
    name: str, whole: Path, tmp_path: Path
) -> None:
    arguments = [a.format(store=whole, out=tmp_path) for a in COMMANDS[name]]
    program = (
        "import sys\n"
        "from bertgeom.pipelines.cli.main import main\n"
        f"code = main({arguments!r})\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print('imported:', *found)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported:"
