"""The results of one partition: read, tokenise ahead, measure; halve a batch on out-of-memory."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from bertgeom import variables
from bertgeom.analysis.annotations import record_intervals
from bertgeom.kernels.kmers import reverse_complement
from bertgeom.pipelines.context.run_context import RunContext
from bertgeom.pipelines.partition import sampled_spectra
from bertgeom.pipelines.partition.cohort_sums import BlockMapSums
from bertgeom.pipelines.plan.partitions import Windows, batches, planned_tokens
from bertgeom.store.layout import missing_value, row_bytes
from bertgeom.variables import LOST, flag_bit

if TYPE_CHECKING:
    from bertgeom.config import MeasureSettings
    from bertgeom.model.encoder import TokenBatch
    from bertgeom.tokens.encoded import EncodedBatch

T = TypeVar("T")
#: Waits for a batch that was started, and gives its values by name.
Started = Callable[[], dict[str, np.ndarray]]
#: Batches that are tokenised before the device asks for them.
_AHEAD = 2
#: What is known of a window even where its statistics are missing.
_ALWAYS = {"n_tokens", "n_content", "n_unknown", "n_ambiguous", "truncated", "group_tokens"}


@dataclass(frozen=True)
class Prepared:
    """A batch, ready for the device.

    Attributes:
        partition: its number. rows: int64 (B,), rows of the partition.
        windows: the partition's windows. encoded: the tokens of the batch.
        groups: (B, N) int32, the annotated regions of every token; None without annotations.
        last: whether it is the last batch of its partition.
    """

    partition: int
    rows: np.ndarray
    windows: Windows
    encoded: EncodedBatch | None
    groups: np.ndarray | None
    last: bool


def prepare(context: RunContext, partition: int) -> Iterator[Prepared]:
    """Read and tokenise a partition, batch by batch; at least one, perhaps without rows."""
    plan, tokenizer = context.plan, context.loaded.tokenizer
    windows = plan.index.windows(*plan.partition(partition))
    bases = _read_bases(context, windows)
    groups = batches(planned_tokens(tokenizer, windows), plan.batch_tokens)
    if not groups:
        yield Prepared(partition, np.zeros(0, np.int64), windows, None, None, True)
    for i, rows in enumerate(groups):
        encoded = tokenizer.encode_batch([bases(int(row)) for row in rows])
        regions = token_groups(context, encoded, windows.take(rows))
        yield Prepared(partition, rows, windows, encoded, regions, i == len(groups) - 1)


def encode_windows(context: RunContext, windows: Windows) -> EncodedBatch:
    """The tokens of some windows that lie side by side."""
    bases = _read_bases(context, windows)
    return context.loaded.tokenizer.encode_batch([bases(row) for row in range(len(windows))])


def _read_bases(context: RunContext, windows: Windows) -> Callable[[int], np.ndarray]:
    """The bases of a window by its row; all are read at once, they lie side by side."""
    offsets = context.sequences.offsets[windows.record]
    start, stop = windows.start + offsets, windows.stop + offsets
    low = int(start.min())
    block = context.sequences.bases(low, int(stop.max()))

    def bases(row: int) -> np.ndarray:
        piece = block[start[row] - low : stop[row] - low]
        return piece if windows.strand[row] > 0 else reverse_complement(piece)

    return bases


def measure_partitions(
    context: RunContext, partitions: Iterable[int], on_rows: Callable[[int], None] = lambda n: None
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Results of partitions in order; threads tokenise ahead and put results in place behind.

    Where the device works by itself a batch is launched before the results of the one before it
    are fetched.

    Args:
        on_rows: called with the number of windows after every batch.

    Yields:
        Partition number, and arrays by name, in the types of the store, with the sums of block
        maps by cohort; `record_id` is left out, as it follows from `record_index`.
    """
    prepared = ahead((p for i in partitions for p in prepare(context, i)), _AHEAD)
    with ThreadPoolExecutor(1, "bertgeom-filler") as filler:
        results, filling = None, deque[Future[None]]()
        try:
            for batch, started in _launched(context, prepared):
                if results is None:
                    results = filler.submit(_blank, context, batch)
                if started is not None:
                    values = started()
                    filling.append(filler.submit(_fill, context, batch, values, results))
                    on_rows(len(batch.rows))
                while filling and (batch.last or len(filling) > _AHEAD):
                    filling.popleft().result()
                if batch.last:
                    done = results.result()
                    spectra = _spectra(context, batch, done.arrays["flags"])
                    yield batch.partition, {**done.arrays, **done.maps.arrays(), **spectra}
                    results = None
        finally:
            prepared.close()


def _spectra(context: RunContext, batch: Prepared, flags: np.ndarray) -> dict[str, np.ndarray]:
    """Spectra of the sampled windows of the partition of a batch."""
    rows = sampled_spectra.sampled_rows(context, batch.partition, flags, batch.windows.record)
    encoded = [encode_windows(context, batch.windows.take(np.array([row]))) for row in rows]
    first = context.plan.partition(batch.partition)[0]
    return sampled_spectra.window_results(context, first, rows, encoded)


@dataclass(frozen=True)
class Results:
    """What is known of a partition so far: arrays by name, and the sums of its block maps."""

    arrays: dict[str, np.ndarray]
    maps: BlockMapSums


def _blank(context: RunContext, batch: Prepared) -> Results:
    """Results with nothing measured yet; what the plan knows is filled in."""
    windows, sizes = batch.windows, context.layout.sizes
    results = {
        v.name: np.full((len(windows), *context.layout.shape(v)[1:]), missing_value(v), v.dtype)
        for v in context.layout.measured
        if v.dtype != "string" and row_bytes(v, sizes)
    }
    results["record_index"][:] = windows.record
    results["start"][:], results["stop"][:] = windows.start, windows.stop
    results["strand"][:] = windows.strand
    results["n_content"] = np.zeros(len(windows), np.uint32)
    short = context.plan.index.short(windows)
    results["flags"][:] = np.where(short, flag_bit("short"), 0)
    results["flags"] |= np.uint16(flag_bit("empty"))
    if context.labels is not None:
        results["label"][:] = context.labels[windows.record]
    return Results(results, BlockMapSums())


def _fill(
    context: RunContext, batch: Prepared, values: dict[str, np.ndarray], blank: Future[Results]
) -> None:
    """Put the values of a batch in their rows."""
    rows, results = batch.rows, blank.result().arrays
    flags = values.pop("flags")
    lost = flags & LOST != 0
    results["flags"][rows] = (results["flags"][rows] & ~np.uint16(flag_bit("empty"))) | flags
    if "block_map" in values:
        blank.result().maps.add(values["block_map"][~lost], results["label"][rows[~lost]])
    for name in values.keys() & results.keys():
        value = values[name]
        keep = slice(None) if name in _ALWAYS else ~lost
        _put(results[name], rows[keep], value[keep])
    if "token_start" in results and batch.encoded is not None:
        start, stop = _token_bases(batch.encoded, batch.windows.take(rows))
        _put(results["token_start"], rows, start)
        _put(results["token_stop"], rows, stop)


def _launched(
    context: RunContext, prepared: Iterable[Prepared]
) -> Iterator[tuple[Prepared, Started | None]]:
    """Batches, and what gives their values; one later than launched if the device runs ahead."""
    ahead_by = 1 if context.loaded.runs_ahead else 0
    launched = deque[tuple[Prepared, Started | None]]()
    for batch in prepared:
        started = None
        if batch.encoded is not None:
            settings = context.measure_settings
            started = start_batch(context, batch.encoded, batch.groups, settings)
        launched.append((batch, started))
        if len(launched) > ahead_by:
            yield launched.popleft()
    yield from launched


def measure_batch(
    context: RunContext, encoded: EncodedBatch, windows: Windows, settings: MeasureSettings
) -> dict[str, np.ndarray]:
    """Statistics of windows, and what their tokens tell: counts and flags.

    Args:
        encoded: the tokens. windows: where they are from, in the same order.

    Returns:
        Arrays by name, in the types of the kernels; a row flagged empty or quarantined has
        no statistics.
    """
    return start_batch(context, encoded, token_groups(context, encoded, windows), settings)()


def start_batch(
    context: RunContext,
    encoded: EncodedBatch,
    groups: np.ndarray | None,
    settings: MeasureSettings,
) -> Started:
    """Start to measure windows; what is returned gives what `measure_batch` returns.

    Args:
        groups: (B, N) int32, from `token_groups`.
    """
    from bertgeom.model.encoder import TokenBatch

    valid = np.arange(encoded.ids.shape[1]) < encoded.lengths[:, None]
    content = (~encoded.special & valid).sum(axis=1)
    lengths = np.where(content > 0, encoded.lengths, 0)
    batch = TokenBatch(encoded.ids, lengths, encoded.special, groups)
    started = _start(context, batch, settings)

    def values() -> dict[str, np.ndarray]:
        found = started()
        unknown = encoded.n_unknown > context.settings.max_unknown * np.maximum(content, 1)
        flags = found["flags"]
        found["flags"] = flags | np.where(unknown, flag_bit("unknown"), 0).astype(flags.dtype)
        tokens = {
            "n_tokens": encoded.lengths,
            "n_content": content,
            "n_unknown": encoded.n_unknown,
            "n_ambiguous": encoded.n_ambiguous,
            "truncated": encoded.truncated,
        }
        if groups is not None:
            bits = groups[..., None] >> np.arange(settings.n_groups) & 1
            tokens["group_tokens"] = bits.sum(axis=1)
        return {**found, **tokens}

    return values


def token_groups(context: RunContext, encoded: EncodedBatch, windows: Windows) -> np.ndarray | None:
    """(B, N) int32 bit mask of annotated regions of every token; None without annotations."""
    if context.annotations is None:
        return None
    groups = np.zeros(encoded.ids.shape, dtype=np.int32)
    for row, n in enumerate(encoded.lengths):
        start, stop = record_intervals(
            encoded.start[row, :n],
            encoded.stop[row, :n],
            int(windows.start[row]),
            int(windows.stop[row]),
            int(windows.strand[row]),
        )
        record = context.record_ids[int(windows.record[row])]
        groups[row, :n] = context.annotations.groups(record, start, stop)
    return groups


def _put(target: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
    """Write rows; a shorter last dimension (tokens of this batch) leaves the rest missing."""
    with np.errstate(over="ignore", invalid="ignore"):
        if values.ndim > 1 and values.shape[-1] != target.shape[-1]:
            target[rows, ..., : values.shape[-1]] = values
        else:
            target[rows] = values


def _token_bases(encoded: EncodedBatch, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """First base and one past the last of every token, counted along the record."""
    start, stop = encoded.start, encoded.stop
    length = (windows.stop - windows.start)[:, None].astype(start.dtype)
    reverse = (windows.strand < 0)[:, None] & (start >= 0)
    return np.where(reverse, length - stop, start), np.where(reverse, length - start, stop)


def _start(context: RunContext, batch: TokenBatch, settings: MeasureSettings) -> Started:
    """Start a batch; where memory runs out, now or later, its halves are measured."""
    try:
        started = context.loaded.start(batch, settings)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        halves = _halves(context, batch, settings)
        return lambda: halves

    def values() -> dict[str, np.ndarray]:
        try:
            return started()
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        return _halves(context, batch, settings)

    return values


def _halves(
    context: RunContext, batch: TokenBatch, settings: MeasureSettings
) -> dict[str, np.ndarray]:
    """Statistics of a batch by halves; at last, of what can be had."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if len(batch.ids) == 1:
        return {"flags": np.array([flag_bit("quarantined")], np.uint16)}
    half = len(batch.ids) // 2
    parts = [_start(context, _rows(batch, slice(None, half)), settings)()]
    parts.append(_start(context, _rows(batch, slice(half, None)), settings)())
    return _join(parts, [half, len(batch.ids) - half])


def _rows(batch: TokenBatch, rows: slice) -> TokenBatch:
    from bertgeom.model.encoder import TokenBatch

    groups = None if batch.groups is None else batch.groups[rows]
    return TokenBatch(batch.ids[rows], batch.lengths[rows], batch.special[rows], groups)


def _join(parts: list[dict[str, np.ndarray]], sizes: list[int]) -> dict[str, np.ndarray]:
    """Parts one after the other; what a quarantined part lacks is left zero, it is not used."""
    like = max(parts, key=len)
    joined = {}
    for name, array in like.items():
        blocks = [
            part[name] if name in part else np.zeros((size, *array.shape[1:]), array.dtype)
            for part, size in zip(parts, sizes, strict=True)
        ]
        joined[name] = np.concatenate(blocks)
    return joined


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(words in text for words in phrases)


def counts(results: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What a completion record tells: windows, tokens, and windows by flag.

    Args:
        results: arrays by name; without `n_content`, which is in no store, content tokens are
            left out.
    """
    flags = results["flags"]
    sums = {"content_tokens": "n_content", "unknown_tokens": "n_unknown"}
    sums["truncated_windows"] = "truncated"
    return {
        "windows": len(flags),
        "tokens": int(results["n_tokens"].sum()),
        **{name: int(results[of].sum()) for name, of in sums.items() if of in results},
        **{name: int((flags & flag_bit(name) != 0).sum()) for name in variables.FLAGS},
    }


def ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The same items, taken by a thread that is up to `depth` items ahead."""
    waiting: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()
    end = object()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((end, None))
        except BaseException as error:
            put((end, error))

    thread = threading.Thread(target=work, name="bertgeom-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
