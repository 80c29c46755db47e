"""The oracle against numbers worked out by hand, and pure patterns against their names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bertgeom.kernels.attention_stats import reference
from bertgeom.kernels.attention_stats.options import GATE_MIXED, GATES, N_BLOCKS, Options


def options(**changes: Any) -> Options:
    settings: dict[str, Any] = {
        "scale": 1.0,
        "window": None,
        "full": True,
        "theta": 0.3,
        "near": 4,
        "n_offset_side": 10,
        "n_groups": 0,
        "rows": True,
        "columns": True,
    }
    return Options(**(settings | changes))


def measured(a: Tensor, special: Tensor | None = None, **changes: Any) -> dict[str, Tensor]:
    special = torch.zeros(len(a), dtype=torch.bool) if special is None else special
    values = reference.weight_statistics(a[None], special, options(**changes))
    return {name: x[0] for name, x in values.items()}


HAND = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_three_tokens_by_hand() -> None:
    found = measured(HAND, special=torch.tensor([True, False, False]), near=0)
    ln2 = math.log(2)
    expected = {
        "attention_entropy": (ln2 + 1.5 * ln2 + 0) / 3,
        "attention_entropy_std": ln2 * math.sqrt((1 + 2.25 + 0) / 3 - (2.5 / 3) ** 2),
        "attention_top1": 2 / 3,
        "attention_purity": (0.5 + 0.375 + 1) / 3,
        "attention_distance": (0.5 + 0.5 + 0) / 3,
        "attention_offset": (0.5 + 0 + 0) / 3,
        "attention_self": 2 / 3,
        "attention_forward": 0.75 / 3,
        "attention_backward": 0.25 / 3,
        "attention_special": 0.75 / 3,
        "attention_confident_mass": 2.5 / 3,
        "attention_confident_count": 4 / 3,
        "attention_received_max": 1.25 / 3,
        "attention_received_entropy": -sum(x / 3 * math.log(x / 3) for x in (0.75, 1, 1.25)),
        "attention_k90_median": 2,
        "attention_k90_min": 1,
        "attention_asymmetry": 2 * (0.25**2 + 0.25**2) / (2 * 1.875),
        "attention_value_entropy": -sum(x / 9 * math.log(x / 9) for x in (3, 2, 3, 1)),
    }
    for name, x in expected.items():
        assert float(found[name]) == pytest.approx(x, abs=1e-12), name
    profile = found["attention_offset_profile"] * 3
    assert profile[8:13].tolist() == [0, 0.25, 2.0, 0.75, 0]
    assert found["query_entropy"].tolist() == pytest.approx([ln2, 1.5 * ln2, 0])
    assert found["attention_received"].tolist() == [0.75, 1.0, 1.25]


def test_offsets_fall_into_doubling_bins_and_the_last_one_takes_the_rest() -> None:
    n = 40
    for offset, place in ((0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (8, 4), (9, 5), (39, 5)):
        a = torch.zeros(n, n, dtype=torch.float64)
        a[0, offset] = 1
        profile = reference.offset_profile(a[None], 5)[0]
        assert profile[5 + place] * n == 1
        assert reference.offset_profile(a.T[None], 5)[0][5 - place] * n == 1


def test_k90_of_ten_equal_weights_is_nine() -> None:
    for dtype in (torch.float32, torch.float64):
        a = torch.full((1, 10, 10), 0.1, dtype=dtype)
        assert (reference.smallest_count(a) == 9).all()


def test_logits_by_hand() -> None:
    # S = [[0, 2], [0, 0]]: half symmetric, half skew, one singular value.
    q = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    k = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]], dtype=torch.float64)
    found = reference.logit_statistics(q, k)
    assert float(found["logit_asymmetry"]) == pytest.approx(0.5)
    assert float(found["logit_effective_rank"]) == pytest.approx(1.0)
    found = reference.logit_statistics(torch.eye(4)[None].double(), 3 * torch.eye(4)[None].double())
    assert float(found["logit_asymmetry"]) == pytest.approx(0, abs=1e-15)
    assert float(found["logit_effective_rank"]) == pytest.approx(4)
    found = reference.logit_statistics(0 * q, k)
    assert float(found["logit_asymmetry"]) == float(found["logit_effective_rank"]) == 0


def one_hot_rows(columns: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(columns, len(columns)).double()


def shifted(by: int) -> Callable[[int], Tensor]:
    return lambda n: one_hot_rows((torch.arange(n) + by).clamp(0, n - 1))


def blocks(n: int) -> Tensor:
    member = torch.nn.functional.one_hot(torch.arange(n) * 4 // n).double()
    a = member @ member.T
    return a / a.sum(-1, keepdim=True)


PATTERNS: dict[str, tuple[str, Callable[[int], Tensor]]] = {
    "identity": ("open", lambda n: one_hot_rows(torch.arange(n))),
    **{f"shift {s:+d}": ("forward", shifted(s)) for s in (1, 2, 3, 4)},
    **{f"shift {-s:+d}": ("backward", shifted(-s)) for s in (1, 2, 3, 4)},
    "one content column": ("directional", lambda n: one_hot_rows(torch.full((n,), n // 3))),
    "the separator": ("closed", lambda n: one_hot_rows(torch.full((n,), n - 1))),
    "uniform": ("diffuse", lambda n: torch.full((n, n), 1 / n, dtype=torch.float64)),
    "four blocks": ("cluster", blocks),
    "far permutation": ("instance", lambda n: one_hot_rows((torch.arange(n) + n // 2) % n)),
}


@pytest.mark.parametrize("n", [128, 400, 512])
@pytest.mark.parametrize("name", PATTERNS)
def test_pure_patterns_come_out_pure(name: str, n: int) -> None:
    gate, pattern = PATTERNS[name]
    special = torch.zeros(n, dtype=torch.bool)
    special[[0, n - 1]] = True
    found = measured(pattern(n), special=special)
    assert GATES[int(found["gate"])] == gate
    if n >= 400:
        assert float(found["gate_mass"][GATES.index(gate)]) > 0.9
    assert float(found["gate_mass"].sum()) == pytest.approx(1)


def test_no_gate_with_half_of_the_mass_is_mixed_and_ties_go_to_the_lowest_code() -> None:
    mass = torch.zeros(3, 8)
    mass[0, [2, 5]] = 0.5
    mass[1, [1, 2, 3]] = 1 / 3
    mass[2] = torch.nan
    assert reference.dominant_gate(mass).tolist() == [2, GATE_MIXED, GATE_MIXED]


def test_block_structure_is_zero_without_far_mass_and_for_one_block() -> None:
    empty = torch.zeros(2, N_BLOCKS, N_BLOCKS)
    empty[1, 3, 3] = 1
    assert reference.block_structure(empty).tolist() == [0, 0]
