"""Signals that end a run: one line, exit code 1, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bertgeom.pipelines.cli import main as cli
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.context import events

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def send_at_first_result(number: int, patch: pytest.MonkeyPatch) -> list[int]:
    """This process gets a signal when its first partition is done."""
    sent: list[int] = []

    def subscriber(event: events.Event) -> None:
        if isinstance(event, events.PartitionDone) and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    @contextmanager
    def listening() -> Iterator[list[events.Subscriber]]:
        yield [subscriber]

    patch.setattr(cli, "listening", listening)
    return sent


def options(source: Path, model: Any, out: Path, *more: str) -> list[str]:
    fixed = ["--window", "20", "--partition-windows", "4", "--threads", "1"]
    return ["run", str(source), "--model", str(model), "--out", str(out), *fixed, *more]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: signal.Signals(n).name)
def test_a_signal_is_one_line_and_the_run_goes_on(
    number: int,
    encoder: Any,
    fasta: Path,
    whole: Path,
    fake: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = options(fasta, "fake", tmp_path / "x.zarr")
    before = {n: signal.getsignal(n) for n in SIGNALS}
    with pytest.MonkeyPatch.context() as patch:
        sent = send_at_first_result(number, patch)
        assert main(command) == 1
    assert sent == [number]
    assert {n: signal.getsignal(n) for n in SIGNALS} == before
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: interrupted; give the same command again to go on"]
    assert main(["status", str(tmp_path / "x.zarr")]) == 0
    assert "unfinished" in capsys.readouterr().out
    assert main(command) == 0
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(whole)


@pytest.mark.slow
def test_a_signal_ends_the_workers_too(
    tiny_model: Path, fake: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import psutil

    fasta = fake.write_fasta(tmp_path / "x.fa", (160, 90))
    out, whole = tmp_path / "x.zarr", tmp_path / "whole.zarr"
    with pytest.MonkeyPatch.context() as patch:
        sent = send_at_first_result(signal.SIGTERM, patch)
        assert main(options(fasta, tiny_model, out, "--workers", "2")) == 1
    assert sent
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: interrupted; give the same command again to go on"
    left = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in _line(p)]
    assert left == []
    for place in (out, whole):
        assert main(options(fasta, tiny_model, place)) == 0
    assert fake.contents(out) == fake.contents(whole)


def _line(process: Any) -> str:
    import psutil

    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


SCRIPT = "import bertgeom\nbertgeom.run({source!r}, model={model!r}, out={out!r}, workers=2)\n"
ADVICE = 'put the call of bertgeom under `if __name__ == "__main__":`'


@pytest.mark.parametrize("place", ["top level", "function called at the top"])
def test_a_script_without_a_guard_is_one_line_before_anything_is_made(
    place: str, fasta: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out, script = tmp_path / "n.zarr", tmp_path / "nomain.py"
    text = SCRIPT.format(source=str(fasta), model=str(tiny_model), out=str(out))
    if place != "top level":
        text = f"def work():\n    {text.replace(chr(10), chr(10) + '    ')}\nwork()\n"
    script.write_text(text)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert ADVICE in last
    assert "nomain.py, line" in last
    assert done.stderr.count("Error: ") == 1
    assert not out.exists()
