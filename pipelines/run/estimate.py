"""What a run would do and cost: windows, tokens, arithmetic, bytes, time. Nothing is written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.analysis.labels import label_records, read_labels
from bertgeom.analysis.region_placement import place_regions
from bertgeom.config import ResolvedSettings, Settings
from bertgeom.pipelines.context.events import duration
from bertgeom.pipelines.context.run_context import load_model, measure_settings_of, set_threads
from bertgeom.pipelines.plan import cost
from bertgeom.pipelines.plan.partitions import Index, Plan, planned_tokens, window_index
from bertgeom.pipelines.plan.token_windows import cut_windows, record_pieces
from bertgeom.pipelines.run.executors import workers_at
from bertgeom.pipelines.run.ingestion import Sources, as_list, check_alphabet, outside_shards
from bertgeom.pipelines.run.prepare import read_groups, resolve
from bertgeom.sequences.alphabets import Alphabet, alphabet_of
from bertgeom.sequences.fasta import read_chunks
from bertgeom.sequences.shards import open_sequences
from bertgeom.sequences.sources import expand_sources
from bertgeom.store.layout import Layout, row_group
from bertgeom.store.storage import Storage

if TYPE_CHECKING:
    from rich.table import Table

    from bertgeom.analysis.annotations import Annotations
    from bertgeom.model.encoder import Encoder
    from bertgeom.store.layout import Shape

#: Windows whose tokens are counted at a time.
_BLOCK = 2**20


@dataclass(frozen=True)
class Preview:
    """A run on paper.

    Attributes:
        records, bases: in the sources. windows, tokens: in the plan; `exact_tokens` unless the
            tokenizer only knows an upper bound.
        window: bases of a whole window; `cut` by "tokens", of the longest one.
        flop: floating point operations of all windows.
        bytes_per_window, store_bytes, files: of the store before compression.
        spectra: windows whose spectra are computed exactly, at most.
        memory: projected peak of one worker in bytes, by piece.
        windows_per_second: measured here with one worker, None if not measured.
        seconds: time for all windows at that rate, times the workers.
    """

    records: int
    bases: int
    windows: int
    tokens: int
    exact_tokens: bool
    partitions: int
    partition_windows: int
    row_groups: int
    batch_tokens: int
    window: int
    flop: float
    bytes_per_window: int
    store_bytes: int
    files: int
    spectra: int
    memory: dict[str, int]
    memory_total: int
    workers: int
    windows_per_second: float | None
    seconds: float | None
    cut: str = "bases"


def preview(
    sources: Sources | None = None,
    *,
    model: str | Path,
    sequences: str | Path | None = None,
    labels: str | Path | None = None,
    annotations: str | Path | None = None,
    workers: int = 1,
    threads: int | None = None,
    scheduler: str | None = None,
    memory: int | str | None = None,
    measure: bool = True,
    **settings: Any,
) -> Preview:
    """Plan a run without a store. The arguments are those of `bertgeom.run`.

    Args:
        measure: time a batch on this machine.

    Raises:
        UsageError: if no scheduler answers.
        PlanError: if the plan does not fit the memory; names the largest piece.
    """
    options = Settings.of(**settings)
    elsewhere = outside_shards(sources, sequences)
    encoder = load_model(str(model), options)
    regions = read_groups(annotations, options)
    if scheduler is not None:
        workers = workers_at(scheduler)
    resolved, shape = resolve(options, encoder, regions)
    records, index = _windows(sources, elsewhere, encoder, resolved)
    _check_tables(records, labels, regions)
    size = resolved.partition_windows
    group = row_group(shape, size, index.n_windows)
    plan = Plan.of(index, size, group, resolved.batch_tokens)
    threads = threads or max(1, len(os.sched_getaffinity(0)) // workers)
    needed = cost.memory(
        cost.model_cost(encoder),
        shape,
        batch_tokens=resolved.batch_tokens,
        partition_windows=size,
        window=index.longest,
        n_windows=plan.n_windows,
        threads=threads,
    )
    here = workers if scheduler is None else 0
    if here:
        cost.check_memory(needed, cost.budget_bytes(memory), here)
    rate = None
    if measure and plan.n_windows:
        set_threads(threads)
        rate = _rate(encoder, resolved, shape, index.longest)
    return _preview(records, plan, encoder, resolved, shape, needed, workers, rate)


def _check_tables(
    records: _Records, labels: str | Path | None, regions: Annotations | None
) -> None:
    """Refuse labels and regions of other records, as a run would."""
    if labels is not None:
        label_records(read_labels(labels), records.ids)
    if regions is not None:
        place_regions(regions, records.ids, np.array(records.lengths, dtype=np.int64))


def _preview(
    records: _Records,
    plan: Plan,
    encoder: Encoder,
    resolved: ResolvedSettings,
    shape: Shape,
    needed: cost.Memory,
    workers: int,
    rate: float | None,
) -> Preview:
    """What the plan says in numbers."""
    by_tokens = resolved.window is None
    facts = cost.model_cost(encoder)
    n_tokens, flop = _work(plan, encoder, facts)
    layout = Layout(shape, plan.n_windows, plan.group_windows)
    by_record = len(records.lengths) * cost.bytes_per_window(shape) if resolved.reduce else 0
    size = resolved.partition_windows
    return Preview(
        records=len(records.lengths),
        bases=sum(records.lengths),
        windows=plan.n_windows,
        tokens=n_tokens,
        exact_tokens=by_tokens or encoder.tokenizer.exact_counts,
        partitions=plan.n_partitions,
        partition_windows=size,
        row_groups=plan.n_groups,
        batch_tokens=resolved.batch_tokens,
        window=plan.index.longest,
        flop=flop,
        bytes_per_window=layout.bytes_per_window(),
        store_bytes=layout.bytes_per_window() * plan.n_windows + by_record,
        files=layout.n_files(),
        spectra=min(resolved.spectra, size) * plan.n_partitions,
        memory=vars(needed),
        memory_total=needed.total,
        workers=workers,
        windows_per_second=rate,
        seconds=None if rate is None else flop / _window_flop(facts, shape) / rate / workers,
        cut="tokens" if by_tokens else "bases",
    )


def _window_flop(facts: cost.ModelCost, shape: Shape) -> float:
    return cost.window_flop(facts, shape.max_tokens)


@dataclass
class _Records:
    """What is known of the records that were read so far."""

    lengths: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


def _windows(
    sources: Sources | None, elsewhere: str | None, encoder: Encoder, resolved: ResolvedSettings
) -> tuple[_Records, Index]:
    """The records, and the windows as a run would cut them."""
    if elsewhere is not None:
        shards = open_sequences(Storage(elsewhere))
        check_alphabet(shards, alphabet_of(resolved.alphabet))
        records = _Records(shards.lengths.tolist(), shards.ids())
        pieces = record_pieces(shards)
    else:
        records = _Records()
        pieces = _read(sources, records, alphabet_of(resolved.alphabet))
    if resolved.window is not None:
        for _ in pieces if elsewhere is None else ():
            pass
        return records, window_index(np.array(records.lengths, dtype=np.int64), resolved)
    index = cut_windows(
        encoder.tokenizer, pieces, strand=resolved.strand, min_length=resolved.min_length
    )
    return records, index


def _read(
    sources: Sources | None, records: _Records, alphabet: Alphabet
) -> Iterator[tuple[np.ndarray, bool]]:
    """The bases of all records, which are noted as they end."""
    files = expand_sources(as_list(sources), alphabet=alphabet.name)
    for piece in read_chunks(files, alphabet=alphabet):
        if piece.last:
            records.lengths.append(piece.start + len(piece.bases))
            records.ids.append(piece.id)
        yield piece.bases, piece.last


def _work(plan: Plan, encoder: Encoder, facts: cost.ModelCost) -> tuple[int, float]:
    """Tokens and floating point operations of all windows."""
    tokens, flop = 0, 0.0
    for first in range(0, plan.n_windows, _BLOCK):
        windows = plan.index.windows(first, min(first + _BLOCK, plan.n_windows))
        kinds, counts = np.unique(planned_tokens(encoder.tokenizer, windows), return_counts=True)
        tokens += int(kinds @ counts)
        flop += sum(
            cost.window_flop(facts, int(n)) * int(k) for n, k in zip(kinds, counts, strict=True)
        )
    return tokens, flop


def _rate(encoder: Encoder, settings: ResolvedSettings, shape: Shape, window: int) -> float:
    """Windows a second of this encoder on whole windows: two batches, the faster one."""
    from bertgeom.model.encoder import TokenBatch

    rng = np.random.default_rng(0)
    rows = max(1, settings.batch_tokens // shape.max_tokens)
    letters = np.frombuffer(b"ACGT", np.uint8)
    pieces: Sequence[np.ndarray] = [letters[rng.integers(0, 4, window)] for _ in range(rows)]
    encoded = encoder.tokenizer.encode_batch(pieces)
    groups = None
    if shape.group_names:
        groups = rng.integers(0, 2 ** len(shape.group_names), encoded.ids.shape, dtype=np.int32)
    batch = TokenBatch(encoded.ids, encoded.lengths, encoded.special, groups)
    wanted = measure_settings_of(settings, shape)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        encoder.measure(batch, wanted)
        times.append(time.perf_counter() - begin)
    return rows / min(times[1:])


def _windows_row(found: Preview) -> str:
    if found.cut == "tokens":
        return f"windows cut by tokens, at most {found.window:,} bases"
    return f"windows of {found.window:,} bases"


def preview_table(found: Preview) -> Table:
    """The preview for a terminal."""
    from rich.table import Table

    table = Table(title="plan", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("how much", justify="right")
    bound = "" if found.exact_tokens else "at most "
    rows = [
        ("records", f"{found.records:,}"),
        ("bases", f"{found.bases:,}"),
        (_windows_row(found), f"{found.windows:,}"),
        ("tokens", f"{bound}{found.tokens:,}"),
        (f"partitions of {found.partition_windows:,} windows", f"{found.partitions:,}"),
        ("arithmetic", f"{found.flop:.3g} FLOP"),
        ("store, a window", cost.human(found.bytes_per_window)),
        ("store, before compression", cost.human(found.store_bytes)),
        ("chunk files", f"{found.files:,}"),
        *([("windows with exact spectra", f"{found.spectra:,}")] if found.spectra else []),
        ("peak memory of a worker", cost.human(found.memory_total)),
        *((f"  {name}", cost.human(size)) for name, size in found.memory.items()),
    ]
    if found.windows_per_second is not None and found.seconds is not None:
        rows.append(("measured rate of a worker", f"{found.windows_per_second:.3g} windows/s"))
        rows.append((f"time with {found.workers} worker(s)", duration(found.seconds)))
    for row in rows:
        table.add_row(*row)
    return table
