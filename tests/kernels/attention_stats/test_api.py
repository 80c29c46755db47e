"""`attention_stats`: what it accepts, what it refuses, and where valid tokens may lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bertgeom.kernels import attention_stats, cone_sums
from bertgeom.kernels.attention_stats import options
from bertgeom.variables import ATTENTION_VARIABLES, GATE_MIXED, GATES, MAX_GROUPS, N_BLOCKS


def qkv(batch: int = 2, heads: int = 2, tokens: int = 9, dim: int = 8, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, tokens, dim, generator=generator) for _ in range(3)]


def test_constants_are_those_of_the_declared_variables() -> None:
    assert options.GATES == GATES
    assert options.GATE_MIXED == GATE_MIXED
    assert options.MAX_GROUPS == MAX_GROUPS
    assert options.N_BLOCKS == N_BLOCKS


@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_every_declared_statistic_is_returned_and_no_other(impl: str) -> None:
    q, k, v = qkv()
    found = attention_stats(
        *(q, k, v),
        groups=torch.ones(2, 9, dtype=torch.int32),
        n_groups=2,
        rows=True,
        columns=True,
        impl=impl,
    )
    assert set(found.values) == {variable.name for variable in ATTENTION_VARIABLES}
    core = attention_stats(q, k, v, tier="core", impl=impl).values
    declared = {x.name for x in ATTENTION_VARIABLES if x.tier == "core" and x.keep is None}
    assert set(core) == declared - {"attention_group_mass"}


@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_head_cones_are_those_of_the_cone_kernel(impl: str) -> None:
    q, _, _ = qkv(heads=4, tokens=130)
    _, k, v = qkv(heads=2, tokens=130)
    k[0, 0, 3] = 0
    v[1, 1, 5, 2] = torch.nan
    asked: dict[str, Any] = {"lengths": torch.tensor([130, 77]), "impl": impl}
    found = attention_stats(q, k, v, head_cones=True, **asked)
    wide = (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), found.output)
    cones = [cone_sums(x, axis_angles=False, **asked) for x in wide]
    for name in ("cone_index", "cone_mean_cosine"):
        expected = torch.stack([c[name] for c in cones], dim=-1)
        torch.testing.assert_close(
            found.values[f"head_{name}"], expected, rtol=0, atol=0, equal_nan=True
        )
        assert expected.isnan().sum() == 4  # values and outputs of two heads


@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_shapes_and_dtypes(impl: str) -> None:
    q, k, v = qkv()
    stats = attention_stats(q, k, v, n_offset_side=5, rows=True, columns=True, impl=impl)
    assert stats.output.shape == q.shape
    shapes = {
        "gate_mass": (2, 2, 8),
        "attention_offset_profile": (2, 2, 11),
        "block_map": (2, 2, 16, 16),
        "query_entropy": (2, 2, 9),
        "attention_received": (2, 2, 9),
    }
    dtypes = {
        "attention_k90_median": torch.int32,
        "attention_k90_min": torch.int32,
        "gate": torch.uint8,
    }
    for name, x in stats.values.items():
        assert x.shape == shapes.get(name, (2, 2)), name
        assert x.dtype == dtypes.get(name, torch.float32), name


def test_the_output_is_laid_out_for_the_projection_that_follows() -> None:
    assert attention_stats(*qkv()).output.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_valid_tokens_may_lie_anywhere(impl: str) -> None:
    """Left padding and holes: the same numbers as without the padded slots."""
    q, k, v = qkv(batch=3, tokens=11)
    mask = torch.ones(3, 11, dtype=torch.int64)
    mask[0, :4] = 0
    mask[1, [2, 5, 6, 10]] = 0
    special = torch.zeros(3, 11, dtype=torch.bool)
    special[:, 4] = True
    groups = torch.arange(33, dtype=torch.int32).reshape(3, 11) % 4
    for x in (q, k, v):
        x.transpose(1, 2)[mask == 0] = torch.nan
    asked: dict[str, Any] = {"n_groups": 2, "rows": True, "columns": True, "impl": impl}
    whole = attention_stats(q, k, v, mask=mask, special=special, groups=groups, **asked)
    for b in range(3):
        kept = mask[b].bool()
        alone = attention_stats(
            *(x[b : b + 1, :, kept] for x in (q, k, v)),
            special=special[b : b + 1, kept],
            groups=groups[b : b + 1, kept],
            **asked,
        )
        assert torch.equal(whole.output[b][:, kept], alone.output[0])
        assert not whole.output[b][:, ~kept].any()
        for name, x in alone.values.items():
            y = whole.values[name][b]
            if name in ("query_entropy", "attention_received"):
                assert y[:, ~kept].isnan().all()
                y = y[:, kept]
            assert torch.equal(x[0], y), name


def test_a_mask_of_leading_slots_is_the_same_as_lengths() -> None:
    q, k, v = qkv()
    mask = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    masked = attention_stats(q, k, v, mask=mask)
    counted = attention_stats(q, k, v, lengths=torch.tensor([9, 4]))
    assert torch.equal(masked.output, counted.output)
    for name, x in counted.values.items():
        assert torch.equal(x, masked.values[name]), name


@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_a_window_without_tokens_has_missing_values(impl: str) -> None:
    q, k, v = (x.fill_(torch.nan) for x in qkv(batch=1))
    stats = attention_stats(q, k, v, lengths=torch.tensor([0]), rows=True, columns=True, impl=impl)
    assert not stats.output.any()
    for name, x in stats.values.items():
        if name == "gate":
            assert (x == GATE_MIXED).all()
        elif x.is_floating_point():
            assert x.isnan().all(), name
        else:
            assert not x.any(), name


def as_ints(x: Tensor) -> Tensor:
    return x.int()


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": lambda x: x.double()}, TypeError, "query: expected float32, float16 or bfloat16"),
    ({"key": lambda x: x.half()}, TypeError, "key: expected the query's dtype torch.float32"),
    ({"value": as_ints}, TypeError, "value: expected float32"),
    ({"query": lambda x: x[0]}, ValueError, r"query: expected \(B, H, N, d\)"),
    ({"query": lambda x: x[:, :, :0]}, ValueError, "no empty dimension"),
    ({"key": lambda x: x[..., :4]}, ValueError, "expected key and value"),
    ({"value": lambda x: x[:, :, :5]}, ValueError, "expected key and value"),
    ({"query": lambda x: x.repeat(1, 2, 1, 1)[:, :3]}, ValueError, "divides 3, found 2"),
    ({"lengths": torch.tensor([9])}, ValueError, "lengths: expected 2 integers"),
    ({"lengths": torch.tensor([9, 10])}, ValueError, r"0 to 9 tokens, found \[9, 10\]"),
    ({"lengths": torch.tensor([9.0, 2.0])}, ValueError, "lengths: expected 2 integers"),
    ({"special": torch.zeros(2, 8, dtype=torch.bool)}, ValueError, r"special: expected shape"),
    ({"special": torch.zeros(2, 9)}, TypeError, "special: expected torch.bool"),
    ({"groups": torch.zeros(2, 9), "n_groups": 1}, TypeError, "groups: expected torch.int32"),
    ({"n_groups": 2}, ValueError, "n_groups=2: expected groups"),
    ({"n_groups": 17}, ValueError, "n_groups: expected 0 to 16 groups"),
    ({"tier": "half"}, ValueError, "tier: expected 'core' or 'full', found 'half'"),
    ({"theta": 0.0}, ValueError, r"theta: expected a share in \(0, 1\]"),
    ({"near": 65}, ValueError, "near: expected 0 to 64"),
    ({"window": -1}, ValueError, "window: expected None or at least 0"),
    ({"scale": 0.0}, ValueError, "scale: expected a positive number"),
    ({"scale": float("nan")}, ValueError, "scale: expected a positive number"),
    ({"n_offset_side": 0}, ValueError, "n_offset_side: expected 1 to 32"),
    ({"impl": "cuda"}, ValueError, "found 'cuda'"),
    (
        {"lengths": torch.tensor([1, 2]), "mask": torch.ones(2, 9, dtype=torch.bool)},
        ValueError,
        "lengths or mask, found both",
    ),
    ({"query": lambda x: x.requires_grad_()}, ValueError, "run under torch.inference_mode"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = dict(zip(("query", "key", "value"), qkv(), strict=True))
    for name, x in change.items():
        arguments[name] = x(arguments[name]) if callable(x) else x
    with pytest.raises(error, match=message):
        attention_stats(**arguments)


def test_a_gradient_is_no_obstacle_where_none_is_recorded() -> None:
    q, k, v = (x.requires_grad_() for x in qkv())
    with torch.inference_mode():
        assert not attention_stats(q, k, v).output.requires_grad
