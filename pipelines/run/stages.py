"""The stages of a run: ingest, set up, run partitions, finalise. Each can be repeated.

    sources --> sequence shards --> plan --> partitions --> row groups --> finished store
              ingest              set_up   run_partition               finalise

`run` composes them on one machine. Every stage looks at what is there, does what is missing,
and may be killed at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertgeom.config import Settings
from bertgeom.errors import StoreError
from bertgeom.kernels.ahead import compiling_beside
from bertgeom.model.packages import import_packages
from bertgeom.pipelines.context.claims import check_place, claimed, forget_tasks
from bertgeom.pipelines.context.events import (
    Bus,
    Finished,
    ModelLoaded,
    Started,
    Subscriber,
    history,
)
from bertgeom.pipelines.context.folder import RUN, RunFolder
from bertgeom.pipelines.context.restart import forget_unstarted
from bertgeom.pipelines.context.run_context import (
    SEQUENCES,
    RunContext,
    load_model,
    open_context,
    reopened,
)
from bertgeom.pipelines.partition import cohort_sums, record_means, sampled_spectra
from bertgeom.pipelines.partition.write import write_group
from bertgeom.pipelines.plan import cost
from bertgeom.pipelines.run.executors import Executor, check_scheduler, choose, threads_of
from bertgeom.pipelines.run.ingestion import (
    Sources,
    as_list,
    ingest_into,
    ingest_sources,
    outside_shards,
)
from bertgeom.pipelines.run.inventory import Kind, inspect, written_files
from bertgeom.pipelines.run.main_guard import check_script
from bertgeom.pipelines.run.prepare import (
    PreparedRun,
    input_files,
    prepare_run,
    read_groups,
    set_up,
)
from bertgeom.pipelines.run.progress import Status, Tracker, status
from bertgeom.pipelines.run.repair import CHECKED_WHOLE, mend
from bertgeom.sequences.alphabets import Alphabet, alphabet_of
from bertgeom.sequences.shards import MEMBERS, Sequences
from bertgeom.store import manifest, root_file, zarr_io
from bertgeom.store.manifest import FOLDER
from bertgeom.store.storage import Storage, explain_write_errors

if TYPE_CHECKING:
    from bertgeom.model.encoder import Encoder

__all__ = [
    "Sources",
    "Status",
    "execute",
    "finalise",
    "ingest",
    "init",
    "project",
    "repair",
    "run",
    "status",
]


def run(
    sources: Sources | None = None,
    *,
    model: str | Path,
    out: str | Path,
    sequences: str | Path | None = None,
    labels: str | Path | None = None,
    annotations: str | Path | None = None,
    workers: int = 1,
    threads: int | None = None,
    scheduler: str | None = None,
    memory: int | str | None = None,
    imports: Iterable[str] = (),
    subscribers: Iterable[Subscriber] = (),
    **settings: Any,
) -> Status:
    """Measure all windows of a database: the main job, from sequences to a finished store.

    Give the same call again after an interruption: finished work is kept, and the store comes
    out as if nothing had happened.

    Args:
        sources: FASTA or FASTQ files, plain or compressed, folders, globs, fsspec URLs; or one
            store of sequence shards made by `ingest`.
        model: folder or hub name of a transformers encoder with safetensors weights.
        out: folder or fsspec URL of the store.
        sequences: sequence shards made by `ingest`, in place of `sources`.
        labels: table `record<TAB>label`, see `bertgeom.analysis.labels.read_labels`.
        annotations: BED, GFF3 or GTF file of regions in record coordinates: the token groups of
            `attention_group_mass`, see `bertgeom.analysis.annotations.read_annotations`; the
            setting `group_by` says what makes regions one group.
        workers: worker processes; more than one starts a Dask cluster on this machine.
        threads: compute threads of a worker; default: the cores divided by the workers.
        scheduler: address of a running Dask scheduler, `tcp://host:8786`.
        memory: most memory to use, in bytes or like "8GB"; default: that of the machine.
        imports: packages that register the model's classes, imported here and by every worker.
        subscribers: called with every event, see `bertgeom.pipelines.context.events`.
        settings: fields of `bertgeom.config.Settings`.

    Raises:
        UsageError: for impossible settings. InputError: for sources that cannot be read.
        ModelError: for a model that cannot be loaded or observed, or whose tokenizer does not
            know most of the input.
        MismatchError: if the store was made with another model, input or setting.
        PlanError: if the plan does not fit the memory.
        StoreError: if the store cannot be written.

    Example:
        >>> import bertgeom
        >>> done = bertgeom.run("genomes.fasta", model="model", out="new.zarr", window=50)
        >>> done.windows
        8
    """
    begin, bus = time.monotonic(), Bus(list(subscribers))
    given = Given(sources, model, out, sequences, labels, annotations, Settings.of(**settings))
    given.check_place()
    threads, packages = threads_of(workers, threads), import_packages(imports)
    check_script(workers)
    check_scheduler(scheduler)
    budget = None if scheduler else Budget(workers, threads, memory)
    with begun(given, bus, budget) as context:
        with choose(context, workers, threads, scheduler, packages) as executor:
            execute(context, executor, bus)
        done = finalise(context.storage.url)
        bus.send(Finished(context.storage.shown, done.windows, time.monotonic() - begin))
    bus.close()
    return done


def init(
    sources: Sources | None = None,
    *,
    model: str | Path,
    out: str | Path,
    sequences: str | Path | None = None,
    labels: str | Path | None = None,
    annotations: str | Path | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    imports: Iterable[str] = (),
    subscribers: Iterable[Subscriber] = (),
    **settings: Any,
) -> Status:
    """Set up a run and measure nothing: sequence shards, the plan, empty arrays.

    The work is then shared among tasks, see `bertgeom.pipelines.jobs.tasks.run_partitions`; `run`
    with the same arguments goes on as well.

    Args:
        sources, model, out, sequences, labels, annotations, imports, subscribers, settings: as in
            `run`, with its errors. threads, memory: what one task has.

    Example:
        >>> from bertgeom.pipelines.run.stages import init
        >>> begun = init("genomes.fasta", model="model", out="tasks.zarr", window=50)
        >>> begun.windows, begun.windows_done
        (8, 0)
    """
    bus = Bus(list(subscribers))
    given = Given(sources, model, out, sequences, labels, annotations, Settings.of(**settings))
    given.check_place()
    import_packages(imports)
    with begun(given, bus, Budget(1, threads_of(1, threads), memory)) as context:
        found = status(context.storage.url)
    bus.close()
    return found


@dataclass(frozen=True)
class Given:
    """What a run is given; see `run`."""

    sources: Sources | None
    model: str | Path
    out: str | Path
    sequences: str | Path | None
    labels: str | Path | None
    annotations: str | Path | None
    settings: Settings

    @property
    def inputs(self) -> list[str]:
        """Paths and URLs that are read."""
        given = (self.model, self.labels, self.annotations, self.sequences)
        return [*as_list(self.sources), *(str(one) for one in given if one is not None)]

    @cached_property
    def elsewhere(self) -> str | None:
        """URL of sequence shards that lie outside the store, None if sources are to be read."""
        return outside_shards(self.sources, self.sequences)

    def check_place(self) -> None:
        """Refuse a place that a run must not write to, before anything else takes its time."""
        _ = self.elsewhere
        check_place(Storage(str(self.out)), root_file.FORMAT, self.inputs)


@dataclass(frozen=True)
class Budget:
    """What the processes of one machine may use; see `run`."""

    workers: int
    threads: int
    memory: int | str | None


@contextmanager
def begun(given: Given, bus: Bus, budget: Budget | None) -> Iterator[RunContext]:
    """A run that is set up, its place held alone while the block works.

    Args:
        budget: checked against the projected memory; None: the workers are elsewhere.
    """
    options, storage = given.settings, Storage(str(given.out))
    encoder = _checked_model(str(given.model), options, bus)
    with explain_write_errors(storage.url):
        regions = read_groups(given.annotations, options)
    with (
        claimed(storage, root_file.FORMAT, given.inputs) as storage,
        explain_write_errors(storage.url),
    ):
        letters = alphabet_of(options.alphabet)
        shards = _ingested(storage, given.sources, given.elsewhere, bus, letters)
        prepared = prepare_run(
            storage,
            encoder,
            str(given.model),
            shards,
            options,
            labels=given.labels,
            annotations=regions,
            elsewhere=given.elsewhere,
            send=bus.send,
        )
        if budget is not None:
            needed = project(prepared.context, budget.threads)
            cost.check_memory(needed, cost.budget_bytes(budget.memory), budget.workers)
        yield _set_up(prepared, bus)


def _checked_model(model: str, options: Settings, bus: Bus) -> Encoder:
    """The model of a run, which was seen to record the attention that it computes.

    Raises:
        ModelError: for a model that cannot be loaded or observed.
    """
    with compiling_beside() if _on_cpu(options.device) else nullcontext():
        encoder = load_model(model, options)
        encoder.probe()
    bus.send(ModelLoaded(encoder.model_id, str(encoder.device), str(encoder.dtype)[6:]))
    return encoder


def _on_cpu(device: str) -> bool:
    import torch

    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def _ingested(
    storage: Storage, sources: Sources | None, elsewhere: str | None, bus: Bus, alphabet: Alphabet
) -> Sequences:
    """Begin a run in its place: the folder, its history, and the sequence shards."""
    folder = RunFolder(storage)
    forget_unstarted(storage)
    zarr_io.create_root(storage)
    folder.create()
    bus.subscribers.append(history(folder.log))
    return ingest_into(storage, sources, elsewhere, bus, alphabet)


def _set_up(prepared: PreparedRun, bus: Bus) -> RunContext:
    """The run with its arrays; of one that was begun before, what is damaged is mended.

    Raises:
        PlanError: if the store does not fit the disk.
    """
    context = prepared.context
    left = context.plan.n_windows - Tracker.of(context, None).windows_done()
    cost.check_disk(context.layout, context.storage, left)
    is_new = not (context.folder.storage.exists(RUN) or context.folder.written_groups())
    context = set_up(prepared)
    if context.storage.journal is not None:
        context.storage.journal.close()
    if not is_new:
        mend(context, bus, inspect(context, CHECKED_WHOLE), input_files(prepared))
    return context


def ingest(
    sources: Sources,
    out: str | Path,
    *,
    alphabet: str | None = None,
    subscribers: Iterable[Subscriber] = (),
) -> Sequences:
    """Read sources into sequence shards that several runs can share.

    Args:
        sources: as in `run`. out: folder or fsspec URL of the shards.
        alphabet: "dna", "rna", "protein" or "text"; None: nucleotides.
        subscribers: functions that are called with every event, such as a progress bar.

    Raises:
        InputError: for sources that cannot be read.
        MismatchError: if the shards are there and were made from other sources.

    Example:
        >>> from bertgeom.pipelines.run.stages import ingest
        >>> sequences = ingest("genomes.fasta", "shards.zarr")
        >>> len(sequences.lengths)
        4
    """
    letters = alphabet_of(Settings.of(alphabet=alphabet).alphabet)
    storage, bus = Storage(str(out)), Bus(list(subscribers))
    inputs = as_list(sources)
    with (
        claimed(storage, root_file.SEQUENCE_FORMAT, inputs) as storage,
        explain_write_errors(storage.url),
    ):
        zarr_io.create_root(storage, root_file.SEQUENCE_FORMAT)
        found = ingest_sources(storage, sources, bus, alphabet=letters)
    bus.close()
    return found


def repair(
    path: str | Path,
    *,
    model: str | None = None,
    threads: int | None = None,
    subscribers: Iterable[Subscriber] = (),
) -> tuple[str, ...]:
    """Measure the damaged row groups of a store again, and restore its other files.

    A finished store ends with the bytes of an undisturbed run. Of an unfinished one damaged row
    groups are taken back, and the next run measures them.

    Args:
        path: the store. model: where the model is now, if it was moved.
        threads: compute threads; default: the cores. subscribers: called with every event.

    Returns:
        What was damaged, one line each.

    Raises:
        DamagedError: if the sources, labels or regions of the run are needed for it.
        MismatchError: if the model is not the one the store was made with.
        StoreError: if there is no store, or another process works on it.

    Example:
        >>> from bertgeom.pipelines.run.stages import repair
        >>> repair("run.zarr")  # nothing is damaged
        ()
    """
    url, bus = str(path), Bus(list(subscribers))
    context = open_context(url)
    with claimed(context.storage, root_file.FORMAT), explain_write_errors(url):
        bus.subscribers.append(history(context.folder.log))
        found = inspect(context)
        # Only `finalise` writes the list and the sums by cohort: root and list may both be lost.
        finished = found.complete or context.storage.exists(manifest.KEY)
        finished = finished or bool(context.storage.names(cohort_sums.GROUP))
        # A store of version 0.1.0 has no other sign of its end than the root.
        finished = finished or bool(found.of(Kind.ROOT) and not Tracker.of(context, None).missing())
        constants = {d.key.partition("/")[0] for d in found.of(Kind.SET_UP)}
        known = finished and not found.of(Kind.SEQUENCES)
        again = known and (found.groups or Tracker.of(context, None).missing())
        if again or constants & {*(context.facts.constants or ())}:
            context = reopened(context, model)
        mend(context, bus, found)
        if again:
            with choose(context, 1, threads, None) as executor:
                execute(context, executor, bus)
        if finished:
            finalise(url)
    bus.close()
    return tuple(map(str, found.damages))


def execute(context: RunContext, executor: Executor, bus: Bus) -> None:
    """Measure and write all that is missing."""
    tracker = Tracker.of(context, bus)
    bus.send(
        Started(
            context.plan.n_windows,
            tracker.windows_done(),
            context.plan.n_partitions,
            executor.workers,
            executor.threads,
        )
    )
    todo = tracker.missing()
    for event in executor.execute(todo, tracker.whole_groups(), tracker.follow, bus.send):
        bus.send(event)


def finalise(url: str) -> Status:
    """Complete a store whose partitions are all done. Harmless when repeated.

    The list of all files is written before the root that says complete.

    Raises:
        StoreError: if partitions are missing; names how many and the first.
        DamagedError: if a file is not there or not as long as its record says.
    """
    context = open_context(url)
    found = status(url)
    if found.complete and context.storage.exists(manifest.KEY):
        return found
    if found.missing:
        raise StoreError(
            f"{context.storage.shown}: expected all {found.partitions} partitions, found "
            f"{found.partitions - found.partitions_done} missing, the first "
            f"{found.missing[0]}; give the bertgeom run command again"
        )
    with explain_write_errors(url):
        if found.complete:
            root_file.reopen(context.storage)
        forget_tasks(context.storage)
        for group in Tracker.of(context, Bus()).whole_groups():
            write_group(context, group)
        context.storage.sweep()
        members = [v.name for v in context.layout.variables]
        members += [c.name for c in context.layout.coordinates] + [FOLDER]
        members += [*(context.facts.constants or ()), *_write_groups(context)]
        if context.facts.sequences is None:
            members += [SEQUENCES, *(f"{SEQUENCES}/{name}" for name in MEMBERS)]
        root = zarr_io.consolidated(context.storage, members, {"complete": True})
        files = written_files(context, {member.partition("/")[0] for member in members})
        manifest.write(context.storage, files | {root_file.METADATA: manifest.entry_of(root)})
        context.storage.write(root_file.METADATA, root)
    return status(url)


def _write_groups(context: RunContext) -> list[str]:
    """Groups of what row groups keep beside their chunks; returns the groups and their arrays."""
    version = context.format_version
    sums = cohort_sums.merged(context, context.sidecars("sums"))
    inner = zarr_io.write_dataset(context.storage.child(cohort_sums.GROUP), sums, version)
    found = {cohort_sums.GROUP: inner}
    if context.settings.reduce:
        where = context.storage.child(record_means.GROUP)
        found[record_means.GROUP] = record_means.write(context, where, context.sidecars("records"))
    if context.settings.spectra:
        spectra = sampled_spectra.merged(context, context.sidecars("spectra"))
        if spectra is not None:
            where = context.storage.child(sampled_spectra.GROUP)
            found[sampled_spectra.GROUP] = zarr_io.write_dataset(where, spectra, version)
    return [name for group, names in found.items() for name in [group, *_in(group, names)]]


def _in(group: str, names: Iterable[str]) -> list[str]:
    return [f"{group}/{name}" for name in names]


def project(context: RunContext, threads: int) -> cost.Memory:
    """Peak memory of a worker on this run."""
    settings = context.settings
    return cost.memory(
        cost.model_cost(context.loaded),
        context.shape,
        batch_tokens=settings.batch_tokens,
        partition_windows=settings.partition_windows,
        window=context.plan.index.longest,
        n_windows=context.plan.n_windows,
        threads=threads,
    )
