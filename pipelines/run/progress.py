"""How far a run is: which partitions and row groups are done."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bertgeom.errors import StoreError
from bertgeom.pipelines.context.events import Bus, Damaged, Event, GroupWritten, PartitionDone
from bertgeom.pipelines.context.folder import summed
from bertgeom.pipelines.context.input_summary import InputSummary
from bertgeom.pipelines.context.run_context import RunContext, open_context
from bertgeom.pipelines.plan.partitions import Pieces
from bertgeom.store import root_file


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        store: its place. complete: whether finalise is through and no row group is missing.
        windows, partitions: in all; `_done`: with results on disk.
        groups, groups_written: row groups in all, and in their final chunks.
        counts: tokens, and windows by flag, of what is in final chunks; those that every row
            group tells. See `bertgeom.pipelines.run.shares`.
        missing: the first partitions that are still to do.
        seconds: compute time of the partitions that the run history knows.
        input: what the run was given and what of it is left out; None in older stores.
    """

    store: str
    complete: bool
    windows: int
    windows_done: int
    partitions: int
    partitions_done: int
    groups: int
    groups_written: int
    counts: dict[str, int]
    missing: tuple[int, ...]
    seconds: float
    input: InputSummary | None = None


@dataclass
class Tracker:
    """Which partitions and row groups are done.

    Attributes:
        spooled: partitions with a spool. records: completion records by row group.
        written: row groups that are done.
    """

    plan: Pieces
    spooled: set[int]
    records: dict[int, dict[str, Any]]
    written: set[int]

    @classmethod
    def of(cls, context: RunContext, bus: Bus | None, pieces: Pieces | None = None) -> Tracker:
        """Look at the bookkeeping. With a bus, leftovers are cleared and damage is repaired.

        A completion record that cannot be read, or is of another run, counts as none.
        """
        pieces = pieces or context.plan
        records, wrong = context.records(pieces)
        spooled = {i for i in context.folder.spooled() if i < pieces.n_partitions}
        tracker = cls(pieces, spooled, records, set(records))
        if bus is not None:
            for problem in wrong.values():
                bus.send(Damaged(problem))
        for partition in sorted(tracker.spooled):
            if pieces.group_of(partition) in tracker.written:
                tracker.spooled.discard(partition)
                if bus is not None:
                    context.folder.remove_spool(partition)
            elif bus is not None:
                try:
                    context.folder.read_spool(partition, context.fingerprint)
                except StoreError as error:
                    bus.send(Damaged(str(error)))
                    context.folder.remove_spool(partition)
                    tracker.spooled.discard(partition)
        return tracker

    def done(self, partition: int) -> bool:
        return partition in self.spooled or self.plan.group_of(partition) in self.written

    def missing(self) -> list[int]:
        """Partitions without results, in order."""
        return [i for i in range(self.plan.n_partitions) if not self.done(i)]

    def windows_done(self) -> int:
        done = (i for i in range(self.plan.n_partitions) if self.done(i))
        return sum(stop - first for first, stop in map(self.plan.partition, done))

    def whole_groups(self) -> list[int]:
        """Row groups whose partitions are all spooled, waiting to be written."""
        groups = sorted({self.plan.group_of(i) for i in self.spooled} - self.written)
        return [g for g in groups if all(map(self.done, self.plan.partitions_of(g)))]

    def follow(self, event: Event) -> int | None:
        """Take note of an event; the row group that has become whole by it."""
        if isinstance(event, GroupWritten):
            self.written.add(event.group)
        if not isinstance(event, PartitionDone):
            return None
        group = self.plan.group_of(event.partition)
        if len(self.plan.partitions_of(group)) == 1:
            return None
        self.spooled.add(event.partition)
        return group if all(map(self.done, self.plan.partitions_of(group))) else None


def status(url: str) -> Status:
    """How far the run of a store is; reads its bookkeeping, writes nothing.

    Raises:
        StoreError: if there is no run at `url`.

    Example:
        >>> from bertgeom.pipelines.run.stages import status
        >>> status("run.zarr").complete
        True
    """
    context = open_context(str(url))
    attributes = root_file.check_format(context.storage, root_file.FORMAT)
    pieces = context.pieces(attributes.get("n_windows"))
    tracker = Tracker.of(context, None, pieces)
    counts = _counted(tracker.records)
    missing = tracker.missing()
    times = (
        x.get("seconds") for x in context.folder.history() if x.get("event") == "PartitionDone"
    )
    seconds = sum(x for x in times if isinstance(x, int | float))
    return Status(
        context.storage.url,
        bool(attributes.get("complete")) and not missing,
        pieces.n_windows,
        tracker.windows_done(),
        pieces.n_partitions,
        pieces.n_partitions - len(missing),
        pieces.n_groups,
        len(tracker.written),
        counts,
        tuple(missing[:10]),
        round(seconds, 3),
        context.folder.read_input(),
    )


def counts_of(url: str) -> dict[str, int] | None:
    """The `counts` of a run's status; None where no run can be read."""
    with suppress(StoreError):
        return _counted(open_context(url).records()[0])
    return None


def _counted(records: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    return summed([record["counts"] for _, record in sorted(records.items())])
