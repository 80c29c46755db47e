"""Kernels beside bare attention over lengths and head dimensions, and what bounds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.device import timing
from bench.device.smoke import heads
from bench.device.steps import Setup

N_INPUTS = 3


def ratios(setup: Setup) -> dict[str, Any]:
    """Core and full tier over the fastest bare attention, for every length and head dimension."""
    setup.require_oracle()
    sizes = setup.sizes
    found: dict[str, Any] = {"ratio": "median of the ratios within rounds"}
    for head_dim in sizes.head_dims:
        for n in sizes.lengths:
            batch = sizes.batch_of(n)
            shape = {"batch": batch, "heads": sizes.heads, "tokens": n, "head_dim": head_dim}
            found["table"], done = setup.rows("kernels", **shape)
            if done:
                continue
            if setup.left() <= 0:
                return found | {"stopped": "no time left"}
            inputs = [
                heads(setup, i, batch=batch, tokens=n, head_dim=head_dim) for i in range(N_INPUTS)
            ]
            entry = timing.side_by_side(
                _attention(setup), inputs, ("sdpa", "cudnn", "flash"), setup
            )
            found["table"].append(shape | entry)
            setup.note("kernels", **found)
    return found


def _attention(setup: Setup) -> dict[str, Callable[[Any], Any]]:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from bertgeom.kernels import attention_stats

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
    return todo


def angles(setup: Setup) -> dict[str, Any]:
    """The histogram of all angles within windows, as a share of the measured rate of products."""
    from bertgeom.kernels import pairwise_angle_histogram

    setup.require_oracle()
    sizes = setup.sizes
    generator = torch.Generator(setup.device).manual_seed(0)
    shape = (sizes.batch, sizes.tokens, sizes.hidden)
    inputs = [
        torch.randn(shape, generator=generator, device=setup.device).half() for _ in range(N_INPUTS)
    ]
    pairs = sizes.tokens * (sizes.tokens - 1) // 2
    counted = pairwise_angle_histogram(inputs[0], impl="triton")["angle_histogram"].sum(-1)
    if not bool((counted == pairs).all()):
        raise RuntimeError(f"expected {pairs} pairs a window, found {counted.tolist()}")
    todo = {"angles": lambda x: pairwise_angle_histogram(x, impl="triton")}
    found = timing.side_by_side(todo, inputs, ("angles",), setup)
    seconds = found["variants"]["angles"]["seconds_median"]
    rate = setup.results["steps"]["machine"]["matmul_flop_per_s"]
    share = 2.0 * sizes.hidden * pairs * sizes.batch / seconds / rate
    return {"seconds": seconds, "share_of_matmul_rate": share, "eager": found["eager"]}


def roofline(setup: Setup) -> dict[str, Any]:
    """Computed floors of every launch over its measured time; 1 is as fast as can be."""
    if setup.dry:
        # The model has a test of its own, and takes a minute.
        return {"launches": shares({}, {})}
    done = subprocess.run(
        [sys.executable, "-m", "bench.static", "--model", "--json", "--workers", "12"],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        timeout=max(30.0, setup.left()),
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"bench.static --model: {done.stderr.strip()[-500:]}")
    (setup.out / "model.json").write_text(done.stdout)
    measured = setup.results["steps"]["launches"]["launches"]
    return {"launches": shares(json.loads(done.stdout), measured)}


def shares(model: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """By part and launch: which rate bounds it, and the computed share of its measured time."""
    found: dict[str, Any] = {}
    for part, rows in measured.items():
        name_there = part if part.startswith("station") else f"attention {part}, head cones"
        computed = model.get("parts", {}).get(name_there, {}).get("launches", [])
        for name, row in rows.items():
            same = [x for x in computed if x["name"] == name.split(" ")[0]]
            if same and row.get("graph_us"):
                best = same[0]
                found.setdefault(part, {})[name] = {
                    "measured_us": row["graph_us"],
                    "bound": best["bound"],
                    "computed_us": best["floor_us"],
                    "share": round(best["floor_us"] / row["graph_us"], 3),
                }
    return found
