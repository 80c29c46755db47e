"""Sources that can be read once only, and folders of which files are left out."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bertgeom
from bertgeom.errors import InputError, MismatchError
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.run import stages
from bertgeom.sequences.sources import expand_sources

FASTA = b">a\nACGT\n>b\n>c x\nGGG\n"


@contextmanager
def standard_input(descriptor: int) -> Iterator[None]:
    """The process's own standard input replaced, as a shell does it."""
    kept = os.dup(0)
    try:
        os.dup2(descriptor, 0)
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@contextmanager
def piped(data: bytes) -> Iterator[None]:
    """A pipe on standard input that gives these bytes."""
    read, write = os.pipe()

    def feed() -> None:
        with os.fdopen(write, "wb") as file:
            try:
                file.write(data)
            except BrokenPipeError:
                return

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        with standard_input(read):
            yield
    finally:
        os.close(read)
        feeder.join()


def test_standard_input_is_read_once_and_compared_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ingest(name: str, data: bytes) -> tuple[int, str, str]:
        with piped(data):
            code = main(["ingest", "-", "--out", str(tmp_path / name)])
        return code, *capsys.readouterr()

    code, out, err = ingest("x", gzip.compress(FASTA))
    assert code == 0, err
    assert "3 records, 7 bases" in out
    assert "1 of 3 have no bases" in out
    code, _, err = ingest("x", b">a\nACGG\n")
    assert code == 1
    assert "expected the run this store was made by" in err
    code, _, err = ingest("y", b"")
    assert code == 1
    assert "an empty file" in err


def test_a_named_pipe_gives_the_bytes_of_the_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    plain = tmp_path / "x.fa"
    plain.write_bytes(FASTA)
    kept = stages.ingest([plain], tmp_path / "file").attributes
    for data, error in ((FASTA, None), (FASTA, None), (FASTA[:9], MismatchError)):
        writer = threading.Thread(target=pipe.write_bytes, args=(data,))
        writer.start()
        if error is not None:
            with pytest.raises(error):
                stages.ingest([pipe], tmp_path / "out")
        else:
            found = stages.ingest([pipe], tmp_path / "out").attributes
            assert found["content_sha256"] == kept["content_sha256"]
            assert found["sources"] == [{**kept["sources"][0], "name": "-"}]
        writer.join()


def test_files_that_a_folder_leaves_out_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.fa").write_bytes(FASTA)
    (folder / "notes.txt").write_text("x")
    events: list[Any] = []
    stages.ingest([folder], tmp_path / "out", subscribers=[events.append])
    told = [str(e) for e in events if type(e).__name__ == "FilesLeftOut"]
    assert len(told) == 1
    assert told[0].startswith("1 files")
    assert "notes.txt" in told[0]


SHORT = ("--window", "20", "--threads", "1", "--tier", "core")


@pytest.fixture
def command(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`bertgeom run` or `plan` of a source with a tiny model."""

    def call(name: str, source: str, *more: str, out: str = "x.zarr") -> tuple[int, str, str]:
        place = ["--out", str(tmp_path / out)] if name == "run" else []
        model = ["--model", str(tiny_model)]
        code = main([name, source, *model, *place, *SHORT, *more])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.mark.skipif(shutil.which("zcat") is None, reason="no zcat")
def test_the_shell_pipes_into_a_run(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(FASTA))
    program = f"{sys.executable} -m bertgeom.pipelines.cli.main"
    line = f"zcat x.fa.gz | {program} run - --model {tiny_model} --out x.zarr {' '.join(SHORT)}"
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "records: 1 of 3 have no bases" in done.stdout
    assert bertgeom.open(tmp_path / "x.zarr")["record_id"].values.tolist() == ["a", "c"]


def test_plan_and_run_read_a_pipe_alike(command: Any, tmp_path: Path, fake: Any) -> None:
    """Records without bases are counted by run and status, and planned for as such."""
    with piped(FASTA):
        code, out, err = command("plan", "-", "--json", "--no-measure")
    assert code == 0, err
    planned = json.loads(out)
    with piped(gzip.compress(FASTA)):
        code, out, err = command("run", "-")
    assert code == 0, err
    assert "records: 1 of 3 have no bases" in out.splitlines()
    dataset = bertgeom.open(tmp_path / "x.zarr")
    assert (planned["records"], planned["bases"]) == (3, 7)
    assert planned["windows"] == dataset.sizes["window"] == 2
    assert planned["tokens"] == int(dataset["n_tokens"].sum())
    assert main(["status", str(tmp_path / "x.zarr"), "--json"]) == 0
    found = stages.status(str(tmp_path / "x.zarr")).input
    assert found is not None
    assert (found.records, found.empty_records) == (3, 1)
    # The same bytes as a file give the same store, but for how they were packed and called.
    with piped(FASTA):
        assert command("run", "-", out="plain.zarr")[0] == 0
    (tmp_path / "-").write_bytes(FASTA)
    assert command("run", str(tmp_path / "-"), out="file.zarr")[0] == 0
    assert fake.contents(tmp_path / "file.zarr") == fake.contents(tmp_path / "plain.zarr")


def test_a_finished_or_interrupted_run_takes_the_same_pipe_again(
    command: Any, tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped behind the ingest: equal bytes go on, others are refused, none are said."""
    with piped(FASTA):
        assert command("run", "-", out="whole.zarr")[0] == 0

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, piped(FASTA):
        patch.setattr(stages, "execute", stop)
        code, _, err = command("run", "-")
    assert code == 1
    assert err.splitlines()[-1] == "error: interrupted; give the same command again to go on"
    for data, words in ((FASTA[:-2], "expected the run this store was made by"), (b"", "found")):
        with piped(data):
            code, _, err = command("run", "-")
        assert code == 1
        assert words in err.splitlines()[-1]
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    for _ in range(2):
        with piped(FASTA):
            assert command("run", "-")[0] == 0
        assert fake.contents(tmp_path / "x.zarr") == fake.contents(tmp_path / "whole.zarr")


def test_a_run_killed_while_it_reads_a_pipe_is_piped_into_again(
    command: Any, tiny_model: Path, tmp_path: Path, fake: Any
) -> None:
    """Half of the sequences are no database: the next pipe is read from its beginning."""
    data = b"".join(b">r%d\n%s\n" % (i, b"ACGTTGCA" * 5) for i in range(3))
    long = data + b">long\n" + b"ACGTNNNNAA" * 150_000 + b"\n"
    with piped(data):
        assert command("run", "-", out="whole.zarr")[0] == 0
    program = [sys.executable, "-m", "bertgeom.pipelines.cli.main", "run", "-"]
    options = ["--model", str(tiny_model), "--out", str(tmp_path / "x.zarr"), *SHORT]
    process = subprocess.Popen(
        [*program, *options], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=-1
    )
    assert process.stdin is not None
    process.stdin.write(long)
    process.stdin.flush()
    shards = tmp_path / "x.zarr" / "sequences"
    patience = time.monotonic() + 120
    while not shards.exists() and time.monotonic() < patience and process.poll() is None:
        time.sleep(0.05)
    assert shards.exists()
    process.send_signal(signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == -signal.SIGKILL, told
    with piped(data):
        code, _, err = command("run", "-")
    assert code == 0, err
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(tmp_path / "whole.zarr")


def test_standard_input_that_gives_no_sequences(command: Any, tmp_path: Path) -> None:
    """A terminal would wait for ever; a closed one and /dev/null have nothing."""
    upper, lower = os.openpty()
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        for name in ("run", "plan"):
            with standard_input(lower):
                code, _, err = command(name, "-")
            assert code == 1
            line = err.splitlines()[-1]
            assert line.startswith("error: -: expected sequences on standard input, found a termi")
            assert line.endswith("pipe a file into the command, or name files")
            with standard_input(null):
                code, _, err = command(name, "-")
            assert code == 1
            assert "empty file" in err.splitlines()[-1]
    finally:
        for descriptor in (upper, lower, null):
            os.close(descriptor)
    kept = os.dup(0)
    os.close(0)
    try:
        code, _, err = command("run", "-")
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert code == 1
    assert "error: -: " in err.splitlines()[-1]
    assert not (tmp_path / "x.zarr").exists()


def test_what_is_no_file_is_refused_by_name(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("x.sock")
        empty = "expected a source of sequences, found an empty name; give a file, a folder or -"
        for source, what in (
            ("x.sock", "x.sock: expected a file, folder, glob, URL or pipe, found a socket"),
            ("/dev/zero", "/dev/zero: expected a file, folder, glob, URL or pipe, found a device"),
            ("", empty),
            (" ", empty),
        ):
            for name in ("run", "plan"):
                code, _, err = command(name, source)
                assert code == 1
                assert what in err.splitlines()[-1]
                assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ("s3://bucket/x.fa", "s3fs", "'bertgeom[s3]'"),
        ("https://example.org/x.fa", "aiohttp", "'bertgeom[http]'"),
        ("simplecache::s3://bucket/x.fa", "s3fs", "'bertgeom[s3]'"),
    ],
)
def test_a_missing_package_is_named_by_its_extra(
    source: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.import_module("fsspec.registry")._registry
    for name in ("s3", "https", "http"):
        monkeypatch.delitem(known, name, raising=False)
    for name in (package, "fsspec.implementations.http"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as caught:
        expand_sources(source)
    assert str(caught.value).endswith(f"pip install {extra}")
    assert str(caught.value).startswith(source)


def test_sources_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "loop.fa").symlink_to(tmp_path / "loop.fa")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "gone.fa").symlink_to(tmp_path / "nothing")
    for source, message in (
        ("", "an empty name"),
        (str(tmp_path / "loop.fa"), "a loop of symbolic links"),
        (str(tmp_path / "in"), r"gone.fa.*link to nothing"),
        ("/dev/zero", "found a device"),
    ):
        with pytest.raises(InputError, match=message):
            expand_sources(source)
