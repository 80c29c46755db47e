"""The declarations, and that the kernels mean the same by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bertgeom import variables
from bertgeom.kernels import _definitions, attention_stats
from bertgeom.kernels.attention_stats import options


def test_kernels_and_declarations_share_their_constants() -> None:
    # They are written twice so that reading declarations does not load torch.
    assert variables.GATES == options.GATES
    assert variables.GATE_MIXED == options.GATE_MIXED
    assert variables.N_BLOCKS == options.N_BLOCKS
    assert variables.MAX_GROUPS == options.MAX_GROUPS
    assert variables.N_ANGLES == _definitions.STATION_BINS


def test_the_kernels_names_of_station_statistics_are_the_declared_ones() -> None:
    def names(declared: tuple[variables.Variable, ...]) -> set[str]:
        return {variable.name for variable in declared if variable.dtype == "float32"}

    assert names(variables.CONE_VARIABLES) == {*_definitions.CONE, *_definitions.AXIS}
    assert names(variables.STREAM_VARIABLES) == {*_definitions.STREAM, *_definitions.RATIO}
    assert names(variables.ANGLE_VARIABLES) == set(_definitions.ANGLE)


def test_the_kernel_returns_exactly_the_declared_attention_arrays() -> None:
    x = torch.randn(1, 2, 9, 16)
    values = attention_stats(
        x,
        x,
        x,
        groups=torch.ones(1, 9, dtype=torch.int32),
        n_groups=1,
        rows=True,
        columns=True,
        impl="reference",
    ).values
    assert set(values) == {v.name for v in variables.ATTENTION_VARIABLES}


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 9, 100, 512, 8192, 131072])
def test_every_offset_has_a_bin_of_its_own_length(max_tokens: int) -> None:
    n_side = variables.n_offset_side(max_tokens)
    edges = variables.offset_edges(n_side)
    assert len(edges) == n_side
    assert (np.diff(edges) > 0).all()
    # The next bin would start beyond the largest offset there is.
    assert max_tokens - 1 <= max(1, 2 ** (n_side - 1))
    labels = variables.offset_labels(n_side)
    assert len(set(labels)) == 2 * n_side + 1
    assert labels[n_side] == "0"


def test_names_are_declared_once() -> None:
    groups = (
        variables.WINDOW_VARIABLES,
        variables.REGION_VARIABLES,
        variables.ATTENTION_VARIABLES,
        variables.CONE_VARIABLES,
        variables.ANGLE_VARIABLES,
        variables.HEAD_CONE_VARIABLES,
        variables.STREAM_VARIABLES,
        variables.OUTPUT_VARIABLES,
        variables.TRACK_VARIABLES,
    )
    assert len(variables.VARIABLES) == sum(len(group) for group in groups)
    assert all(v.description and v.unit and v.source for v in variables.VARIABLES.values())


def test_core_is_part_of_full_and_keep_adds() -> None:
    core = {v.name for v in variables.select("core")}
    full = {v.name for v in variables.select("full")}
    assert core < full
    assert "attention_k90_median" in full - core
    assert {v.name for v in variables.select("full", ("cls",))} - full == {"cls"}
    with pytest.raises(ValueError, match="expected --keep"):
        list(variables.select("full", ("everything",)))
