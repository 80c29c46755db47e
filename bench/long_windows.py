"""Long windows on the CPU: `python -m bench.long_windows`.

Times, side by side, by number of tokens of one window: attention alone (SDPA, ours with tier core
and full; peaked heads, and flat ones, which take a second look), and forwards of some layers of
BERT-base (bare, attention statistics of tier core, everything that is on by default). Where the CPU
has a tile unit, ours again without it. Ratios are medians of those within rounds, of which longer
windows get fewer. With `--threads 1` seconds are those that the thread spends on a CPU, so that a
busy machine changes little; with more they are those of the clock. The oracle, which keeps all
weights in float64, agrees first on a long window that it has the memory for. `--longest` times one
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

import torch

from bench import attention_cpu, workloads
from bench.run import RESULTS, environment, save, summary, tile_unit
from bertgeom.kernels import attention_stats
from bertgeom.pipelines.context.run_context import keep_freed_memory

#: Factors of queries and keys whose logits have a standard deviation of 1.9 and of 0.1 nat; the
#: first is that of the forwards.
SPREADS = {"peaked": 1.39, "flat": 0.3}
#: The oracle's matrices of longer windows would take gigabytes.
LONGEST_ORACLE = 1100
#: Windows of so many tokens get all rounds, longer ones fewer.
_ALL_ROUNDS = 1024
#: Nothing is timed that was not compiled by a window of so many.
_SHORT = 64


def with_both(ways: dict[str, Callable[[Any], Any]], base: str) -> dict[str, Callable[[Any], Any]]:
    """The ways, and all but the base without the tile unit, where there is one."""
    if not tile_unit():
        return ways
    return ways | {f"{k}, BLAS": workloads.by_blas(way) for k, way in ways.items() if k != base}


def timed(
    todo: dict[str, Callable[[Any], Any]], inputs: list[Any], tokens: int, rounds: int, base: str
) -> dict[str, Any]:
    """`bench.run.summary` of the seconds of `clock`."""
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    now = clock()
    for i in range(max(1, rounds * _ALL_ROUNDS // max(tokens, _ALL_ROUNDS))):
        for name, run in todo.items():
            start = now()
            run(inputs[i % len(inputs)])
            seconds[name].append(now() - start)
    return summary(seconds, base)


def clock() -> Callable[[], float]:
    """CPU time of this thread if no other works for it, else wall time."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def attention(tokens: int, spread: float, rounds: int) -> dict[str, Any]:
    """One layer's attention on one window."""
    attention_cpu.gate(min(tokens, LONGEST_ORACLE), spread)
    ways = attention_cpu.variants(1, tokens)
    del ways["materialised"]
    made = [attention_cpu.inputs(1, tokens, spread, seed) for seed in range(2)]
    return timed(with_both(ways, "sdpa"), made, tokens, rounds, "sdpa")


def forward(tokens: int, layers: int, rounds: int) -> dict[str, Any]:
    """Some layers of BERT-base on one window."""
    ways = _forwards(workloads.bert_base(_SHORT, layers=layers))
    for run, batch in ways.values():
        run(batch)
    work = workloads.bert_base(tokens, layers=layers)
    todo = {name: run for name, (run, _) in _forwards(work).items()}
    return timed(with_both(todo, "bare"), work.batches, tokens, rounds, "bare")


def _forwards(work: workloads.Workload) -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """What is timed, each with a batch for it."""
    ways = workloads.variants(work)
    ways["core"] = workloads.attention(work, "core")
    return {name: (ways[name], work.batches[0]) for name in ("bare", "core", "everything")}


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
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, help="default: those of torch")
    parser.add_argument("--longest", type=int, default=32768, help="0: leave it out")
    parser.add_argument("--add", action="store_true", help="keep other lengths of the file")
    parser.add_argument("--no-save", action="store_true", help="do not write bench/results")
    asked = parser.parse_args(argv)
    for name in ("rounds", "threads"):
        given = getattr(asked, name)
        if given is not None and given < 1:
            parser.error(f"--{name}: expected at least 1, found {given}")
    keep_freed_memory()
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    results: dict[str, Any] = {"environment": environment("cpu"), "workloads": []}
    if asked.add:
        kept = RESULTS / results["environment"]["device"] / "long_windows.json"
        others = json.loads(kept.read_text())["workloads"]
        results["workloads"] = [x for x in others if x["tokens"] not in asked.tokens]
    print(", ".join(f"{k} {v}" for k, v in results["environment"].items()))
    for tokens in asked.tokens:
        tables = {
            f"attention, {name}": attention(tokens, spread, asked.rounds)
            for name, spread in SPREADS.items()
        }
        tables[f"forward, {asked.layers} layers"] = forward(tokens, asked.layers, asked.rounds)
        for name, variants in tables.items():
            entry = {
                "name": f"{name}, {tokens} tokens",
                "tokens": tokens,
                "ratio": f"median of the ratios within rounds, {clock().__name__}",
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


if __name__ == "__main__":
    sys.exit(main())
