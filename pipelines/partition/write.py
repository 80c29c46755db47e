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
from bertgeom.pipelines.context.folder import BESIDE, summed
from bertgeom.pipelines.context.run_context import Workplace
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


def run_partition(place: Workplace, partition: int) -> list[Event]:
    """Measure one partition and write it; what is done already is done again, alike.

    Raises:
        StoreError: if it cannot be written.
    """
    begin = time.monotonic()
    ((_, results),) = measure_partitions(place, [partition])
    return write_partition(place, partition, results, begin)


def write_partition(
    place: Workplace, partition: int, results: Mapping[str, np.ndarray], begin: float
) -> list[Event]:
    """Write a partition's results: whole chunks if it is a row group, else a spool.

    Args:
        begin: `time.monotonic()` when the partition was begun.
    """
    told = counts(results)
    group = place.plan.group_of(partition)
    events: list[Event] = []
    if len(place.plan.partitions_of(group)) == 1:
        events.append(
            _write_group(place, group, [told], [results], lambda name, a, b: results[name][a:b])
        )
    else:
        with explain_write_errors(
            place.storage.url, f"partition {partition} of {place.storage.shown}"
        ):
            place.folder.write_spool(partition, results, place.fingerprint, told)
    seconds = time.monotonic() - begin
    done = PartitionDone(partition, told, seconds, socket.gethostname(), os.getpid())
    return [done, *events]


def write_group(place: Workplace, group: int) -> list[Event]:
    """Write a row group from the spools of its partitions, then delete these.

    Raises:
        StoreError: if a spool is damaged, or the chunks cannot be written.
    """
    partitions = place.plan.partitions_of(group)
    told, beside = [], []
    for i in partitions:
        results, counted = place.folder.read_spool(i, place.fingerprint)
        told.append(counted)
        beside.append(
            {k: x for k, x in results.items() if k in MAP_SUMS or sampled_spectra.is_spectra(k)}
        )
    first = place.plan.group(group)[0]

    # On an object store every read takes its time.
    headers = {i: place.folder.spool_header(i) for i in partitions}

    def gather(name: str, start: int, stop: int) -> np.ndarray:
        pieces = []
        for i in partitions:
            a, b = (edge - first for edge in place.plan.partition(i))
            if a < stop and start < b:
                low, high = max(start, a) - a, min(stop, b) - a
                pieces.append(place.folder.read_spool_rows(i, name, low, high, headers[i]))
        return np.concatenate(pieces)

    events: list[Event] = [_write_group(place, group, told, beside, gather)]
    remove_spools(place, group)
    return events


def remove_spools(place: Workplace, group: int) -> None:
    """Delete the spools of a written row group."""
    for partition in place.plan.partitions_of(group):
        place.folder.remove_spool(partition)


def _write_group(
    place: Workplace,
    group: int,
    told: list[dict[str, int]],
    beside: Sequence[Mapping[str, np.ndarray]],
    gather: Gather,
) -> GroupWritten:
    """Chunks, sums, spectra, and the completion record of a row group.

    Args:
        told: counts of its partitions. gather: gives rows of its arrays.
        beside: what else its partitions found: sums of block maps, spectra.
    """
    begin = time.monotonic()
    first, stop = place.plan.group(group)
    labels, flags = gather("label", 0, stop - first), gather("flags", 0, stop - first)
    sums = GroupSums(len(cohort_names(place)), labels, flags)
    with explain_write_errors(place.storage.url, f"row group {group} of {place.storage.shown}"):
        by_record = None
        if place.settings.reduce:
            by_record = RecordSums(gather("record_index", 0, stop - first), flags)
        adders: list[Adder] = [sums] if by_record is None else [sums, by_record]
        files = _write_chunks(place, group, gather, adders)
        for part in beside:
            sums.add_maps(part)
        kept = {"sums": sums.to_bytes()}
        if place.settings.spectra:
            kept["spectra"] = sampled_spectra.to_bytes(beside)
        if by_record is not None:
            kept["records"] = by_record.to_bytes()
        facts: dict[str, Any] = {
            "fingerprint": place.fingerprint,
            "windows": [first, stop],
            "counts": summed(told),
            **dict.fromkeys(BESIDE),
            "files": {key: list(entry) for key, entry in sorted(files.items())},
        }
        for kind, data in kept.items():
            place.folder.write_beside(group, kind, data)
            facts[kind] = [len(data), hashlib.sha256(data).hexdigest()]
        place.folder.write_group(group, facts)
    size = sum(entry[0] for entry in files.values())
    return GroupWritten(group, len(files), size, time.monotonic() - begin)


def _write_chunks(
    place: Workplace, group: int, gather: Gather, adders: Sequence[Adder]
) -> dict[str, tuple[int, str]]:
    """Write and add up whole chunks, one at a time; returns size and SHA-256 of every file."""
    first, stop = place.plan.group(group)
    arrays = zarr_io.Arrays(place.storage)
    stored = {variable.name for variable in place.layout.variables}
    for variable in place.layout.measured:
        step = place.layout.chunks(variable)[0]
        for start in range(0, stop - first, step):
            end = min(start + step, stop - first)
            rows = _rows(place, variable, gather, start, end)
            if variable.name in stored:
                arrays.write(variable.name, first + start, rows)
            for adder in adders:
                adder.add(variable, start, rows)
    return arrays.written


def _rows(
    place: Workplace, variable: Variable, gather: Gather, start: int, stop: int
) -> np.ndarray:
    if variable.name == "record_id":
        return _record_ids(place, gather("record_index", start, stop).astype(np.int64))
    try:
        rows = gather(variable.name, start, stop)
    except KeyError:
        shape = (stop - start, *place.layout.shape(variable)[1:])
        return np.full(shape, missing_value(variable), variable.dtype)
    bits = place.settings.bitround
    if bits is not None and rows.dtype.kind == "f":
        return rounded(rows, bits)
    return rows


def _record_ids(place: Workplace, index: np.ndarray) -> np.ndarray:
    low, high = int(index.min()), int(index.max()) + 1
    ids = place.sequences.ids(low, high)
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
