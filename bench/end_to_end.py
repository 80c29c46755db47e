"""Where the time of `bertgeom run` goes: `python -m bench.end_to_end [genomes.fasta ...]`.

Three rates of the same windows, in windows a second: the bare model in a loop over batches that are
ready, the same loop with all statistics, and the whole command from FASTA to a finished store. Then
the seconds of its stages, and of the steps that run beside the model on other threads (reading
and tokenising ahead, putting results in place and writing behind), each alone. CPU seconds stand
beside all of them: with as many compute threads as cores, what runs beside the model takes its
time from it. Without files, simulated relatives of one genome are measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bertgeom
from bench import sequence
from bench.run import environment, quartiles, save
from bertgeom.data import demo_model
from bertgeom.pipelines.context.events import (
    Event,
    Finished,
    Ingested,
    ModelLoaded,
    PartitionDone,
    Started,
)
from bertgeom.pipelines.context.run_context import (
    RunContext,
    context_with_model,
    keep_freed_memory,
)
from bertgeom.pipelines.partition.measure import (
    Prepared,
    measure_batch,
    measure_partitions,
    prepare,
)
from bertgeom.pipelines.partition.write import write_partition


class Clock:
    """Wall and CPU seconds by name, summed."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.restart()

    def restart(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """What has passed since the last lap counts to this name."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        one = self.seconds.setdefault(name, [0.0, 0.0])
        one[0] += wall
        one[1] += cpu
        self.restart()

    def times(self, name: str, run: Callable[[], Any]) -> Any:
        self.restart()
        found = run()
        self.lap(name)
        return found


def whole(fastas: list[Path], model: str, out: Path) -> Clock:
    """The command, by its stages."""
    clock = Clock()
    parts = {
        ModelLoaded: "load and probe the model",
        Ingested: "ingest",
        Started: "plan and set up",
        PartitionDone: "partitions",
        Finished: "finalise",
    }

    def see(event: Event) -> None:
        if type(event) in parts:
            clock.lap(parts[type(event)])

    # The shipped model knows spikes: speed does not depend on what the tokens are.
    bertgeom.run(fastas, model=model, out=out, allow_unknown=True, subscribers=[see])
    return clock


def loops(context: RunContext, rounds: int) -> tuple[int, dict[str, list[float]], Clock]:
    """Bare and with statistics, in turn, batch by batch; the other steps alone."""
    clock = Clock()
    plan = context.plan
    ready: list[Prepared] = []
    for partition in range(plan.n_partitions):
        ready += clock.times("read and tokenise", partial(_all, context, partition))
    rates: dict[str, list[float]] = {"bare": [], "statistics": []}
    n_windows = sum(len(one.rows) for one in ready)
    model: Any = context.loaded.model
    for i in range(rounds + 1):
        seconds = dict.fromkeys(rates, 0.0)
        for one in ready:
            for name, run in (("bare", bare), ("statistics", with_statistics)):
                # What a recorder sees, and what transformers takes by default.
                model.set_attn_implementation("sdpa" if name == "bare" else "bertgeom")
                start = time.perf_counter()
                clock.times(f"loop, {name}", partial(run, context, one))
                seconds[name] += time.perf_counter() - start
        for name, value in seconds.items():
            if i:
                rates[name].append(n_windows / value)
    for name in ("loop, bare", "loop, statistics"):
        clock.seconds[name] = [x / (rounds + 1) for x in clock.seconds[name]]
    return n_windows, rates, clock


def _all(context: RunContext, partition: int) -> list[Prepared]:
    return list(prepare(context, partition))


def bare(context: RunContext, batch: Prepared) -> Any:
    """The model alone, with the attention of transformers' default."""
    encoded, encoder = batch.encoded, context.loaded
    if encoded is None:
        return None
    longest = int(encoded.lengths.max())
    mask = np.arange(longest) < encoded.lengths[:, None]
    with torch.inference_mode():
        return encoder.model(
            input_ids=torch.from_numpy(encoded.ids[:, :longest]).to(encoder.device, torch.long),
            attention_mask=torch.from_numpy(mask).to(encoder.device, torch.long),
        )


def with_statistics(context: RunContext, batch: Prepared) -> Any:
    if batch.encoded is None:
        return None
    windows = batch.windows.take(batch.rows)
    return measure_batch(context, batch.encoded, windows, context.measure_settings)


def writing(context: RunContext, clock: Clock) -> None:
    """Every partition again, into the place where it lies; measuring it is not timed."""
    for partition, results in measure_partitions(context, range(context.plan.n_partitions)):
        clock.times("write", partial(write_rows, context, partition, results))


def write_rows(context: RunContext, partition: int, rows: dict[str, np.ndarray]) -> Any:
    return write_partition(context, partition, rows, time.monotonic())


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, print the breakdown, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.end_to_end", description=__doc__)
    parser.add_argument("fasta", type=Path, nargs="*", help="default: simulated genomes")
    parser.add_argument("--genomes", type=int, default=200, help="simulated, of 30,000 bases each")
    parser.add_argument("--model", default=str(demo_model()), help="default: the shipped one")
    parser.add_argument("--rounds", type=int, default=3, help="of the two loops")
    parser.add_argument("--no-save", action="store_true", help="do not write bench/results")
    asked = parser.parse_args(argv)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        fastas = asked.fasta
        if not fastas:
            fastas = [Path(folder) / "genomes.fa"]
            sequence.write_fasta(fastas[0], sequence.genomes(asked.genomes))
        results = measured(fastas, asked.model, Path(folder) / "store.zarr", asked.rounds)
    print_results(results)
    if not asked.no_save:
        print(f"written: {save(results, 'end_to_end.json')}", file=sys.stderr)
    return 0


def measured(fastas: list[Path], model: str, out: Path, rounds: int) -> dict[str, Any]:
    """Rates and seconds, ready for the JSON."""
    # Compiled kernels and a warm allocator: the first windows are measured twice.
    whole(fastas[:1], model, out.with_name("warm.zarr"))
    stages = whole(fastas, model, out)
    context = context_with_model(str(out), model, torch.get_num_threads())
    n_windows, rates, steps = loops(context, rounds)
    writing(context, steps)
    total = [sum(x) for x in zip(*stages.seconds.values(), strict=True)]
    partitions = stages.seconds["partitions"]
    medians = {name: quartiles(values)[1] for name, values in rates.items()}
    return {
        "environment": environment("cpu" if context.loaded.device.type == "cpu" else "cuda"),
        "windows": n_windows,
        "windows_per_s": {
            **{f"loop, {name}": value for name, value in medians.items()},
            "partitions": n_windows / partitions[0],
            "whole command": n_windows / total[0],
        },
        "share_of_loop_with_statistics": {
            "partitions": n_windows / partitions[0] / medians["statistics"],
            "whole command": n_windows / total[0] / medians["statistics"],
        },
        "stages": _named(stages),
        "steps": _named(steps),
    }


def _named(clock: Clock) -> dict[str, dict[str, float]]:
    return {name: {"wall_s": wall, "cpu_s": cpu} for name, (wall, cpu) in clock.seconds.items()}


def print_results(results: dict[str, Any]) -> None:
    print(", ".join(f"{k} {v}" for k, v in results["environment"].items()))
    print(f"{results['windows']} windows")
    shares = results["share_of_loop_with_statistics"]
    for name, rate in results["windows_per_s"].items():
        share = f"{shares[name]:.3f} of the loop with statistics" if name in shares else ""
        print(f"{name:28} {rate:9.1f} windows/s  {share}")
    for title in ("stages", "steps"):
        print(f"\n{title:28} {'wall s':>9} {'CPU s':>9}")
        for name, row in results[title].items():
            print(f"{name:28} {row['wall_s']:9.2f} {row['cpu_s']:9.2f}")


if __name__ == "__main__":
    sys.exit(main())
