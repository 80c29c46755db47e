"""Times on a device: one call in a graph, eager and on the host; variants side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.device.steps import Setup
from bench.run import summary


def wait(setup: Setup) -> None:
    """Until the device has done all that was asked of it."""
    if setup.cuda:
        torch.cuda.synchronize()


def captured(call: Callable[[], Any], setup: Setup) -> tuple[Callable[[], Any] | None, str | None]:
    """A replay of a warmed-up call, and None; or None, and why it cannot be captured."""
    if not setup.cuda:
        # A dry run warms nothing up: what the interpreter does twice takes twice as long.
        return None, "graphs need a GPU"
    call()
    call()
    wait(setup)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except Exception as error:
        wait(setup)
        return None, f"{type(error).__name__}: {error}"[:200]
    return graph.replay, None


def elapsed(call: Callable[[], Any], setup: Setup) -> float:
    """Seconds of one call on the device; of the host where there is none."""
    if not setup.cuda:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def one(call: Callable[[], Any], setup: Setup) -> dict[str, Any]:
    """Microseconds of one call: in a graph of many (None with the reason), eager, host alone.

    Where host exceeds graph, the host decides how long a call takes.
    """
    sizes = setup.sizes

    def many() -> None:
        for _ in range(sizes.calls):
            call()

    replay, reason = captured(many, setup)
    host, eager = [], []
    for _ in range(sizes.rounds):
        wait(setup)
        start = time.perf_counter()
        call()
        returned = time.perf_counter()
        wait(setup)
        host.append(returned - start)
        eager.append(time.perf_counter() - start)
    found: dict[str, Any] = {"graph_us": None}
    if replay is not None:
        seconds = [elapsed(replay, setup) for _ in range(sizes.rounds)]
        found["graph_us"] = _us(statistics.median(seconds) / sizes.calls)
    else:
        found["not_captured"] = reason
    return found | {
        "eager_us": _us(statistics.median(eager)),
        "host_us": _us(statistics.median(host)),
    }


def side_by_side(
    todo: dict[str, Callable[[Any], Any]],
    inputs: list[Any],
    bases: tuple[str, ...],
    setup: Setup,
    *,
    graphs: bool = True,
) -> dict[str, Any]:
    """Medians of every variant, and quartiles of its ratio to the fastest base within rounds.

    Every round runs every variant once, on all inputs in turn, which do not fit into a cache.

    Args:
        todo: variants by name.
        bases: variants that ratios may be stated to; the fastest that runs is taken.
        graphs: whether calls are captured, so that launches by the host are not measured.
    """
    calls, eager, failed = {}, {}, {}
    inputs = inputs[:1] if setup.dry else inputs
    for name, run in todo.items():

        def every(run: Callable[[Any], Any] = run) -> None:
            for x in inputs:
                run(x)

        try:
            if graphs:
                replay, reason = captured(every, setup)
            else:
                replay, reason = None, "not wanted"
                if not setup.dry:
                    every()
            if replay is None:
                eager[name] = reason
            calls[name] = replay or every
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:300]
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(setup.sizes.rounds):
        for name, call in calls.items():
            wait(setup)
            times[name].append(elapsed(call, setup) / len(inputs))
    base = min((b for b in bases if b in times), key=lambda b: statistics.median(times[b]))
    found = {"base": base, "variants": summary(times, base)}
    return found | {"eager": eager, "failed": failed}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 2)
