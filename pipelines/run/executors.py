"""Who works on the partitions: this process, or the workers of a Dask cluster.

Both give the same bytes: a partition's batches are fixed by the plan, and a partition is
computed by one process.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, Self

from bertgeom.errors import BertgeomError, StoreError, UsageError
from bertgeom.pipelines.context.events import Event, Measured
from bertgeom.pipelines.context.run_context import RunContext, context_with_model, set_threads
from bertgeom.pipelines.partition.measure import measure_partitions
from bertgeom.pipelines.partition.write import run_partition, write_group, write_partition
from bertgeom.pipelines.run.main_guard import GUARD
from bertgeom.store.storage import Storage, reason

#: Partitions that a worker has at hand: one at work, one to begin at once.
_IN_FLIGHT = 2
#: A task is given up when this many workers were lost with it.
_LOST_WORKERS = 3
_CONNECT_SECONDS = 30

#: Tells the row group that a finished partition has made whole.
Follow = Callable[[Event], int | None]


class Executor(Protocol):
    """Works on partitions and row groups.

    Attributes:
        workers: processes that compute; threads: compute threads of each.
    """

    workers: int
    threads: int

    def execute(
        self,
        partitions: Sequence[int],
        groups: Sequence[int],
        follow: Follow,
        send: Callable[[Event], None],
    ) -> Iterator[Event]:
        """Measure partitions, write row groups as they become whole; yields what was done.

        Args:
            partitions: to measure. groups: whole already, to write.
            follow: called with every event, gives the next row group to write.
            send: takes events that are not results.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


@dataclass
class InProcess:
    """Computes here: a thread reads ahead, another writes behind."""

    context: RunContext
    threads: int
    workers: int = 1

    def __enter__(self) -> Self:
        set_threads(self.threads)
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def execute(
        self,
        partitions: Sequence[int],
        groups: Sequence[int],
        follow: Follow,
        send: Callable[[Event], None],
    ) -> Iterator[Event]:
        waiting: deque[Future[list[Event]]] = deque()
        with ThreadPoolExecutor(1, "bertgeom-writer") as writer:

            def settle(most: int) -> Iterator[Event]:
                while waiting and (waiting[0].done() or len(waiting) > most):
                    for event in waiting.popleft().result():
                        group = follow(event)
                        if group is not None:
                            waiting.append(writer.submit(write_group, self.context, group))
                        yield event

            waiting.extend(writer.submit(write_group, self.context, group) for group in groups)
            begin = time.monotonic()
            found = measure_partitions(self.context, partitions, lambda n: send(Measured(n)))
            for number, results in found:
                waiting.append(writer.submit(write_partition, self.context, number, results, begin))
                yield from settle(_IN_FLIGHT)
                begin = time.monotonic()
            yield from settle(0)


@dataclass
class Dask:
    """Computes on a Dask cluster: a given scheduler, or workers started on this machine.

    Attributes:
        url, model: as the workers find them. workers: processes to start without a scheduler.
        imports: packages that a worker imports before it loads the model.
    """

    url: str
    model: str
    threads: int
    workers: int
    device: str
    scheduler: str | None = None
    imports: tuple[str, ...] = ()
    _client: Any = None
    _cluster: Any = None
    _resources: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Self:
        if self.scheduler is None:
            self._cluster = self._started_cluster()
        try:
            self._client = _connect(self._cluster or self.scheduler)
        except UsageError:
            self.__exit__()
            raise
        known = self._client.scheduler_info(n_workers=-1)["workers"]
        if self.scheduler is not None:
            self.workers = max(1, len(known))
        if any("GPU" in (w.get("resources") or {}) for w in known.values()):
            self._resources = {"GPU": 1}
        return self

    def _started_cluster(self) -> Any:
        try:
            return local_cluster(self.workers, self.threads, self.device)
        except (RuntimeError, OSError, TimeoutError) as error:
            raise UsageError(
                f"expected {self.workers} worker processes to start, found: {reason(error)}; if a "
                f"script calls bertgeom, {GUARD}; otherwise lower --workers"
            ) from error

    def __exit__(self, *error: object) -> None:
        if self._client is not None:
            self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def execute(
        self,
        partitions: Sequence[int],
        groups: Sequence[int],
        follow: Follow,
        send: Callable[[Event], None],
    ) -> Iterator[Event]:
        from distributed import as_completed

        todo = iter(partitions)
        running = as_completed([self._submit(_work_group, g, 1) for g in groups])
        for partition in islice(todo, _IN_FLIGHT * self.workers):
            running.add(self._submit(_work_partition, partition))
        for future in running:
            for event in _result(future):
                group = follow(event)
                if group is not None:
                    running.add(self._submit(_work_group, group, 1))
                yield event
            if future.key.startswith(_work_partition.__name__):
                for partition in islice(todo, 1):
                    running.add(self._submit(_work_partition, partition))
            future.release()

    def _submit(self, work: Callable[..., list[Event]], number: int, priority: int = 0) -> Any:
        return self._client.submit(
            work,
            self.url,
            self.model,
            self.threads,
            self.imports,
            number,
            key=f"{work.__name__}-{number}-{time.monotonic_ns()}",
            pure=False,
            priority=priority,
            resources=self._resources or None,
        )


def _connect(scheduler: Any) -> Any:
    """A client of a cluster or of the scheduler at an address.

    Raises:
        UsageError: if no scheduler answers.
    """
    from distributed import Client

    try:
        return Client(scheduler, timeout=_CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise UsageError(
            f"expected a Dask scheduler at {scheduler}, found none in "
            f"{_CONNECT_SECONDS} s; start one with: dask scheduler"
        ) from error


def check_scheduler(scheduler: str | None) -> None:
    """Ask a scheduler for an answer before anything is made.

    Raises:
        UsageError: if none answers.
    """
    if scheduler is not None:
        _connect(scheduler).close()


def workers_at(scheduler: str) -> int:
    """Number of workers of a running scheduler.

    Raises:
        UsageError: if no scheduler answers, or it has no workers.
    """
    with _connect(scheduler) as client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise UsageError(
            f"expected workers at {scheduler}, found none; start some with: dask worker {scheduler}"
        )
    return workers


def _work_partition(
    url: str, model: str, threads: int, imports: tuple[str, ...], partition: int
) -> list[Event]:
    return run_partition(context_with_model(url, model, threads, imports), partition)


def _work_group(
    url: str, model: str, threads: int, imports: tuple[str, ...], group: int
) -> list[Event]:
    return write_group(context_with_model(url, model, threads, imports), group)


def _result(future: Any) -> list[Event]:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    try:
        events: list[Event] = future.result()
    except BertgeomError:
        raise
    except KilledWorker as error:
        raise StoreError(
            f"expected {future.key.rsplit('-', 1)[0]} to finish, found {_LOST_WORKERS} workers "
            "lost with it, perhaps for want of memory; lower --batch-tokens or --workers and give "
            "the same command again, finished work is kept"
        ) from error
    except (FutureCancelledError, CommClosedError) as error:
        raise StoreError(
            f"expected {future.key.rsplit('-', 1)[0]} to finish, found the Dask scheduler lost; "
            "start it and give the same command again, finished work is kept"
        ) from error
    return events


#: Dask answers HTTP without a dashboard too; by default on every interface and one fixed port.
_ANY_PORT = "127.0.0.1:0"


def local_cluster(workers: int, threads: int, device: str) -> Any:
    """Worker processes on the loopback interface, without a dashboard.

    On CUDA every worker sees one device and has the resource GPU=1.
    """
    import logging

    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    for name in ("distributed", "bokeh"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": _LOST_WORKERS - 1,
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": False,
            "distributed.worker.memory.terminate": False,
        }
    )
    specs = {}
    for number in range(workers):
        env = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
        options: dict[str, Any] = {
            "nthreads": 1,
            "host": "127.0.0.1",
            "dashboard": False,
            "dashboard_address": _ANY_PORT,
            "memory_limit": 0,
            "silence_logs": logging.CRITICAL,
            "env": env,
        }
        if device == "cuda":
            env["CUDA_VISIBLE_DEVICES"] = _visible_device(number)
            options["resources"] = {"GPU": 1}
        specs[number] = {"cls": Nanny, "options": options}
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": "127.0.0.1",
            "port": 0,
            "dashboard": False,
            "dashboard_address": _ANY_PORT,
        },
    }
    return SpecCluster(workers=specs, scheduler=scheduler, silence_logs=logging.CRITICAL)


def _visible_device(number: int) -> str:
    """The CUDA device of a worker: the devices that this process may see, in turn."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    return devices[number % len(devices)]


def threads_of(workers: int, threads: int | None) -> int:
    """Compute threads of a worker; where none are given, the cores divided by the workers.

    Raises:
        UsageError: for a number of workers or threads below one.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"expected --{name} of at least 1, found {value}")
    return threads or max(1, len(os.sched_getaffinity(0)) // workers)


def choose(
    context: RunContext,
    workers: int,
    threads: int | None,
    scheduler: str | None,
    imports: tuple[str, ...] = (),
) -> Executor:
    """The executor for these options; its workers import these packages.

    Raises:
        UsageError: for a number of workers or threads below one.
    """
    threads = threads_of(workers, threads)
    if workers == 1 and scheduler is None:
        return InProcess(context, threads)
    url = _absolute(context.storage.url)
    device = context.encoder.device.type if context.encoder is not None else "cpu"
    return Dask(url, context.facts.model, threads, workers, device, scheduler, imports)


def _absolute(url: str) -> str:
    folder = Storage(url).folder
    return url if folder is None else str(folder.absolute())
