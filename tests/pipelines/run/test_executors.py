"""One suite over every executor: in this process, and on Dask workers that may be lost."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bertgeom
from bertgeom.errors import StoreError, UsageError
from bertgeom.pipelines.context import events
from bertgeom.pipelines.run import executors, stages
from bertgeom.pipelines.run.verify import verify

EXECUTORS = ("in process", "dask scheduler", "dask, a worker killed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, fake: ModuleType) -> Path:
    return fake.write_fasta(tmp_path_factory.mktemp("source") / "x.fa", (400, 300, 500, 9))


@pytest.fixture(scope="module")
def start(
    tiny_model: Path, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    def run(name: str, **options: Any) -> Path:
        out = tmp_path_factory.mktemp("stores") / f"{name}.zarr"
        stages.run(
            source,
            model=tiny_model,
            out=out,
            window=50,
            partition_windows=2,
            threads=1,
            keep="block_map,cls,logits,tracks",
            **options,
        )
        return out

    return run


@pytest.fixture(scope="module")
def whole(start: Callable[..., Path]) -> Path:
    """What an undisturbed run in one process gives."""
    return start("whole")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a cluster of two workers that runs find and leave."""
    with executors.local_cluster(2, 1, "cpu") as cluster:
        yield cluster.scheduler_address


def kill_first_worker() -> tuple[events.Subscriber, list[int]]:
    """A subscriber that kills the process that delivers the first partition."""
    killed: list[int] = []

    def subscriber(event: events.Event) -> None:
        if isinstance(event, events.PartitionDone) and not killed:
            assert event.process != os.getpid()
            killed.append(event.process)
            os.kill(event.process, signal.SIGKILL)

    return subscriber, killed


@contextmanager
def noted_imports() -> Iterator[tuple[str, Callable[[], set[int]]]]:
    """Name of a package, and the processes that have imported it."""
    name = "package_that_notes_its_imports"
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        code = f"import os, pathlib\npathlib.Path({folder!r}, str(os.getpid())).touch()\n"
        (Path(folder) / f"{name}.py").write_text(code)
        patch.syspath_prepend(folder)
        noted: set[int] = set()

        def processes() -> set[int]:
            noted.update(int(p.name) for p in Path(folder).glob("*") if p.name.isdigit())
            return noted

        yield name, processes


@pytest.fixture(scope="module", params=EXECUTORS)
def store(
    request: pytest.FixtureRequest, start: Callable[..., Path], scheduler: str
) -> Iterator[Path]:
    name = request.param.replace(" ", "-").replace(",", "")
    if request.param == "in process":
        yield start(name)
    elif request.param == "dask, a worker killed":
        subscriber, killed = kill_first_worker()
        with noted_imports() as (package, processes):
            found = start(name, workers=2, subscribers=[subscriber], imports=[package])
            # This process and every worker, the one that took the place of the lost one too.
            assert os.getpid() in processes()
            assert len(processes()) >= 3
        assert killed
        assert killed[0] in processes()
        yield found
    else:
        yield start(name, scheduler=scheduler)


@pytest.mark.slow
def test_every_executor_gives_the_same_bytes(store: Path, whole: Path, fake: ModuleType) -> None:
    found, expected = fake.contents(store), fake.contents(whole)
    assert found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []


@pytest.mark.slow
def test_every_executor_finishes_the_store(store: Path) -> None:
    state = stages.status(str(store))
    assert state.complete
    assert state.windows_done == state.windows == 25
    assert state.missing == ()
    assert state.counts["short"] == 1
    assert bertgeom.open(store).sizes["window"] == 25


@pytest.mark.slow
def test_what_every_executor_gives_agrees_with_the_oracle(whole: Path) -> None:
    report = verify(whole, windows=3)
    assert report.agrees, [c for c in report.comparisons if not c.agrees]
    assert len(report.windows) == 3
    compared = {c.array for c in report.comparisons}
    assert {"attention_entropy", "gate_mass", "angle_histogram", "cls", "block_map"} <= compared


def test_a_scheduler_that_is_not_there_is_one_line(
    start: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "_CONNECT_SECONDS", 1)
    with pytest.raises(UsageError, match=r"expected a Dask scheduler at tcp://127\.0\.0\.1:9"):
        start("nowhere", scheduler="tcp://127.0.0.1:9")


@pytest.mark.slow
def test_an_error_on_a_worker_is_the_error_of_the_run(
    start: Callable[..., Path], scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = stages.set_up

    def set_up_and_lose_the_bookkeeping(drawn: Any) -> Any:
        context = original(drawn)
        context.storage.remove("run/run.json")
        return context

    monkeypatch.setattr(stages, "set_up", set_up_and_lose_the_bookkeeping)
    with pytest.raises(StoreError, match=r"run\.json: expected what the run is"):
        start("lost", scheduler=scheduler)


@pytest.mark.slow
def test_a_local_cluster_listens_on_loopback_alone(scheduler: str) -> None:
    import psutil
    from distributed import Client

    with Client(scheduler):
        me = psutil.Process()
        listening = [
            connection.laddr.ip
            for process in (me, *me.children(recursive=True))
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
    assert listening
    assert set(listening) == {"127.0.0.1"}
