"""What happens in a run, as typed events, and the history that notes them."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_LOG = logging.getLogger(__name__)


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
#: Sent many times in a row.
_FREQUENT = (Ingesting, Cutting, Measured)


@dataclass
class Bus:
    """Hands every event to every subscriber, and to the log."""

    subscribers: list[Subscriber] = field(default_factory=list)

    def send(self, event: Event) -> None:
        _LOG.log(logging.DEBUG if isinstance(event, _FREQUENT) else logging.INFO, "%s", event)
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
