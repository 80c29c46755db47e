"""The tasks of a job array: each measures its share of the partitions, in any order, without Dask.

    init             sources --> sequence shards, plan, empty arrays          once
    run_partitions   partitions of task I of N --> spools; row groups that    N tasks, side by side
                     have become whole --> chunks
    finalise         what is left of that; sums, list of files, "complete"    once

Tasks may be killed, given again, and may overlap. Two that measure the same partition write the
same bytes; a row group is written by the one that has claimed it. The store comes out with the
bytes of an undisturbed `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from bertgeom.errors import DamagedError, StoreError, UsageError
from bertgeom.model.packages import import_packages
from bertgeom.pipelines.context.claims import claimed, row_group_claim, shared_lock
from bertgeom.pipelines.context.events import (
    Bus,
    Damaged,
    Event,
    PartitionDone,
    Started,
    Subscriber,
    history,
)
from bertgeom.pipelines.context.run_context import RunContext, open_context, reopened
from bertgeom.pipelines.partition.write import remove_spools, write_group
from bertgeom.pipelines.plan.partitions import Pieces
from bertgeom.pipelines.run import stages
from bertgeom.pipelines.run.executors import InProcess, threads_of
from bertgeom.pipelines.run.progress import Status, Tracker, status
from bertgeom.store import root_file
from bertgeom.store.storage import explain_write_errors

#: Partitions that a task takes at once: claims of row groups are open files.
_AT_ONCE = 64


def partitions_of_task(pieces: Pieces, task: int, of: int) -> range:
    """The partitions of task 0 to of - 1: side by side, as many for each as can be.

        Raises:
            UsageError: for a task that is not one of them.

        Example:
            >>> from bertgeom.pipelines.jobs.tasks import partitions_of_task
            >>> from bertgeom.pipelines.partition.write import remove_spools, write_group
    from bertgeom.pipelines.plan.partitions import Pieces
            >>> [list(partitions_of_task(Pieces(25, 5, 10), task, 3)) for task in range(3)]
            [[0], [1, 2], [3, 4]]
    """
    if of < 1 or not 0 <= task < of:
        raise UsageError(f"expected a task of 0 to {of - 1} of at least 1, found {task} of {of}")
    return range(task * pieces.n_partitions // of, (task + 1) * pieces.n_partitions // of)


def run_partitions(
    store: str | Path,
    *,
    task: int | None = None,
    of: int | None = None,
    partitions: tuple[int, int] | None = None,
    model: str | None = None,
    threads: int | None = None,
    imports: Iterable[str] = (),
    subscribers: Iterable[Subscriber] = (),
) -> Status:
    """Measure the partitions of one task of a run that `init` has set up.

    Args:
        store: folder or fsspec URL. task, of: which of how many tasks, counted from 0.
        partitions: first and last, in place of `task`.
        model: where the model is on this machine; None: where it was for `init`.
        threads: compute threads; default: the cores. imports: as in `run`.
        subscribers: called with every event.

    Returns:
        How far the whole run is.

    Raises:
        UsageError: for an impossible share. MismatchError: for another model than that of the run.
        StoreError: without a run at `store`, or if another command holds it alone.

    Example:
        >>> from bertgeom.pipelines.jobs.tasks import finalise, run_partitions
        >>> from bertgeom.pipelines.run.stages import init
        >>> _ = init("genomes.fasta", model="model", out="array.zarr", window=50)
        >>> done = [run_partitions("array.zarr", task=i, of=2) for i in range(2)]
        >>> finalise("array.zarr").complete
        True
    """
    context, bus = open_context(str(store)), Bus(list(subscribers))
    mine = _share(context.plan, task, of, partitions)
    threads = threads_of(1, threads)
    import_packages(imports)
    with shared_lock(context.storage), explain_write_errors(context.storage.url):
        if context.storage.folder is not None:
            bus.subscribers.append(history(context.folder.log))
        written = Tracker.of(context, None).written
        todo = [p for p in mine if context.plan.group_of(p) not in written]

        @cache
        def executor() -> InProcess:
            # The model is loaded only if something is to be measured.
            return InProcess(reopened(context, model), threads)

        for first in range(0, len(todo), _AT_ONCE):
            _work(context, executor, todo[first : first + _AT_ONCE], bus)
    bus.close()
    return status(context.storage.url)


def _share(
    pieces: Pieces, task: int | None, of: int | None, partitions: tuple[int, int] | None
) -> range:
    """The partitions of a task."""
    if partitions is None:
        if task is None or of is None:
            raise UsageError("expected --task and --of, or --partitions, found neither in whole")
        return partitions_of_task(pieces, task, of)
    if task is not None or of is not None:
        raise UsageError("expected either --task and --of or --partitions, found both")
    first, last = partitions
    if not 0 <= first <= last < pieces.n_partitions:
        raise UsageError(
            f"expected partitions of 0 to {pieces.n_partitions - 1}, found {first}-{last}"
        )
    return range(first, last + 1)


def _work(
    context: RunContext,
    executor: Callable[[], InProcess],
    partitions: Sequence[int],
    bus: Bus,
) -> None:
    """Measure what is missing of some partitions, and write row groups that become whole."""
    plan = context.plan
    with ExitStack() as stack:
        # A row group of one partition is written as it is measured.
        left = {
            p
            for p in partitions
            if len(plan.partitions_of(plan.group_of(p))) == 1
            and not stack.enter_context(row_group_claim(context.storage, plan.group_of(p)))
        }
        # Looked at while they are held: another task may have written them a moment ago.
        done = _done(context, partitions, bus)
        todo = [p for p in partitions if p not in left and p not in done]
        if todo:
            n_windows = sum(b - a for a, b in map(plan.partition, todo))
            with executor() as working:
                bus.send(Started(n_windows, 0, len(todo), 1, working.threads))
                for event in working.execute(todo, [], _nothing, bus.send):
                    bus.send(event)
                    if isinstance(event, PartitionDone):
                        _write_if_whole(context, plan.group_of(event.partition), bus)
    # What a killed task had measured, but not written.
    for group in sorted({plan.group_of(p) for p in partitions}):
        _write_if_whole(context, group, bus)


def _nothing(event: Event) -> None:
    """No row group is written by the executor: it does not know of claims."""


def _done(context: RunContext, partitions: Sequence[int], bus: Bus) -> set[int]:
    """Partitions with results; spools that cannot be used are taken back."""
    tracker = Tracker.of(context, None)
    found = {p for p in partitions if context.plan.group_of(p) in tracker.written}
    for partition in sorted(tracker.spooled & set(partitions) - found):
        try:
            context.folder.read_spool(partition, context.fingerprint)
        except StoreError as error:
            bus.send(Damaged(str(error)))
            context.folder.remove_spool(partition)
        else:
            found.add(partition)
    return found


def _write_if_whole(context: RunContext, group: int, bus: Bus) -> None:
    """Write a row group whose partitions are all measured, unless another task does or did."""
    partitions = set(context.plan.partitions_of(group))
    if len(partitions) == 1 or not partitions <= set(context.folder.spooled()):
        return
    with row_group_claim(context.storage, group) as mine:
        if not mine or not partitions <= set(context.folder.spooled()):
            return
        # The record of this row group alone: a run may have thousands.
        with suppress(DamagedError):
            context.record(group)
            remove_spools(context, group)
            return
        try:
            events = write_group(context, group)
        except DamagedError as error:
            # Whoever measured that partition is killed or given again: it is measured then.
            bus.send(Damaged(str(error)))
            return
    for event in events:
        bus.send(event)


def finalise(store: str | Path, *, subscribers: Iterable[Subscriber] = ()) -> Status:
    """Complete a store whose tasks are all done. Harmless when repeated.

    Args:
        store: folder or fsspec URL. subscribers: called with every event.

    Raises:
        StoreError: if partitions are missing: names how many, and the first; or if a task or
            another command is still at work.

    Example:
        >>> from bertgeom.pipelines.jobs.tasks import finalise
        >>> finalise("run.zarr").complete  # it is already
        True
    """
    context, bus = open_context(str(store)), Bus(list(subscribers))
    with claimed(context.storage, root_file.FORMAT), explain_write_errors(context.storage.url):
        done = stages.finalise(context.storage.url)
    bus.close()
    return done
