"""The CPU kernels with every index and every extent checked: a script of `test_bounds.py`.

Prints what every check came to as one JSON object. Numba reads NUMBA_BOUNDSCHECK when it is
imported, and the functions of a process are compiled once, with checks or without.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from bertgeom.kernels import (
    attention_stats,
    cone_sums,
    pairwise_angle_histogram,
    station_statistics,
)
from bertgeom.kernels._cpu import amx, runtime
from bertgeom.kernels.attention_stats import api, tolerance
from bertgeom.kernels.attention_stats.cpu import run
from bertgeom.kernels.cone_angles import cpu as cones
from bertgeom.kernels.cone_angles.tolerance import angle_disagreements, cone_disagreements
from bertgeom.kernels.kmers import KmerTable, encode_kmers, encode_split, reference, single_table
from bertgeom.kernels.kmers import cpu as kmers
from bertgeom.kernels.stations import cpu as stations
from bertgeom.kernels.stations.tolerance import stream_disagreements

UNITS = [False, True] if amx.usable() else [False]
#: Lengths of windows and width of the vectors.
VECTORS = [([0, 1, 9, 65], 7), ([129, 130, 31], 64), ([1025], 32), ([3, 200], 96)]
_CHECKS: list[Callable[[], None]] = []


def check(function: Callable[[], None]) -> Callable[[], None]:
    _CHECKS.append(function)
    return function


def vectors(lengths: list[int], *shape: int) -> torch.Tensor:
    """(B, *shape, N, D) with NaN in the slots without a token."""
    *heads, width = shape
    x = torch.randn(len(lengths), *heads, max(lengths), width) + 0.3
    for b, n in enumerate(lengths):
        x[b, ..., n:, :] = torch.nan
    return x


def refused(function: Callable[[], Any], what: str) -> None:
    """Fails unless the function raises IndexError with these words."""
    with pytest.raises(IndexError, match=what):
        function()


@check
def attention_of_mixed_lengths() -> None:
    cases: list[tuple[list[int], int, int | None]] = [
        ([0, 1, 31, 65], 7, None),
        ([577, 512, 33], 32, None),
        ([1153, 673, 2], 32, None),
        ([1025, 640, 64], 32, 5),
        ([3, 130], 64, 64),
    ]
    for lengths, width, window in cases:
        q, k, v = (vectors(lengths, 1, width) for _ in range(3))
        options: dict[str, Any] = {
            "scale": width**-0.5, "window": window, "tier": "full", "theta": 0.1, "near": 4,
            "n_offset_side": 9, "n_groups": 0, "rows": True, "columns": True,
        }  # fmt: skip
        counts = torch.tensor(lengths)
        plain = q.nan_to_num(0), k.nan_to_num(0), v.nan_to_num(0)
        bounds = tolerance.bounds(*plain, counts, None, None, api.checked_options(**options))
        for unit in UNITS:
            with mock.patch.object(amx, "usable", return_value=unit):
                found = attention_stats(q, k, v, lengths=counts, **options, impl="numba")
            lines = tolerance.disagreements(bounds, found.output, found.values)
            assert not lines, (lengths, unit, lines)


@check
def attention_beyond_its_tensors() -> None:
    heads = torch.randn(3, 1, 2, 40, 32)
    whole = run._heads

    def shorter(x: torch.Tensor) -> Any:
        found = whole(x)
        return found._replace(end=found.end - 4)

    with mock.patch.object(run, "_heads", shorter):
        refused(lambda: attention_stats(*heads, impl="numba"), "would leave the memory")


@check
def attention_beyond_its_scratch_memory() -> None:
    heads = torch.randn(3, 2, 2, 1200, 32)
    asked: dict[str, Any] = {"lengths": torch.tensor([1200, 700]), "impl": "numba"}
    with mock.patch.object(run, "most_floats", return_value=4096):
        refused(lambda: attention_stats(*heads, **asked), "scratch memory too small")


@check
def stations_of_mixed_lengths() -> None:
    for lengths, width in VECTORS:
        x, counts = vectors(lengths, width), torch.tensor(lengths)
        for unit in UNITS if width % 32 == 0 else [False]:
            for angles in (True, False):
                with mock.patch.object(amx, "usable", return_value=unit):
                    found = station_statistics(x, lengths=counts, angles=angles)
                lines = stream_disagreements(x, counts, found)
                some = {k: v[:, None] for k, v in found.items() if k.startswith(("cone", "zero"))}
                lines += cone_disagreements(x[:, None], counts, some)
                for b, n in enumerate(lengths if angles else []):
                    one = {k: v[b] for k, v in found.items() if k.startswith("angle")}
                    lines += angle_disagreements(x[b, :n], None, one)
                assert not lines, (lengths, width, unit, angles, lines)


@check
def stations_beyond_their_arrays() -> None:
    """One thread and many: the error of one ends the waiting of the others."""
    allocate, x = stations.allocate, torch.randn(1, 200, 32)
    cuts: dict[str, Any] = {
        "slot": lambda a: a[:, :150].copy(),
        "row_sum": lambda a: a[:, :3].copy(),
        "vectors": lambda a: a[:, :199].copy(),
        "half": lambda a: a[:, :199].copy(),
    }
    before = torch.get_num_threads()
    for name, cut in cuts.items():

        def smaller(*arguments: Any, name: str = name, cut: Any = cut) -> Any:
            work = allocate(*arguments)
            return work._replace(**{name: cut(getattr(work, name))})

        with mock.patch.object(stations, "allocate", smaller):
            for n_threads in (1, 4):
                torch.set_num_threads(n_threads)
                refused(lambda: station_statistics(x, angles=True), "out of bounds")
    torch.set_num_threads(before)


@check
def cones_and_angles_of_mixed_lengths() -> None:
    for lengths, width in VECTORS:
        x, counts = vectors(lengths, width), torch.tensor(lengths)
        for unit in UNITS if width % 32 == 0 else [False]:
            with mock.patch.object(amx, "usable", return_value=unit):
                of_cones = cone_sums(x, lengths=counts)
                within = pairwise_angle_histogram(x, lengths=counts)
                between = pairwise_angle_histogram(
                    x, x[:, :50], lengths=counts, y_lengths=counts.clamp(max=50)
                )
            of_cones = {k: v[:, None] for k, v in of_cones.items()}
            lines = cone_disagreements(x[:, None], counts, of_cones)
            for b, n in enumerate(lengths):
                one = {k: v[b] for k, v in within.items()}
                lines += angle_disagreements(x[b, :n], None, one)
                one = {k: v[b] for k, v in between.items()}
                lines += angle_disagreements(x[b, :n], x[b, : min(n, 50)], one)
            assert not lines, (lengths, width, unit, lines)


@check
def angles_beyond_their_arrays() -> None:
    centred, x = cones._centred, torch.randn(1, 200, 32)

    def smaller(*arguments: Any) -> Any:
        side = centred(*arguments)
        return side._replace(half=side.half[:, :100].copy())

    with mock.patch.object(cones, "_centred", smaller):
        refused(lambda: pairwise_angle_histogram(x), "out of bounds")


@check
def pieces_beyond_their_memory() -> None:
    """What the tile unit writes by address is checked as well."""
    if len(UNITS) < 2:
        return
    whole, x = cones.unit_pieces, torch.randn(1, 200, 32)
    with mock.patch.object(cones, "unit_pieces", lambda s, n, w: whole(s, n - 64, w)):
        refused(lambda: pairwise_angle_histogram(x), "would leave the memory")


@check
def kmers_of_mixed_lengths() -> None:
    numbers = np.random.default_rng(0)
    rows = [numbers.choice(np.frombuffer(b"ACGT", np.uint8), n) for n in (0, 1, 6, 1023, 2100)]
    rows[-1][1500] = ord("N")
    bases, stops = np.concatenate(rows), np.cumsum([len(row) for row in rows])
    starts = stops - [len(row) for row in rows]
    singles = single_table({"A": 1, "C": 2, "G": 3, "T": 4})
    for k, stride in ((3, 1), (6, 6), (12, 9)):
        texts = [row.tobytes().decode() for row in rows]
        every = {kmer for text in texts for kmer, _, _ in reference.kmers(text, k, 1, pad=False)}
        known = sorted(kmer for kmer in every if "N" not in kmer)[::2]
        table = KmerTable.build({kmer: 10 + i for i, kmer in enumerate(known)}, k, 5)
        counts = -(-(stops - starts) // stride)
        found = [np.zeros((5, int(counts.max())), np.int32) for _ in range(2)]
        for ids, impl in zip(found, ("numba", "reference"), strict=True):
            encode_kmers(
                bases, starts, stops, table, stride=stride, counts=counts, ids=ids, impl=impl
            )
        assert (found[0] == found[1]).all()
    letters = np.frombuffer(b"ACGT", np.uint8)
    pairs = [bytes([a, b]).decode() for a in letters for b in letters]
    table = KmerTable.build({kmer: 10 + i for i, kmer in enumerate(pairs)}, 2, 5)
    split = []
    for impl in ("numba", "reference"):
        arrays = [np.zeros((5, 1200), np.int32) for _ in range(3)]
        encode_split(
            bases, starts, stops, table, singles, room=1200,
            ids=arrays[0], begins=arrays[1], ends=arrays[2], impl=impl,
        )  # fmt: skip
        split.append(arrays)
    assert np.array_equal(split[0], split[1])


@check
def kmers_beyond_their_arrays() -> None:
    bases = np.full(100, ord("A"), np.uint8)
    refused(lambda: kmers.reverse_complement(bases, np.zeros(99, np.uint8)), "out of bounds")
    table = KmerTable.build({"AC": 2}, 2, 1)
    one, none = np.zeros(1, np.int64), np.zeros((1, 98), np.int32)
    refused(
        lambda: kmers.encode_kmers(
            bases, one, one + 100, 2, 1, *table.lookup, np.int32(1), one + 99, 0, none, one
        ),
        "out of bounds",
    )


def main() -> None:
    """Runs every check."""
    assert runtime.CHECKED
    found = {}
    for function in _CHECKS:
        torch.manual_seed(0)
        begin = time.monotonic()
        try:
            function()
            fault = ""
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        found[function.__name__] = fault
        print(f"{function.__name__}: {time.monotonic() - begin:.1f} s", file=sys.stderr)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
