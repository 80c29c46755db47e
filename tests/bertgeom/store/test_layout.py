"""Sizes, chunks and coordinates of a store."""

from __future__ import annotations

import numpy as np
import pytest

from bertgeom import variables
from bertgeom.store import layout as module
from bertgeom.store.layout import Layout, Shape, chunk_rows, missing_value, row_group
from bertgeom.variables import KEEP, VARIABLES

BASE = Shape(12, 12, 768, (), 512)
TINY = Shape(2, 3, 32, ("a", "b"), 64, keep=KEEP, group_names=("special", "domain"))


def test_every_declared_array_can_be_laid_out() -> None:
    layout = Layout(TINY, 10, 10)
    assert [v.name for v in layout.variables] == list(VARIABLES)
    for variable in layout.variables:
        assert len(layout.shape(variable)) == len(variable.dims)
        assert all(layout.shape(variable))


def test_arrays_without_groups_or_tier_are_left_out() -> None:
    names = [v.name for v in Shape(2, 3, 32, (), 64, tier="core").variables()]
    assert "attention_group_mass" not in names
    assert "attention_k90_median" not in names
    assert "cls" not in names


def test_coordinates_have_the_length_of_their_dimension() -> None:
    layout = Layout(TINY, 10, 10)
    for coordinate in layout.coordinates:
        assert len(coordinate.values) == layout.sizes[coordinate.dim], coordinate.name
    named = {c.dim for c in layout.coordinates}
    used = {dim for v in layout.variables for dim in v.dims}
    assert used - named == {"window", "hidden", "token"}


@pytest.mark.parametrize("n_tokens", [3, 17, 64, 512, 513, 8192])
def test_offset_bins_cover_every_offset_once(n_tokens: int) -> None:
    shape = Shape(1, 1, 1, (), n_tokens)
    found = {c.name: c.values for c in Layout(shape, 1, 1).coordinates}
    low, high = np.asarray(found["offset_low"]), np.asarray(found["offset_high"])
    assert (low[1:] == high[:-1] + 1).all()
    assert (low == -high[::-1]).all()
    assert high[-1] >= n_tokens - 1
    labels = variables.offset_labels(shape.n_offset_side)
    for name, a, b in zip(labels, low, high, strict=True):
        numbers = [int(x) for x in name.lstrip("+-").split("..")]
        assert sorted(map(abs, {int(a), int(b)})) == sorted(set(numbers)), name


def test_angle_bins_are_two_degrees_wide_and_named_by_their_centres() -> None:
    found = {c.name: np.asarray(c.values) for c in Layout(TINY, 1, 1).coordinates}
    assert (found["angle_high"] - found["angle_low"] == 2).all()
    assert ((found["angle_low"] + found["angle_high"]) / 2 == found["angle"]).all()
    assert (found["angle_low"][0], found["angle_high"][-1]) == (0, 180)


def test_chunk_lengths_divide_the_row_group() -> None:
    layout = Layout(BASE, 10**6, row_group(BASE, 16, 10**6))
    for variable in layout.variables:
        rows = layout.chunks(variable)[0]
        assert layout.chunk_windows % rows == 0
        assert rows * module.row_bytes(variable, layout.sizes) <= module.LARGEST_CHUNK


def test_a_window_wider_than_a_chunk_is_a_chunk() -> None:
    assert chunk_rows(10**9, 64) == 1
    assert chunk_rows(4, 64) == 64


@pytest.mark.parametrize("partition", [1, 16, 4096, 3, 100])
def test_a_large_store_has_at_most_a_file_per_ten_megabytes(partition: int) -> None:
    windows = 10**6
    layout = Layout(BASE, windows, row_group(BASE, partition, windows))
    assert layout.chunk_windows % partition == 0
    assert layout.bytes_per_window() * windows / layout.n_files() >= 10**7


def test_a_small_store_is_one_row_group_and_one_file_an_array() -> None:
    layout = Layout(BASE, 100, row_group(BASE, 16, 100))
    assert layout.chunk_windows >= 100
    assert layout.n_files() == len(layout.variables)


def test_missing_values_cannot_be_mistaken_for_numbers() -> None:
    for variable in VARIABLES.values():
        value = missing_value(variable)
        if variable.dtype == "string" or variable.kind == "window":
            continue
        if np.dtype(variable.dtype).kind == "f":
            assert np.isnan(value)
        else:
            assert value == np.iinfo(variable.dtype).max
