"""What cones, stream and angles add to a forward on the CPU: `python -m bench.stations_cpu`.

Times, side by side with the bare forward that made the states: the statistics, five stations
at a time (as `record` takes those of batches of 8), of the
embedding and of what enters and leaves every MLP (BERT-base: 25 stations, 13 of them with
angles), and the same stations materialised (`bench.materialised`). `--steps` times the parts of
a station. Gated by the oracle.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import materialised
from bench.run import environment, save, tables
from bench.workloads import Workload, bert_base
from bertgeom.kernels import station_statistics, statistics_of_stations
from bertgeom.kernels.cone_angles.tolerance import angle_disagreements
from bertgeom.kernels.stations import cpu
from bertgeom.kernels.stations.tolerance import stream_disagreements
from bertgeom.pipelines.context.run_context import keep_freed_memory


@dataclass(frozen=True)
class States:
    """Token ids of a batch and what the forward makes of them.

    Attributes:
        ids: (B, N).
        stations: (B, N, D) each, in the order of the stream; angles are due at every other one.
    """

    ids: Tensor
    stations: list[Tensor]


def states_of(work: Workload, ids: Tensor) -> States:
    """Runs the forward once and keeps every station."""
    stations: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        stations.append((output[0] if isinstance(output, tuple) else output).clone())

    model = work.model
    hooks = [model.embeddings.register_forward_hook(keep)]
    for layer in model.encoder.layer:
        hooks += [layer.attention.register_forward_hook(keep), layer.register_forward_hook(keep)]
    with torch.inference_mode():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return States(ids, stations)


def gate(states: States) -> None:
    """Raises where ours leaves the bounds of the oracle."""
    x = states.stations[-1]
    lengths = torch.full((len(x),), x.shape[1])
    for angles in (True, False):
        found = station_statistics(x, angles=angles)
        wrong = stream_disagreements(x, lengths, found)
        if angles:
            wrong += angle_disagreements(x[0], None, {k: v[0] for k, v in found.items()})
        if wrong:
            raise RuntimeError("the oracle disagrees:\n" + "\n".join(wrong))


def variants(work: Workload) -> dict[str, Callable[[States], Any]]:
    """What is timed, by name; each takes the states of a batch."""

    def bare(states: States) -> Any:
        with torch.inference_mode():
            return work.model(input_ids=states.ids)

    def stations(states: States) -> Any:
        angles = [k % 2 == 0 for k in range(len(states.stations))]
        return [
            statistics_of_stations(states.stations[k : k + 5], angles=angles[k : k + 5])
            for k in range(0, len(angles), 5)
        ]

    def stored(states: States) -> Any:
        return [materialised.station(x, angles=k % 2 == 0) for k, x in enumerate(states.stations)]

    return {"bare": bare, "stations": stations, "materialised": stored}


def steps(x: Tensor, angles: bool, repeats: int = 30) -> dict[str, float]:
    """Microseconds a window of the steps of one station, medians over the repeats, all threads.

    Every time is that of all steps up to this one less that of those before.
    """
    batch, n_slots, _ = x.shape
    lengths = torch.full((batch,), n_slots)
    work = cpu.allocate([x], lengths, [angles], batch)
    tasks = cpu.block_tasks(batch, cpu.n_blocks(n_slots), len(work.tiles))
    ends = {
        "launch": 0,
        "sweep": np.searchsorted(tasks[:, 0], cpu.CENTRE),
        "centre": np.searchsorted(tasks[:, 0], cpu.TILE),
        "tiles": len(tasks),
    }
    times: dict[str, list[float]] = {name: [] for name in ("allocate", *ends, "whole call")}
    for _ in range(repeats + 1):
        start = time.perf_counter()
        cpu.allocate([x], lengths, [angles], batch)
        times["allocate"].append(time.perf_counter() - start)
        for name, end in ends.items():
            start = time.perf_counter()
            cpu.run_tasks(work, tasks[:end])
            times[name].append(time.perf_counter() - start)
        start = time.perf_counter()
        station_statistics(x, angles=angles)
        times["whole call"].append(time.perf_counter() - start)
    found = {name: 1e6 * statistics.median(t[1:]) / batch for name, t in times.items()}
    before = 0.0
    for name in ends:
        found[name], before = found[name] - before, found[name]
    return found


def main(argv: list[str] | None = None) -> int:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.stations_cpu", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[426, 512])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", action="store_true", help="time the steps of one station")
    parser.add_argument("--no-save", action="store_true", help="do not write bench/results")
    asked = parser.parse_args(argv)
    keep_freed_memory()
    results: dict[str, Any] = {"environment": environment("cpu"), "workloads": []}
    print(", ".join(f"{k} {v}" for k, v in results["environment"].items()))
    for tokens in asked.tokens:
        work = bert_base(tokens, asked.batch, layers=asked.layers)
        made = [states_of(work, ids) for ids in work.batches[:2]]
        gate(made[0])
        table, slow = tables(variants(work), "bare", "bare", made, asked.rounds, "cpu")
        table["materialised"] = slow
        entry = {"name": work.name, "rounds": asked.rounds, "variants": table}
        if asked.steps:
            x = made[0].stations[-1]
            entry["steps_microseconds"] = {
                "with angles": steps(x, True),
                "without": steps(x, False),
            }
        results["workloads"].append(entry)
        print_entry(entry, asked.batch)
    if not asked.no_save:
        save(results, "stations_cpu.json")
    return 0


def print_entry(entry: dict[str, Any], batch: int) -> None:
    """Times in ms a sequence."""
    print(f"\n{entry['name']}")
    for name, row in entry["variants"].items():
        print(
            f"  {name:14} {1e3 * row['seconds_median'] / batch:8.2f} ms {row['ratio_median']:7.4f}"
            f" x bare  ({row['ratio_q25']:.4f}..{row['ratio_q75']:.4f})"
        )
    for kind, parts in entry.get("steps_microseconds", {}).items():
        print(f"    {kind}: " + ", ".join(f"{name} {us:.0f} us" for name, us in parts.items()))


if __name__ == "__main__":
    sys.exit(main())
