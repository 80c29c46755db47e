"""Progress for people: a bar where somebody watches, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from bertgeom.pipelines.context.events import (
    Cutting,
    Damaged,
    Event,
    FilesLeftOut,
    Finished,
    Ingested,
    Ingesting,
    Measured,
    ModelLoaded,
    PartitionDone,
    Started,
    Subscriber,
    duration,
)


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
