"""How far a run is: which partitions and row groups are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bertgeom import store
from bertgeom.errors import StoreError

from .events import Bus, Damaged, Event, GroupWritten, PartitionDone
from .input_summary import InputSummary
from .plan import Plan
from .workplace import Workplace, open_workplace


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        store: its place. complete: whether finalise is through and no row group is missing.
        windows, partitions: in all; `_done`: with results on disk.
        groups, groups_written: row groups in all, and in their final chunks.
        counts: tokens, and windows by flag, of what is in final chunks; those that every row
            group tells. See `shares`.
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


@dataclass(frozen=True)
class Shares:
    """What a user must know of a run's tokens, in per cent of what is in final chunks.

    Attributes:
        unknown_tokens: unknown ones among the tokens that stand for bases.
        unknown_windows: windows flagged `unknown`, with more of them than --max-unknown.
        truncated_windows: windows of which tokens were cut off.

    Each is None where the store does not say: nothing is written yet, or row groups were
    written by a version that did not count it.
    """

    unknown_tokens: float | None
    unknown_windows: float | None
    truncated_windows: float | None


def shares(found: Status) -> Shares:
    """The shares of a run's unknown and truncated tokens."""
    counts = found.counts

    def share(part: str, whole: str) -> float | None:
        if part not in counts or not counts.get(whole):
            return None
        return 100 * counts[part] / counts[whole]

    return Shares(
        share("unknown_tokens", "content_tokens"),
        share("unknown", "windows"),
        share("truncated_windows", "windows"),
    )


#: Share of unknown tokens above which they are the typical ones.
MOST_UNKNOWN = 0.5


def share_lines(found: Status) -> list[str]:
    """The shares for people, with a warning where they are large."""
    values = shares(found)
    lines = [
        f"unknown tokens: {_percent(values.unknown_tokens)}, "
        f"windows with too many of them: {_percent(values.unknown_windows)}",
        f"windows cut off at the longest input: {_percent(values.truncated_windows)}",
    ]
    if values.unknown_tokens is not None and values.unknown_tokens > 100 * MOST_UNKNOWN:
        lines.append(
            "warning: most tokens are unknown to the tokenizer, and the numbers say little about "
            "the sequences; choose another --model or --tokenizer"
        )
    if values.truncated_windows:
        lines.append(
            "warning: the bases behind the cut are in no window; give a smaller --window, or "
            "leave --window and --stride out"
        )
    return lines


def _percent(value: float | None) -> str:
    if value is None:
        return "not recorded"
    return "0 %" if value == 0 else f"{value:.3g} %"


@dataclass
class Tracker:
    """Which partitions and row groups are done.

    Attributes:
        spooled: partitions with a spool. records: completion records by row group.
        written: row groups that are done.
    """

    plan: Plan
    spooled: set[int]
    records: dict[int, dict[str, Any]]
    written: set[int]

    @classmethod
    def of(cls, place: Workplace, bus: Bus | None) -> Tracker:
        """Look at the bookkeeping. With a bus, leftovers are cleared and damage is repaired.

        A completion record that cannot be read, or is of another run, counts as none.
        """
        records, wrong = place.records()
        spooled = {i for i in place.folder.spooled() if i < place.plan.n_partitions}
        tracker = cls(place.plan, spooled, records, set(records))
        if bus is not None:
            for problem in wrong.values():
                bus.send(Damaged(problem))
        for partition in sorted(tracker.spooled):
            if place.plan.group_of(partition) in tracker.written:
                tracker.spooled.discard(partition)
                if bus is not None:
                    place.folder.remove_spool(partition)
            elif bus is not None:
                try:
                    place.folder.read_spool(partition, place.fingerprint)
                except StoreError as error:
                    bus.send(Damaged(str(error)))
                    place.folder.remove_spool(partition)
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


def summed(told: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Counts of several parts together, without those that a part does not tell."""
    names = [name for name in told[0] if all(name in part for part in told)] if told else []
    return {name: sum(part[name] for part in told) for name in names}


def status(url: str) -> Status:
    """How far the run of a store is; reads its bookkeeping, writes nothing.

    Raises:
        StoreError: if there is no run at `url`.
    """
    place = open_workplace(str(url))
    attributes = store.check_format(place.storage, store.FORMAT)
    tracker = Tracker.of(place, None)
    counts = summed([record["counts"] for _, record in sorted(tracker.records.items())])
    missing = tracker.missing()
    told = (x.get("seconds") for x in place.folder.history() if x.get("event") == "PartitionDone")
    seconds = sum(x for x in told if isinstance(x, int | float))
    return Status(
        place.storage.url,
        bool(attributes.get("complete")) and not missing,
        place.plan.n_windows,
        tracker.windows_done(),
        place.plan.n_partitions,
        place.plan.n_partitions - len(missing),
        place.plan.n_groups,
        len(tracker.written),
        counts,
        tuple(missing[:10]),
        round(seconds, 3),
        place.folder.read_input(),
    )
