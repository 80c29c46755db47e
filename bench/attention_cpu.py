"""One attention layer on the CPU, and where its time goes: `python -m bench.attention_cpu`.

Times, side by side, one call at the shape of a BERT-base layer: torch's SDPA, ours with tier
core and full, and the statistics of materialised weights (`bench.materialised`). `--stages`
times the parts of one head alone, on one thread and on data that lies in the cache: what is
missing to a call is memory traffic and waiting. Gated by the oracle.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import materialised
from bench.run import environment, save, tables
from bertgeom.kernels import attention_stats
from bertgeom.kernels._cpu import amx
from bertgeom.kernels._cpu.memory import scratch_address
from bertgeom.kernels._cpu.runtime import dgemm_address, jit, sgemm, sgemm_address
from bertgeom.kernels.attention_stats import api
from bertgeom.kernels.attention_stats.cpu import head, products, rows
from bertgeom.kernels.attention_stats.cpu import work as _cpu_work
from bertgeom.kernels.attention_stats.cpu.bias import NO_BIAS, of_head
from bertgeom.kernels.attention_stats.tolerance import bounds, disagreements
from bertgeom.variables import n_offset_side

HEADS, HEAD_DIM = 12, 64
#: Rotating inputs, so that no repetition finds its data in the cache.
N_INPUTS = 4


def inputs(batch: int, tokens: int, spread: float, seed: int) -> list[Tensor]:
    """q, k, v (B, H, N, d) as the projections leave them; logits have std spread^2 nat."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, tokens, HEADS, HEAD_DIM)
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3))
    return [spread * q, spread * k, v]


def special_ends(batch: int, tokens: int) -> Tensor:
    special = torch.zeros(batch, tokens, dtype=torch.bool)
    special[:, [0, -1]] = True
    return special


def gate(tokens: int, spread: float) -> None:
    """Raises where ours leaves the bounds of the oracle."""
    q, k, v = (x[:, :2] for x in inputs(1, tokens, spread, seed=99))
    special, lengths = special_ends(1, tokens), torch.tensor([tokens])
    known: dict[str, Any] = {
        "scale": HEAD_DIM**-0.5,
        "window": None,
        "tier": "full",
        "theta": 0.3,
        "near": 4,
        "n_offset_side": n_offset_side(tokens),
        "n_groups": 0,
        "rows": False,
        "columns": False,
    }
    found = attention_stats(q, k, v, special=special, impl="numba", **known)
    limits = bounds(q, k, v, lengths, special, None, api.checked_options(**known))
    wrong = disagreements(limits, found.output, found.values)
    if wrong:
        raise RuntimeError("the oracle disagrees:\n" + "\n".join(wrong))


def variants(batch: int, tokens: int) -> dict[str, Callable[[list[Tensor]], Any]]:
    """The ways to do one layer; each takes [q, k, v]."""
    special, side = special_ends(batch, tokens), n_offset_side(tokens)

    def ours(tier: str) -> Callable[[list[Tensor]], Any]:
        return lambda x: attention_stats(
            *x, special=special, tier=tier, n_offset_side=side, impl="numba"
        )

    def stored(x: list[Tensor]) -> Any:
        q, k, v = x
        a = torch.softmax(q @ k.mT * HEAD_DIM**-0.5, dim=-1)
        return a @ v, materialised.attention(a, special), materialised.logits(q, k)

    return {
        "sdpa": lambda x: torch.nn.functional.scaled_dot_product_attention(x[0], x[1], x[2]),
        "core": ours("core"),
        "full": ours("full"),
        "materialised": stored,
    }


def stages(tokens: int, spread: float, repeats: int = 100) -> dict[str, float]:
    """Microseconds of the parts of one head on one thread, least of the repeats."""
    q, k, v = (np.ascontiguousarray(x[0, 0].numpy()) for x in inputs(1, tokens, spread, 0))
    n, pitch = tokens, rows.padded(tokens)
    block = np.zeros((amx.in_blocks(n), pitch), np.float32)
    work = (*scratch_address(1, _cpu_work.scratch_floats(n, HEAD_DIM, 4, 0.3, n)), n)
    logits, weights = block.copy(), block.copy()
    blas = sgemm_address()
    _multiply(blas, q, k, logits, n, True)
    weights[:] = logits
    _normalise(weights, n)
    low, top = weights[:n, :n].min(1), weights[:n, :n].max(1)
    output = np.zeros_like(v)
    parts: dict[str, tuple[Callable[..., Any], tuple[Any, ...], np.ndarray]] = {
        "Q K^T, BLAS": (_multiply, (blas, q, k, block, n, True), logits),
        "row extremes": (_extremes, (block, n), logits),
        "exponentials": (_exponentials, (block, n), logits),
        "weights, columns, diagonals": (_spread, (block, n, work), weights),
        "near cells": (_near, (block, n, work), weights),
        "stretches": (_stretches, work, weights),
        "k90": (_k90, (block, n, low, top), weights),
        "P V": (_multiply, (blas, block, v, output, n, False), weights),
        "Gram matrices": (_gram, ((blas, dgemm_address()), q, k, NO_BIAS, work), weights),
        "per head": (_per_head, work, weights),
        "value bins": (_bins, (block, n, low.min(), top.max(), work), weights),
        "A_ij A_ji": (_crossed, (block, n), weights),
    }
    if amx.usable():
        parts["Q K^T, tile unit"] = (_by_unit, (q, k, block, n, work), logits)
    return {
        name: _least(part, arguments, block, start, repeats)
        for name, (part, arguments, start) in parts.items()
    }


def _least(
    part: Callable[..., Any],
    arguments: tuple[Any, ...],
    block: np.ndarray,
    start: np.ndarray,
    repeats: int,
) -> float:
    times = []
    for _ in range(repeats + 1):
        block[:] = start
        begin = time.perf_counter()
        part(*arguments)
        times.append(time.perf_counter() - begin)
    return 1e6 * min(times[1:])


@jit
def _multiply(blas, a, b, c, n, flip):
    width = b.shape[1]
    if flip:
        sgemm(
            blas, 0, 1, n, n, width, np.float32(0.18),
            a.ctypes.data, width, b.ctypes.data, width, c.ctypes.data, c.shape[1],
        )  # fmt: skip
    else:
        sgemm(
            blas, 0, 0, n, width, n, np.float32(1),
            a.ctypes.data, a.shape[1], b.ctypes.data, width, c.ctypes.data, width,
        )  # fmt: skip


@jit
def _by_unit(q, k, block, n, work):
    d = k.shape[1]
    memory = _cpu_work.cut(work[0], work[1], n, d, 4, np.float32(0.3), n).pieces
    query, key = np.int64(q.ctypes.data), np.int64(k.ctypes.data)
    matrices = ((query, d), (key, d), (query, d), (query, d))
    pieces = products.split_keys(True, 0.0, n, d, key, d, memory)
    out, scale = np.int64(block.ctypes.data), np.float32(0.18)
    strips = products.Strips(False, 0, 0, 0)
    products.logits(0, pieces, strips, scale, d, matrices, 0, n, 0, n, out, block.shape[1])


@jit
def _extremes(block, n):
    total = np.float32(0)
    for i in range(n):
        low, high = rows.extremes(block[i], 0, n)
        rows.hide(block[i], 0, n)
        total += low + high
    return total


@jit
def _exponentials(block, n):
    sums = np.float32(0)
    for i in range(n):
        rows.hide(block[i], 0, n)
        total, moment = rows.exponentials(block[i], np.float32(3))
        sums += total + moment
    return sums


@jit
def _normalise(block, n):
    for i in range(n):
        row = block[i]
        _, high = rows.extremes(row, 0, n)
        rows.hide(row, 0, n)
        total, _ = rows.exponentials(row, high)
        row *= np.float32(1) / total


@jit
def _spread(block, n, work):
    arrays = _cpu_work.cut(work[0], work[1], n, 64, 4, np.float32(0.3), n)
    column, diagonals = arrays.column, arrays.diagonals
    pitch = block.shape[1]
    square = np.float32(0)
    for i in range(n):
        start = n - 1 - i
        phase = start % _cpu_work.PHASES
        square += rows.spread(
            block[i], np.float32(1), column[:pitch],
            diagonals[phase, start - phase : start - phase + pitch],
        )  # fmt: skip
    return square


@jit
def _near(block, n, work):
    arrays = _cpu_work.cut(work[0], work[1], n, 64, 4, np.float32(0.3), n)
    for i in range(n):
        begin, end = max(0, i - 4), min(n, i + 5)
        rows.lift(block[i], begin, end, arrays.lifted)
        rows.put_back(block[i], begin, end, np.float32(1), arrays.lifted)
    content, near, sums = arrays.content, arrays.near, arrays.near_sums
    return rows.add_near(block, 0, 0, 0, n, n, 4, content, near, sums)


@jit
def _stretches(address, n_floats, n):
    arrays = _cpu_work.cut(address, n_floats, n, 64, 4, np.float32(0.3), n)
    for g in range(16):
        head.end_stretch(g, n, arrays)


@jit
def _k90(block, n, low, top):
    guess, step = np.float32(1 / n), np.float32(1 / n)
    for i in range(n):
        _, guess, step = rows.smallest_count(block[i], n, low[i], top[i], guess, step)


@jit
def _gram(blas, q, k, cells, work):
    n, d = q.shape
    arrays = _cpu_work.cut(work[0], work[1], n, d, 4, np.float32(0.3), n)
    bias, out = of_head(cells, 0, 0, n), np.zeros(18)
    head.logit_statistics(blas, n, d, q.ctypes.data, d, k.ctypes.data, d, arrays.gram, bias, out)


@jit
def _per_head(address, n_floats, n):
    arrays = _cpu_work.cut(address, n_floats, n, 64, 4, np.float32(0.3), n)
    out = np.zeros(18)
    head.row_statistics(n, arrays, out)
    head.column_statistics(n, arrays, np.zeros(n, np.int32), out, np.zeros(0, np.float32))
    head.offset_statistics(n, 4, arrays, out, np.zeros(21, np.float32))
    head.gates(n, 4, arrays, out, np.zeros(8, np.float32))


@jit
def _bins(block, n, low, high, work):
    arrays = _cpu_work.cut(work[0], work[1], n, 64, 4, np.float32(0.3), n)
    codes, bins = arrays.codes, arrays.bins
    factor = np.float32(20) / (high - low)
    for i in range(n):
        rows.count_values(block[i], n, low, factor, codes, bins)


@jit
def _crossed(block, n):
    return rows.crossed_tiles(block.reshape(block.size), n, block.shape[1])


def main(argv: list[str] | None = None) -> int:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.attention_cpu", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[426, 512])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--spread", type=float, nargs="+", default=[0.3, 1.0, 2.0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--stages", action="store_true", help="time the parts of one head")
    parser.add_argument("--no-save", action="store_true", help="do not write bench/results")
    asked = parser.parse_args(argv)
    results: dict[str, Any] = {"environment": environment("cpu"), "workloads": []}
    print(", ".join(f"{k} {v}" for k, v in results["environment"].items()))
    for tokens in asked.tokens:
        for spread in asked.spread:
            gate(tokens, spread)
            made = [inputs(asked.batch, tokens, spread, i) for i in range(N_INPUTS)]
            todo = variants(asked.batch, tokens)
            table, slow = tables(todo, "sdpa", "sdpa", made, asked.rounds, "cpu")
            entry = {
                "name": f"batch {asked.batch}, {tokens} tokens, logit std {spread**2:.2f} nat",
                "rounds": asked.rounds,
                "variants": table | {"materialised": slow},
            }
            if asked.stages:
                n_threads = torch.get_num_threads()
                torch.set_num_threads(1)
                entry["stages_microseconds"] = stages(tokens, spread)
                torch.set_num_threads(n_threads)
            results["workloads"].append(entry)
            print_entry(entry, asked.batch)
    if not asked.no_save:
        save(results, "attention_cpu.json")
    return 0


def print_entry(entry: dict[str, Any], batch: int) -> None:
    """Times in ms per layer and sequence."""
    print(f"\n{entry['name']}")
    for name, row in entry["variants"].items():
        print(
            f"  {name:14} {1e3 * row['seconds_median'] / batch:8.2f} ms  {row['ratio_median']:6.2f}"
            f" x sdpa  ({row['ratio_q25']:.2f}..{row['ratio_q75']:.2f})"
        )
    for name, microseconds in entry.get("stages_microseconds", {}).items():
        print(f"    {name:28} {microseconds:6.0f} us a head")


if __name__ == "__main__":
    sys.exit(main())
