"""Long windows on the CPU: `python -m bench.long_windows`.

Times, side by side, by number of tokens of one window: attention alone (SDPA, ours with tier core
and full; peaked heads, and flat ones, which take a second look), and forwards of some layers of
BERT-base (bare, attention statistics of tier core, everything that is on by default). Where the CPU
has a tile unit, ours again without it. Ratios are medians of those within rounds. The oracle, which
keeps all weights in float64, agrees first on windows of up to 2,048 tokens. `--longest` times one
layer of two heads at one more length, in a process of its own, and states the memory that it took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from bench import attention_cpu, workloads
from bench.run import environment, save, side_by_side, summary, unsteady
from bertgeom.kernels import attention_stats
from bertgeom.kernels._cpu import amx
from bertgeom.pipelines.context.run_context import keep_freed_memory

#: Factors of queries and keys whose logits have a standard deviation of 1.9 and of 0.1 nat; the
#: first is that of the forwards.
SPREADS = {"peaked": 1.39, "flat": 0.3}
#: The oracle's matrices of longer windows would take gigabytes.
LONGEST_ORACLE = 2048


def by_blas(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same without the tile unit."""

    def alone(x: Any) -> Any:
        with mock.patch.object(amx, "usable", return_value=False):
            return run(x)

    return alone


def with_both(ways: dict[str, Callable[[Any], Any]], base: str) -> dict[str, Callable[[Any], Any]]:
    """The ways, and all but the base without the tile unit, where there is one."""
    if not amx.usable():
        return ways
    return ways | {f"{k}, BLAS": by_blas(way) for k, way in ways.items() if k != base}


def attention(tokens: int, spread: float, rounds: int) -> dict[str, Any]:
    """One layer's attention on one window."""
    attention_cpu.gate(min(tokens, LONGEST_ORACLE), spread)
    ways = attention_cpu.variants(1, tokens)
    del ways["materialised"]
    made = [attention_cpu.inputs(1, tokens, spread, seed) for seed in range(2)]
    return summary(side_by_side(with_both(ways, "sdpa"), made, rounds, "cpu"), "sdpa")


def forward(tokens: int, layers: int, rounds: int) -> dict[str, Any]:
    """Some layers of BERT-base on one window."""
    work = workloads.bert_base(tokens, layers=layers)
    ways = workloads.variants(work)
    todo = {
        "bare": ways["bare"],
        "core": workloads.attention(work, "core"),
        "everything": ways["everything"],
    }
    return summary(side_by_side(with_both(todo, "bare"), work.batches, rounds, "cpu"), "bare")


def longest(tokens: int) -> dict[str, float]:
    """Seconds of one call on two heads, and the MiB by which it raised the peak of memory."""
    q, k, v = (x[:, :2].contiguous() for x in attention_cpu.inputs(1, tokens, 1.39, 0))
    attention_stats(*(x[:, :, :1100] for x in (q, k, v)), impl="numba")
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), time.perf_counter()
    attention_stats(q, k, v, impl="numba")
    return {
        "tokens": tokens,
        "seconds": time.perf_counter() - start,
        "peak_mib": _status("VmHWM") - before,
    }


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(field)).split()[1]) / 1024


def in_a_process(tokens: int) -> Any:
    """`longest`, in a process whose memory nothing else has used."""
    code = (
        f"import json; from bench import long_windows as x; print(json.dumps(x.longest({tokens})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.long_windows", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest", type=int, default=32768, help="0: leave it out")
    parser.add_argument("--no-save", action="store_true", help="do not write bench/results")
    asked = parser.parse_args(argv)
    if asked.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {asked.rounds}")
    keep_freed_memory()
    results: dict[str, Any] = {"environment": environment("cpu"), "workloads": []}
    print(", ".join(f"{k} {v}" for k, v in results["environment"].items()))
    for tokens in asked.tokens:
        timed = {
            f"attention, {name}": attention(tokens, spread, asked.rounds)
            for name, spread in SPREADS.items()
        }
        timed[f"forward, {asked.layers} layers"] = forward(tokens, asked.layers, asked.rounds)
        for name, variants in timed.items():
            entry = {
                "name": f"{name}, {tokens} tokens",
                "tokens": tokens,
                "rounds": asked.rounds,
                "ratio": "median of the ratios within rounds",
                "variants": variants,
            }
            results["workloads"].append(entry)
            print_entry(entry)
            if not asked.no_save:
                save(results, "long_windows.json")
    if asked.longest:
        results["longest"] = in_a_process(asked.longest)
        print(f"\ntwo heads: {results['longest']}")
    if not asked.no_save:
        print(f"written: {save(results, 'long_windows.json')}", file=sys.stderr)
    return 0


def print_entry(entry: dict[str, Any]) -> None:
    """Seconds, and the ratio to the first variant with its quartiles."""
    print(f"\n{entry['name']}")
    for name, row in entry["variants"].items():
        print(
            f"  {name:18} {row['seconds_median']:8.3f} s {row['ratio_median']:6.3f}"
            f"  {row['ratio_q25']:.3f}..{row['ratio_q75']:.3f}",
            flush=True,
        )
    if warning := unsteady(entry["variants"], entry["rounds"]):
        print(f"  {warning}")


if __name__ == "__main__":
    sys.exit(main())
