"""Everything that needs a GPU, in one command: `python -m bench.gpu_suite --out FOLDER`.

First the tests marked `gpu`, then the table of ratios: attention with statistics against bare
attention, the angle histogram against the device's matmul rate, the whole forward against bare and
materialised, FlexAttention run twice. Parts are independent: one that fails is reported, and the
others still run. Nothing is timed before the oracle has agreed. The folder receives
`gpu_suite.json`; standard output a short table.

`TRITON_INTERPRET=1 python -m bench.gpu_suite --device cpu --tiny` runs every part at toy sizes in
Triton's interpreter; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertgeom.store.files import write_text

ROOT = Path(__file__).resolve().parents[1]
#: Inputs take turns, so that no repetition finds its data in the cache.
N_INPUTS = 3
#: Largest errors that the oracle lets pass before timing: statistics, and fp16 outputs.
BUDGET = 1e-3
OUTPUT_BUDGET = 5e-3


@dataclass(frozen=True)
class Sizes:
    """Shapes of all parts.

    Attributes:
        batch, heads, tokens, head_dim: of the attention kernel.
        hidden: width of the vectors between which angles are measured.
        layers: of the model in the whole forward.
        matmul: side of the square matrices that give the device's rate.
        rounds: measured repetitions of every variant.
    """

    batch: int = 64
    heads: int = 12
    tokens: int = 512
    head_dim: int = 64
    hidden: int = 768
    layers: int = 12
    matmul: int = 8192
    rounds: int = 30


TINY = Sizes(batch=1, heads=1, tokens=33, head_dim=16, hidden=32, layers=1, matmul=64, rounds=2)


@dataclass(frozen=True)
class Setup:
    """Where and how large."""

    device: str
    sizes: Sizes
    out: Path

    @property
    def cuda(self) -> bool:
        """Whether there is a device to time."""
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return torch.float16 if self.cuda else torch.float32


def run_tests(setup: Setup) -> dict[str, Any]:
    """The tests marked `gpu`, in a process of their own; the log is kept in the folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (setup.out / "gpu_tests.log").write_text(done.stdout + done.stderr)
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        raise RuntimeError(f"pytest returned {done.returncode}: {lines[-1] if lines else ''}")
    return {"summary": lines[-1]}


def attention(setup: Setup) -> dict[str, Any]:
    """Attention with statistics, tiers core and full, against the backends of torch's SDPA."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from bertgeom.kernels import attention_stats

    inputs = [_heads(setup, i) for i in range(N_INPUTS)]
    found: dict[str, Any] = {"oracle_errors": _gate_attention(setup, inputs[0])}

    def backend(which: Any) -> Callable[[Any], Any]:
        def run(x: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            with sdpa_kernel(which):
                return sdpa(*x)

        return run

    todo: dict[str, Callable[[Any], Any]] = {"sdpa": lambda x: sdpa(*x)}
    if setup.cuda:
        todo["cudnn"] = backend(SDPBackend.CUDNN_ATTENTION)
        todo["flash"] = backend(SDPBackend.FLASH_ATTENTION)
    todo["core"] = lambda x: attention_stats(*x, tier="core", impl="triton")
    todo["full"] = lambda x: attention_stats(*x, tier="full", impl="triton")
    todo |= _launches(setup, inputs[0])
    seconds = _time_all(todo, inputs, setup)
    base = min((x for x in ("sdpa", "cudnn", "flash") if x in seconds), key=seconds.__getitem__)
    found["fastest_bare"] = base
    found["seconds"] = seconds
    found["ratio_to_bare"] = {name: s / seconds[base] for name, s in seconds.items()}
    return found


def _launches(setup: Setup, x: tuple[Tensor, Tensor, Tensor]) -> dict[str, Callable[[Any], Any]]:
    """The launches of the full tier one by one, to see where its time goes."""
    from bertgeom.kernels.attention_stats.gpu import columns, gram, k90
    from bertgeom.kernels.attention_stats.gpu import pairs as _gpu_pairs
    from bertgeom.kernels.attention_stats.gpu import rows as _gpu_rows
    from bertgeom.kernels.attention_stats.options import Options

    size = setup.sizes
    options = Options(size.head_dim**-0.5, None, True, 0.3, 4, 18, 0, False, False)
    lengths = torch.full((size.batch,), size.tokens, dtype=torch.int32, device=setup.device)
    rows = _gpu_rows.row_values(*x, lengths, options)[1]
    return {
        "launch rows": lambda x: _gpu_rows.row_values(*x, lengths, options),
        "launch columns": lambda x: columns.column_sums(*x[:2], rows.lse, lengths, None, options),
        "launch pairs": lambda x: _gpu_pairs.pair_sums(*x[:2], rows, lengths, options),
        "launch k90": lambda x: k90.k90_counts(*x[:2], rows, lengths, options),
        "launch gram": lambda x: gram.gram_matrices(*x[:2], lengths),
    }


def _heads(setup: Setup, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (B, H, N, d) as a model lays them out."""
    size = setup.sizes
    generator = torch.Generator(setup.device).manual_seed(seed)
    shape = (size.batch, size.tokens, size.heads, size.head_dim)

    def states() -> Tensor:
        x = torch.randn(shape, generator=generator, device=setup.device, dtype=torch.float32)
        return x.to(torch.float16).transpose(1, 2)

    return states(), states(), states()


def _gate_attention(setup: Setup, x: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Largest errors against the oracle on one window."""
    from bertgeom.kernels import attention_stats

    one = tuple(t[:1] for t in x)
    ours = attention_stats(*one, impl="triton")
    exact = attention_stats(*one, impl="reference")
    errors = {}
    for name, want in exact.values.items():
        have = ours.values[name]
        if want.is_floating_point():
            scale = want.abs().clamp(min=1)
            errors[name] = ((have - want).abs() / scale).max().item()
    errors["output"] = (ours.output - exact.output).abs().max().item()
    wrong = {
        name: e
        for name, e in errors.items()
        if not e <= (OUTPUT_BUDGET if name == "output" else BUDGET)
    }
    if wrong:
        raise RuntimeError(f"the oracle does not agree: {wrong}")
    return errors


def angles(setup: Setup) -> dict[str, Any]:
    """The angle histogram of all pairs within windows, as a share of the fp16 matmul rate."""
    from bertgeom.kernels import pairwise_angle_histogram

    size = setup.sizes
    generator = torch.Generator(setup.device).manual_seed(0)
    inputs = []
    for _ in range(N_INPUTS):
        x = torch.randn(
            size.batch, size.tokens, size.hidden, generator=generator, device=setup.device
        )
        inputs.append(x.to(torch.float16))
    counted = pairwise_angle_histogram(inputs[0], impl="triton")["angle_histogram"].sum(-1)
    pairs = size.tokens * (size.tokens - 1) // 2
    if not bool((counted == pairs).all()):
        raise RuntimeError(f"expected {pairs} pairs a window, found {counted.tolist()}")
    run = {"angles": lambda x: pairwise_angle_histogram(x, impl="triton")}
    seconds = _time_all(run, inputs, setup)["angles"]
    rate = _matmul_rate(setup)
    flop = 2.0 * size.hidden * pairs * size.batch
    return {
        "seconds": seconds,
        "matmul_flop_per_second": rate,
        "share_of_matmul_rate": flop / seconds / rate,
    }


def _matmul_rate(setup: Setup) -> float:
    """fp16 (fp32 on the CPU) multiply-adds times two, per second."""
    n = setup.sizes.matmul
    generator = torch.Generator(setup.device).manual_seed(1)
    pairs = [
        tuple(
            torch.randn(n, n, generator=generator, device=setup.device).to(setup.dtype)
            for _ in range(2)
        )
        for _ in range(2)
    ]
    seconds = _time_all({"matmul": lambda x: x[0] @ x[1]}, pairs, setup)["matmul"]
    return 2.0 * n**3 / seconds


def forward(setup: Setup) -> dict[str, Any]:
    """The whole forward: bare, with attention statistics, with everything, materialised."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from bench import workloads
    from bench.run import side_by_side, summary

    size = setup.sizes
    work = workloads.bert_base(
        size.tokens, size.batch, layers=size.layers, device=setup.device, dtype=setup.dtype
    )
    todo = workloads.variants(work)
    bare = todo["bare"]
    if setup.cuda:

        def cudnn(ids: Tensor) -> Any:
            with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
                return bare(ids)

        todo["bare_cudnn"] = cudnn
    seconds = side_by_side(todo, work.batches, max(2, size.rounds // 2), setup.device)
    names = [x for x in ("bare", "bare_cudnn") if x in seconds]
    base = min(names, key=lambda x: statistics.median(seconds[x]))
    table = summary(seconds, base)
    theirs, ours = (table[x]["seconds_median"] for x in ("materialised", "everything"))
    return {"fastest_bare": base, "variants": table, "materialised_over_ours": theirs / ours}


def flex(setup: Setup) -> dict[str, Any]:
    """FlexAttention with its log-sum-exp, then again with query and key exchanged."""
    from torch.nn.attention.flex_attention import flex_attention

    if not setup.cuda:
        raise RuntimeError("FlexAttention is compiled for a GPU; none here")
    compiled = torch.compile(flex_attention)
    inputs = [_heads(setup, i) for i in range(N_INPUTS)]

    def twice(x: tuple[Tensor, Tensor, Tensor]) -> Any:
        query, key, value = x
        first = compiled(query, key, value, return_lse=True)
        return first, compiled(key, query, value, return_lse=True)

    return {"seconds": _time_all({"flex_twice": twice}, inputs, setup)}


def _time_all(
    todo: dict[str, Callable[[Any], Any]], inputs: list[Any], setup: Setup
) -> dict[str, float]:
    """Median seconds of one call of every variant, variants taking turns.

    On a GPU a call for every input is captured in one graph, so that the host's launches are
    not measured; a variant that cannot be captured is timed by events as it is.
    """
    calls = {name: _prepared(run, inputs, setup) for name, run in todo.items()}
    times: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(setup.sizes.rounds):
        for name, call in calls.items():
            times[name].append(_elapsed(call, setup) / len(inputs))
    return {name: statistics.median(x) for name, x in times.items()}


def _prepared(run: Callable[[Any], Any], inputs: list[Any], setup: Setup) -> Callable[[], Any]:
    """A call of `run` on every input, warmed up, as a graph where that is possible."""

    def every() -> None:
        for x in inputs:
            run(x)

    every()
    if not setup.cuda:
        return every
    torch.cuda.synchronize()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            every()
    except RuntimeError:
        torch.cuda.synchronize()
        return every
    return graph.replay


def _elapsed(call: Callable[[], Any], setup: Setup) -> float:
    """Seconds of one call on the device."""
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


PARTS: dict[str, Callable[[Setup], dict[str, Any]]] = {
    "tests": run_tests,
    "attention": attention,
    "angles": angles,
    "forward": forward,
    "flex": flex,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts, prints the table, writes the JSON; 1 if a part failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_suite", description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="default: bench/results/<device>")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device; for a dry run: TRITON_INTERPRET=1 ... --device cpu --tiny")
    if not options.device.startswith("cuda") and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--device cpu interprets the kernels: set TRITON_INTERPRET=1")

    from bench.run import RESULTS, environment

    about = environment(options.device)
    out = options.out or RESULTS / about["device"]
    out.mkdir(parents=True, exist_ok=True)
    setup = Setup(options.device, TINY if options.tiny else Sizes(), out)
    results: dict[str, Any] = {"environment": about, "sizes": vars(setup.sizes), "parts": {}}
    for name in options.parts:
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                found: dict[str, Any] = PARTS[name](setup)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
            traceback.print_exc(limit=8)
        results["parts"][name] = found | {"wall_seconds": round(time.perf_counter() - start, 1)}
        write_text(out / "gpu_suite.json", json.dumps(results, indent=1) + "\n")
    print_table(results)
    return int(any("error" in part for part in results["parts"].values()))


def print_table(results: dict[str, Any]) -> None:
    """One line a figure."""
    print(", ".join(f"{k} {v}" for k, v in results["environment"].items()))
    for name, part in results["parts"].items():
        for key, value in _figures(part):
            print(f"{name:10} {key:42} {value}")


def _figures(part: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in part.items():
        if isinstance(value, dict):
            found += _figures(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            found.append((prefix + key, f"{value:.4g}"))
        else:
            found.append((prefix + key, str(value)))
    return found


if __name__ == "__main__":
    sys.exit(main())
