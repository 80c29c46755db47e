"""What commands do not import: every library takes its part of a second, or of a gigabyte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bertgeom.pipelines.cli.main import command_group

#: Libraries that compute; only commands with a model or kernels wait for them.
COMPUTING = {"torch", "transformers", "triton", "numba"}
#: Libraries of arrays and tables, for commands that show results.
ARRAYS = {"zarr", "xarray", "dask", "distributed", "pandas", "scipy", "pyarrow"}
DRAWING = {"matplotlib", "PIL", "sklearn"}
#: What no help text needs, though it takes less time.
SMALL = {"numpy", "asyncio", "wrapt", "fsspec", "safetensors", "dnaio"}

#: Command -> its arguments, and what it must not import.
COMMANDS = {
    "status": (["status", "{store}"], COMPUTING | ARRAYS | DRAWING | {"asyncio", "wrapt"}),
    "verify": (
        ["verify", "{store}", "--windows", "0"],
        COMPUTING | DRAWING | (ARRAYS - {"zarr"}),
    ),
    "report": (["report", "{store}", "-o", "{out}/x.html"], COMPUTING),
    "export": (["export", "{store}", "-o", "{out}/x.tsv"], COMPUTING | DRAWING),
    "cohorts": (["cohorts", "{store}"], COMPUTING | DRAWING),
}


def imported_by(*commands: list[str]) -> set[str]:
    """Top-level modules that a process has imported after these commands, all of them through."""
    program = (
        "import contextlib, io, sys\n"
        "from bertgeom.pipelines.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    codes = [main(arguments) for arguments in {list(commands)!r}]\n"
        "assert not any(codes), codes\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split())
    assert "bertgeom" in found
    return found


def test_no_help_text_imports_a_library_of_numbers() -> None:
    groups = {name: getattr(it, "commands", {}) for name, it in command_group().commands.items()}
    assert groups["casestudy"]
    texts = [[], *([name] for name in groups)]
    texts += [[name, inner] for name, inside in groups.items() for inner in inside]
    # `bench --help` is that of the benchmarks, in a process of its own.
    helps = [[*names, "--help"] for names in texts if names != ["bench"]]
    found = imported_by(["--version"], *helps)
    assert found & (COMPUTING | ARRAYS | DRAWING | SMALL) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_reads_a_store_imports_no_more_than_it_needs(
    name: str, whole: Path, tmp_path: Path
) -> None:
    arguments, unneeded = COMMANDS[name]
    found = imported_by([a.format(store=whole, out=tmp_path) for a in arguments])
    assert found & unneeded == set()
