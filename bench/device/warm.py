"""Kernels compiled ahead, many at a time: the compiler needs no GPU, and time on a GPU is short."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

from bench.device.steps import Setup
from bench.launches import Launch, Shape, recorded
from bench.offline import compiled


def shapes(setup: Setup, *, tables: bool) -> list[Shape]:
    """Those of the first steps, and with `tables` of all."""
    sizes = setup.sizes
    one = Shape(sizes.batch, sizes.heads, sizes.tokens, sizes.head_dim, sizes.hidden)
    found = [one]
    if tables:
        for head_dim in sizes.head_dims:
            for n in sizes.lengths:
                hidden = sizes.heads * head_dim
                found.append(Shape(sizes.batch_of(n), sizes.heads, n, head_dim, hidden))
    return found


def compile_all(setup: Setup, *, tables: bool) -> dict[str, Any]:
    """Compiles every launch of the shapes for this device; later launches find them on disk."""
    import torch

    start = time.monotonic()
    found = recorded(shapes(setup, tables=tables))
    by_key = {
        launch.key: launch
        for parts in found
        for count in parts.values()
        for launch in count.launches
    }
    # What differs in its shapes alone is the same code.
    launches = list({_code(x): x for x in by_key.values()}.values())
    if setup.dry:
        launches = launches[:2]
    recorded_after = round(time.monotonic() - start, 1)
    major, minor = torch.cuda.get_device_capability() if setup.cuda else (9, 0)
    work = [(json.dumps(asdict(x)), 10 * major + minor) for x in launches]
    failed, seconds = {}, []
    workers = max(1, min(len(work), (os.cpu_count() or 1) - 1))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for launch, (took, error) in zip(launches, pool.map(_compile, work), strict=True):
            seconds.append(took)
            if error:
                failed[launch.name] = error
    return {
        "kernels": len(work),
        "processes": workers,
        "recorded_seconds": recorded_after,
        "compile_seconds_in_all": round(sum(seconds), 1),
        "failed": failed,
    }


def _code(launch: Launch) -> str:
    """Equal for launches that the compiler tells apart by nothing."""

    def kind(x: Any) -> Any:
        if isinstance(x, dict):
            return x["dtype"]
        if isinstance(x, int) and not isinstance(x, bool):
            return (x == 1, x % 16 == 0)
        return x

    constants = {k: x for k, x in launch.arguments.items() if k.isupper()}
    rest = {k: kind(x) for k, x in launch.arguments.items() if not k.isupper()}
    return json.dumps([launch.module, launch.name, constants, rest, launch.options])


def _compile(work: tuple[str, int]) -> tuple[float, str | None]:
    """Seconds that one compilation took, and what went wrong."""
    os.environ.pop("TRITON_INTERPRET", None)
    text, capability = work
    start = time.monotonic()
    try:
        compiled(Launch(**json.loads(text)), capability)
    except Exception as error:
        return time.monotonic() - start, f"{type(error).__name__}: {error}"[:500]
    return time.monotonic() - start, None


def first(setup: Setup) -> dict[str, Any]:
    """What the first steps launch."""
    return compile_all(setup, tables=False)


def rest(setup: Setup) -> dict[str, Any]:
    """What the tables launch."""
    return compile_all(setup, tables=True)
