"""Microseconds of every launch by counting, without a GPU: `python -m bench.static --model`.

Nothing here is measured. The machine code says what one pass of every loop issues, the interpreter
how often loops are passed, the launch how many programs there are; rates of one H200 turn the work
into times. A launch takes as long as the slowest of its four resources, and never less than LEAST.
What is left out: waiting (latency, barriers), second reads from the caches, both sides of a
condition are counted, and rates of the tensor cores are those of large products.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from typing import Any

from bench.launches import FORWARDS, Count, Launch, Operation, Shape, recorded
from bench.passes import Passes, counted
from bench.sass import Code, Loop, Pass, disassembled, read

#: Rates of one H200, a second: dense fp16 and copy as measured, lane-instructions and the
#: exponential unit by its clock; and what published attention kernels reach at this size.
TENSOR, MEMORY, ISSUE, XU, ATTENTION = 790e12, 4.3e12, 33e12, 4.2e12, 335e12
#: Share of the issue slots that a good kernel fills.
FILLED = 0.8
#: Microseconds that no kernel stays below, even in a graph.
LEAST = 2.0
LAYERS = 12


def work_of(code: Code, passes: Passes | None) -> tuple[Pass, list[str]]:
    """What one warp of the mean program issues, and loops whose passes nobody counted.

    The latter are made by the compiler, for sums within a tile as an example: they are passed once
    at least in every pass of the loop around them, and are taken so.
    """
    total, unknown = Pass(), []
    _add(total, code.once, 1.0)
    entered = {place[0] for place in passes.loops} if passes else set()
    same: dict[Any, list[Loop]] = defaultdict(list)
    for loop in code.loops:
        same[loop.place].append(loop)

    def counted_passes(loop: Loop) -> float | None:
        n = passes.a_program(loop.place) if passes else None
        # A loop of the source that was never entered by this way is passed by.
        return 0.0 if n is None and loop.place and loop.place[0] in entered else n

    def times(loop: Loop) -> float:
        n = counted_passes(loop)
        if n is not None:
            # Of two loops of one place, the larger is the smaller several times, but for a rest.
            sizes = [x.inner.issued for x in same[loop.place]]
            if loop is not max(same[loop.place], key=lambda x: x.inner.issued):
                return 0.0
            return n / max(1, round(max(sizes) / max(1, min(sizes))))
        return 1.0 if loop.around is None else times(code.loops[loop.around])

    for loop in code.loops:
        if counted_passes(loop) is None:
            file, line = loop.place[0] if loop.place else ("?", 0)
            unknown.append(f"{file.rsplit('/', 1)[-1]}:{line}")
        _add(total, loop.inner, times(loop))
    return total, unknown


def _add(total: Pass, part: Pass, times: float) -> None:
    for name in ("issued", "xu", "exp2", "flop"):
        setattr(total, name, getattr(total, name) + times * getattr(part, name))


def cost(launch: Launch, passes: list[Passes], cells: int) -> dict[str, Any]:
    """Compiles one launch and counts it; see `computed` for the keys."""
    from bench.offline import compiled
    from bench.static import resource_usage

    binary = compiled(launch).asm["cubin"]
    code = read(disassembled(binary))
    constants = {k: v for k, v in launch.arguments.items() if k.isupper()}
    fitting = [p for p in passes if p.name == launch.name]
    best = min(fitting, key=lambda p: p.differences(constants), default=None)
    work, unknown = work_of(code, best)
    used = resource_usage(binary)
    threads = math.prod(launch.grid) * 32 * launch.options["num_warps"]
    tensors = [x for x in launch.arguments.values() if isinstance(x, dict)]
    times = {
        "issue": 1e6 * work.issued * threads / ISSUE,
        "xu": 1e6 * work.xu * threads / XU,
        "tensor": 1e6 * work.flop * threads / 32 / TENSOR,
        "memory": 1e6 * sum(map(_bytes, tensors)) / MEMORY,
    }
    return {
        "name": launch.name,
        "programs": math.prod(launch.grid),
        "warps": launch.options["num_warps"],
        "registers": used["REG"],
        "spilled": used["STACK"] + used["LOCAL"],
        "loops": [loop.inner.issued for loop in code.loops],
        "issued_a_cell": work.issued * threads / cells,
        "xu_a_cell": work.xu * threads / cells,
        "exp2_a_cell": work.exp2 * threads / cells,
        **{f"{name}_us": us for name, us in times.items()},
        "bound": max(times, key=times.__getitem__),
        "floor_us": max(times.values()),
        "us": max(LEAST, *times.values(), times["issue"] / FILLED),
        "passes_unknown": unknown,
    }


def _bytes(tensor: dict[str, Any]) -> float:
    size = {"float32": 4, "int32": 4, "int64": 8, "bool": 1, "uint8": 1, "int8": 1}
    shape = zip(tensor["shape"], tensor["stride"], strict=True)
    return math.prod(n if stride else 1 for n, stride in shape) * size.get(tensor["dtype"], 2)


def operation_us(operation: Operation) -> float:
    """Microseconds of an operation of torch."""
    if operation.name == "attention":
        return 1e6 * operation.flop / ATTENTION
    times = (operation.flop / TENSOR, operation.n_bytes / MEMORY)
    return max(LEAST, 1e6 * max(times))


def computed(shape: Shape, workers: int = 1) -> dict[str, Any]:
    """The count model of a shape.

    Returns:
        `parts` by name: launches with their counts and times, times of torch's kernels and of all,
        and `over_attention`; `forward` by name: times a layer and a forward, `over_bare`.
    """
    (found,) = recorded([shape], layers=True)
    passes = counted(shape)
    distinct = {x.key: x for count in found.values() for x in count.launches}
    cells = shape.batch * shape.heads * shape.tokens**2
    one = partial(cost, passes=passes, cells=cells)
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            costs = dict(zip(distinct, pool.map(one, distinct.values()), strict=True))
    else:
        costs = {key: one(launch) for key, launch in distinct.items()}
    attention = 1e6 * 4 * cells * shape.head_dim / ATTENTION
    parts = {name: _part(count, costs, attention) for name, count in found.items()}
    forward = {}
    for name in FORWARDS:
        layer, once = parts[f"layer {name}"]["us"], parts[f"once {name}"]["us"]
        forward[name] = {"layer_us": layer, "whole_us": once + LAYERS * layer}
    for row in forward.values():
        row["over_bare"] = row["whole_us"] / forward["bare"]["whole_us"]
    rates = {"tensor": TENSOR, "memory": MEMORY, "issue": ISSUE, "xu": XU, "attention": ATTENTION}
    return {
        "computed": "by counts and rates; nothing here was measured",
        "shape": asdict(shape),
        "rates_a_second": rates | {"issue_slots_filled": FILLED, "least_us": LEAST},
        "attention_us": attention,
        "parts": {k: v for k, v in parts.items() if not k.startswith(("layer ", "once "))},
        "forward": forward,
    }


def _part(count: Count, costs: dict[str, Any], attention: float) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    for launch in count.launches:
        row = rows.setdefault(launch.key, costs[launch.key] | {"times": 0})
        row["times"] += 1
    small = sum(map(operation_us, count.operations))
    ours = sum(row["times"] * row["us"] for row in rows.values())
    return {
        "launches": list(rows.values()),
        "torch_kernels": len(count.operations),
        "torch_us": small,
        "triton_us": ours,
        "us": small + ours,
        "over_attention": (small + ours) / attention,
    }


def text(model: dict[str, Any], *, markdown: bool = False) -> str:
    """The tables a person reads; with `markdown` as those of the GPU's README."""
    head = ["launch", "times", "warps", "registers", "spilled", "instructions a cell", "XU a cell"]
    head += ["tensor us", "XU us", "memory us", "issue us", "computed us", "bound by"]
    rows = []
    for part in ("attention full, head cones", "station", "station, angles"):
        for x in model["parts"][part]["launches"]:
            numbers = [x["times"], x["warps"], x["registers"], x["spilled"]]
            counts = [f"{x['issued_a_cell']:.2f}", f"{x['xu_a_cell']:.2f}"]
            names = ("tensor_us", "xu_us", "memory_us", "issue_us", "us")
            label = x["name"] if part.startswith("attention") else f"{part}: {x['name']}"
            rows.append([label, *numbers, *counts, *(f"{x[k]:.1f}" for k in names), x["bound"]])
    lines = [model["computed"], "", *_table(head, rows, markdown), ""]
    ratios = []
    for name, part in model["parts"].items():
        shares = [f"{part[k]:.0f}" for k in ("triton_us", "torch_us", "us")]
        ratios.append([name, part["torch_kernels"], *shares, f"{part['over_attention']:.2f}"])
    head = ["part", "torch kernels", "Triton us", "torch us", "all us", "over bare attention"]
    lines += [*_table(head, ratios, markdown), ""]
    forwards = [
        [name, f"{row['layer_us']:.0f}", f"{row['whole_us']:.0f}", f"{row['over_bare']:.2f}"]
        for name, row in model["forward"].items()
    ]
    head = ["forward of 12 layers", "a layer us", "whole us", "over bare"]
    return "\n".join([*lines, *_table(head, forwards, markdown)])


def _table(head: list[str], rows: list[list[Any]], markdown: bool) -> list[str]:
    cells = [head, *([str(x) for x in row] for row in rows)]
    if markdown:
        cells.insert(1, ["---"] * len(head))
        return ["| " + " | ".join(row) + " |" for row in cells]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    return ["  ".join(x.rjust(n) for x, n in zip(row, widths, strict=True)) for row in cells]


def main(shape: Shape, *, as_json: bool, markdown: bool, workers: int) -> int:
    """Prints the model."""
    model = computed(shape, workers)
    print(json.dumps(model, indent=1) if as_json else text(model, markdown=markdown))
    return 0
