"""The stages of a run: ingest, set up, run partitions, finalise. Each can be repeated.

    sources --> sequence shards --> plan --> partitions --> row groups --> finished store
              ingest              set_up   run_partition               finalise

`run` composes them on one machine. Every stage looks at what is there, does what is missing,
and may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom import store
from bertgeom.annotations import Annotations, read_annotations
from bertgeom.cohorts import assign_labels, read_labels
from bertgeom.config import Settings, check_same, fingerprint
from bertgeom.errors import BertgeomError, InputError, ModelError, StoreError, UsageError
from bertgeom.fasta import read_chunks
from bertgeom.layout import Shape, row_group
from bertgeom.sequences import MEMBERS, Sequences, is_complete, open_sequences, write_sequences
from bertgeom.sources import expand_sources
from bertgeom.storage import Storage, writing
from bertgeom.variables import DEFINITIONS_VERSION

from . import cohort_sums, cost
from .events import (
    Bus,
    Damaged,
    Event,
    Finished,
    GroupWritten,
    Ingested,
    Ingesting,
    ModelLoaded,
    PartitionDone,
    Started,
    Subscriber,
    history,
)
from .executors import Executor, choose
from .plan import Plan, window_index
from .rundir import FOLDER, RunFolder
from .sources import source_facts
from .workplace import (
    SEQUENCES,
    Workplace,
    load_model,
    model_identity,
    open_workplace,
    shape_to_json,
)
from .writing import write_group

if TYPE_CHECKING:
    import xarray

    from bertgeom.encoder import Encoder
    from bertgeom.fasta import Chunk

Sources = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        store: its place. complete: whether finalise is through.
        windows, partitions: in all; `_done`: with results on disk.
        groups, groups_written: row groups in all, and in their final chunks.
        counts: tokens, and windows by flag, of what is in final chunks.
        missing: the first partitions that are still to do.
        seconds: compute time of the partitions that the run history knows.
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
        labels: table `record<TAB>label`, see `bertgeom.cohorts.read_labels`.
        annotations: BED or GFF3 file of regions in record coordinates: the token groups of
            `attention_group_mass`, see `bertgeom.annotations.read_annotations`.
        workers: worker processes; more than one starts a Dask cluster on this machine.
        threads: compute threads of a worker; default: the cores divided by the workers.
        scheduler: address of a running Dask scheduler, `tcp://host:8786`.
        memory: most memory to use, in bytes or like "8GB"; default: that of the machine.
        subscribers: called with every event, see `bertgeom.pipelines.events`.
        settings: fields of `bertgeom.config.Settings`.

    Raises:
        UsageError: for impossible settings. InputError: for sources that cannot be read.
        ModelError: for a model that cannot be loaded or observed.
        MismatchError: if the store was made with another model, input or setting.
        PlanError: if the plan does not fit the memory.
        StoreError: if the store cannot be written.
    """
    begin = time.monotonic()
    options = Settings.of(**settings)
    storage, elsewhere = Storage(str(out)), outside_shards(sources, sequences)
    _check_place(storage, store.FORMAT)
    bus = Bus(list(subscribers))
    encoder = load_model(str(model), options)
    bus.send(ModelLoaded(encoder.model_id, str(encoder.device), str(encoder.dtype)[6:]))
    with _fresh(storage), writing(storage.url):
        folder = RunFolder(storage)
        store.create_root(storage)
        folder.create()
        with folder.alone():
            bus.subscribers.append(history(folder.log))
            shards = _ingest_into(storage, sources, elsewhere, bus)
            regions = None if annotations is None else read_annotations(annotations)
            place, codes = draw_up(
                storage,
                encoder,
                str(model),
                shards,
                options,
                labels=labels,
                annotations=regions,
                elsewhere=elsewhere,
            )
            executor = choose(place, workers, threads, scheduler)
            _check_memory(place, executor, memory)
            set_up(place, codes, regions)
            with executor:
                execute(place, executor, bus)
            done = finalise(storage.url)
            bus.send(Finished(storage.url, done.windows, time.monotonic() - begin))
    bus.close()
    return done


def ingest(
    sources: Sources, out: str | Path, *, subscribers: Iterable[Subscriber] = ()
) -> Sequences:
    """Read sources into sequence shards that several runs can share.

    Args:
        sources: as in `run`. out: folder or fsspec URL of the shards.

    Raises:
        InputError: for sources that cannot be read.
        MismatchError: if the shards are there and were made from other sources.
    """
    storage, bus = Storage(str(out)), Bus(list(subscribers))
    _check_place(storage, store.SEQUENCE_FORMAT)
    with _fresh(storage), writing(storage.url):
        store.create_root(storage, store.SEQUENCE_FORMAT)
        found = _ingest(storage, sources, bus)
    bus.close()
    return found


def draw_up(
    storage: Storage,
    encoder: Encoder,
    model: str,
    sequences: Sequences,
    settings: Settings,
    *,
    labels: str | Path | None = None,
    annotations: Annotations | None = None,
    elsewhere: str | None = None,
) -> tuple[Workplace, np.ndarray | None]:
    """A run on these sequences, and the label code of every record. Nothing is written.

    Args:
        elsewhere: URL of the sequence shards, None if they lie in the store.

    Raises:
        InputError: if there is nothing to measure.
    """
    resolved, shape = resolve(settings, encoder, annotations)
    codes, names = _labels(labels, sequences)
    if annotations is not None:
        annotations.require(sequences.ids())
    identity = {
        "definitions_version": DEFINITIONS_VERSION,
        "model": model_identity(encoder),
        "settings": resolved.lasting(),
        "sequences": {name: sequences.attributes[name] for name in ("n_records", "content_sha256")},
        "labels": None if codes is None else hashlib.sha256(codes.tobytes()).hexdigest(),
        "label_names": names,
        "annotations": None if annotations is None else fingerprint(annotations.settings()),
    }
    index = window_index(sequences.lengths, resolved)
    if not index.n_windows:
        raise InputError(
            "at least one window",
            f"{len(sequences.lengths)} records without one",
            remedy=f"lower --min-length ({resolved.min_length}) or check the input",
        )
    facts = {
        "fingerprint": fingerprint(identity),
        "identity": identity,
        "settings": resolved.to_json(),
        "shape": shape_to_json(shape),
        "group_windows": row_group(shape, resolved.partition_windows or 1, index.n_windows),
        "model": _lasting_path(model),
        "sequences": elsewhere,
    }
    return Workplace(storage, facts, encoder, sequences), codes


def set_up(
    place: Workplace, codes: np.ndarray | None, annotations: Annotations | None = None
) -> None:
    """Make the arrays of a run, or check that they were made by the same run.

    Raises:
        MismatchError: names what differs from the run that the store was made by.
    """
    known = place.folder.read_run()
    if known is not None:
        check_same(place.storage.url, known["identity"], place.facts["identity"])
        return
    if codes is not None:
        place.folder.write_labels(codes)
    if annotations is not None:
        place.folder.write_annotations(annotations)
    names = store.create(place.storage, place.layout, _attributes(place), _weights(place))
    place.folder.write_run({**place.facts, "constants": names})


def resolve(
    settings: Settings, encoder: Encoder, annotations: Annotations | None = None
) -> tuple[Settings, Shape]:
    """Settings with every default decided, and the sizes of the arrays.

    Raises:
        UsageError: for settings that do not go with the model.
    """
    tokenizer, device = encoder.tokenizer, encoder.device.type
    window = settings.window or tokenizer.window_bases()
    if settings.min_length > window:
        raise UsageError(
            f"expected --min-length of at most --window ({window}), found {settings.min_length}"
        )
    if "logits" in settings.keep and not encoder.class_names:
        raise UsageError(
            f"expected a model with a classification head for --keep logits, found "
            f"{type(encoder.model).__name__}"
        )
    shape = Shape(
        encoder.n_layers,
        encoder.n_heads,
        encoder.hidden,
        tuple(encoder.class_names),
        min(encoder.max_tokens, int(tokenizer.count_tokens(window))),
        settings.tier,
        settings.keep,
        settings.angles,
        () if annotations is None else annotations.names,
    )
    facts = cost.model_cost(encoder)
    size = cost.bytes_per_window(shape)
    resolved = replace(
        settings,
        window=window,
        stride=settings.stride or window,
        max_tokens=encoder.max_tokens,
        dtype=str(encoder.dtype).removeprefix("torch."),
        device=device,
        batch_tokens=settings.batch_tokens or cost.BATCH_TOKENS[device],
        partition_windows=settings.partition_windows
        or cost.partition_windows(facts, shape.max_tokens, size),
    )
    return resolved, shape


def execute(place: Workplace, executor: Executor, bus: Bus) -> None:
    """Measure and write all that is missing."""
    tracker = Tracker.of(place, bus)
    bus.send(
        Started(
            place.plan.n_windows,
            tracker.windows_done(),
            place.plan.n_partitions,
            executor.workers,
            executor.threads,
        )
    )
    todo = tracker.missing()
    for event in executor.execute(todo, tracker.whole_groups(), tracker.follow, bus.send):
        bus.send(event)


def finalise(url: str) -> Status:
    """Complete a store whose partitions are all done. Harmless when repeated.

    Raises:
        StoreError: if partitions are missing; names how many and the first.
    """
    place = open_workplace(url)
    found = status(url)
    if found.complete:
        return found
    if found.missing:
        raise StoreError(
            f"{url}: expected all {found.partitions} partitions, found "
            f"{found.partitions - found.partitions_done} missing, the first "
            f"{found.missing[0]}; give the bertgeom run command again"
        )
    tracker = Tracker.of(place, Bus())
    with writing(url):
        for group in tracker.whole_groups():
            write_group(place, group)
        place.storage.sweep()
        sums = (place.folder.read_sums(group) for group in range(place.plan.n_groups))
        inner = store.write_dataset(
            place.storage.child(cohort_sums.GROUP), cohort_sums.merged(place, sums)
        )
        members = [cohort_sums.GROUP, *(f"{cohort_sums.GROUP}/{name}" for name in inner)]
        members += [v.name for v in place.layout.variables]
        members += [c.name for c in place.layout.coordinates] + [FOLDER]
        members += place.facts["constants"]
        if place.facts["sequences"] is None:
            members += [SEQUENCES, *(f"{SEQUENCES}/{name}" for name in MEMBERS)]
        store.consolidate(place.storage, members, {"complete": True})
    return status(url)


def status(url: str) -> Status:
    """How far the run of a store is; reads its bookkeeping, writes nothing.

    Raises:
        StoreError: if there is no run at `url`.
    """
    place = open_workplace(str(url))
    attributes = store.check_format(place.storage, store.FORMAT)
    tracker = Tracker.of(place, None)
    counts: dict[str, int] = {}
    for group in sorted(tracker.written):
        for name, n in place.folder.read_group(group)["counts"].items():
            counts[name] = counts.get(name, 0) + n
    missing = tracker.missing()
    seconds = sum(
        line["seconds"] for line in place.folder.history() if line["event"] == "PartitionDone"
    )
    return Status(
        place.storage.url,
        bool(attributes["complete"]),
        place.plan.n_windows,
        tracker.windows_done(),
        place.plan.n_partitions,
        place.plan.n_partitions - len(missing),
        place.plan.n_groups,
        len(tracker.written),
        counts,
        tuple(missing[:10]),
        round(seconds, 3),
    )


@dataclass
class Tracker:
    """Which partitions and row groups are done.

    Attributes:
        spooled: partitions with a spool. written: row groups with a record.
    """

    plan: Plan
    spooled: set[int]
    written: set[int]

    @classmethod
    def of(cls, place: Workplace, bus: Bus | None) -> Tracker:
        """Look at the bookkeeping. With a bus, leftovers are cleared and damage is repaired."""
        tracker = cls(place.plan, set(place.folder.spooled()), set(place.folder.written_groups()))
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


def outside_shards(sources: Sources | None, sequences: str | Path | None) -> str | None:
    """URL of sequence shards that lie outside the store, None if sources are to be read."""
    if sequences is not None:
        if sources:
            raise UsageError("expected either sources or --sequences, found both")
        return _lasting_path(str(sequences))
    listed = as_list(sources)
    if not listed:
        raise UsageError(
            "expected at least one source, found none; give FASTA files or --sequences"
        )
    shards = [s for s in listed if store.is_store(Storage(s), store.SEQUENCE_FORMAT)]
    if shards and len(listed) > 1:
        raise UsageError(
            f"expected one store of sequence shards as the only source, found {len(listed)} sources"
        )
    return _lasting_path(shards[0]) if shards else None


def _ingest_into(
    storage: Storage, sources: Sources | None, elsewhere: str | None, bus: Bus
) -> Sequences:
    if elsewhere is not None:
        found = open_sequences(Storage(elsewhere))
        facts = found.attributes
        bus.send(Ingested(facts["n_records"], facts["n_bases"], True))
        return found
    inner = storage.child(SEQUENCES)
    store.create_root(inner, store.SEQUENCE_FORMAT)
    return _ingest(inner, sources, bus)


def _ingest(storage: Storage, sources: Sources | None, bus: Bus) -> Sequences:
    files = expand_sources(as_list(sources))
    facts = source_facts(files)
    if is_complete(storage):
        found = Sequences(storage)
        check_same(storage.url, _by_number(found.attributes["sources"]), _by_number(facts))
        bus.send(Ingested(found.attributes["n_records"], found.attributes["n_bases"], True))
        return found
    found = write_sequences(storage, _told(read_chunks(files), bus.send), facts)
    bus.send(Ingested(found.attributes["n_records"], found.attributes["n_bases"], False))
    return found


def _by_number(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Size and hash by position: a file may be called otherwise and still be the same."""
    return {
        f"source {i}": {"size": entry["size"], "sha256": entry["sha256"]}
        for i, entry in enumerate(facts)
    }


def _told(pieces: Iterable[Chunk], send: Callable[[Event], None]) -> Iterator[Chunk]:
    """The same pieces, with an event about every second."""
    bases, last = 0, time.monotonic()
    for piece in pieces:
        bases += len(piece.bases)
        if time.monotonic() - last > 1:
            last = time.monotonic()
            send(Ingesting(piece.index + piece.last, bases))
        yield piece


def _labels(
    labels: str | Path | None, sequences: Sequences
) -> tuple[np.ndarray | None, list[str] | None]:
    if labels is None:
        return None, None
    table = read_labels(labels)
    return assign_labels(table, sequences.ids()).astype("<i4"), list(table.names)


def _weights(place: Workplace) -> xarray.Dataset | None:
    """Statistics of the model's weights, None where its projections are not recognised.

    On one thread, so that the last bits are the same whatever else the run uses.
    """
    from threadpoolctl import threadpool_limits

    from bertgeom.weights import weight_statistics

    if place.encoder is None:
        return None
    try:
        with threadpool_limits(1):
            return weight_statistics(place.encoder.model)
    except ModelError:
        return None


def _attributes(place: Workplace) -> dict[str, Any]:
    """Provenance for readers: what was measured, with what, from what. No clock, no host."""
    identity, shape, model = place.facts["identity"], place.shape, place.facts["model"]
    hidden = {"dtype", "device", "tokenizer"}
    return {
        "model": {
            "id": Path(model).name if Path(model).is_dir() else model,
            "fingerprint": identity["model"]["fingerprint"],
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            "hidden": shape.hidden,
        },
        "tokenizer": identity["model"]["tokenizer"],
        "dtype": identity["model"]["dtype"],
        "device": identity["model"]["device"],
        "settings": {k: v for k, v in identity["settings"].items() if k not in hidden},
        "fingerprint": place.fingerprint,
        "sources": place.sequences.attributes["sources"],
        "sequences": identity["sequences"],
        "labels": identity["label_names"] or [],
        "n_windows": place.plan.n_windows,
    }


def _check_memory(place: Workplace, executor: Executor, budget: int | str | None) -> None:
    if executor.local_workers:
        projected = project(place, executor.threads)
        cost.check_memory(projected, budget_bytes(budget), executor.local_workers)


def budget_bytes(budget: int | str | None) -> int:
    """Most memory to use: as asked for, or what the machine has."""
    if isinstance(budget, str):
        return cost.parse_bytes(budget)
    if budget is not None:
        return budget
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def project(place: Workplace, threads: int) -> cost.Memory:
    """Peak memory of a worker on this run."""
    settings = place.settings
    return cost.memory(
        cost.model_cost(place.loaded),
        place.shape,
        batch_tokens=settings.batch_tokens or 1,
        partition_windows=settings.partition_windows or 1,
        window=settings.window or 1,
        n_windows=place.plan.n_windows,
        threads=threads,
    )


@contextmanager
def _fresh(storage: Storage) -> Iterator[None]:
    """Take back a store that was not there before if setting it up fails for good reason."""
    fresh = not storage.exists(store.METADATA)
    try:
        yield
    except BertgeomError:
        if fresh and not storage.exists(f"{FOLDER}/run.json"):
            storage.remove("")
        raise


def _check_place(storage: Storage, kind: str) -> None:
    """Refuse to write into something else.

    Raises:
        StoreError: for a folder with other contents, or a store of another version.
    """
    if storage.exists(store.METADATA):
        store.check_format(storage, kind)
    elif storage.names(""):
        raise StoreError(
            f"{storage.url}: expected a new folder or a store, found a folder with other "
            "contents; choose another --out"
        )


def as_list(sources: Sources | None) -> list[str]:
    """One source or many as a list of paths and URLs."""
    if sources is None:
        return []
    many = [sources] if isinstance(sources, str | Path) else sources
    return [str(source) for source in many]


def _lasting_path(place: str) -> str:
    """A local path made absolute, a URL or hub name as it is."""
    return str(Path(place).absolute()) if Path(place).exists() else place
