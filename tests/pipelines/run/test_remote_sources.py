"""Sources over the network: cut in the middle, refused, silent."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bertgeom.pipelines.cli.main import main
from bertgeom.store import storage as storage_module

HAS_CLIENT = importlib.util.find_spec("aiohttp") is not None
needs_client = pytest.mark.skipif(not HAS_CLIENT, reason="needs aiohttp")


class Server(ThreadingHTTPServer):
    """Serves one text by ranges.

    Attributes:
        cuts: this many answers end in their middle. refusal: status of every answer.
    """

    daemon_threads = True
    data = b""
    cuts = 0
    refusal: int | None = None
    silent = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Cut connections are what the tests want."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server = self.server
        if server.silent:
            self.close_connection = True
            return
        if server.refusal is not None:
            self.send_response(server.refusal)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, start, asked = server.data, 0, self.headers.get("Range")
        if asked:
            low, _, high = asked.removeprefix("bytes=").partition("-")
            start = int(low)
            data = data[start : int(high) + 1 if high else None]
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        if asked:
            self.send_header(
                "Content-Range", f"bytes {start}-{start + len(data) - 1}/{len(server.data)}"
            )
        self.end_headers()
        if body and server.cuts:
            server.cuts -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def server(fasta: Path) -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.data = fasta.read_bytes()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", 0.3)


def command(url: str, out: Path) -> list[str]:
    fixed = ["--window", "20", "--partition-windows", "4", "--threads", "1"]
    return ["run", url, "--model", "fake", "--out", str(out), *fixed]


def url_of(server: Server) -> str:
    return f"http://me:hidden@127.0.0.1:{server.server_port}/x.fa"


@needs_client
def test_a_source_that_is_cut_once_is_read_whole(
    server: Server, encoder: Any, fasta: Path, whole: Path, fake: Any, tmp_path: Path
) -> None:
    server.cuts = 2
    assert main(command(url_of(server), tmp_path / "x.zarr")) == 0
    assert server.cuts == 0
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(whole)


@needs_client
@pytest.mark.parametrize("fault", ["cut for ever", "404", "403", "500", "silent", "no such host"])
def test_a_source_that_cannot_be_read_is_one_line_that_names_it(
    fault: str, server: Server, encoder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = url_of(server)
    if fault == "cut for ever":
        server.cuts = 10**9
    elif fault == "silent":
        server.silent = True
    elif fault.isdecimal():
        server.refusal = int(fault)
    else:
        url = "http://me:hidden@host.invalid/x.fa"
    assert main(command(url, tmp_path / "x.zarr")) == 1
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: {url.replace('me:hidden@', '')}: expected a file"), line
    if fault == "404":
        assert "nothing there" in line
    if fault in ("403", "500"):
        assert fault in line
    assert "hidden" not in said
    assert "Traceback" not in said
    assert not (tmp_path / "x.zarr").exists()
