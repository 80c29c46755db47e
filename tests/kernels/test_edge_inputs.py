"""Inputs at the edge of what is defined, all CPU kernels against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bertgeom.kernels import (
    attention_stats,
    cone_sums,
    pairwise_angle_histogram,
    station_statistics,
    stream_moments,
)
from bertgeom.kernels.attention_stats import api
from bertgeom.kernels.attention_stats.options import GATE_MIXED
from bertgeom.kernels.attention_stats.tolerance import bounds, disagreements
from bertgeom.kernels.cone_angles.tolerance import angle_disagreements, cone_disagreements
from bertgeom.kernels.kmers import KmerTable, encode_kmers, encode_singles, single_table
from bertgeom.kernels.stations.tolerance import stream_disagreements

pytestmark = pytest.mark.usefixtures("products")

Values = dict[str, Tensor]


def attention(x: Tensor, **asked: Any) -> Values:
    """All of attention, every window of x (B, N, D) as query, key and value of two heads."""
    heads = x[:, None].expand(-1, 2, -1, -1)
    found = attention_stats(
        heads, heads, heads, rows=True, columns=True, head_cones=True, impl="numba", **asked
    )
    return {"output": found.output} | dict(found.values)


KERNELS: dict[str, Callable[..., Values]] = {
    "attention": attention,
    "stations": lambda x, **asked: station_statistics(x, angles=True, **asked),
    "stream": stream_moments,
    "cones": cone_sums,
    "angles": pairwise_angle_histogram,
    "angles between": lambda x, **asked: pairwise_angle_histogram(
        x, x + 1, **asked, **{f"y_{name}": value for name, value in asked.items()}
    ),
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def vectors(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) + 0.2


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit but for the kind of NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def check(x: Tensor, lengths: Tensor | None = None) -> None:
    """Fails where a kernel and the oracle differ on x (B, N, D)."""
    lengths = torch.full((len(x),), x.shape[1]) if lengths is None else lengths
    of_stations = station_statistics(x, lengths=lengths, angles=True)
    assert stream_disagreements(x, lengths, of_stations) == []
    assert stream_disagreements(x, lengths, stream_moments(x, lengths=lengths)) == []
    cones = cone_sums(x, lengths=lengths)
    for found in (cones, {name: of_stations[name] for name in cones}):
        assert (
            cone_disagreements(x[:, None], lengths, {k: v[:, None] for k, v in found.items()}) == []
        )
    angles = pairwise_angle_histogram(x, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        for values in (angles, of_stations):
            one = {k: v[b] for k, v in values.items() if k.startswith("angle")}
            assert angle_disagreements(x[b, :n], None, one) == []
    # Powers of smaller products are beyond float64, and beyond the oracle.
    if x.abs().max() > 1e-42:
        check_attention(x, lengths)


def check_attention(x: Tensor, lengths: Tensor) -> None:
    heads = x[:, None]
    options: dict[str, Any] = {
        "scale": x.shape[-1] ** -0.5,
        "window": None,
        "tier": "full",
        "theta": 0.3,
        "near": 4,
        "n_offset_side": 9,
        "n_groups": 0,
        "rows": True,
        "columns": True,
    }
    found = attention_stats(heads, heads, heads, lengths=lengths, **options, impl="numba")
    limits = bounds(heads, heads, heads, lengths, None, None, api.checked_options(**options))
    assert disagreements(limits, found.output, found.values) == []


@pytest.mark.parametrize("size", [1e-38, 1e-40, 1e-43])
@pytest.mark.parametrize("width", [32, 5])
def test_subnormal_vectors_are_vectors(size: float, width: int) -> None:
    x = vectors(2, 70, width) * size
    assert x.abs().max() > 0
    check(x)


def test_subnormal_vectors_among_others_are_vectors() -> None:
    x = vectors(2, 70, 32)
    x[0, ::3] *= 1e-40
    x[1, 7] *= 1e-43
    check(x)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 1, 1), (2, 1, 32), (2, 40, 1), (1, 2, 2)], ids=str
)
def test_one_token_and_one_dimension(shape: tuple[int, int, int]) -> None:
    check(vectors(*shape))


@each_kernel
def test_a_batch_without_tokens_has_no_statistics(kernel: str) -> None:
    x = torch.full((3, 5, 32), torch.nan)
    found = KERNELS[kernel](x, lengths=torch.zeros(3, dtype=torch.int64))
    masked = KERNELS[kernel](x, mask=torch.zeros(3, 5, dtype=torch.bool))
    for name, value in found.items():
        assert same(value, masked[name]), name
        if name == "output":
            assert not value.any()
        elif name == "gate":
            assert (value == GATE_MIXED).all()
        elif value.is_floating_point():
            assert value.isnan().all(), name
        else:
            assert not value.any(), name


@each_kernel
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("where", ["an entry", "a row", "everything"])
def test_what_is_not_finite_spoils_no_other_window(kernel: str, bad: float, where: str) -> None:
    """Its own statistics may be NaN; not even a vector of the largest numbers goes further."""
    x, lengths = vectors(4, 70, 32), torch.tensor([70, 40, 70, 1])
    clean = KERNELS[kernel](x, lengths=lengths)
    x[1, slice(None) if where == "everything" else 3] = (
        torch.where(torch.arange(32) == 2, bad, x[1, 3]) if where == "an entry" else bad
    )
    found = KERNELS[kernel](x, lengths=lengths)
    others = torch.tensor([0, 2, 3])
    for name, value in clean.items():
        assert same(found[name][others], value[others]), name
        assert (found[name][1] >= 0).all() or found[name].is_floating_point(), name
    if kernel == "attention":
        assert not found["output"][1, :, 40:].any()
        assert (found["attention_k90_median"] <= 70).all()
    elif bad != 3e38:
        for name, value in found.items():
            assert value[1].isnan().all() if value.is_floating_point() else not value[1].any(), name


@each_kernel
def test_any_strides_are_read_right(kernel: str) -> None:
    x = vectors(2, 40, 32)
    expected = KERNELS[kernel](x)
    wide = torch.full((2, 80, 70), torch.nan)
    wide[:, ::2, 3:67:2] = x
    views = {
        "transposed": x.mT.contiguous().mT,
        "every other row and column": wide[:, ::2, 3:67:2],
        "windows inside": x.transpose(0, 1).contiguous().transpose(0, 1),
        "turned twice": x.flip(1).flip(1),
        "one behind the other": torch.cat([x, x], 2)[:, :, 32:],
    }
    for what, view in views.items():
        assert torch.equal(view, x)
        found = KERNELS[kernel](view)
        for name, value in expected.items():
            close = value.is_floating_point() and kernel == "attention"
            if close:
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, equal_nan=True)
            else:
                assert same(found[name], value), (what, name)


@each_kernel
def test_rows_at_no_distance_are_one_row(kernel: str) -> None:
    row = vectors(1, 1, 32)
    found = KERNELS[kernel](row.expand(2, 33, 32))
    for name, value in KERNELS[kernel](row.repeat(2, 33, 1)).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, equal_nan=True)


@each_kernel
def test_odd_strides_of_single_rows_windows_and_columns(kernel: str) -> None:
    """Where a dimension is 1 its stride may be anything."""
    for shape in ((1, 30, 4), (3, 1, 4), (3, 30, 1), (1, 1, 1)):
        x = vectors(*shape)
        strides = [
            7919 if size == 1 else step for size, step in zip(shape, x.stride(), strict=True)
        ]
        odd = x.as_strided(shape, strides)
        for name, value in KERNELS[kernel](x).items():
            assert same(KERNELS[kernel](odd)[name], value), (shape, name)


@each_kernel
def test_lengths_of_any_integers_and_strides_compile_nothing_anew(kernel: str) -> None:
    from bertgeom.kernels.attention_stats.cpu import run as attention_cpu
    from bertgeom.kernels.cone_angles import cpu as cones_cpu
    from bertgeom.kernels.stations import cpu as stations_cpu

    compiled = [
        attention_cpu._sweep,
        attention_cpu.most_floats,
        cones_cpu._unit_blocks,
        cones_cpu._axis_blocks,
        cones_cpu._centre_blocks,
        cones_cpu._angle_tiles,
        stations_cpu._claim_tasks,
    ]
    x, lengths = vectors(3, 20, 32), torch.tensor([20, 0, 7])
    expected = KERNELS[kernel](x, lengths=lengths)
    before = [len(function.signatures) for function in compiled]
    for kind in (torch.int64, torch.int32, torch.int16, torch.uint8):
        apart = torch.zeros(6, dtype=kind)
        apart[::2] = lengths
        found = KERNELS[kernel](x, lengths=apart[::2])
        for name, value in expected.items():
            assert same(found[name], value), (kind, name)
    assert [len(function.signatures) for function in compiled] == before


def test_bases_and_ids_of_any_strides_are_read_and_written_right() -> None:
    bases = np.frombuffer(b"ACGTTGCAACGTNACG" * 4, np.uint8)
    starts, stops = np.array([0, 20]), np.array([20, 64])
    table = KmerTable.build({"ACG": 5, "CGT": 6, "TTG": 7}, 3, 1)
    counts = stops - starts - 2
    singles = single_table({"A": 2, "C": 3, "G": 4, "T": 5})
    plain = [np.full((2, 64), -1, np.int32) for _ in range(2)]
    rows: dict[str, Any] = {"counts": counts, "first": 1}
    encode_kmers(bases, starts, stops, table, stride=1, ids=plain[0], **rows)
    encode_singles(bases, starts, singles, 1, ids=plain[1], **rows)
    turned = np.repeat(bases[::-1], 2)[::-2]
    pairs = np.stack([starts, stops], 1)
    assert np.array_equal(turned, bases)
    for view in (
        lambda: np.full((64, 2), -1, np.int32).T,
        lambda: np.full((2, 128), -1, np.int32)[:, ::-2],
        lambda: np.full((4, 64), -1, np.int32)[::-2],
    ):
        ids = view()
        encode_kmers(turned, pairs[:, 0], pairs[:, 1], table, stride=1, ids=ids, **rows)
        assert np.array_equal(ids, plain[0])
        ids = view()
        encode_singles(turned, pairs[:, 0], singles, 1, ids=ids, **rows)
        assert np.array_equal(ids, plain[1])
    fixed = plain[0].copy()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        encode_kmers(bases, starts, stops, table, stride=1, ids=fixed, **rows)
