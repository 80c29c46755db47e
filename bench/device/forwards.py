"""Whole forwards: bare, compiled, with attention statistics, with everything; time and memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import workloads
from bench.device import timing
from bench.device.steps import Setup
from bench.workloads import GATED, Workload
from bertgeom.config import MeasureSettings
from bertgeom.model.attention import NAME, record
from bertgeom.variables import n_offset_side

#: Largest error of the first layer's statistics, whose inputs are those of the oracle.
BUDGET = {"float16": 2e-3, "float32": 1e-4}


def ratios(setup: Setup) -> dict[str, Any]:
    """BERT-base and an ESM shape at every length, all over the fastest bare forward."""
    setup.require_oracle()
    sizes = setup.sizes
    found: dict[str, Any] = {"ratio": "median of the ratios within rounds"}
    order = sorted(sizes.lengths, key=lambda n: n != sizes.tokens)
    bert = workloads.bert_base
    for make in (bert, workloads.esm):
        for n in order:
            facts = {"model": make.__name__, "tokens": n, "batch": sizes.batch_of(n)}
            found["table"], done = setup.rows("forwards", **facts)
            if done:
                continue
            if setup.left() <= 0:
                return found | {"stopped": "no time left"}
            work = _work(make, n, setup)
            gate = oracle(work, setup)
            entry: dict[str, Any] = facts | {"name": work.name, "oracle": gate}
            whole = n == sizes.tokens
            # Maps of a whole batch of longer windows do not fit on a device.
            todo = variants(work, setup, compiled=whole, materialised=whole and make is bert)
            bases = ("bare", "bare, cudnn", "bare, compiled")
            entry["eager"] = timing.side_by_side(todo, work.batches[:2], bases, setup, graphs=False)
            replayed = _without_fetch(work)
            entry["graph"] = timing.side_by_side(replayed, work.batches[:1], ("bare",), setup)
            ran = {k: run for k, run in todo.items() if k not in entry["eager"]["failed"]}
            entry["memory"] = memory(work, ran, setup)
            found["table"].append(entry)
            setup.note("forwards", **found)
            del work, todo, replayed
            if setup.cuda:
                torch.cuda.empty_cache()
    return found


def _work(make: Any, n: int, setup: Setup) -> Workload:
    sizes = setup.sizes
    options: dict[str, Any] = {"layers": sizes.layers}
    if setup.dry:
        options |= {"hidden": sizes.hidden, "heads": sizes.heads}
    dtype = getattr(torch, setup.dtype)
    work: Workload = make(n, sizes.batch_of(n), device=setup.device, dtype=dtype, **options)
    return work


def everything(work: Workload, tier: str, impl: str, ids: Tensor, *, fetch: bool = True) -> Any:
    """A forward with all statistics; on the host with `fetch`."""
    settings = MeasureSettings(
        tier=tier, n_offset_side=n_offset_side(work.special.shape[1]), impl=impl
    )
    work.model.set_attn_implementation(NAME)
    with record(special_tokens_mask=work.special[: len(ids)], settings=settings) as recorder:
        work.model(input_ids=ids)
    return recorder.arrays() if fetch else recorder


def oracle(work: Workload, setup: Setup) -> dict[str, float]:
    """Largest error of the first layer, and of all, against the oracle on one window.

    Outputs are rounded to the model's type, so that what later layers see drifts apart: their
    difference is stated, and gates nothing.

    Raises:
        RuntimeError: if the first layer is off; then nothing of this model may be timed.
    """
    ids = work.batches[0][:1]
    ours = everything(work, "full", "triton", ids)
    exact = everything(work, "full", "reference", ids)
    first, last = {}, {}
    for name in GATED:
        off = np.abs(ours[name].astype(np.float64) - exact[name])
        first[name], last[name] = float(off[:, 0].max()), float(off.max())
    worst, budget = max(first, key=first.__getitem__), BUDGET[setup.dtype]
    if not first[worst] <= budget and not setup.ungated:
        raise RuntimeError(f"expected {worst} within {budget} of the oracle, found {first[worst]}")
    return {"first_layer": first[worst], "all_layers": max(last.values())}


def variants(
    work: Workload, setup: Setup, *, compiled: bool, materialised: bool
) -> dict[str, Callable[[Tensor], Any]]:
    """The ways to do the forward, eager, statistics on the host at the end."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    bare = workloads.bare(work)

    def cudnn(ids: Tensor) -> Any:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return bare(ids)

    todo: dict[str, Callable[[Tensor], Any]] = {"bare": bare}
    if setup.cuda:
        todo["bare, cudnn"] = cudnn
    if compiled:
        todo["bare, compiled"] = _compiled(work, setup)
    for tier in ("core", "full"):
        todo[f"attention, {tier}"] = workloads.attention(work, tier, "triton")
        todo[f"everything, {tier}"] = partial(everything, work, tier, "triton")
    if materialised:
        todo["materialised"] = workloads.materialised_way(work)
    return todo


def _compiled(work: Workload, setup: Setup) -> Callable[[Tensor], Any]:
    """The bare model through torch's compiler; a dry run does not generate code."""
    backend = "inductor" if setup.cuda else "eager"
    model = torch.compile(work.model, backend=backend, dynamic=False)

    def run(ids: Tensor) -> Any:
        work.model.set_attn_implementation("sdpa")
        with torch.no_grad():
            return model(input_ids=ids)

    return run


def _without_fetch(work: Workload) -> dict[str, Callable[[Tensor], Any]]:
    """What a graph can hold: forwards whose results stay on the device."""
    todo: dict[str, Callable[[Tensor], Any]] = {"bare": workloads.bare(work)}
    for tier in ("core", "full"):
        todo[f"everything, {tier}"] = partial(everything, work, tier, "triton", fetch=False)
    return todo


def memory(
    work: Workload, todo: dict[str, Callable[[Tensor], Any]], setup: Setup
) -> dict[str, float]:
    """Bytes beyond those of the weights, at their peak in one forward, by variant."""
    if not setup.cuda:
        return dict.fromkeys(todo, float("nan"))
    found = {}
    for name, run in todo.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(work.batches[0])
        torch.cuda.synchronize()
        found[name] = float(torch.cuda.max_memory_allocated() - before)
    return found
