"""Stream moments and whole stations on the CPU against the float64 oracle, and their identities.

Bounds come from `tolerance.py` of the two kernels, which derive them from the input.
"""

from __future__ import annotations

from itertools import accumulate, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bertgeom.kernels import (
    cone_sums,
    pairwise_angle_histogram,
    station_statistics,
    statistics_of_stations,
    stream_moments,
)
from bertgeom.kernels.cone_angles.tolerance import angle_disagreements, cone_disagreements
from bertgeom.kernels.stations.tolerance import stream_disagreements

pytestmark = pytest.mark.usefixtures("products")

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
SHAPES = [
    pytest.param(1, 4, 0.0, SINGLE, id="one"),
    pytest.param(2, 3, 0.0, SINGLE, id="two"),
    pytest.param(40, 33, 0.5, SINGLE, id="wide"),
    pytest.param(150, 37, 1.0, HALF, id="long-fp16"),
    pytest.param(131, 96, 2.0, BRAIN, id="bf16"),
    pytest.param(120, 768, 0.3, SINGLE, id="bert"),
    pytest.param(70, 20, 100.0, SINGLE, id="needle"),
]


def states(n: int, width: int, offset: float, *, windows: int = 2) -> Tensor:
    """(windows, n, width): skewed entries, one outlier dimension, norms that differ."""
    seed = torch.Generator().manual_seed(n * 1009 + width)
    x = torch.randn(windows, n, width, generator=seed)
    x = x + 0.3 * x.square() + offset * torch.randn(width, generator=seed)
    x[..., width // 2] *= 8
    return x * torch.exp(0.5 * torch.randn(windows, n, 1, generator=seed))


@pytest.mark.parametrize(("n", "width", "offset", "dtype"), SHAPES)
def test_stream_moments_agree_with_the_oracle(
    n: int, width: int, offset: float, dtype: torch.dtype
) -> None:
    x = states(n, width, offset).to(dtype)
    lengths = torch.tensor([n, n - n // 3])
    assert not stream_disagreements(x, lengths, stream_moments(x, lengths=lengths))


@pytest.mark.parametrize(("n", "width", "offset", "dtype"), SHAPES)
@pytest.mark.parametrize("angles", [True, False], ids=["angles", "plain"])
def test_a_station_is_its_parts(
    n: int, width: int, offset: float, dtype: torch.dtype, angles: bool
) -> None:
    x = states(n, width, offset).to(dtype)
    if n > 9:
        x[0, 5] = 0
    lengths = torch.tensor([n, n - n // 3])
    found = station_statistics(x, lengths=lengths, angles=angles)
    expected = cone_sums(x, lengths=lengths) | stream_moments(x, lengths=lengths)
    assert not stream_disagreements(x, lengths, found)
    cones = {k: v[:, None] for k, v in found.items() if k.startswith(("cone", "zero"))}
    assert not cone_disagreements(x[:, None], lengths, cones)
    if angles:
        expected |= pairwise_angle_histogram(x, lengths=lengths)
        del expected["n_pairs"]
        for b in range(2):
            of_window = {k: v[b] for k, v in found.items() if k.startswith("angle")}
            assert not angle_disagreements(x[b, : lengths[b]], None, of_window)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)


def test_a_long_window_of_few_dimensions_has_the_ratio_of_its_small_matrix() -> None:
    x = states(1200, 12, 0.5, windows=1)
    lengths = torch.tensor([1200])
    assert not stream_disagreements(x, lengths, stream_moments(x))
    assert not stream_disagreements(x, lengths, station_statistics(x, angles=True))


def test_the_participation_ratio_counts_equal_directions() -> None:
    for rank, angles in product((1, 4, 30), (True, False)):
        x = torch.zeros(1, 2 * rank, 48)
        x[0, :rank, :rank] = torch.eye(rank)
        x[0, rank:, :rank] = -torch.eye(rank)
        found = station_statistics(x, angles=angles)["stream_participation_ratio"]
        assert found.item() == pytest.approx(rank, rel=1e-6)


def test_moments_of_a_gaussian_are_those_of_a_gaussian() -> None:
    x = 3 + 2 * torch.randn(1, 500, 256, generator=torch.Generator().manual_seed(3))
    found = {name: value.item() for name, value in stream_moments(x).items()}
    assert found["stream_mean"] == pytest.approx(3, abs=0.03)
    assert found["stream_variance"] == pytest.approx(4, rel=0.02)
    assert found["stream_skewness"] == pytest.approx(0, abs=0.03)
    assert found["stream_kurtosis"] == pytest.approx(0, abs=0.06)
    assert found["stream_norm_mean"] == pytest.approx((13 * 256) ** 0.5, rel=0.02)
    assert found["stream_rowsum_mean"] == pytest.approx(1500, rel=0.02)


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e9, 1e18])
def test_a_scale_only_scales(scale: float) -> None:
    x = states(60, 24, 0.5)
    for angles in (True, False):
        plain = station_statistics(x, angles=angles)
        scaled = station_statistics(x * scale, angles=angles)
        for name in (
            "stream_skewness",
            "stream_kurtosis",
            "stream_rowsum_skewness",
            "stream_participation_ratio",
            "stream_outlier_dims",
        ):
            torch.testing.assert_close(scaled[name], plain[name], rtol=1e-4, atol=1e-5)
        for name in ("stream_mean", "stream_norm_max"):
            torch.testing.assert_close(scaled[name], plain[name] * scale, rtol=1e-5, atol=0)


def test_a_large_common_offset_does_not_eat_the_moments() -> None:
    noise = states(100, 32, 0.0, windows=1)
    x = noise + 4096
    rounded = (x.double() - 4096).float()
    found, expected = stream_moments(x), stream_moments(rounded)
    for name in ("stream_variance", "stream_skewness", "stream_kurtosis"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        found["stream_participation_ratio"],
        expected["stream_participation_ratio"],
        rtol=1e-3,
        atol=0,
    )


def test_outlier_dimensions_are_counted() -> None:
    x = torch.randn(1, 64, 300, generator=torch.Generator().manual_seed(4))
    x[0, :, [17, 200]] += torch.tensor([40.0, -40.0])
    assert stream_moments(x)["stream_outlier_dims"].tolist() == [2]


@pytest.mark.parametrize("angles", [True, False], ids=["angles", "plain"])
def test_padding_and_neighbours_change_no_bit(angles: bool) -> None:
    x = states(100, 64, 0.4, windows=1)
    alone = station_statistics(x, angles=angles)
    padded = torch.full((5, 180, 64), torch.nan)
    padded[2, :100] = x[0]
    padded[3, :50] = 2 * x[0, 50:]
    lengths = torch.tensor([0, 0, 100, 50, 0])
    found = station_statistics(padded, lengths=lengths, angles=angles)
    for name, value in alone.items():
        assert torch.equal(found[name][2], value[0]), name


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("angles", [True, False], ids=["angles", "plain"])
def test_threads_and_how_they_share_change_no_bit(angles: bool) -> None:
    """One window for two threads makes them share its blocks; 4 for 2, or 15 for 16, do not."""
    x = states(210, 32, 0.4, windows=15)
    torch.set_num_threads(1)
    expected = station_statistics(x, angles=angles)
    for n_threads, windows in ((2, 4), (2, 1), (3, 4), (4, 2), (16, 15)):
        torch.set_num_threads(n_threads)
        found = station_statistics(x[:windows], angles=angles)
        for name, value in found.items():
            assert torch.equal(value, expected[name][:windows]), (name, n_threads)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_stations_at_once_are_the_stations_one_by_one(impl: str) -> None:
    """Of any strides, with angles or without, by length or by mask, few windows or many."""
    states_at_once = [states(70, 32, 0.1 * k, windows=2) for k in range(5)]
    states_at_once[1] = states_at_once[1].mT.contiguous().mT
    states_at_once[3] = torch.cat([states_at_once[3]] * 2, dim=2)[:, :, :32]
    asked = [True, False, False, True, True]
    mask = torch.rand(2, 70, generator=torch.Generator().manual_seed(7)) < 0.6
    ways: list[dict[str, Any]] = [{"lengths": torch.tensor([70, 31])}, {"mask": mask}, {}]
    for (n_threads, n_stations), valid in product(((2, 5), (8, 3)), ways):
        torch.set_num_threads(n_threads)
        some, angles = states_at_once[:n_stations], asked[:n_stations]
        found = statistics_of_stations(some, angles=angles, impl=impl, **valid)
        rank = {k: list(accumulate(angles))[k] - 1 for k in range(n_stations)}
        for k, x in enumerate(some):
            one = station_statistics(x, angles=angles[k], impl=impl, **valid)
            for name, value in one.items():
                at = rank[k] if name.startswith("angle") else k
                assert torch.equal(found[name][at], value), (name, k)
        assert len(found["angle_mean"]) == sum(angles)


def test_stations_that_do_not_belong_together_are_refused() -> None:
    x = states(8, 4, 0.0)
    with pytest.raises(ValueError, match="angles for each, found 2 and 1"):
        statistics_of_stations([x, x], angles=[True])
    with pytest.raises(ValueError, match="shape of the first station"):
        statistics_of_stations([x, x[:, :5]], angles=[True, True])


def test_a_mask_picks_the_rows() -> None:
    x = states(50, 32, 0.4)
    mask = torch.rand(2, 50, generator=torch.Generator().manual_seed(6)) < 0.5
    for angles in (True, False):
        found = station_statistics(x, mask=mask, angles=angles)
        for b in range(2):
            for name, value in station_statistics(x[b, mask[b]][None], angles=angles).items():
                assert torch.equal(found[name][b], value[0]), name
    assert torch.equal(stream_moments(x, mask=mask)["stream_mean"], found["stream_mean"])


def test_strided_states_are_read_in_place() -> None:
    wide = states(40, 60, 0.4)
    x = wide[:, ::2, 10:45]
    for name, value in stream_moments(x.contiguous()).items():
        assert torch.equal(stream_moments(x)[name], value), name


def test_nothing_is_made_up_where_nothing_is_defined() -> None:
    x = torch.ones(5, 6, 4)
    x[1] = 0
    x[2, 3, 3] = torch.nan
    x[3, 0, 0] = -torch.inf
    lengths = torch.tensor([0, 6, 6, 6, 6])
    for angles in (True, False):
        found = station_statistics(x, lengths=lengths, angles=angles)
        missing = {k: v.isnan().tolist() for k, v in found.items() if v.is_floating_point()}
        assert (
            missing["stream_mean"] == missing["stream_norm_max"] == [True, False, True, True, False]
        )
        assert missing["stream_skewness"] == missing["stream_participation_ratio"] == [True] * 5
        assert found["stream_outlier_dims"].tolist() == [0] * 5
        assert found["zero_vectors"].tolist() == [0, 6, 0, 0, 0]
        assert not stream_disagreements(x, lengths, found)


def test_merging_blocks_is_exact() -> None:
    """The compiled merge of two samples is the sample of both."""
    from bertgeom.kernels.stations.sweeps import merge_moments, moments_of

    values = np.random.default_rng(7).gamma(2.0, size=1000)
    whole, into, part = np.empty(5), np.zeros(5), np.empty(5)
    moments_of(values, whole)
    for piece in np.split(values, [1, 1, 30, 500]):
        part[:] = 0
        if len(piece):
            moments_of(piece, part)
        merge_moments(into, part)
    np.testing.assert_allclose(into, whole, rtol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.ones(2, 4, 3)
    for call in (stream_moments, lambda *a, **k: station_statistics(*a, angles=True, **k)):
        with pytest.raises(TypeError, match="float32, float16 or bfloat16"):
            call(x.int())
        with pytest.raises(ValueError, match=r"expected \(B, N, D\)"):
            call(x[0])
        with pytest.raises(ValueError, match="lengths of 0 to 4"):
            call(x, lengths=torch.tensor([-1, 5]))
        with pytest.raises(ValueError, match="impl"):
            call(x, impl="cuda")
