"""The Triton kernels of cones, pairwise angles and the stream against the float64 oracle.

Every test runs on two devices: a GPU (marker `gpu`), and the CPU under Triton's interpreter. The
interpreter must be chosen before triton is imported, so `test_cone_angles_gpu_interpreter.py` runs
this file once more in a process of its own; elsewhere those cases are skipped.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from bertgeom.kernels import cone_sums, pairwise_angle_histogram, station_statistics, stream_moments
from bertgeom.kernels.cone_angles.tolerance import angle_disagreements, cone_disagreements
from bertgeom.kernels.stations.tolerance import stream_disagreements

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
#: The interpreter is numpy, which warns where a GPU makes NaN or infinity in silence.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(
    params=[
        pytest.param(
            "cpu",
            id="interpreter",
            marks=pytest.mark.skipif(
                not INTERPRETED, reason="run by test_cone_angles_gpu_interpreter.py"
            ),
        ),
        pytest.param("cuda", id="device", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels run."""
    return str(request.param)


SHAPES = [
    pytest.param(1, 5, 0.0, SINGLE, id="one"),
    pytest.param(33, 17, 0.0, SINGLE, id="fp32"),
    pytest.param(140, 70, 0.5, HALF, id="tiles-fp16"),
    pytest.param(131, 100, 2.0, BRAIN, id="narrow-bf16"),
    pytest.param(70, 130, 0.0, HALF, id="wide-fp16"),
]


def states(n: int, width: int, offset: float, dtype: torch.dtype, windows: int = 2) -> Tensor:
    """(windows, n, width): skewed entries, norms that differ, around a common direction."""
    seed = torch.Generator().manual_seed(n * 1009 + width)
    x = torch.randn(windows, n, width, generator=seed)
    x = x + 0.3 * x.square() + offset * torch.randn(width, generator=seed)
    return (x * torch.exp(0.5 * torch.randn(windows, n, 1, generator=seed))).to(dtype)


def working(dtype: torch.dtype) -> torch.dtype:
    """Type of the vectors that the kernels multiply."""
    return SINGLE if dtype == SINGLE else HALF


def on_cpu(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in values.items()}


@pytest.mark.parametrize(("n", "width", "offset", "dtype"), SHAPES)
@pytest.mark.parametrize("angles", [True, False], ids=["angles", "plain"])
def test_stations_agree_with_the_oracle(
    device: str, n: int, width: int, offset: float, dtype: torch.dtype, angles: bool
) -> None:
    x = states(n, width, offset, dtype)
    if n > 9:
        x[0, 5] = 0
    lengths = torch.tensor([n, n - n // 3])
    found = on_cpu(
        station_statistics(x.to(device), lengths=lengths.to(device), angles=angles, impl="triton")
    )
    assert not stream_disagreements(x, lengths, found, working(dtype))
    cones = {k: v[:, None] for k, v in found.items() if k.startswith(("cone", "zero"))}
    assert not cone_disagreements(x[:, None], lengths, cones)
    for b in range(2 if angles else 0):
        of_window = {k: v[b] for k, v in found.items() if k.startswith("angle")}
        assert not angle_disagreements(x[b, : lengths[b]], None, of_window, working(dtype))


@pytest.mark.parametrize(("n", "width", "offset", "dtype"), SHAPES)
def test_pairs_agree_with_the_oracle(
    device: str, n: int, width: int, offset: float, dtype: torch.dtype
) -> None:
    x, y = states(n, width, offset, dtype)
    y = y[: n // 2 + 1]
    within = pairwise_angle_histogram(x.to(device), bins=37, impl="triton")
    assert not angle_disagreements(x, None, within, working(dtype))
    between = pairwise_angle_histogram(x.to(device), y.to(device), impl="triton")
    assert not angle_disagreements(x, y, between, working(dtype))


@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE], ids=["fp16", "bf16", "fp32"])
def test_heads_are_read_where_the_model_left_them(device: str, dtype: torch.dtype) -> None:
    x = states(60, 48, 0.4, dtype).view(2, 60, 3, 16).transpose(1, 2)
    lengths = torch.tensor([60, 33])
    for axis in (True, False):
        found = cone_sums(x.to(device), lengths=lengths.to(device), axis_angles=axis, impl="triton")
        assert not cone_disagreements(x, lengths, on_cpu(found))


def test_a_long_window_of_few_dimensions_has_the_ratio_of_its_small_matrix(device: str) -> None:
    x = states(300, 24, 0.3, HALF, windows=1)
    found = stream_moments(x.to(device), impl="triton")
    assert not stream_disagreements(x, torch.tensor([300]), on_cpu(found), HALF)


def test_padding_and_neighbours_change_no_bit(device: str) -> None:
    x = states(100, 20, 0.4, HALF, windows=1).to(device)
    padded = torch.full((3, 129, 20), torch.nan, dtype=HALF, device=device)
    padded[1, :100] = x[0]
    padded[2, :50] = x[0, :50]
    lengths = torch.tensor([0, 100, 50], device=device)
    for angles in (True, False):
        alone = station_statistics(x, angles=angles, impl="triton")
        found = station_statistics(padded, lengths=lengths, angles=angles, impl="triton")
        for name, value in alone.items():
            assert torch.equal(found[name][1], value[0]), name


def test_a_station_reads_only_what_it_has_written(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters and sums begin with what the memory held, unless a launch clears them."""
    x, lengths = states(140, 20, 0.4, HALF).to(device), torch.tensor([140, 70], device=device)
    plain = [station_statistics(x, lengths=lengths, angles=a, impl="triton") for a in (True, False)]
    empty = torch.empty

    def soiled(*args: Any, **kwargs: Any) -> Tensor:
        found = empty(*args, **kwargs)
        return found.fill_(torch.nan if found.is_floating_point() else 12345)

    monkeypatch.setattr(torch, "empty", soiled)
    monkeypatch.setattr(torch, "empty_like", lambda x: soiled(x.shape, dtype=x.dtype))
    for angles, expected in zip((True, False), plain, strict=True):
        found = station_statistics(x, lengths=lengths, angles=angles, impl="triton")
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_which_program_is_the_last_changes_no_bit(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs of a launch in other orders: backwards, and shuffled."""
    if device != "cpu":
        pytest.skip("a device has an order of its own")
    from triton.runtime.interpreter import interpreter_builder

    x, lengths = states(150, 20, 0.4, SINGLE).to(device), torch.tensor([150, 70])
    plain = [station_statistics(x, lengths=lengths, angles=a, impl="triton") for a in (True, False)]
    set_place = interpreter_builder.set_grid_idx
    seed = torch.Generator().manual_seed(5)
    for order in ("backwards", "shuffled"):
        places: list[int] = []

        def elsewhere(i: int, *rest: int) -> None:
            n = interpreter_builder.grid_dim[0]
            if i == 0:
                backwards = torch.arange(n - 1, -1, -1)
                mixed = torch.randperm(n, generator=seed)
                places[:] = (backwards if order == "backwards" else mixed).tolist()  # noqa: B023
            set_place(places[i], *rest)  # noqa: B023

        monkeypatch.setattr(interpreter_builder, "set_grid_idx", elsewhere)
        for angles, expected in zip((True, False), plain, strict=True):
            found = station_statistics(x, lengths=lengths, angles=angles, impl="triton")
            for name, value in expected.items():
                assert torch.equal(found[name], value), name


def test_a_station_of_many_tiles_and_blocks_agrees_with_the_oracle(device: str) -> None:
    """More than the last program reads at once, and more blocks than moments are merged at once."""
    x = states(1100, 6, 0.3, SINGLE, windows=1)
    lengths = torch.tensor([1100])
    for angles in (True, False):
        found = on_cpu(station_statistics(x.to(device), angles=angles, impl="triton"))
        assert not stream_disagreements(x, lengths, found, SINGLE)
        assert not cone_disagreements(
            x[:, None],
            lengths,
            {k: v[:, None] for k, v in found.items() if k.startswith(("cone", "zero"))},
        )
        if angles:
            of_window = {k: v[0] for k, v in found.items() if k.startswith("angle")}
            assert not angle_disagreements(x[0], None, of_window, SINGLE)


def test_lengths_outside_of_the_window_end_at_its_ends(device: str) -> None:
    """Lengths on a GPU cannot be checked: the kernels put them within the window."""
    from bertgeom.kernels.stations.gpu import run

    x = states(70, 20, 0.4, HALF, windows=3).to(device)
    inside, outside = (torch.tensor(n, device=device) for n in ([0, 70, 70], [-5, 71, 2**40]))
    for angles in (True, False):
        expected = run.station_statistics(x, inside, angles)
        for name, value in run.station_statistics(x, outside, angles).items():
            torch.testing.assert_close(
                value, expected[name], rtol=0, atol=0, equal_nan=True, msg=name
            )


def test_repetition_changes_no_bit(device: str) -> None:
    x = states(140, 20, 0.4, HALF).to(device)
    first, second = (
        station_statistics(x, angles=True, impl="triton")
        | pairwise_angle_histogram(x, x.flip(1), impl="triton")
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_whole_numbers_give_exact_counts(device: str) -> None:
    """Vectors along the axes and diagonals of a cube: every angle is known."""
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    x = axes.repeat(30, 1).to(HALF).to(device)
    counts = pairwise_angle_histogram(x, impl="triton")["angle_histogram"].cpu()
    expected = torch.zeros(90, dtype=torch.int64)
    expected[0], expected[45], expected[89] = 6 * 435, 12 * 900, 3 * 900
    assert torch.equal(counts, expected)


def test_angles_near_zero_are_known_to_a_twentieth_of_a_degree(device: str) -> None:
    """The resolution that README.md states for vectors that are not in a narrow cone."""
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).to(HALF)
    x[20:] = x[:20]
    found = pairwise_angle_histogram(x.to(device), impl="triton")
    assert found["angle_min"].item() < 0.05
    assert found["angle_histogram"][0].item() == 20


def test_nothing_is_made_up_where_nothing_is_defined(device: str) -> None:
    x = torch.ones(5, 6, 4)
    x[1] = 0
    x[2, 3, 3] = torch.nan
    x[3, 0, 0] = -torch.inf
    lengths = torch.tensor([0, 6, 6, 6, 6])
    for angles in (True, False):
        found = on_cpu(
            station_statistics(
                x.to(device), lengths=lengths.to(device), angles=angles, impl="triton"
            )
        )
        cones = {k: v[:, None] for k, v in found.items() if k.startswith(("cone", "zero"))}
        assert not cone_disagreements(x[:, None], lengths, cones)
        assert not stream_disagreements(x, lengths, found)
        if angles:
            assert found["angle_histogram"].sum(1).tolist() == [0, 0, 0, 0, 15]


def test_folded_tiles_hold_what_the_tiles_held(device: str) -> None:
    from bertgeom.kernels._triton.angle_launches import FOLD, TileSums, fold

    seed = torch.Generator().manual_seed(8)
    n_tiles = FOLD + 3
    counts = torch.randint(0, 1000, (2, n_tiles, 90), generator=seed, dtype=torch.int32)
    sums = torch.rand(2, n_tiles, 4, generator=seed)
    found = fold(TileSums(counts.to(device), sums.to(device)))
    parts = [slice(0, FOLD), slice(FOLD, None)]
    assert found.counts is not None
    assert torch.equal(
        found.counts.cpu(), torch.stack([counts[:, p].sum(1) for p in parts], 1).int()
    )
    for k, how in enumerate(("sum", "sum", "amin", "amax")):
        expected = torch.stack([getattr(sums[:, p, k], how)(1) for p in parts], 1)
        torch.testing.assert_close(found.sums[:, :, k].cpu(), expected)


@pytest.mark.gpu
def test_tensors_beyond_two_billion_elements_are_addressed() -> None:
    """Sets begin past 2^31 elements: what is measured there is what a copy gives."""
    heads = torch.empty((3, 1, 2**20, 1024), dtype=HALF, device="cuda")
    x = states(200, 1024, 0.4, HALF, windows=1).to("cuda")
    heads[2, 0, :200] = x[0]
    lengths = torch.tensor([0, 0, 200], device="cuda")
    found = cone_sums(heads, lengths=lengths, impl="triton")
    for name, value in cone_sums(x[:, None], impl="triton").items():
        assert torch.equal(found[name][2], value[0]), name
