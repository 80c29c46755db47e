"""Cone sums and pairwise angles on the CPU against the float64 oracle, and their identities.

Bounds come from `bertgeom.kernels.cone_angles.tolerance`, which derives them from the input.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bertgeom.kernels import cone_sums, pairwise_angle_histogram
from bertgeom.kernels.cone_angles import reference
from bertgeom.kernels.cone_angles.tolerance import angle_disagreements, cone_disagreements

pytestmark = pytest.mark.usefixtures("products")

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
SHAPES = [
    pytest.param(1, 3, 0.0, SINGLE, id="one"),
    pytest.param(2, 5, 0.0, SINGLE, id="two"),
    pytest.param(67, 33, 0.0, SINGLE, id="isotropic"),
    pytest.param(130, 64, 0.7, HALF, id="cone-fp16"),
    pytest.param(101, 48, 3.0, BRAIN, id="narrow-bf16"),
    pytest.param(200, 768, 0.5, SINGLE, id="bert"),
    pytest.param(99, 7, 1000.0, SINGLE, id="needle"),
]


def vectors(n: int, width: int, offset: float, *, sets: int = 1) -> Tensor:
    """(sets, n, width): Gaussian vectors of very different norms around a common direction."""
    seed = torch.Generator().manual_seed(n * 1009 + width)
    direction = torch.randn(width, generator=seed)
    x = torch.randn(sets, n, width, generator=seed) + offset * direction
    return x * torch.exp(torch.randn(sets, n, 1, generator=seed))


@pytest.mark.parametrize(("n", "width", "offset", "dtype"), SHAPES)
def test_cones_agree_with_the_oracle(n: int, width: int, offset: float, dtype: torch.dtype) -> None:
    x = vectors(n, width, offset, sets=6).reshape(2, 3, n, width).to(dtype)
    lengths = torch.tensor([n, n - n // 3])
    for with_axis in (True, False):
        found = cone_sums(x, lengths=lengths, axis_angles=with_axis)
        assert not cone_disagreements(x, lengths, found)


@pytest.mark.parametrize(("n", "width", "offset", "dtype"), SHAPES)
def test_angles_agree_with_the_oracle(
    n: int, width: int, offset: float, dtype: torch.dtype
) -> None:
    x, y = vectors(n, width, offset, sets=2).to(dtype)
    assert not angle_disagreements(x, None, pairwise_angle_histogram(x))
    assert not angle_disagreements(x, y[: n // 2 + 1], pairwise_angle_histogram(x, y[: n // 2 + 1]))


@pytest.mark.parametrize("bins", [1, 7, 180, 1024])
def test_any_number_of_bins_is_counted(bins: int) -> None:
    x = vectors(80, 16, 0.3)[0]
    assert not angle_disagreements(x, None, pairwise_angle_histogram(x, bins=bins))


def test_many_tiles_agree_with_the_oracle() -> None:
    x, y = vectors(1100, 32, 0.4, sets=2)
    assert not angle_disagreements(x, None, pairwise_angle_histogram(x))
    assert not angle_disagreements(x[:150], y, pairwise_angle_histogram(x[:150], y))


def test_the_mean_cosine_follows_from_the_sum_and_from_the_histogram() -> None:
    x = vectors(150, 40, 0.6)
    found = cone_sums(x)
    unit = torch.nn.functional.normalize(x[0].double(), dim=1)
    cosine = unit @ unit.T
    i, j = torch.triu_indices(150, 150, 1)
    assert found["cone_mean_cosine"].item() == pytest.approx(cosine[i, j].mean().item(), abs=1e-6)
    counts = pairwise_angle_histogram(x)["angle_histogram"][0].double()
    edges = torch.cos(torch.deg2rad(torch.arange(0, 181, 2, dtype=torch.float64)))
    from_bins = (counts * (edges[1:] + edges[:-1]) / 2).sum() / counts.sum()
    assert from_bins.item() == pytest.approx(found["cone_mean_cosine"].item(), abs=math.radians(1))


def test_the_resultant_lies_between_isotropy_and_one() -> None:
    n = 400
    isotropic = cone_sums(torch.randn(1, n, 256, generator=torch.Generator().manual_seed(5)))
    assert isotropic["cone_index"].item() == pytest.approx(math.sqrt(n), rel=0.2)
    parallel = cone_sums(torch.ones(1, n, 9) * torch.arange(1, n + 1)[:, None])
    assert parallel["cone_resultant"].item() == pytest.approx(1, abs=1e-6)
    assert parallel["cone_axis_angle_max"].item() < 1e-4


def test_histograms_hold_every_pair_of_non_zero_vectors_once() -> None:
    x = vectors(77, 12, 0.2)
    x[0, [3, 50, 76]] = 0
    assert cone_sums(x)["zero_vectors"].tolist() == [3]
    within = pairwise_angle_histogram(x)
    assert within["angle_histogram"].sum().item() == within["n_pairs"].item() == 74 * 73 // 2
    between = pairwise_angle_histogram(x, x[:, :20])
    assert between["angle_histogram"].sum().item() == between["n_pairs"].item() == 74 * 19
    assert not angle_disagreements(x[0], None, {k: v[0] for k, v in within.items()})


def test_pairs_of_a_union_are_those_of_the_parts_and_those_between_them() -> None:
    x, y = vectors(60, 32, 0.8, sets=2)
    whole = pairwise_angle_histogram(torch.cat([x, y]))
    parts = [
        pairwise_angle_histogram(x),
        pairwise_angle_histogram(y),
        pairwise_angle_histogram(x, y),
    ]
    together = {"angle_histogram": torch.stack([p["angle_histogram"] for p in parts]).sum(0)}
    weights = torch.stack([p["n_pairs"] for p in parts]).double()
    means = torch.stack([p["angle_mean"] for p in parts]).double()
    assert whole["angle_mean"].item() == pytest.approx(
        ((weights * means).sum() / weights.sum()).item(), rel=1e-6
    )
    together |= {k: whole[k] for k in ("angle_mean", "angle_std", "angle_min", "angle_max")}
    assert not angle_disagreements(torch.cat([x, y]), None, together)


def test_padding_and_neighbours_change_no_bit() -> None:
    x, y = vectors(90, 32, 0.5, sets=2)
    alone, angles = cone_sums(x[None]), pairwise_angle_histogram(x[None])
    between = pairwise_angle_histogram(x[None], y[None])
    padded = torch.full((2, 150, 32), torch.nan)
    padded[1, :90] = x
    padded[0, :7] = y[:7]
    others = torch.full((2, 200, 32), torch.nan)
    others[1, :90] = y
    lengths = torch.tensor([7, 90])
    for expected, found in (
        (alone, cone_sums(padded, lengths=lengths)),
        (angles, pairwise_angle_histogram(padded, lengths=lengths)),
        (
            between,
            pairwise_angle_histogram(
                padded, others, lengths=lengths, y_lengths=torch.tensor([0, 90])
            ),
        ),
    ):
        for name, value in expected.items():
            assert torch.equal(found[name][1], value[0]), name


@pytest.mark.usefixtures("threads")
def test_threads_and_repetition_change_no_bit() -> None:
    x = vectors(300, 32, 0.4, sets=3)
    results = []
    for n_threads in (1, 3, 2, 1):
        torch.set_num_threads(n_threads)
        results.append(cone_sums(x) | pairwise_angle_histogram(x) | pairwise_angle_histogram(x, x))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_a_mask_picks_the_rows() -> None:
    x = vectors(80, 32, 0.5, sets=2)
    mask = torch.rand(2, 80, generator=torch.Generator().manual_seed(1)) < 0.6
    found = cone_sums(x, mask=mask) | pairwise_angle_histogram(x, mask=mask)
    for b in range(2):
        rows = x[b, mask[b]][None]
        for name, value in (cone_sums(rows) | pairwise_angle_histogram(rows)).items():
            assert torch.equal(found[name][b], value[0]), name


def test_heads_are_read_where_the_model_left_them() -> None:
    x = vectors(70, 48, 0.3, sets=2)
    heads = x.view(2, 70, 3, 16).transpose(1, 2)
    assert not heads.is_contiguous()
    strided, copied = cone_sums(heads), cone_sums(heads.contiguous())
    for name, value in copied.items():
        assert value.shape == (2, 3)
        assert torch.equal(strided[name], value), name
    columns = vectors(16, 70, 0.3).mT
    assert torch.equal(
        cone_sums(columns)["cone_index"], cone_sums(columns.contiguous())["cone_index"]
    )


def test_the_order_of_tokens_does_not_matter() -> None:
    x = vectors(120, 30, 0.4)[0]
    order = torch.randperm(120, generator=torch.Generator().manual_seed(2))
    found = pairwise_angle_histogram(x[order])
    assert not angle_disagreements(x, None, found)
    assert not cone_disagreements(
        x[None, None], torch.tensor([120]), _lifted(cone_sums(x[None, order]))
    )


def _lifted(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[None] for name, value in values.items()}


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 0.01, 0.5, 1.9, 2.5])
@pytest.mark.parametrize("offset", [0.0, 4.0], ids=["isotropic", "narrow"])
def test_tiny_angles_and_those_near_180_keep_their_digits(degrees: float, offset: float) -> None:
    """From differences of vectors they are off by a rounding of the vectors, not of the cosine."""
    x = vectors(40, 64, offset)[0].double()
    unit = torch.nn.functional.normalize(x, dim=1)
    across = torch.nn.functional.normalize(unit[1] - (unit[1] @ unit[0]) * unit[0], dim=0)
    turn = math.radians(degrees)
    x[7] = 3 * (math.cos(turn) * unit[0] + math.sin(turn) * across)
    x[9] = -x[7]
    x = x.float()
    true = reference.degrees_between(
        reference.unit_vectors(x.double()[[0, 7]]), reference.unit_vectors(x.double()[[0, 7]])
    )[0, 1].item()
    rounding = math.degrees(8 * 2**-24)
    near = pairwise_angle_histogram(x[[0, 7, 20]])
    assert near["angle_min"].item() == pytest.approx(true, abs=rounding + 1e-5 * true)
    opposite = pairwise_angle_histogram(x[[0, 9, 20]])
    assert opposite["angle_max"].item() == pytest.approx(180 - true, abs=rounding + 2e-5)
    assert near["angle_histogram"][0 if true < 2 else 1] == 1
    assert opposite["angle_histogram"][89 if true < 2 else 88] == 1


def test_equal_vectors_meet_at_zero_and_opposite_ones_at_180() -> None:
    x = vectors(50, 100, 0.0)[0]
    x[10], x[20] = x[3], -2 * x[4]
    found = pairwise_angle_histogram(x)
    assert found["angle_min"] == 0
    assert found["angle_max"] == 180


def test_a_needle_of_vectors_keeps_its_spread() -> None:
    x = 1 + 1e-5 * vectors(60, 32, 0.0)[0]
    exact = reference.pairwise_angle_histogram(x[None], None, torch.tensor([60]), None, 90)
    found = pairwise_angle_histogram(x)
    assert found["angle_mean"].item() == pytest.approx(exact["angle_mean"].item(), rel=1e-3)
    assert found["angle_std"].item() == pytest.approx(exact["angle_std"].item(), rel=1e-2)


def test_orthogonal_vectors_meet_in_the_bin_that_starts_at_90() -> None:
    counts = pairwise_angle_histogram(torch.eye(13))["angle_histogram"]
    assert counts[45] == counts.sum() == 13 * 12 // 2
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    assert pairwise_angle_histogram(signs)["angle_histogram"][[45, 89]].tolist() == [2, 1]


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_neither_tiny_nor_huge_vectors_are_lost(size: float) -> None:
    x = vectors(30, 8, 0.5)
    found, expected = (
        f | pairwise_angle_histogram(v) for v in (x * size, x) for f in [cone_sums(v)]
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_nothing_is_made_up_where_nothing_is_defined() -> None:
    x = torch.zeros(5, 4, 3)
    x[1, 0] = 1
    x[2, :2] = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    x[3, 1, 1] = torch.nan
    x[4, 0, 0] = torch.inf
    lengths = torch.tensor([0, 4, 2, 4, 4])
    found = cone_sums(x, lengths=lengths)
    assert found["zero_vectors"].tolist() == [0, 3, 0, 0, 0]
    assert found["cone_index"].isnan().tolist() == [True, False, False, True, True]
    assert found["cone_mean_cosine"].isnan().tolist() == [True, True, False, True, True]
    assert found["cone_axis_angle_max"].isnan().tolist() == [True, False, True, True, True]
    assert found["cone_mean_cosine"][2] == -1
    angles = pairwise_angle_histogram(x, lengths=lengths)
    assert angles["n_pairs"].tolist() == [0, 0, 1, 0, 0]
    assert angles["angle_mean"].isnan().tolist() == [True, True, False, True, True]
    assert not cone_disagreements(x[:, None], lengths, {k: v[:, None] for k, v in found.items()})
    between = pairwise_angle_histogram(x, x.flip(0), lengths=lengths, y_lengths=lengths.flip(0))
    assert between["n_pairs"].tolist() == [0, 0, 4, 0, 0]


def test_what_does_not_fit_is_refused() -> None:
    x = torch.ones(2, 4, 3)
    with pytest.raises(TypeError, match="float32, float16 or bfloat16"):
        cone_sums(x.double())
    with pytest.raises(ValueError, match=r"expected \(B, \.\.\., N, D\)"):
        cone_sums(x[0])
    with pytest.raises(ValueError, match="none of them 0"):
        cone_sums(x[:, :0])
    with pytest.raises(ValueError, match="leave one out"):
        cone_sums(x, lengths=torch.tensor([1, 2]), mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="lengths of 0 to 4"):
        cone_sums(x, lengths=torch.tensor([1, 5]))
    with pytest.raises(ValueError, match="2 integer lengths"):
        cone_sums(x, lengths=torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="a mask"):
        cone_sums(x, mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="bins"):
        pairwise_angle_histogram(x, bins=0)
    with pytest.raises(ValueError, match="like x"):
        pairwise_angle_histogram(x, torch.ones(2, 4, 5))
    with pytest.raises(ValueError, match="y_lengths or y_mask"):
        pairwise_angle_histogram(x, y_lengths=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"\(B, N, D\) or \(N, D\)"):
        pairwise_angle_histogram(x[None])
