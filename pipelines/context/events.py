"""What happens in a run, as typed events, and those who listen: bar, log, history."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO


@dataclass(frozen=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True)
class Ingesting(Event):
    """Records are being read; sent now and then with the totals so far."""

    records: int
    bases: int


@dataclass(frozen=True)
class Ingested(Event):
    """The sequence shards are there; `reused` if an earlier start had written them."""

    records: int
    bases: int
    reused: bool


@dataclass(frozen=True)
class Cutting(Event):
    """Windows are being cut by tokens; sent now and then with the totals so far."""

    bases: int
    total: int
    windows: int


@dataclass(frozen=True)
class FilesLeftOut(Event):
    """Files of a folder that were not taken for sequences, by their endings."""

    files: int
    example: str

    def __str__(self) -> str:
        return (
            f"{self.files} files of the folder do not end like FASTA or FASTQ and are left out, "
            f"{self.example} among them"
        )


@dataclass(frozen=True)
class ModelLoaded(Event):
    """The model is ready."""

    model: str
    device: str
    dtype: str


@dataclass(frozen=True)
class Started(Event):
    """Measuring begins. `done` windows are kept from earlier starts."""

    windows: int
    done: int
    partitions: int
    workers: int
    threads: int


@dataclass(frozen=True)
class Measured(Event):
    """Some windows were measured in this process; their partition is not written yet."""

    windows: int


@dataclass(frozen=True)
class PartitionDone(Event):
    """A partition is complete: its results are on disk."""

    partition: int
    counts: Mapping[str, int]
    seconds: float
    host: str
    process: int


@dataclass(frozen=True)
class GroupWritten(Event):
    """A row group is complete: whole chunks of every array and their record."""

    group: int
    files: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Damaged(Event):
    """Something that an earlier start left cannot be used; it is done again."""

    what: str


@dataclass(frozen=True)
class Finished(Event):
    """The store is complete."""

    store: str
    windows: int
    seconds: float


Subscriber = Callable[[Event], None]


@dataclass
class Bus:
    """Hands every event to every subscriber."""

    subscribers: list[Subscriber] = field(default_factory=list)

    def send(self, event: Event) -> None:
        for subscriber in self.subscribers:
            subscriber(event)

    def close(self) -> None:
        """Let subscribers that draw put the terminal in order."""
        for subscriber in self.subscribers:
            close = getattr(subscriber, "close", None)
            if close is not None:
                close()


def history(log: Callable[[Mapping[str, Any]], None]) -> Subscriber:
    """Writes every event but the frequent ones to the run history, with time and host."""

    def note(event: Event) -> None:
        if isinstance(event, Measured | Ingesting | Cutting):
            return
        log(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "host": socket.gethostname(),
                "process": os.getpid(),
                "event": type(event).__name__,
                **asdict(event),
            }
        )

    return note


class LogLines:
    """Plain lines for logs: every stage, and the state of the run every few seconds."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream, self._every = stream or sys.stderr, every
        self._last = self._begin = time.monotonic()
        self._total = self._done = self._kept = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Ingesting):
            self._now_and_then(lambda: f"read {event.records} records, {event.bases} bases")
        elif isinstance(event, Ingested):
            how = "kept from an earlier start" if event.reused else "read"
            self._say(f"{event.records} records, {event.bases} bases {how}")
        elif isinstance(event, Cutting):
            self._now_and_then(
                lambda: f"cut {event.bases} of {event.total} bases into {event.windows} windows"
            )
        elif isinstance(event, ModelLoaded):
            self._say(f"model {event.model} on {event.device} in {event.dtype}")
        elif isinstance(event, Started):
            self._total, self._done = event.windows, event.done
            self._kept, self._begin = event.done, time.monotonic()
            self._say(
                f"{event.windows} windows in {event.partitions} partitions, {event.done} done, "
                f"{event.workers} worker(s) of {event.threads} thread(s)"
            )
        elif isinstance(event, PartitionDone):
            self._done += event.counts["windows"]
            self._now_and_then(self._progress)
        elif isinstance(event, Damaged):
            self._say(event.what)
        elif isinstance(event, FilesLeftOut):
            self._say(str(event))
        elif isinstance(event, Finished):
            self._say(f"{event.store} complete: {event.windows} windows, {event.seconds:.1f} s")

    def _progress(self) -> str:
        spent = time.monotonic() - self._begin
        rate = (self._done - self._kept) / spent if spent else 0.0
        left = (self._total - self._done) / rate if rate else float("inf")
        return (
            f"{self._done}/{self._total} windows, {rate:.1f} a second, {duration(left)} remaining"
        )

    def _now_and_then(self, text: Callable[[], str]) -> None:
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._say(text())

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class ProgressBar:
    """A bar with rate and remaining time on a terminal."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        from bertgeom.pipelines.cli.output import console

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console(stderr=True),
        )
        self._task: Any = None
        self._begin = time.monotonic()
        self._kept = self._ahead = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Ingesting):
            self._show("reading records", None, event.records)
        elif isinstance(event, Ingested):
            self._show("reading records", event.records, event.records)
            self._remove()
        elif isinstance(event, Cutting):
            self._show("cutting windows (bases)", event.total, event.bases)
        elif isinstance(event, ModelLoaded):
            self._progress.console.print(
                f"model {event.model} on {event.device} in {event.dtype}", markup=False
            )
        elif isinstance(event, Started):
            self._remove()
            self._begin, self._kept = time.monotonic(), event.done
            self._show("measuring windows", event.windows, event.done)
        elif isinstance(event, Measured):
            self._ahead += event.windows
            self._advance(event.windows)
        elif isinstance(event, PartitionDone):
            # Windows that this process measured have been counted already.
            new = max(0, event.counts["windows"] - self._ahead)
            self._ahead = max(0, self._ahead - event.counts["windows"])
            self._advance(new)
        elif isinstance(event, Damaged):
            self._progress.console.print(event.what, markup=False)
        elif isinstance(event, FilesLeftOut):
            self._progress.console.print(str(event), markup=False)
        elif isinstance(event, Finished):
            self.close()

    def close(self) -> None:
        self._progress.stop()

    def _show(self, text: str, total: int | None, done: int) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(text, total=total, completed=done, rate="")
        self._progress.update(self._task, total=total, completed=done)

    def _remove(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _advance(self, windows: int) -> None:
        if self._task is None or not windows:
            return
        self._progress.advance(self._task, windows)
        spent = time.monotonic() - self._begin
        done = self._progress.tasks[-1].completed - self._kept
        self._progress.update(self._task, rate=f"{done / max(spent, 1e-9):.1f} windows/s")


def for_people(stream: TextIO | None = None) -> Subscriber:
    """A bar where somebody watches, log lines elsewhere."""
    stream = stream or sys.stderr
    return ProgressBar() if stream.isatty() else LogLines(stream)


def duration(seconds: float) -> str:
    """Seconds for people: 1 h 02 min."""
    if seconds == float("inf"):
        return "unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    hours, rest = divmod(int(seconds), 3600)
    if hours < 48:
        return f"{hours} h {rest // 60:02d} min"
    return f"{hours / 24:.1f} days"
