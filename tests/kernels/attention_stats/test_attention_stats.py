"""The CPU implementation against the oracle, within derived bounds, and its promises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertgeom.kernels import attention_stats
from bertgeom.kernels._cpu import amx
from bertgeom.kernels.attention_stats import api
from bertgeom.kernels.attention_stats.cpu import run
from bertgeom.kernels.attention_stats.cpu.work import RESIDENT_TOKENS, scratch_floats
from bertgeom.kernels.attention_stats.options import GATE_MIXED, GATES
from bertgeom.kernels.attention_stats.tolerance import bounds, disagreements

pytestmark = pytest.mark.usefixtures("products")


def random_input(
    *,
    batch: int = 2,
    heads: int = 2,
    key_heads: int | None = None,
    tokens: int,
    dim: int = 32,
    spread: float = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """q, k, v as a projection leaves them, (B, N, H, d) in memory."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads, spread), (key_heads or heads, spread), (key_heads or heads, 1.0)]
    return [
        (factor * torch.randn(batch, tokens, h, dim, generator=generator)).to(dtype).transpose(1, 2)
        for h, factor in shapes
    ]


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Tensor | None = None,
    special: Tensor | None = None,
    groups: Tensor | None = None,
    **asked: Any,
) -> None:
    """Fails with every statistic that leaves the bounds derived for this input."""
    batch, _, tokens, dim = q.shape
    lengths = torch.full((batch,), tokens) if lengths is None else lengths
    known: dict[str, Any] = {
        "scale": dim**-0.5,
        "window": None,
        "tier": "full",
        "theta": 0.3,
        "near": 4,
        "n_offset_side": 12,
        "n_groups": 0,
        "rows": True,
        "columns": True,
    }
    known |= asked
    slots: dict[str, Any] = {"lengths": lengths, "special": special, "groups": groups}
    found = attention_stats(q, k, v, **slots, **known, impl="numba")
    limits = bounds(q, k, v, lengths, special, groups, api.checked_options(**known))
    assert disagreements(limits, found.output, found.values) == []


def ends_special(batch: int, tokens: int) -> Tensor:
    special = torch.zeros(batch, tokens, dtype=torch.bool)
    special[:, 0] = special[:, -1] = True
    return special


@pytest.mark.parametrize("tokens", [1, 2, 3, 17, 64, 65, 128])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.5, 4.0])
def test_flat_and_peaked_heads_of_odd_lengths(tokens: int, spread: float) -> None:
    q, k, v = random_input(tokens=tokens, spread=spread, seed=tokens)
    groups = torch.arange(2 * tokens, dtype=torch.int32).reshape(2, tokens) % 8
    check(q, k, v, special=ends_special(2, tokens), groups=groups, n_groups=3)


def test_a_window_of_426_tokens() -> None:
    q, k, v = random_input(batch=1, tokens=426, dim=64)
    check(q, k, v, special=ends_special(1, 426))


@pytest.mark.parametrize("dim", [16, 24, 64, 80, 128])
def test_head_dimensions(dim: int) -> None:
    check(*random_input(tokens=50, dim=dim, seed=dim))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    check(*random_input(tokens=60, dtype=dtype))


@pytest.mark.parametrize("tokens", [40, RESIDENT_TOKENS + 76])
@pytest.mark.parametrize("window", [0, 1, 5, 64])
def test_sliding_windows(tokens: int, window: int) -> None:
    q, k, v = random_input(batch=1, tokens=tokens, spread=1.5)
    check(q, k, v, window=window, special=ends_special(1, tokens))


def test_a_head_too_long_to_stay_in_memory() -> None:
    tokens = RESIDENT_TOKENS + 76
    q, k, v = random_input(batch=1, heads=1, tokens=tokens, spread=1.5)
    check(q, k, v, special=ends_special(1, tokens))


def test_grouped_heads_share_keys() -> None:
    check(*random_input(heads=6, key_heads=2, tokens=45))


def test_other_thresholds_and_scales() -> None:
    q, k, v = random_input(tokens=70, spread=2.0)
    check(q, k, v, theta=0.05, near=0, scale=0.5, n_offset_side=2)
    check(q, k, v, theta=1.0, near=64, scale=0.01, n_offset_side=32)


def test_short_windows_of_a_batch() -> None:
    q, k, v = random_input(batch=4, tokens=37)
    check(q, k, v, lengths=torch.tensor([37, 0, 1, 20]), special=ends_special(4, 37))


def test_any_memory_layout() -> None:
    q, k, v = random_input(tokens=30)
    for layout in (
        lambda x: x.contiguous(),
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.stack([x, x], -1)[..., 0],
    ):
        check(layout(q), k, layout(v))


def test_a_block_of_special_columns_and_of_confident_weights() -> None:
    q, k, v = random_input(tokens=96, spread=3.0, seed=3)
    special = torch.rand(2, 96, generator=torch.Generator().manual_seed(4)) < 0.3
    check(q, k, v, special=special, theta=0.15)


def test_whole_numbers_with_many_equal_weights() -> None:
    """Logits exact in float32, ties everywhere: bins and thresholds must not fall by rounding."""
    generator = torch.Generator().manual_seed(5)
    for tokens in (10, 20, 33):
        q, k, v = (
            torch.randint(-1, 2, (2, 3, tokens, 16), generator=generator).float() for _ in range(3)
        )
        check(q, k, v, scale=1.0, special=ends_special(2, tokens))


def constructed(columns: Tensor, sharpness: float = 40.0) -> list[Tensor]:
    """q, k, v whose head attends from row i to column columns[i] alone."""
    n = len(columns)
    key = torch.eye(n)
    return [x.view(1, 1, n, n) for x in (sharpness * key[columns], key, key)]


def of_blocks(n: int) -> list[Tensor]:
    member = torch.nn.functional.one_hot(torch.arange(n) * 4 // n).float()
    return [x.view(1, 1, n, 4) for x in (40 * member, member, member)]


def toward(c: Callable[[int], Tensor]) -> Callable[[int], list[Tensor]]:
    return lambda n: constructed(c(n))


def shifted(s: int) -> Callable[[int], Tensor]:
    return lambda n: (torch.arange(n) + s).clamp(0, n - 1)


PATTERNS: dict[str, tuple[str, Callable[[int], list[Tensor]]]] = {
    "identity": ("open", toward(torch.arange)),
    **{
        f"shift {s:+d}": (
            "forward" if s > 0 else "backward",
            toward(shifted(s)),
        )
        for s in (-4, -3, -2, -1, 1, 2, 3, 4)
    },
    "one content column": ("directional", toward(lambda n: torch.full((n,), n // 3))),
    "the separator": ("closed", toward(lambda n: torch.full((n,), n - 1))),
    "uniform": ("diffuse", lambda n: [torch.zeros(1, 1, n, 8)] * 3),
    "four blocks": ("cluster", of_blocks),
    "far permutation": ("instance", toward(lambda n: (torch.arange(n) + n // 2) % n)),
}


@pytest.mark.parametrize("tokens", [128, 426])
@pytest.mark.parametrize("name", PATTERNS)
def test_pure_patterns_come_out_pure(name: str, tokens: int) -> None:
    gate, pattern = PATTERNS[name]
    values = attention_stats(
        *pattern(tokens), scale=1.0, special=ends_special(1, tokens), impl="numba"
    ).values
    assert GATES[int(values["gate"])] == gate
    if tokens >= 400:
        assert float(values["gate_mass"][0, 0, GATES.index(gate)]) > 0.9


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 70),
    spread=st.floats(0, 6),
    near=st.integers(0, 6),
    window=st.one_of(st.none(), st.integers(0, 20)),
    n_special=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_identities(
    tokens: int, spread: float, near: int, window: int | None, n_special: int, seed: int
) -> None:
    q, k, v = random_input(batch=1, tokens=tokens, dim=8, spread=spread, seed=seed)
    special = torch.zeros(1, tokens, dtype=torch.bool)
    special[0, :n_special] = True
    asked: dict[str, Any] = {"near": near, "window": window, "special": special}
    x = attention_stats(q, k, v, rows=True, columns=True, impl="numba", **asked).values
    close: dict[str, Any] = {"rtol": 0, "atol": 5e-6}
    one = torch.ones(1, 2)
    parts = [x[f"attention_{name}"] for name in ("self", "forward", "backward")]
    assert torch.allclose(torch.stack(parts).sum(0), one, **close)
    assert torch.allclose(x["gate_mass"].sum(-1), one, **close)
    assert (x["gate_mass"] > -1e-6).all()
    assert torch.allclose(x["attention_received"].sum(-1) / tokens, one, **close)
    assert torch.allclose(x["attention_offset_profile"].sum(-1), one, **close)
    assert torch.allclose(x["block_map"].sum((-2, -1)), one, **close)
    assert torch.allclose(x["gate_mass"][..., 0], x["attention_special"], **close)
    visible = tokens if window is None else min(tokens, 2 * window + 1)
    entropy = x["query_entropy"]
    assert ((entropy > -1e-6) & (entropy < torch.tensor(visible).log() + 1e-5)).all()
    assert torch.allclose(entropy.mean(-1), x["attention_entropy"], **close)
    purity, top1 = x["attention_purity"], x["attention_top1"]
    assert ((1 / tokens - 1e-6 <= purity) & (purity <= top1 + 1e-6) & (top1 <= 1 + 1e-6)).all()
    low, middle = x["attention_k90_min"], x["attention_k90_median"]
    assert ((low >= 1) & (low <= middle) & (middle <= visible)).all()
    assert (middle >= 0.9 / x["attention_received_max"].clamp(min=1) - 1e-3).all()
    for name in ("attention_asymmetry", "logit_asymmetry"):
        assert ((x[name] >= 0) & (x[name] <= 1)).all()
    assert (x["logit_effective_rank"] <= min(8, tokens) + 1e-3).all()


def test_least_k90_of_a_row_follows_from_its_largest_weight() -> None:
    """ceil(0.9 / top1) <= k90, row by row: windows of one query row each, in turn."""
    q, k, v = random_input(batch=1, heads=4, tokens=33, spread=2.0)
    for i in range(33):
        one_row = q[:, :, i : i + 1].expand(-1, -1, 33, -1)
        x = attention_stats(one_row, k, v, impl="numba").values
        least = (0.9 * (1 - 1e-4) / x["attention_top1"]).ceil()
        assert (x["attention_k90_min"] >= least).all()
        assert torch.equal(x["attention_k90_min"], x["attention_k90_median"])


def test_logit_asymmetry_of_equal_queries_and_keys_is_zero() -> None:
    q, _, v = random_input(tokens=50)
    values = attention_stats(q, q, v, impl="numba").values
    assert (values["logit_asymmetry"] < 1e-6).all()


def test_positions_do_not_matter_to_position_free_statistics() -> None:
    q, k, v = random_input(batch=1, tokens=77, spread=1.5)
    special = ends_special(1, 77)
    order = torch.randperm(77, generator=torch.Generator().manual_seed(1))
    before = attention_stats(q, k, v, special=special, rows=True, columns=True).values
    q, k, v = (x[:, :, order] for x in (q, k, v))
    after = attention_stats(q, k, v, special=special[:, order], rows=True, columns=True).values
    for name in (
        "entropy",
        "entropy_std",
        "top1",
        "purity",
        "k90_median",
        "k90_min",
        "special",
        "confident_mass",
        "confident_count",
        "received_entropy",
        "received_max",
        "value_entropy",
        "asymmetry",
    ):
        x, y = before[f"attention_{name}"], after[f"attention_{name}"]
        assert torch.allclose(x.double(), y.double(), rtol=1e-5, atol=1e-5), name
    for name in ("logit_asymmetry", "logit_effective_rank"):
        assert torch.allclose(before[name], after[name], rtol=1e-5, atol=1e-6), name
    for name in ("query_entropy", "attention_received"):
        assert torch.allclose(before[name][..., order], after[name], rtol=1e-5, atol=1e-5), name


def assert_same_bits(x: api.AttentionStats, y: api.AttentionStats, b: int, n: int) -> None:
    """Window b of y, whose first n slots are valid, is the only window of x."""
    assert torch.equal(x.output[0], y.output[b, :, :n])
    for name, value in x.values.items():
        other = y.values[name][b]
        other = other[:, :n] if name in ("query_entropy", "attention_received") else other
        assert torch.equal(value[0], other), name


@pytest.mark.parametrize("dim", [24, 64])
@pytest.mark.parametrize("window", [None, 7])
def test_padding_and_the_rest_of_the_batch_change_no_bit(dim: int, window: int | None) -> None:
    """Whatever lies in padded slots, too: here it is NaN."""
    q, k, v = random_input(batch=3, tokens=71, dim=dim)
    lengths = torch.tensor([70, 71, 33])
    special = ends_special(3, 71)
    asked: dict[str, Any] = {"rows": True, "columns": True, "window": window, "impl": "numba"}
    for b, n in enumerate(lengths.tolist()):
        for x in (q, k, v):
            x[b, :, n:] = torch.nan
    batch = attention_stats(q, k, v, lengths=lengths, special=special, **asked)
    for b, n in enumerate(lengths.tolist()):
        alone = [x[b : b + 1, :, :n].contiguous() for x in (q, k, v)]
        one = attention_stats(*alone, special=special[b : b + 1, :n], **asked)
        assert_same_bits(one, batch, b, n)
        assert not batch.output[b, :, n:].any()


def test_neither_repetition_nor_the_number_of_threads_changes_a_bit() -> None:
    inputs = random_input(batch=3, heads=3, tokens=90)
    before = torch.get_num_threads()
    found = []
    try:
        for n_threads in (1, 2, 3, 2):
            torch.set_num_threads(n_threads)
            found.append(attention_stats(*inputs, rows=True, columns=True, impl="numba"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for b in range(3):
            values = {k: x[b : b + 1] for k, x in found[0].values.items()}
            one = api.AttentionStats(found[0].output[b : b + 1], values)
            assert_same_bits(one, other, b, 90)


def test_python_threads_may_call_at_once() -> None:
    inputs = [random_input(tokens=60 + 20 * i, seed=i) for i in range(3)]
    expected = [attention_stats(*x, impl="numba") for x in inputs]
    found: dict[tuple[int, int], api.AttentionStats] = {}

    def work(i: int) -> None:
        for repeat in range(5):
            found[i, repeat] = attention_stats(*inputs[i], impl="numba")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    for (i, _), stats in found.items():
        assert torch.equal(stats.output, expected[i].output)
        for name, x in expected[i].values.items():
            assert torch.equal(stats.values[name], x), name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("tokens", [40, 130])
@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_a_head_that_is_not_finite_has_no_statistics_and_spoils_no_other(
    impl: str, tokens: int, bad: float
) -> None:
    q, k, v = random_input(batch=2, heads=2, tokens=tokens)
    asked: dict[str, Any] = {
        "groups": torch.ones(2, tokens, dtype=torch.int32),
        "n_groups": 2,
        "rows": True,
        "columns": True,
        "impl": impl,
    }
    clean = attention_stats(q, k, v, **asked)
    q[1, 0, 5, 3] = bad
    k[0, 1, 7, 0] = bad
    spoiled = attention_stats(q, k, v, **asked)
    for name, x in spoiled.values.items():
        for b, h in ((1, 0), (0, 1)):
            missing = GATE_MIXED if name == "gate" else 0
            empty = x[b, h].isnan() if x.is_floating_point() else x[b, h] == missing
            assert empty.all(), name
        for b, h in ((0, 0), (1, 1)):
            assert torch.equal(spoiled.output[b, h], clean.output[b, h])
            assert torch.equal(x[b, h], clean.values[name][b, h]), name


def test_memory_of_long_heads_grows_with_the_length_alone() -> None:
    sizes = [scratch_floats(n, 64, 4, 0.3, n) for n in (4096, 8192, 16384)]
    assert sizes[1] < 2 * sizes[0]
    assert sizes[2] < 2 * sizes[1]
    assert 4 * sizes[1] < 13 * 2**20


@pytest.mark.parametrize("tokens", [33, 512, 577, 608, 1000, RESIDENT_TOKENS, 1100])
@pytest.mark.parametrize("window", [None, 40])
def test_nothing_is_written_beyond_the_scratch_memory(
    tokens: int, window: int | None, guards: Any
) -> None:
    q, k, v = random_input(batch=1, heads=3, tokens=tokens)
    attention_stats(q, k, v, window=window, impl="numba")
    guards.check()


@pytest.mark.parametrize("tokens", [8192, 32768])
def test_long_windows_take_little_more_memory_than_their_vectors(tokens: int) -> None:
    """A matrix of their weights would be 256 MiB, or 4 GiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc on this system")

    def now(field: str) -> float:
        line = next(x for x in status.read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) / 1024

    q, k, v = random_input(batch=1, heads=1, tokens=tokens, dim=16)
    attention_stats(q[:, :, :64], k[:, :, :64], v[:, :, :64], impl="numba")
    Path("/proc/self/clear_refs").write_text("5")
    before = now("VmRSS")
    values = attention_stats(q, k, v, impl="numba").values
    assert now("VmHWM") - before < 64
    assert float(values["gate_mass"].sum()) == pytest.approx(1, abs=1e-5)
    assert float(values["attention_offset_profile"].sum()) == pytest.approx(1, abs=1e-5)


def test_compiled_functions_leave_no_copies_to_run_instead_of_one_another() -> None:
    """Whether a process compiles or loads from disk must not change a bit: see `_cpu.inner`."""
    from bertgeom.kernels._cpu import strips, vectors
    from bertgeom.kernels.attention_stats.cpu import head, products, rows, second_look
    from bertgeom.kernels.attention_stats.cpu import work as _cpu_work

    compiled = {
        x
        for module in (run, head, products, rows, second_look, _cpu_work, vectors, amx, strips)
        for x in vars(module).values()
        if hasattr(x, "targetoptions") and hasattr(x, "py_func")
    }
    assert len(compiled) > 30
    outer = {x.__name__ for x in compiled if not x.targetoptions.get("forceinline")}
    assert outer == {"_sweep", "most_floats"}


def test_nearly_orthogonal_queries_and_keys_keep_their_logit_statistics() -> None:
    """|S| is a thousandth of |Q| |K|: products in float32 would leave few digits."""
    q, k, v = random_input(batch=1, tokens=80, dim=32, spread=1.0)
    q[..., 16:] *= 1e-3
    k[..., :16] *= 1e-3
    check(q, k, v)


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e6])
def test_logit_statistics_do_not_depend_on_the_size_of_queries_and_keys(size: float) -> None:
    for tokens in (5, 50):
        q, k, v = random_input(batch=1, tokens=tokens)
        expected = attention_stats(q, k, v, impl="numba").values
        found = attention_stats(size * q, k * size, v, scale=1e-20, impl="numba").values
        for name in ("logit_asymmetry", "logit_effective_rank"):
            assert torch.allclose(found[name], expected[name], rtol=1e-5), name


TEXT = """The genome of a virus is a text of thirty thousand letters, and a model that has read many
of them attends to some of its letters more than to others. Whether it looks back, looks ahead, or
looks at nothing at all is what these statistics are about; the separator at the end of a sentence
is where a head often looks when it has nothing to say. The same head, the same habit, always."""


def test_heads_of_a_trained_model(minilm: Path) -> None:
    """Sharp heads, idle heads on the separator, heads of neighbours: what random numbers lack."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(minilm).eval()
    ids = AutoTokenizer.from_pretrained(minilm)(TEXT, return_tensors="pt")["input_ids"]
    seen: dict[str, list[Tensor]] = {"query": [], "key": [], "value": []}
    for layer in model.encoder.layer:
        for name, outputs in seen.items():
            linear = getattr(layer.attention.self, name)
            linear.register_forward_hook(lambda _, __, x, outputs=outputs: outputs.append(x))
    with torch.inference_mode():
        model(input_ids=ids)
    special = ends_special(1, ids.shape[1])
    for q, k, v in zip(*seen.values(), strict=True):
        split = [x.unflatten(-1, (12, -1)).transpose(1, 2) for x in (q, k, v)]
        check(*split, special=special)


def test_without_torch_s_own_threads_and_blas_others_do_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bertgeom.kernels._cpu import runtime

    q, k, v = random_input(tokens=80)
    before = torch.get_num_threads()
    monkeypatch.setattr(runtime, "_address", lambda name: 0)
    runtime._blas_address.cache_clear()
    try:
        torch.set_num_threads(2)
        check(q, k, v)
    finally:
        torch.set_num_threads(before)
        runtime._blas_address.cache_clear()


def test_stale_code_on_disk_is_not_used(tmp_path: Path) -> None:
    """A change in a file that a compiled function calls into counts as a change of the function."""
    from bertgeom.kernels._cpu import disk_cache

    (tmp_path / "one.py").write_text("x = 1\n")
    first = disk_cache.source_stamp(tmp_path)
    disk_cache.source_stamp.cache_clear()
    assert disk_cache.source_stamp(tmp_path) == first
    (tmp_path / "another.py").write_text("y = 2\n")
    disk_cache.source_stamp.cache_clear()
    assert disk_cache.source_stamp(tmp_path) != first
