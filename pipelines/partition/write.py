"""From results to the store: spools of partitions, and whole chunks of row groups."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bertgeom.pipelines.context.events import Event, GroupWritten, PartitionDone
from bertgeom.pipelines.context.folder import SIDECARS, summed
from bertgeom.pipelines.context.run_context import RunContext
from bertgeom.pipelines.partition import sampled_spectra
from bertgeom.pipelines.partition.cohort_sums import CODES, COUNTS, MAPS, GroupSums, cohort_names
from bertgeom.pipelines.partition.measure import counts, measure_partitions
from bertgeom.pipelines.partition.record_means import RecordSums
from bertgeom.store import zarr_io
from bertgeom.store.layout import missing_value
from bertgeom.store.storage import explain_write_errors
from bertgeom.variables import Variable

Adder = GroupSums | RecordSums
#: Gives rows first..stop of an array of a row group, counted from the group's first window.
Gather = Callable[[str, int, int], np.ndarray]
MAP_SUMS = (CODES, COUNTS, MAPS)


def run_partition(context: RunContext, partition: int) -> list[Event]:
    """Measure one partition and write it; what is done already is done again, alike.

    Raises:
        StoreError: if it cannot be written.
    """
    begin = time.monotonic()
    ((_, results),) = measure_partitions(context, [partition])
    return write_partition(context, partition, results, begin)


def write_partition(
    context: RunContext, partition: int, results: Mapping[str, np.ndarray], begin: float
) -> list[Event]:
    """Write a partition's results: whole chunks if it is a row group, else a spool.

    Args:
        begin: `time.monotonic()` when the partition was begun.
    """
    counted = counts(results)
    group = context.plan.group_of(partition)
    events: list[Event] = []
    if len(context.plan.partitions_of(group)) == 1:
        events.append(
            _write_group(
                context, group, [counted], [results], lambda name, a, b: results[name][a:b]
            )
        )
    else:
        with explain_write_errors(
            context.storage.url, f"partition {partition} of {context.storage.shown}"
        ):
            context.folder.write_spool(partition, results, context.fingerprint, counted)
    seconds = time.monotonic() - begin
    done = PartitionDone(partition, counted, seconds, socket.gethostname(), os.getpid())
    return [done, *events]


def write_group(context: RunContext, group: int) -> list[Event]:
    """Write a row group from the spools of its partitions, then delete these.

    Raises:
        StoreError: if a spool is damaged, or the chunks cannot be written.
    """
    partitions = context.plan.partitions_of(group)
    counted, extras = [], []
    for i in partitions:
        results, part = context.folder.read_spool(i, context.fingerprint)
        counted.append(part)
        extras.append(
            {k: x for k, x in results.items() if k in MAP_SUMS or sampled_spectra.is_spectra(k)}
        )
    first = context.plan.group(group)[0]

    # On an object store every read takes its time.
    headers = {i: context.folder.spool_header(i) for i in partitions}

    def gather(name: str, start: int, stop: int) -> np.ndarray:
        pieces = []
        for i in partitions:
            a, b = (edge - first for edge in context.plan.partition(i))
            if a < stop and start < b:
                low, high = max(start, a) - a, min(stop, b) - a
                pieces.append(context.folder.read_spool_rows(i, name, low, high, headers[i]))
        return np.concatenate(pieces)

    events: list[Event] = [_write_group(context, group, counted, extras, gather)]
    remove_spools(context, group)
    return events


def remove_spools(context: RunContext, group: int) -> None:
    """Delete the spools of a written row group."""
    for partition in context.plan.partitions_of(group):
        context.folder.remove_spool(partition)


def _write_group(
    context: RunContext,
    group: int,
    counted: list[dict[str, int]],
    extras: Sequence[Mapping[str, np.ndarray]],
    gather: Gather,
) -> GroupWritten:
    """Chunks, sums, spectra, and the completion record of a row group.

    Args:
        counted: counts of its partitions. gather: gives rows of its arrays.
        extras: what else its partitions found: sums of block maps, spectra.
    """
    begin = time.monotonic()
    first, stop = context.plan.group(group)
    labels, flags = gather("label", 0, stop - first), gather("flags", 0, stop - first)
    sums = GroupSums(len(cohort_names(context)), labels, flags)
    with explain_write_errors(context.storage.url, f"row group {group} of {context.storage.shown}"):
        by_record = None
        if context.settings.reduce:
            by_record = RecordSums(gather("record_index", 0, stop - first), flags)
        adders: list[Adder] = [sums] if by_record is None else [sums, by_record]
        files = _write_chunks(context, group, gather, adders)
        for part in extras:
            sums.add_maps(part)
        kept = {"sums": sums.to_bytes()}
        if context.settings.spectra:
            kept["spectra"] = sampled_spectra.to_bytes(extras)
        if by_record is not None:
            kept["records"] = by_record.to_bytes()
        facts: dict[str, Any] = {
            "fingerprint": context.fingerprint,
            "windows": [first, stop],
            "counts": summed(counted),
            **dict.fromkeys(SIDECARS),
            "files": {key: list(entry) for key, entry in sorted(files.items())},
        }
        for kind, data in kept.items():
            context.folder.write_sidecar(group, kind, data)
            facts[kind] = [len(data), hashlib.sha256(data).hexdigest()]
        context.folder.write_group(group, facts)
    size = sum(entry[0] for entry in files.values())
    return GroupWritten(group, len(files), size, time.monotonic() - begin)


def _write_chunks(
    context: RunContext, group: int, gather: Gather, adders: Sequence[Adder]
) -> dict[str, tuple[int, str]]:
    """Write and add up whole chunks, one at a time; returns size and SHA-256 of every file."""
    first, stop = context.plan.group(group)
    arrays = zarr_io.Arrays(context.storage)
    stored = {variable.name for variable in context.layout.variables}
    for variable in context.layout.measured:
        step = context.layout.chunks(variable)[0]
        for start in range(0, stop - first, step):
            end = min(start + step, stop - first)
            rows = _rows(context, variable, gather, start, end)
            if variable.name in stored:
                arrays.write(variable.name, first + start, rows)
            for adder in adders:
                adder.add(variable, start, rows)
    return arrays.written


def _rows(
    context: RunContext, variable: Variable, gather: Gather, start: int, stop: int
) -> np.ndarray:
    if variable.name == "record_id":
        return _record_ids(context, gather("record_index", start, stop).astype(np.int64))
    try:
        rows = gather(variable.name, start, stop)
    except KeyError:
        shape = (stop - start, *context.layout.shape(variable)[1:])
        return np.full(shape, missing_value(variable), variable.dtype)
    bits = context.settings.bitround
    if bits is not None and rows.dtype.kind == "f":
        return rounded(rows, bits)
    return rows


def _record_ids(context: RunContext, index: np.ndarray) -> np.ndarray:
    low, high = int(index.min()), int(index.max()) + 1
    ids = context.sequences.ids(low, high)
    return np.array([ids[i - low] for i in index], dtype=object)


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Floats rounded to `bits` mantissa bits, half to even; NaN and infinity stay.

    Args:
        values: float32 or float16.
        bits: mantissa bits to keep; all of them if the type has no more.
    """
    mantissa, integer = {2: (10, np.uint16), 4: (23, np.uint32)}[values.dtype.itemsize]
    drop = mantissa - bits
    if drop <= 0:
        return values
    raw = np.ascontiguousarray(values).view(integer)
    one = integer(1)
    half = integer((1 << (drop - 1)) - 1)
    up = (raw + half + ((raw >> integer(drop)) & one)) >> integer(drop) << integer(drop)
    return np.where(np.isfinite(values), up.view(values.dtype), values)
