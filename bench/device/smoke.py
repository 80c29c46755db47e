"""The first three minutes: what machine this is, whether results are right, where time goes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.device import timing
from bench.device.steps import Setup, sources
from bench.launches import captured

#: Largest errors that the oracle lets pass: statistics relative to max(1, |x|), by dtype; weights
#: enter two products rounded to the dtype. Outputs are rounded to the dtype, too.
BUDGET = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
OUTPUT = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def machine(setup: Setup) -> dict[str, Any]:
    """Device, versions, and the two rates that floors are counted with."""
    from bench.run import environment

    found: dict[str, Any] = {"environment": environment(setup.device), "sources": sources()}
    sizes = setup.sizes
    if setup.cuda:
        properties = torch.cuda.get_device_properties(setup.device)
        found["multiprocessors"] = properties.multi_processor_count
        found["memory_bytes"] = properties.total_memory
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    generator = torch.Generator(setup.device).manual_seed(1)
    dtype = getattr(torch, setup.dtype)
    shape = (sizes.matmul, sizes.matmul)
    a, b = (
        torch.randn(shape, generator=generator, device=setup.device).to(dtype) for _ in range(2)
    )
    x = torch.randn(sizes.copied // 4, generator=generator, device=setup.device)
    y = torch.empty_like(x)
    product = timing.one(lambda: a @ b, setup)
    copy = timing.one(lambda: y.copy_(x), setup)
    found["matmul_flop_per_s"] = 2e6 * sizes.matmul**3 / _best(product)
    found["copy_bytes_per_s"] = 2e6 * sizes.copied / _best(copy)
    return found


def _best(found: dict[str, Any]) -> float:
    return float(found["graph_us"] or found["eager_us"])


def heads(
    setup: Setup,
    seed: int,
    *,
    batch: int | None = None,
    tokens: int | None = None,
    head_dim: int | None = None,
    dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (B, H, N, d) as a model lays them out; logits of about 1 nat."""
    sizes = setup.sizes
    generator = torch.Generator(setup.device).manual_seed(seed)
    shape = (batch or sizes.batch, tokens or sizes.tokens, sizes.heads, head_dim or sizes.head_dim)

    def states() -> Tensor:
        x = torch.randn(shape, generator=generator, device=setup.device)
        return x.to(dtype).transpose(1, 2)

    return states(), states(), states()


def right(setup: Setup) -> dict[str, Any]:
    """Largest error of every statistic against the oracle; whole numbers; equal bits twice."""
    found: dict[str, Any] = {}
    dtypes = (torch.float16, torch.float32) if setup.dry else BUDGET
    for dtype in dtypes:
        found[str(dtype).removeprefix("torch.")] = _against_oracle(setup, dtype)
    found["whole_numbers_off_by"] = _whole_numbers(setup)
    found["stations"] = _stations_against_oracle(setup)
    parts = {name: x for name, x in found.items() if isinstance(x, dict)}
    wrong = [f"{name}: {x['wrong']}" for name, x in parts.items() if x["wrong"]]
    wrong += [f"{name}: other bits twice" for name, x in parts.items() if not x["equal_bits_twice"]]
    wrong += ["whole numbers"] if found["whole_numbers_off_by"] else []
    return found | {"agrees": not wrong, "disagrees": wrong}


def _against_oracle(setup: Setup, dtype: torch.dtype) -> dict[str, Any]:
    from bertgeom.kernels import attention_stats

    n = setup.sizes.tokens
    x = heads(setup, 1, batch=2, dtype=dtype)
    special = torch.zeros(2, n, dtype=torch.bool, device=setup.device)
    special[:, 0] = True
    lengths = torch.tensor([n, max(1, n - 37 if n > 37 else n - 5)], device=setup.device)

    def ask(impl: str) -> Any:
        return attention_stats(*x, lengths=lengths, special=special, head_cones=True, impl=impl)

    ours, again, exact = ask("triton"), ask("triton"), ask("reference")
    errors = {
        name: error(ours.values[name], want)
        for name, want in exact.values.items()
        if want.is_floating_point()
    }
    off = float((ours.output.double() - exact.output.double()).abs().max())
    names = exact.values
    counts = ("attention_k90_median", "attention_k90_min")
    wrong = {name: e for name, e in errors.items() if not e <= BUDGET[dtype]}
    wrong |= {"output": off} if not off <= OUTPUT[dtype] else {}
    moved = {c: int((ours.values[c] != names[c]).sum()) for c in counts}
    return {
        "wrong": wrong,
        "worst": dict(sorted(errors.items(), key=lambda item: -item[1])[:8]),
        "output_off_by": off,
        "counts_that_differ": moved,
        "equal_bits_twice": all(_same(ours.values[k], again.values[k]) for k in names)
        and _same(ours.output, again.output),
    }


def error(have: Tensor, want: Tensor) -> float:
    """Largest |have - want| / max(1, |want|); infinite where one of both is NaN alone."""
    if bool((have.isnan() != want.isnan()).any()):
        return float("inf")
    off = (have.double() - want.double()).abs() / want.double().abs().clamp(min=1)
    return float(off.nan_to_num(0.0).max())


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def _whole_numbers(setup: Setup) -> float:
    """Largest error where the output is known: equal weights, and one key a query.

    A compiler that reuses the operands of an asynchronous product too early shows here.
    """
    from bertgeom.kernels import attention_stats

    sizes = setup.sizes
    n = 1 << (sizes.tokens.bit_length() - 1)
    worst = 0.0
    for seed in range(2 if setup.dry else 8):
        generator = torch.Generator(setup.device).manual_seed(seed)
        shape = (2, sizes.heads, n, sizes.head_dim)
        value = torch.randint(-8, 9, shape, generator=generator, device=setup.device).half()
        zero = torch.zeros_like(value)
        mean = value.double().mean(2, keepdim=True).half().expand_as(value)
        got = attention_stats(zero, zero, value, tier="core", impl="triton").output
        worst = max(worst, float((got.double() - mean.double()).abs().max()))
        # Keys are corners of a cube, written in bits; a query is the corner that it asks for.
        bits = torch.arange(n, device=setup.device)[:, None] >> torch.arange(
            sizes.head_dim, device=setup.device
        ).clamp(max=30)
        corner = (2.0 * (bits & 1) - 1.0).half().expand(shape)
        order = torch.randperm(n, generator=generator, device=setup.device)
        asked = attention_stats(
            corner[:, :, order] * 64, corner, value, scale=1.0, tier="core", impl="triton"
        ).output
        worst = max(worst, float((asked.double() - value[:, :, order].double()).abs().max()))
    return worst


def _stations_against_oracle(setup: Setup) -> dict[str, Any]:
    """What leaves the derived bounds of a station; equal bits twice."""
    from bertgeom.kernels import statistics_of_stations
    from bertgeom.kernels.cone_angles.tolerance import angle_disagreements, cone_disagreements
    from bertgeom.kernels.stations.tolerance import stream_disagreements

    sizes = setup.sizes
    generator = torch.Generator(setup.device).manual_seed(3)
    x = torch.randn(2, sizes.tokens, sizes.hidden, generator=generator, device=setup.device) + 0.3
    x = x.half()

    def ask() -> dict[str, Tensor]:
        found = statistics_of_stations([x], angles=[True], impl="triton")
        return {name: value[0].cpu() for name, value in found.items()}

    ours, again = ask(), ask()
    states, lengths = x.cpu(), torch.full((2,), sizes.tokens)
    cones = {k: v[:, None] for k, v in ours.items() if k.startswith(("cone", "zero"))}
    angles = {k: v[0] for k, v in ours.items() if k.startswith("angle")}
    return {
        "wrong": [
            *stream_disagreements(states, lengths, ours, torch.float16),
            *cone_disagreements(states[:, None], lengths, cones),
            *angle_disagreements(states[0], None, angles, torch.float16),
        ],
        "equal_bits_twice": all(_same(ours[k], again[k]) for k in ours),
    }


def launches(setup: Setup) -> dict[str, Any]:
    """Every launch of both tiers and of a station alone, on the arguments that it really gets."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from bertgeom import kernels

    sizes = setup.sizes
    x = heads(setup, 2)
    special = torch.zeros(sizes.batch, sizes.tokens, dtype=torch.bool, device=setup.device)
    states = torch.randn(sizes.batch, sizes.tokens, sizes.hidden, device=setup.device).half()

    def backend(which: Any) -> Callable[[], Any]:
        def run() -> Any:
            with sdpa_kernel(which):
                return sdpa(*x)

        return run

    def attention(tier: str) -> Any:
        return kernels.attention_stats(
            *x, special=special, tier=tier, head_cones=True, impl="triton"
        )

    def station(angles: bool) -> Any:
        return kernels.statistics_of_stations([states], angles=[angles], impl="triton")

    whole: dict[str, Callable[[], Any]] = {"sdpa": lambda: sdpa(*x)}
    names = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    whole |= {name: backend(which) for name, which in names.items()} if setup.cuda else {}
    whole |= {"core": lambda: attention("core"), "full": lambda: attention("full")}
    whole |= {"station": lambda: station(False), "station, angles": lambda: station(True)}
    found: dict[str, Any] = {"whole": {}, "launches": {}}
    for name, call in whole.items():
        try:
            found["whole"][name] = timing.one(call, setup)
        except RuntimeError as error_:
            found["whole"][name] = {"failed": str(error_)[:300]}
        setup.note("launches", **found)
    for name in ("core", "full", "station", "station, angles"):
        found["launches"][name] = _each(whole[name], setup)
        setup.note("launches", **found)
    return found


def _each(call: Callable[[], Any], setup: Setup) -> dict[str, Any]:
    """Times of the launches of one call; equal launches once, with their number."""
    seen: list[tuple[Any, ...]] = []
    with captured(lambda *launch: seen.append(launch), run=True):
        call()
    found: dict[str, Any] = {}
    for kernel, grid, args, kwargs in seen:
        shape = [tuple(a.shape) for a in args if isinstance(a, Tensor)][:1]
        name = f"{kernel.fn.__name__} {shape[0] if shape else ''}".strip()
        if name in found:
            found[name]["times"] += 1
            continue
        run = kernel[grid]
        found[name] = timing.one(functools.partial(run, *args, **kwargs), setup)
        found[name]["times"] = 1
    return found
