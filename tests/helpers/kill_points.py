"""Kills runs with SIGKILL at chosen writes, lets them go on, and compares the stores.

A script of its own: it forks, which must happen before zarr, torch or Numba start threads. What a
run imports on its way is imported once, before the forks.

    python kill_points.py FOLDER N     prints a JSON list, one entry a kill point
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import fake_encoder as fakes
from zarr.storage import _local

from bertgeom.pipelines.context import run_context
from bertgeom.pipelines.run import prepare, stages
from bertgeom.store.storage import PARTIAL, Storage

MODES = ("before", "torn", "after")


class Countdown:
    """Counts writes and kills the process at one of them."""

    def __init__(self, kill_at: int | None, mode: str) -> None:
        self.count, self.kill_at, self.mode = 0, kill_at, mode
        self.lock = threading.Lock()

    def wrap(self, write: Callable[..., Any], torn: Callable[..., None]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            # zarr writes in threads.
            with self.lock:
                self.count += 1
                mine = self.count == self.kill_at
            if mine and self.mode == "torn":
                torn(*args)
            if mine and self.mode != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return write(*args, **options)
            finally:
                # What fails on the way, as a chunk that is not there to be deleted, ends here too.
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted

    def install(self) -> None:
        _local._put = self.wrap(_local._put, self._torn_chunk)
        for name, torn in (
            ("write", self._torn_record),
            ("append", self._torn_line),
            ("remove", lambda *args: None),
        ):
            setattr(Storage, name, self.wrap(getattr(Storage, name), torn))

    @staticmethod
    def _torn_chunk(path: Path, value: Any, *rest: Any) -> None:
        data = bytes(value.as_buffer_like())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(f".0123abcd{PARTIAL}").write_bytes(data[: len(data) // 2])

    @staticmethod
    def _torn_record(storage: Storage, key: str, data: bytes) -> None:
        assert storage.folder is not None
        path = storage.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.1{PARTIAL}").write_bytes(data[: len(data) // 2])

    @staticmethod
    def _torn_line(storage: Storage, key: str, text: str) -> None:
        assert storage.folder is not None
        with (storage.folder / key).open("a") as file:
            file.write(text[: len(text) // 2])


def in_child(action: Callable[[], Any]) -> tuple[int, Any]:
    """Exit status of `action` in a forked process, and what it returned."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            os.write(write, json.dumps(action()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(write, json.dumps(f"{type(error).__name__}: {error}").encode())
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    return os.waitpid(child, 0)[1], json.loads(text) if text else None


def run(
    folder: Path,
    out: str,
    kill_at: int | None = None,
    mode: str = "before",
    repaired: bool = False,
) -> int:
    """A run with the fake encoder, or a repair of its store; the number of writes."""
    encoder = fakes.FakeEncoder()
    for module in (stages, run_context):
        mock.patch.object(module, "load_model", return_value=encoder).start()
    mock.patch.object(prepare, "row_group", lambda shape, size, n: 2 * size).start()
    countdown = Countdown(kill_at, mode)
    countdown.install()
    if repaired:
        stages.repair(folder / out, threads=1)
        return countdown.count
    labels = folder / "labels.tsv"
    stages.run(
        folder / "x.fa",
        model="fake",
        out=folder / out,
        labels=labels,
        window=30,
        partition_windows=4,
        tier="core",
        threads=1,
    )
    return countdown.count


def looks_finished(store: Path) -> bool:
    """Whether a reader would take the store for complete."""
    try:
        attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    except (FileNotFoundError, ValueError):
        return False
    return bool(attributes["complete"])


def damage(store: Path) -> None:
    """Flip a bit in chunks of two row groups and in a coordinate."""
    for key in ("n_tokens/c/0", "attention_entropy/c/1/0/0", "layer/c/0"):
        data = bytearray((store / key).read_bytes())
        data[len(data) // 2] ^= 1
        (store / key).write_bytes(bytes(data))


def killed_and_resumed(
    folder: Path, out: str, kill_at: int, of: int, mode: str, whole: dict[str, bytes], **more: Any
) -> dict[str, Any]:
    """What came of a run or a repair that was killed at one write, and started again."""
    status, message = in_child(partial(run, folder, out, kill_at, mode, **more))
    finished = looks_finished(folder / out)
    resumed, text = in_child(partial(run, folder, out))
    again = fakes.contents(folder / out) if (folder / out).exists() else {}
    return {
        "kill_at": kill_at,
        "of": of,
        "mode": mode,
        "repaired": bool(more),
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "message": message,
        "looked_finished": finished,
        "resumed": resumed == 0,
        "error": text if resumed else None,
        "different": sorted(
            key for key in whole.keys() | again.keys() if whole.get(key) != again.get(key)
        ),
    }


def load(modules: list[str]) -> None:
    """Import what a run imports: every fork would do it anew, for most of its time."""
    for name in modules:
        # What only exists inside of its package is imported with that.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert threading.active_count() == 1


def main(folder: Path, n: int) -> list[dict[str, Any]]:
    fakes.write_fasta(folder / "x.fa")
    (folder / "labels.tsv").write_text("r0\tone\nr2\ttwo\n")

    def counted() -> tuple[int, list[str]]:
        before = set(sys.modules)
        return run(folder, "whole.zarr"), [name for name in sys.modules if name not in before]

    status, found_out = in_child(counted)
    if status:
        raise RuntimeError(found_out)
    writes, modules = found_out
    load(modules)
    whole = fakes.contents(folder / "whole.zarr")
    found = []
    for i in range(n):
        kill_at = 1 + i * (writes - 1) // (n - 1)
        mode = MODES[i % len(MODES)]
        found.append(killed_and_resumed(folder, f"killed-{i}.zarr", kill_at, writes, mode, whole))
    # The repair of two row groups and a coordinate, killed in the same way.
    shutil.copytree(folder / "whole.zarr", folder / "counted.zarr")
    damage(folder / "counted.zarr")
    status, writes = in_child(partial(run, folder, "counted.zarr", repaired=True))
    if status:
        raise RuntimeError(writes)
    for i in range(n // 2):
        out = f"repaired-{i}.zarr"
        shutil.copytree(folder / "whole.zarr", folder / out)
        damage(folder / out)
        kill_at = 1 + i * (writes - 1) // (n // 2 - 1)
        mode = MODES[i % len(MODES)]
        found.append(killed_and_resumed(folder, out, kill_at, writes, mode, whole, repaired=True))
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
