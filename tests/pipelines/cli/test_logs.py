"""Log records of the library: silent by itself, shown by the command line, nothing printed."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertgeom.pipelines.cli.logs import LEVELS, VARIABLE, showing_logs
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.context.events import Bus, Damaged, Measured

#: Where printing is the work.
PRINTS = ("pipelines/cli/", "pipelines/casestudy/cli.py")


def sources(root: Path) -> list[Path]:
    """All modules of the library."""
    rooms = ("bertgeom", "kernels", "pipelines")
    return [path for room in rooms for path in sorted((root / room).rglob("*.py"))]


def test_library_code_prints_nothing(root: Path) -> None:
    found = []
    for path in sources(root):
        place = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found += [place] if node.func.id == "print" and not place.startswith(PRINTS) else []
    assert found == []


def test_loggers_have_names_below_bertgeom(root: Path) -> None:
    lines = [line for path in sources(root) for line in path.read_text().splitlines()]
    found = [line for line in lines if line.startswith("_LOG = ")]
    assert found
    assert all('getLogger("bertgeom' in line or "getLogger(__name__)" in line for line in found), (
        found
    )


def test_a_library_without_a_program_is_silent() -> None:
    code = "import bertgeom, logging; logging.getLogger('bertgeom.kernels').error('a record')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_run_is_told_to_a_program_that_asks(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="bertgeom"):
        run()
    kinds = {record.getMessage().partition("(")[0] for record in caplog.records}
    assert {"ModelLoaded", "Started", "PartitionDone", "Finished"} <= kinds
    assert kinds.isdisjoint({"Measured", "Cutting", "Ingesting"})
    assert {record.name for record in caplog.records} == {"bertgeom.pipelines.context.events"}


@pytest.mark.parametrize(
    ("level", "arguments", "shown"),
    [
        ("", [], set()),
        ("warning", [], set()),
        ("info", [], {"Damaged"}),
        ("debug", [], {"Damaged", "Measured"}),
        ("", ["-v"], {"Damaged"}),
        ("", ["-vv"], {"Damaged", "Measured"}),
        ("debug", ["-v"], {"Damaged", "Measured"}),
        ("error", ["--verbose"], {"Damaged"}),
    ],
)
def test_the_command_line_shows_what_is_asked_for(
    level: str,
    arguments: list[str],
    shown: set[str],
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bertgeom.pipelines.run import progress

    real = progress.status

    def telling(url: str) -> progress.Status:
        bus = Bus()
        bus.send(Damaged("a row group"))
        bus.send(Measured(3))
        return real(url)

    monkeypatch.setattr(progress, "status", telling)
    monkeypatch.setenv(VARIABLE, level)
    before = logging.getLogger("bertgeom").level, list(logging.getLogger("bertgeom").handlers)
    assert main([*arguments, "status", str(whole)]) == 0
    out, err = capsys.readouterr()
    assert "complete" in out
    assert {name for name in ("Damaged", "Measured") if f"{name}(" in err} == shown
    after = logging.getLogger("bertgeom").level, list(logging.getLogger("bertgeom").handlers)
    assert after == before


def test_warnings_are_shown_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    with showing_logs():
        logging.getLogger("bertgeom.kernels").warning("a warning")
        logging.getLogger("bertgeom.kernels").info("not this")
    err = capsys.readouterr().err
    assert "WARNING bertgeom.kernels: a warning" in err
    assert "not this" not in err


def test_a_level_that_does_not_exist_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "loud")
    assert main(["--version"]) == 2
    err = capsys.readouterr().err
    assert err == f"error: BERTGEOM_LOG: expected {', '.join(LEVELS)}, found 'loud'\n"
