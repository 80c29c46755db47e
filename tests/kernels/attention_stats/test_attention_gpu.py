"""The Triton attention statistics against the float64 oracle.

Every test runs on two devices: a GPU (marker `gpu`), and the CPU under Triton's interpreter. The
interpreter must be chosen before triton is imported, so `test_attention_gpu_interpreter.py` runs
this file once more in a process of its own; elsewhere those cases are skipped.

Tolerances are derived. A kernel may err by what a plain computation in the same precision errs
against float64 on the same inputs, doubled, and by a rounding band of the working precision. Where
a statistic counts weights above a threshold, weights within the band of it may fall on either side.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bertgeom.kernels import attention_stats
from bertgeom.kernels.attention_stats import reference
from bertgeom.kernels.attention_stats.options import K90_MASS, SLACK, Options

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32

#: Rounding of sums of up to n weights in fp32, in units of the largest value.
BAND = 128 * torch.finfo(torch.float32).eps
#: Statistics whose weights are rounded to the input's type for the indicator product.
ROUNDED = {"block_map", "gate_mass"}


@pytest.fixture(
    params=[
        pytest.param(
            "cpu",
            id="interpreter",
            marks=pytest.mark.skipif(
                not INTERPRETED, reason="run by test_attention_gpu_interpreter.py"
            ),
        ),
        pytest.param("cuda", id="device", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels run."""
    return str(request.param)


@dataclass(frozen=True)
class Case:
    """Shapes and settings of one comparison."""

    n: int
    d: int
    dtype: torch.dtype = HALF
    batch: int = 1
    heads: int = 1
    key_heads: int = 1
    lengths: tuple[int, ...] | None = None
    window: int | None = None
    tier: str = "full"
    near: int = 4
    sharpness: float = 1.5

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        window = "" if self.window is None else f"-window{self.window}"
        return f"{dtype}-n{self.n}-d{self.d}-h{self.heads}-near{self.near}{window}-{self.tier}"


CASES = [
    Case(1, 16, SINGLE),
    Case(3, 24, HALF, batch=2, lengths=(3, 0)),
    Case(17, 16, SINGLE, heads=4, key_heads=2),
    Case(65, 64, BRAIN, heads=2, key_heads=1),
    Case(65, 128, SINGLE),
    Case(65, 100, HALF, tier="core", sharpness=4),
    Case(130, 64, HALF, batch=2, lengths=(70, 130)),
    Case(130, 128, HALF, near=0),
    Case(130, 24, SINGLE, near=64, sharpness=6),
    Case(130, 32, HALF, window=20),
    Case(65, 32, SINGLE, window=0),
    Case(530, 16, HALF, near=64, sharpness=3, tier="core"),
]


def tensors(case: Case, device: str) -> dict[str, Any]:
    """Inputs of `attention_stats` for a case, heads behind slots as a model lays them out."""
    seed = torch.Generator().manual_seed(case.n * 131 + case.d)

    def states(heads: int, size: float = 1.0) -> Tensor:
        x = torch.randn(case.batch, case.n, heads, case.d, generator=seed) * size
        return x.to(case.dtype).transpose(1, 2).to(device)

    inputs = {
        "query": states(case.heads, case.sharpness),
        "key": states(case.key_heads),
        "value": states(case.key_heads),
        "special": (torch.rand(case.batch, case.n, generator=seed) < 0.1).to(device),
        "groups": torch.randint(0, 8, (case.batch, case.n), generator=seed).int().to(device),
    }
    if case.lengths is not None:
        inputs["lengths"] = torch.tensor(case.lengths, device=device)
    return inputs


def settings(case: Case) -> dict[str, Any]:
    """The rest of the arguments."""
    return {
        "tier": case.tier,
        "window": case.window,
        "near": case.near,
        "n_groups": 3,
        "n_offset_side": 6,
        "rows": True,
        "columns": True,
    }


def options(case: Case) -> Options:
    """The same settings as the oracle takes them."""
    return Options(
        scale=case.d**-0.5,
        window=case.window,
        full=case.tier == "full",
        theta=0.3,
        near=case.near,
        n_offset_side=6,
        n_groups=3,
        rows=True,
        columns=True,
    )


def weights_of_window(case: Case, inputs: dict[str, Any], b: int, dtype: torch.dtype) -> Tensor:
    """A (H, n, n) of window b, plainly computed in `dtype`."""
    n = case.n if case.lengths is None else case.lengths[b]
    q = inputs["query"][b, :, :n].to(dtype)
    k = inputs["key"][b, :, :n].to(dtype).repeat_interleave(case.heads // case.key_heads, 0)
    return reference.attention_weights(q, k, options(case))


def allowed(case: Case, inputs: dict[str, Any], name: str, exact: Tensor, b: int) -> float:
    """How far a statistic of window b may be from the oracle's."""
    unit = BAND + (torch.finfo(case.dtype).eps if name in ROUNDED else 0.0)
    size = exact[b].double().nan_to_num().abs().max().item()
    error = 0.0
    n = case.n if case.lengths is None else case.lengths[b]
    single, double = (weights_of_window(case, inputs, b, t) for t in (SINGLE, torch.float64))
    special = inputs["special"][b, :n]
    names = {"query_entropy", "attention_received", "attention_group_mass"}
    if n and not name.startswith("logit") and name not in names:
        rough = reference.weight_statistics(single, special, options(case))[name]
        fine = reference.weight_statistics(double, special, options(case))[name]
        error = (rough.double() - fine.double()).abs().max().item()
    return (
        2 * error
        + unit * max(1.0, size)
        + straddling(case, inputs, name, double, b, max(1.0, size))
    )


def straddling(
    case: Case, inputs: dict[str, Any], name: str, weights: Tensor, b: int, size: float
) -> float:
    """What weights on an edge, counted on either side of it, and cancelling digits may change."""
    n = weights.shape[-1]
    if n == 0:
        return 0.0
    if name.startswith("attention_confident"):
        edge = 0.3 * (1 - SLACK)
        cells = ((weights / edge - 1).abs() < BAND).sum().item()
        return cells / n
    if name.startswith("logit"):
        # Gram matrices lose what Q and K have in directions that the other does not see.
        q, k = (x[b].double() for x in (inputs["query"][:, :, :n], inputs["key"][:, :, :n]))
        k = k.repeat_interleave(case.heads // case.key_heads, 0)
        seen = (q @ k.mT).square().sum((-2, -1))
        share = seen / (q.square().sum((-2, -1)) * k.square().sum((-2, -1)))
        return 2 * BAND * size / share.min().item()
    if name == "attention_value_entropy":
        low, high = weights.amin((-2, -1), keepdim=True), weights.amax((-2, -1), keepdim=True)
        x = 20 * (weights - low) / (high - low) + 20 * SLACK
        cells = ((x - x.round()).abs() < 20 * BAND).sum((-2, -1)).max().item()
        return cells * 2 * torch.tensor(float(n * n)).log().item() / n**2
    return 0.0


def k90_bounds(weights: Tensor) -> tuple[Tensor, Tensor]:
    """k90 of every row (H, n) with the asked mass a rounding band lower and higher."""
    held = weights.sort(dim=-1, descending=True).values.cumsum(-1)
    low, high = (((held < K90_MASS * (1 + s * BAND)).sum(-1) + 1) for s in (-1, 1))
    return low, high


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_oracle_within_the_derived_budget(case: Case, device: str) -> None:
    inputs = tensors(case, device)
    found = attention_stats(**inputs, **settings(case), impl="triton")
    exact = attention_stats(**inputs, **settings(case), impl="reference")
    assert found.values.keys() == exact.values.keys()
    for name, want in exact.values.items():
        have = found.values[name]
        assert have.shape == want.shape, name
        assert have.dtype == want.dtype, name
        assert torch.equal(have.isnan(), want.isnan()), name
        if "k90" in name or name == "gate":
            continue
        for b in range(case.batch):
            error = (have[b].double() - want[b].double()).abs().nan_to_num().max().item()
            assert error <= allowed(case, inputs, name, want, b), (name, b, error)
    assert_k90(case, inputs, found.values)
    assert_gate(found.values)
    assert_output(case, inputs, found.output, exact.output)


def assert_k90(case: Case, inputs: dict[str, Any], values: Mapping[str, Tensor]) -> None:
    if case.tier != "full":
        return
    for b in range(case.batch):
        weights = weights_of_window(case, inputs, b, torch.float64)
        if weights.shape[-1] == 0:
            assert not values["attention_k90_median"][b].any()
            continue
        low, high = k90_bounds(weights)
        for name, of in (("median", lambda x: x.median(-1).values), ("min", lambda x: x.amin(-1))):
            have = values[f"attention_k90_{name}"][b]
            assert (of(low) <= have).all(), name
            assert (have <= of(high)).all(), name


def assert_gate(values: Mapping[str, Tensor]) -> None:
    mass, code = values["gate_mass"], values["gate"].long()
    pure = mass.amax(-1) > 0.5
    assert torch.equal(code[pure], mass.argmax(-1)[pure])
    assert (code[mass.amax(-1) < 0.5 - 1e-4] == 8).all()


def assert_output(case: Case, inputs: dict[str, Any], found: Tensor, exact: Tensor) -> None:
    assert found.dtype == case.dtype
    assert found.transpose(1, 2).is_contiguous()
    for b in range(case.batch):
        n = case.n if case.lengths is None else case.lengths[b]
        assert not found[b, :, n:].any()
        repeat = case.heads // case.key_heads
        value = inputs["value"][b, :, :n].repeat_interleave(repeat, 0)
        weights = weights_of_window(case, inputs, b, torch.float64)
        rounded = weights.to(case.dtype).double() @ value.double()
        error = (rounded - weights @ value.double()).abs().amax().item() if n else 0.0
        size = value.double().abs().amax().item() if n else 0.0
        limit = 2 * error + (torch.finfo(case.dtype).eps + BAND) * size
        assert (found[b].double() - exact[b].double()).abs().max().item() <= limit


def power_of_two_classes(n: int, seed: torch.Generator) -> Tensor:
    """A class for every one of n tokens; every class has a power of two of members."""
    classes, left, c = [], n, 0
    while left:
        size = min(1 << int(torch.randint(0, 4, (1,), generator=seed)), 1 << left.bit_length() - 1)
        classes += [c] * size
        left -= size
        c += 1
    return torch.tensor(classes)[torch.randperm(n, generator=seed)]


@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE], ids=str)
@pytest.mark.parametrize("n", [48, 129])
def test_integer_values_come_out_exactly(n: int, dtype: torch.dtype, device: str) -> None:
    seed = torch.Generator().manual_seed(n)
    # Query i meets the keys of one class with a logit of 256, all others with 0: exp(-256) is 0
    # in fp32, so that the weights are exactly 1 / 2^m.
    classes = power_of_two_classes(n, seed)
    n_classes = int(classes.max()) + 1
    d = 64
    wanted = torch.randint(0, min(n_classes, d), (n,), generator=seed)
    key = torch.nn.functional.one_hot(classes, max(n_classes, d))[:, :d].to(dtype)
    query = 256 * torch.nn.functional.one_hot(wanted, d).to(dtype)
    value = torch.randint(-8, 9, (n, d), generator=seed).to(dtype)
    member = (wanted[:, None] == classes).double()
    weights = member / member.sum(-1, keepdim=True)
    q, k, v = (x[None, None].to(device) for x in (query, key, value))
    found = attention_stats(q, k, v, scale=1.0, columns=True, rows=True, impl="triton")
    assert torch.equal(
        found.output[0, 0].double().cpu(), (weights @ value.double()).to(dtype).double()
    )
    received = found.values["attention_received"][0, 0].double().cpu()
    assert torch.equal(received, weights.sum(0))
    offset = torch.arange(n)[None, :] - torch.arange(n)[:, None]
    assert_dyadic(found.values, "attention_self", weights * (offset == 0))
    assert_dyadic(found.values, "attention_forward", weights * (offset > 0))
    assert_dyadic(found.values, "attention_backward", weights * (offset < 0))
    assert_dyadic(found.values, "attention_offset", weights * offset)
    assert_dyadic(found.values, "attention_distance", weights * offset.abs())
    assert_dyadic(found.values, "attention_purity", weights**2)
    crossed = (weights * weights.T).sum() / (weights**2).sum()
    assert found.values["attention_asymmetry"].item() == pytest.approx(1 - crossed.item(), abs=3e-7)
    members = member.sum(-1)
    ninety = torch.ceil(0.9 * members - 1e-3).to(torch.int32)
    assert found.values["attention_k90_median"].item() == ninety.median().item()
    assert found.values["attention_k90_min"].item() == ninety.min().item()


def assert_dyadic(values: Mapping[str, Tensor], name: str, cells: Tensor) -> None:
    """Sums of multiples of 1/64 are exact in fp32; only the division by n rounds, once or twice."""
    mean = cells.sum().item() / cells.shape[-1]
    assert values[name].item() == pytest.approx(mean, rel=2e-7, abs=0), name


SMALL = Case(65, 24, HALF, batch=2, heads=2, lengths=(65, 33))


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of values that differ in any bit, NaN being equal to NaN."""
    return [k for k in a if not torch.equal(a[k].nan_to_num(7.0), b[k].nan_to_num(7.0))]


def test_results_are_bitwise_repeatable_and_read_no_uninitialised_memory(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tensors(SMALL, device)
    first = attention_stats(**inputs, **settings(SMALL), impl="triton")
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def poisoned(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return x.fill_(torch.nan)
        return x.fill_(-(2**30) if x.dtype == torch.int32 else 77)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda x, *a, **k: poisoned(new_empty(x, *a, **k))
    )
    second = attention_stats(**inputs, **settings(SMALL), impl="triton")
    assert same(first.values, second.values) == []
    assert torch.equal(first.output, second.output)


def test_padding_and_neighbours_change_nothing(device: str) -> None:
    inputs = tensors(SMALL, device)
    whole = attention_stats(**inputs, **settings(SMALL), impl="triton")
    alone = {
        k: x[1:, :33] if x.dim() == 2 else x[1:, :, :33] for k, x in inputs.items() if x.dim() > 1
    }
    garbage = {k: x.clone() for k, x in inputs.items()}
    for name in ("query", "key", "value"):
        garbage[name][1, :, 33:] = torch.nan if name != "query" else torch.inf
    for other in (
        attention_stats(**alone, **settings(SMALL), impl="triton"),
        attention_stats(**garbage, **settings(SMALL), impl="triton"),
    ):
        for name, want in whole.values.items():
            have = other.values[name][-1]
            want = want[1]
            if name in ("query_entropy", "attention_received"):
                have, want = have[:, :33], want[:, :33]
            assert torch.allclose(have.double(), want.double(), rtol=1e-6, atol=1e-9), name
        assert torch.equal(other.output[-1][:, :33], whole.output[1][:, :33])


# The interpreter is numpy, which warns where a GPU makes NaN in silence.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("bad", "window"), [(torch.nan, None), (torch.inf, None), (-torch.inf, 9)], ids=str
)
def test_a_head_that_is_not_finite_has_no_statistics(
    bad: float, window: int | None, device: str
) -> None:
    case = replace(SMALL, key_heads=2, window=window)
    inputs = tensors(case, device)
    clean = attention_stats(**inputs, **settings(case), impl="triton").values
    inputs["query"][0, 0, 5, 3] = bad
    inputs["key"][1, 1, 7, 0] = bad
    spoiled = attention_stats(**inputs, **settings(case), impl="triton").values
    for name, x in spoiled.items():
        for b, h in ((0, 0), (1, 1)):
            missing = 8 if name == "gate" else 0
            empty = x[b, h].isnan() if x.is_floating_point() else x[b, h] == missing
            assert empty.all(), name
        for b, h in ((0, 1), (1, 0)):
            assert torch.equal(x[b, h].nan_to_num(7.0), clean[name][b, h].nan_to_num(7.0)), name


def test_equal_gates_go_to_the_lowest_code_and_none_below_one_half(device: str) -> None:
    """Half of every row on itself, half on the next token; a third on each side."""
    n = 9
    at = torch.arange(n)
    rows = [(at, (at + 1) % n), (at, (at + 1) % n, (at - 1) % n)]
    logits = torch.full((2, n, n), -200.0)
    for h, keys in enumerate(rows):
        for key in keys:
            logits[h, at, key] = 0
    query = torch.zeros(1, 2, n, 16, dtype=HALF)
    query[0, :, :, :n] = logits
    key = torch.eye(n, 16, dtype=HALF).expand(query.shape)
    query, key = query.to(device), key.to(device)
    found = attention_stats(query, key, key, scale=1.0, near=1, tier="core", impl="triton").values
    mass = found["gate_mass"][0].cpu()
    assert mass[0, 1] == 0.5
    assert mass[1].max() < 0.5
    assert found["gate"][0].tolist() == [1, 8]


def test_any_strides_give_the_same_bits(device: str) -> None:
    inputs = tensors(SMALL, device)
    plain = attention_stats(**inputs, **settings(SMALL), impl="triton")
    names = ("query", "key", "value")
    inputs["key"] = inputs["key"].expand(-1, 2, -1, -1)
    inputs["value"] = inputs["value"].expand(-1, 2, -1, -1)
    fused = torch.stack([inputs[x] for x in names], dim=3).contiguous()
    spread = torch.stack([inputs[x] for x in names], dim=-1).contiguous()
    for packed in (fused.unbind(3), spread.unbind(-1)):
        strided = inputs | dict(zip(names, packed, strict=True))
        found = attention_stats(**strided, **settings(SMALL), impl="triton")
        assert same(plain.values, found.values) == []
        assert torch.equal(plain.output, found.output)


def test_offsets_beyond_two_to_the_31_are_reached(device: str, tmp_path: Path) -> None:
    # Batch stride below 2^31, batch index times stride beyond it; the file is sparse.
    stride, n, d = 1_100_000_000, 20, 16
    shape, strides = (3, 1, n, d), (stride, n * d, d, 1)
    small = torch.randn(3, 1, n, d, generator=torch.Generator().manual_seed(1)).half().to(device)
    size = 2 * stride + n * d
    if device == "cpu":
        memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=size, dtype=HALF)
    else:
        memory = torch.empty(size, dtype=HALF, device=device)
    wide = memory.as_strided(shape, strides)
    wide.copy_(small)
    want = attention_stats(small, small, small, tier="full", impl="triton")
    have = attention_stats(wide, wide, wide, tier="full", impl="triton")
    assert same(want.values, have.values) == []
    assert torch.equal(want.output, have.output)


def test_equal_weights_count_as_equal(device: str) -> None:
    zero = torch.zeros(1, 1, 100, 16, dtype=HALF, device=device)
    values = attention_stats(zero, zero, zero, impl="triton").values
    assert values["attention_k90_median"].item() == 90
    assert values["attention_k90_min"].item() == 90
    assert values["attention_value_entropy"].item() == 0
    assert values["attention_asymmetry"].item() == pytest.approx(0, abs=1e-6)
    assert values["attention_entropy"].item() == pytest.approx(100 and 4.605170186, rel=1e-6)
    assert values["logit_asymmetry"].item() == 0


def test_large_logits_do_not_overflow(device: str) -> None:
    seed = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 1, 40, 64, generator=seed).to(device) * 3000 for _ in range(3))
    found = attention_stats(q, k, v, impl="triton").values
    exact = attention_stats(q, k, v, impl="reference").values
    for name in ("attention_entropy", "attention_top1", "logit_asymmetry", "logit_effective_rank"):
        assert found[name].item() == pytest.approx(exact[name].item(), rel=1e-4, abs=1e-4), name


def test_k90_of_long_windows_is_swept_to_the_same_counts(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(97, 16, HALF, sharpness=3)
    inputs = tensors(case, device)
    resident = attention_stats(**inputs, **settings(case), impl="triton")
    # Imported here: importing it imports Triton.
    from bertgeom.kernels.attention_stats.gpu import k90

    monkeypatch.setattr(k90, "RESIDENT_SLOTS", 0)
    swept = attention_stats(**inputs, **settings(case), impl="triton")
    assert same(resident.values, swept.values) == []
    assert_k90(case, inputs, swept.values)


def test_k90_of_every_row_takes_few_steps(device: str) -> None:
    """Sinks, neighbours and two levels are what the first threshold knows nothing of."""
    from bertgeom.kernels.attention_stats.gpu import k90
    from bertgeom.kernels.attention_stats.gpu import rows as _gpu_rows

    seed = torch.Generator().manual_seed(5)
    case = Case(100, 128, heads=6)
    noise = torch.randn(case.heads, case.n, case.n, generator=seed)
    offset = torch.arange(case.n)[None, :] - torch.arange(case.n)[:, None]
    noise[1] *= 3
    noise[2] = 0.3 * noise[2] + 4 * (offset == -offset[:, :1])
    noise[3] = 0.3 * noise[3] - offset.abs() / 8
    noise[4] = 0.01 * noise[4] + 6 * (noise[4] > 1.3)
    noise[5] = 0
    # Keys of an identity: the queries are the logits.
    query = torch.zeros(1, case.heads, case.n, case.d, dtype=HALF)
    query[0, :, :, : case.n] = noise
    key = torch.eye(case.n, case.d, dtype=HALF).expand(query.shape)
    query, key = query.to(device), key.to(device)
    lengths = torch.tensor([case.n], dtype=torch.int32, device=device)
    asked = replace(options(case), scale=1.0)
    _, rows = _gpu_rows.row_values(query, key, key, lengths, asked)
    counts = k90.k90_counts(query, key, rows, lengths, asked, max_steps=12)[0].cpu()
    low, high = k90_bounds(query[0, :, :, : case.n].cpu().double().softmax(-1))
    assert (low <= counts).all()
    assert (counts <= high).all()


def test_a_head_dimension_above_128_is_refused(device: str) -> None:
    x = torch.zeros(1, 1, 4, 160, dtype=HALF, device=device)
    with pytest.raises(ValueError, match=r"at most 128 .* found 160"):
        attention_stats(x, x, x, impl="triton")


@pytest.mark.skipif(not INTERPRETED, reason="compares CPU implementations")
def test_numba_and_triton_agree(device: str) -> None:
    if device != "cpu":
        pytest.skip("Numba takes CPU tensors")
    case = Case(70, 24, SINGLE, batch=2, heads=2, lengths=(70, 40))
    inputs = tensors(case, device)
    triton = attention_stats(**inputs, **settings(case), impl="triton")
    numba = attention_stats(**inputs, **settings(case), impl="numba")
    assert triton.values.keys() == numba.values.keys()
    for name, have in triton.values.items():
        want = numba.values[name]
        assert torch.equal(have.isnan(), want.isnan()), name
        for b in range(case.batch):
            error = (have[b].double() - want[b].double()).abs().nan_to_num().max().item()
            limit = (
                0 if "k90" in name or name == "gate" else 2 * allowed(case, inputs, name, want, b)
            )
            assert error <= limit, (name, b, error)
    assert torch.allclose(triton.output, numba.output, rtol=0, atol=1e-5)
