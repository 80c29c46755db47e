"""Whole forwards side by side: `python -m bench.run`, results under `bench/results/<device>/`.

Every round runs every variant once, in turn, on rotating inputs. A ratio is the median of the
ratios within rounds, not the ratio of two medians: a slow moment of the machine slows both sides.
Its quartiles are stated, and a warning where they are far apart. Nothing is timed before the
oracle has agreed. Freed memory is kept, for all variants, as `bertgeom run` keeps it; a batch of 8
is about what it takes at once on a CPU. The materialised way takes its turns with everything
alone: whatever follows it, bare forwards too, is up to 15 % slower for a while.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bertgeom.store.files import write_text

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "numba", "triton", "numpy")
#: Of the JSON; a change of names or meanings counts it up.
SCHEMA = 2
#: Quartiles of a ratio that are farther apart than this share of it say little.
STEADY = 0.05
#: Fewer rounds have no quartiles worth the name.
FEW = 5


def environment(device: str) -> dict[str, Any]:
    """Device, versions and commit, for every stated figure; the same keys on every machine."""
    import torch

    return {
        "schema": SCHEMA,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "amx": device == "cpu" and tile_unit(),
        "python": platform.python_version(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        **{name: _version(name) for name in PACKAGES},
    }


def commit() -> str | None:
    """What git calls the checkout; None without git, or outside of a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            capture_output=True,
            text=True,
            cwd=RESULTS.parent,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def tile_unit() -> bool:
    """Whether products run on a tile unit (AMX) here."""
    # Compiled code of the CPU, which a GPU needs not.
    from bertgeom.kernels._cpu import amx

    return amx.usable()


def device_name(device: str) -> str:
    """A name that can be a folder, such as `nvidia-h200` or `cpu-intel-xeon-processor-2`."""
    import torch

    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name = "cpu"
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = f"cpu {line.split(':', 1)[1]} {torch.get_num_threads()}"
                break
    words = "".join(c.lower() if c.isalnum() else " " for c in name.replace("(R)", "")).split()
    return "-".join(words)


def save(results: dict[str, Any], name: str) -> Path:
    """Write results into the folder of their device; returns the file."""
    path = RESULTS / results["environment"]["device"] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results, indent=1) + "\n")
    return path


def side_by_side(
    todo: dict[str, Callable[[Any], Any]], inputs: list[Any], rounds: int, device: str
) -> dict[str, list[float]]:
    """Seconds of every variant in every round; one unmeasured round warms up."""
    import torch

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    seconds: dict[str, list[float]] = {name: [] for name in todo}
    for i in range(rounds + 1):
        for name, run in todo.items():
            wait()
            start = time.perf_counter()
            run(inputs[i % len(inputs)])
            wait()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; of one value three times that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def summary(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median seconds of every variant, and quartiles of its ratio to `base` within rounds."""
    table = {}
    for name, times in seconds.items():
        ratios = [t / b for t, b in zip(times, seconds[base], strict=True)]
        low, middle, high = quartiles(ratios)
        table[name] = {
            "seconds_median": statistics.median(times),
            "seconds_min": min(times),
            "ratio_q25": low,
            "ratio_median": middle,
            "ratio_q75": high,
        }
    return table


def unsteady(table: dict[str, dict[str, float]], rounds: int) -> str | None:
    """A warning that names the variants whose quartiles are far apart; None without any."""
    if rounds < FEW:
        return f"warning: {rounds} rounds say nothing about the spread; take {FEW} or more"
    wide = [
        f"{name} {row['ratio_q25']:.3f}..{row['ratio_q75']:.3f}"
        for name, row in table.items()
        if row["ratio_q75"] - row["ratio_q25"] > STEADY * row["ratio_median"]
    ]
    if not wide:
        return None
    return (
        f"warning: quartiles more than {STEADY:.0%} apart ({', '.join(wide)}): the machine was "
        "busy or the rounds were few; take more with --rounds"
    )


def tables(
    todo: dict[str, Callable[[Any], Any]],
    base: str,
    beside: str,
    inputs: list[Any],
    rounds: int,
    device: str,
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """`summary` of all but the materialised way, and its row: timed beside, and over, another."""
    slow = {beside: todo[beside], "materialised": todo["materialised"]}
    quick = {name: run for name, run in todo.items() if name != "materialised"}
    table = summary(side_by_side(quick, inputs, rounds, device), base)
    apart = summary(side_by_side(slow, inputs, max(3, rounds // 2), device), beside)
    return table, apart["materialised"]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[426, 512])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="windows at once")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default=None, help="default: a GPU when there is one")
    parser.add_argument("--paper", action="store_true", help="time the published procedure too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--no-save", action="store_true", help="do not write bench/results")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {options.rounds}")

    import torch

    from bench import workloads
    from bertgeom.pipelines.context.run_context import keep_freed_memory

    keep_freed_memory()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    results: dict[str, Any] = {"environment": environment(device), "workloads": []}
    for n_tokens, batch in itertools.product(options.tokens, options.batch):
        work = workloads.bert_base(
            n_tokens, batch, layers=options.layers, device=device, dtype=dtype
        )
        errors = workloads.gate(work) if dtype == torch.float32 else None
        todo = workloads.variants(work)
        table, slow = tables(todo, "bare", "everything", work.batches, options.rounds, device)
        entry = {
            "name": work.name,
            "tokens": n_tokens,
            "batch": batch,
            "layers": options.layers,
            "dtype": str(dtype).removeprefix("torch."),
            "rounds": options.rounds,
            "ratio": "median of the ratios within rounds",
            "oracle_max_abs_error": errors,
            "variants": table,
            "materialised_over_everything": slow,
        }
        if options.paper:
            entry["paper_seconds_one_sequence"] = time_paper(n_tokens)
        results["workloads"].append(entry)
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        print_table(results)
    if not options.no_save:
        print(f"written: {save(results, 'forward.json')}", file=sys.stderr)
    return 0


def time_paper(n_tokens: int) -> float:
    """Seconds of the published statistics of one BERT-base sequence, all layers and heads."""
    import numpy as np

    from bench import paper

    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(12 * 12):
        paper.head(*(rng.standard_normal((n_tokens, 64)).astype(np.float32) for _ in range(3)))
    return time.perf_counter() - start


def print_table(results: dict[str, Any]) -> None:
    """The table a person reads."""
    about = results["environment"]
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    for entry in results["workloads"]:
        print(f"\n{entry['name']}, {entry['dtype']}, {entry['rounds']} rounds")
        if entry["oracle_max_abs_error"]:
            print("  oracle: largest error", entry["oracle_max_abs_error"])
        print(f"  {'variant':16} {'median s':>9} {'x bare':>7}  quartiles of ratios within rounds")
        for name, row in entry["variants"].items():
            print(
                f"  {name:16} {row['seconds_median']:9.4f} {row['ratio_median']:7.3f}"
                f"  {row['ratio_q25']:.3f}..{row['ratio_q75']:.3f}"
            )
        row = entry["materialised_over_everything"]
        print(
            f"  materialised     {row['seconds_median']:9.4f} {row['ratio_median']:7.3f}"
            f"  {row['ratio_q25']:.3f}..{row['ratio_q75']:.3f} x everything"
        )
        if warning := unsteady(entry["variants"] | {"materialised": row}, entry["rounds"]):
            print(f"  {warning}")
        if "paper_seconds_one_sequence" in entry:
            print(
                f"  published procedure, one sequence: {entry['paper_seconds_one_sequence']:.1f} s"
            )


if __name__ == "__main__":
    sys.exit(main())
