"""A disk that is full at any write of a run: one line, nothing half-written, and it goes on."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweeps import sample
from zarr.storage import _local

from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.run import prepare
from bertgeom.store import storage as storage_module
from bertgeom.store.storage import Storage

#: Beyond the kinds of `NEEDED`, some more where the whole sweep is asked for.
SEED, POINTS = 3, len(sample(range(12), 9))
#: What a draft has behind the name of its file.
DRAFT_ENDING = re.compile(r"\.[0-9a-f]+\.partial$")
NEEDED = {
    "run/run.json",
    "run/manifest.json",
    "run/history.jsonl",
    "run/groups/json",
    "run/partitions/spool",
    "array chunk",
    "sequences chunk",
    "cohorts chunk",
    "zarr.json metadata",
}


class FullDisk:
    """Counts the writes of a run, and fails one of them and all after it as a full disk does.

    Attributes:
        at: the write that fails first, from 1; None: none.
        keys: what was written, in order, relative to `store`.
    """

    def __init__(self, patch: pytest.MonkeyPatch, store: Path) -> None:
        self.at: int | None = None
        self.code = errno.ENOSPC
        self.store, self.keys = store, list[str]()
        self._lock = threading.Lock()
        # The two ways to the disk: files of zarr, and those of the bookkeeping.
        put, opened, append = _local._put, Path.open, Storage.append

        def put_or_fail(path: Path, value: Any, *rest: Any, **more: Any) -> Any:
            self._meet(path, self._torn_chunk)
            return put(path, value, *rest, **more)

        def open_or_fail(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            file = opened(path, mode, *rest, **more)
            draft = storage_module.DRAFT.fullmatch(path.name)
            if mode == "wb" and draft and path.is_relative_to(self.store):
                write = file.write

                def write_or_fail(data: bytes) -> int:
                    self._meet(path, lambda _: write(data[: len(data) // 2]))
                    return write(data)

                return _File(file, write_or_fail)
            return file

        def append_or_fail(self_: Storage, key: str, text: str) -> None:
            assert self_.folder is not None
            self._meet(self_.folder / key, lambda _: append(self_, key, text[: len(text) // 2]))
            append(self_, key, text)

        patch.setattr(_local, "_put", put_or_fail)
        patch.setattr(Path, "open", open_or_fail)
        patch.setattr(Storage, "append", append_or_fail)

    def _meet(self, path: Path, tear: Callable[[Path], Any]) -> None:
        with self._lock:
            self.keys.append(os.path.relpath(path, self.store))
            full = self.at is not None and len(self.keys) >= self.at
        if full:
            tear(path)
            raise OSError(self.code, os.strerror(self.code))

    @staticmethod
    def _torn_chunk(path: Path) -> None:
        """Half a file under the name of a draft, as where its removal fails too."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".0123abcd.partial"), "wb") as file:
            file.write(b"half")

    def again(self, at: int | None, code: int = errno.ENOSPC) -> None:
        self.at, self.code = at, code
        self.keys.clear()


class _File:
    """An open file whose `write` is another."""

    def __init__(self, file: Any, write: Callable[[bytes], int]) -> None:
        self._file, self.write = file, write

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def kind_of(key: str) -> str:
    """What is written alike: chunks and metadata by top, each file of the bookkeeping."""
    parts = DRAFT_ENDING.sub("", key).split("/")
    if parts[0] == "run":
        ending = Path(parts[-1]).suffix.removeprefix(".")
        return "/".join(parts) if len(parts) < 3 else f"run/{parts[1]}/{ending}"
    top = parts[0] if parts[0] in ("sequences", "cohorts", "zarr.json") else "array"
    return f"{top} {'chunk' if 'c' in parts else 'metadata'}"


def sampled(keys: list[str]) -> list[int]:
    """Numbers of writes, from 1: one of a kind, drawn by seed; those of `NEEDED` and others."""
    rng = random.Random(SEED)
    kinds: dict[str, list[int]] = {}
    for number, key in enumerate(keys, start=1):
        kinds.setdefault(kind_of(key), []).append(number)
    found = [rng.choice(numbers) for numbers in kinds.values()]
    rng.shuffle(found)
    first = [at for at in found if kind_of(keys[at - 1]) in NEEDED]
    return [*first, *(at for at in found if at not in first)][:POINTS]


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write(
    encoder: Any, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(prepare, "row_group", lambda shape, size, n: 2 * size)
    source = fake.write_fasta(tmp_path / "x.fa", (100, 7))
    (tmp_path / "labels.tsv").write_text("r0\tone\nr2\ttwo\n")
    store = tmp_path / "x.zarr"
    options = ["--labels", str(tmp_path / "labels.tsv"), "--window", "30", "--tier", "core"]
    options += ["--partition-windows", "2", "--threads", "1", "--out", str(store)]
    command = ["run", str(source), "--model", "fake", *options]
    disk = FullDisk(monkeypatch, store)

    assert main(command) == 0
    whole, keys = fake.contents(store), list(disk.keys)
    points = sampled(keys)
    assert {kind_of(keys[at - 1]) for at in points} >= NEEDED
    assert len(points) == POINTS
    codes = [errno.EDQUOT, errno.EIO, *[errno.ENOSPC] * len(points)]
    for at, code in zip(points, codes, strict=False):
        disk.again(None)
        shutil.rmtree(store)
        capsys.readouterr()
        disk.again(at, code)
        where = (at, keys[at - 1], os.strerror(code))
        assert main(command) == 1, where
        said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(said) == 1, (where, said)
        assert os.strerror(code) in said[0], (where, said)
        assert str(store) in said[0], (where, said)
        assert ("free some space" in said[0]) == (code != errno.EIO), (where, said)
        assert "give the same command again" in said[0], (where, said)
        # Whatever has its name is whole: the very bytes, or an earlier state of a file that grows.
        left = fake.contents(store) if store.exists() else {}
        for key in left.keys() & whole.keys():
            assert left[key] == whole[key] or json.loads(left[key]), (where, key)
        disk.again(None)
        assert main(command) == 0, (where, capsys.readouterr().err)
        assert fake.contents(store) == whole, where
