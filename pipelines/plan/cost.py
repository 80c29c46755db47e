"""What a run costs: arithmetic, memory, disk. Pure functions of model, settings and plan."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bertgeom.errors import PlanError, UsageError
from bertgeom.sequences.shards import CHUNK_BASES
from bertgeom.store.layout import LARGEST_CHUNK, Layout, Shape, row_bytes
from bertgeom.store.storage import Storage
from bertgeom.variables import N_BLOCKS

if TYPE_CHECKING:
    from bertgeom.model.encoder import Encoder

#: Sustained floating point operations a second that the size of a partition is chosen by.
_NOMINAL_RATE = {"cpu": 40e9, "cuda": 150e12}
_PARTITION_SECONDS = {"cpu": 30.0, "cuda": 5.0}
#: Where Linux says how much memory a container may use.
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
#: No partition holds more results than this in memory.
_PARTITION_BYTES = 256 * 2**20
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
#: Elementary operations of the statistics for one weight of one head.
_STATISTICS_OPERATIONS = 60
#: Compressed size of statistics, as a share; what random mantissas leave.
_COMPRESSED = 0.85
#: Interpreter, torch, transformers, numba and zarr, and what compiling the kernels once takes.
_RUNTIME_BYTES = 1300 * 2**20
#: Of the stations that wait to be measured together, no more than this (`bertgeom.model`).
_WAITING_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ModelCost:
    """Facts of a model that costs come from.

    Attributes:
        n_layers, n_heads, hidden: as in the configuration.
        linear_weights: weights that multiply every token.
        widest: most features between two linear layers.
        weight_bytes: bytes of all parameters as loaded; itemsize: bytes of one.
        device: "cpu" or "cuda".
    """

    n_layers: int
    n_heads: int
    hidden: int
    linear_weights: int
    widest: int
    weight_bytes: int
    itemsize: int
    device: str


def model_cost(encoder: Encoder) -> ModelCost:
    """Read the facts from a loaded model."""
    from torch import nn

    parameters = list(encoder.model.parameters())
    linear = [m.weight for m in encoder.model.modules() if isinstance(m, nn.Linear)]
    return ModelCost(
        encoder.n_layers,
        encoder.n_heads,
        encoder.hidden,
        sum(w.numel() for w in linear),
        max((max(w.shape) for w in linear), default=encoder.hidden),
        sum(p.numel() * p.element_size() for p in parameters),
        parameters[0].element_size(),
        encoder.device.type,
    )


def window_flop(model: ModelCost, n_tokens: float) -> float:
    """Floating point operations of one window's forward pass with its statistics."""
    pairs = n_tokens * n_tokens * model.n_layers
    linear = 2.0 * model.linear_weights * n_tokens
    attention = 4.0 * pairs * model.hidden
    return linear + attention + _STATISTICS_OPERATIONS * pairs * model.n_heads


def bytes_per_window(shape: Shape) -> int:
    """Uncompressed bytes of a window's results, whether or not the store keeps them."""
    return Layout(replace(shape, reduce=False), 1, 1).bytes_per_window()


def partition_windows(model: ModelCost, n_tokens: int, bytes_per_window: int) -> int:
    """Windows of a partition: a power of two that means seconds of work.

    Args:
        n_tokens: tokens of a whole window; bytes_per_window: of its results.
    """
    work = _NOMINAL_RATE[model.device] * _PARTITION_SECONDS[model.device]
    most = min(work / window_flop(model, n_tokens), _PARTITION_BYTES / bytes_per_window)
    return 1 << max(0, int(most).bit_length() - 1)


@dataclass(frozen=True)
class Memory:
    """Projected peak memory of one worker, in bytes, by piece."""

    runtime: int
    weights: int
    activations: int
    statistics: int
    results: int
    sequences: int
    writing: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @property
    def largest(self) -> tuple[str, int]:
        """Name and bytes of the largest piece that settings can change."""
        pieces = {k: v for k, v in vars(self).items() if k != "runtime"}
        name = max(pieces, key=lambda k: pieces[k])
        return name, pieces[name]


_REMEDY = {
    "weights": "use a smaller model or --dtype bfloat16",
    "activations": "lower --batch-tokens or --max-tokens",
    "statistics": "lower --batch-tokens or --max-tokens",
    "results": "lower --partition-windows or keep less",
    "sequences": "lower --partition-windows or --window",
    "writing": "lower --partition-windows or keep less",
}


def memory(
    model: ModelCost,
    shape: Shape,
    *,
    batch_tokens: int,
    partition_windows: int,
    window: int,
    n_windows: int,
    threads: int,
) -> Memory:
    """Peak memory of one worker.

    Args:
        batch_tokens: padded tokens of a batch; partition_windows: windows of a partition.
        window: bases of a window; n_windows: windows of the run.
        threads: compute threads of the worker.
    """
    partition_windows = min(partition_windows, n_windows)
    rows = max(1, min(batch_tokens // shape.max_tokens, partition_windows))
    tokens = rows * shape.max_tokens
    spread = model.itemsize * tokens
    half = 0 if model.itemsize >= 4 else 4 * model.weight_bytes // model.itemsize
    heads = rows * model.n_heads * (64 + N_BLOCKS**2 + 2 * shape.n_offset_side)
    per_window = bytes_per_window(shape)
    stations = 4 * tokens * model.hidden * (1 + 2 * model.n_layers)
    return Memory(
        runtime=_RUNTIME_BYTES,
        weights=model.weight_bytes + half,
        activations=spread * (10 * model.hidden + 3 * model.widest),
        statistics=4 * (threads * 4 * shape.max_tokens * min(shape.max_tokens, 1024))
        + 4 * tokens * 5 * model.hidden
        # As they are, as float32, and centred.
        + 3 * min(_WAITING_BYTES, stations)
        + 4 * heads * model.n_layers
        + rows * per_window * 4,
        results=3 * partition_windows * per_window,
        sequences=3 * CHUNK_BASES + 2 * partition_windows * window,
        writing=4 * LARGEST_CHUNK,
    )


def check_memory(projected: Memory, budget: int, workers: int) -> None:
    """Refuse a plan that does not fit.

    Raises:
        PlanError: names the largest piece and what makes it smaller.
    """
    total = projected.total * workers
    if total <= budget:
        return
    if projected.runtime * workers > budget:
        raise PlanError(
            f"expected a peak memory of at most {human(budget)}, found that Python and its "
            f"libraries alone take {human(projected.runtime)} a worker; raise --memory"
            f"{' or use fewer --workers' if workers > 1 else ''}"
        )
    name, size = projected.largest
    many = f" in {workers} workers" if workers > 1 else ""
    raise PlanError(
        f"expected a peak memory of at most {human(budget)}, found {human(total)} projected{many}; "
        f"the largest piece is {name} with {human(size)} a worker: {_REMEDY[name]}"
        f"{', use fewer --workers' if workers > 1 else ''} or raise --memory"
    )


def check_disk(layout: Layout, storage: Storage, windows: int) -> None:
    """Refuse a store that cannot fit on a local disk.

    Args:
        windows: those still to be written.

    Raises:
        PlanError: names the largest array and what makes the store smaller.
    """
    if storage.folder is None:
        return
    there = next(
        p for p in (storage.folder.absolute(), *storage.folder.absolute().parents) if p.exists()
    )
    free = shutil.disk_usage(there).free
    needed = int(layout.bytes_per_window() * windows * _COMPRESSED)
    if needed <= free:
        return
    sizes = {v.name: row_bytes(v, layout.sizes) for v in layout.variables}
    name = max(sizes, key=lambda n: sizes[n])
    raise PlanError(
        f"expected {human(needed)} free at {there}, found {human(free)}; the largest array is "
        f"{name} with {human(sizes[name] * windows)}: use --tier core, --bitround, a larger "
        "--stride, keep less, or another disk"
    )


def human(n_bytes: float) -> str:
    """Bytes for people: 1.5 GB."""
    from rich.filesize import decimal

    return decimal(round(n_bytes))


def parse_bytes(text: str) -> int:
    """Bytes of "8GB", "500 MB", "4GiB" or "1e9".

    Raises:
        UsageError: if it is no size.
    """
    from dask.utils import parse_bytes as parse

    try:
        size = parse(text) if text.strip()[:1].isdigit() else 0
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise UsageError(f"expected --memory as a size like 8GB, found {text!r}")
    return int(size)


def budget_bytes(budget: int | str | None) -> int:
    """Most memory to use: as asked for, or what the machine has."""
    if isinstance(budget, str):
        return parse_bytes(budget)
    if budget is not None:
        return budget
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CONTAINER_LIMIT.read_text().strip()
    except OSError:
        return there
    return min(there, int(limit)) if limit.isdigit() else there
