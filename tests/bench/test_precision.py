"""The effect of half precision is measured as it is told, and the page has what was measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import precision
from bench.precision import Effect, Family, effects, read_results, with_tables
from bertgeom import variables
from bertgeom.testing import tiny_model


@pytest.fixture(scope="module")
def found() -> list[Effect]:
    ids = torch.randint(5, 60, (2, 24), generator=torch.Generator().manual_seed(0))
    model = tiny_model("bert", spread=0.15)
    return list(effects(Family("bert", model, ids, torch.zeros_like(ids).bool(), trained=False)))


def by(found: list[Effect], dtype: str) -> dict[str, Effect]:
    return {e.array: e for e in found if e.precision == dtype}


def test_every_array_is_there_in_both_precisions(found: list[Effect]) -> None:
    wanted = variables.select("full", ("block_map", "tracks"))
    names = {v.name for v in wanted if v.kind != "window"} - {"attention_group_mass"}
    for dtype in precision.PRECISIONS:
        assert by(found, dtype).keys() >= names
    assert all(e.typical <= e.most <= e.largest for e in found)


def test_fewer_bits_are_farther_off(found: list[Effect]) -> None:
    halves, brains = (by(found, dtype) for dtype in precision.PRECISIONS)
    for name in ("attention_entropy", "cone_index", "stream_norm_mean", "query_entropy"):
        # 11 bits and 8: a factor of 8, with scatter.
        assert 2 * halves[name].most < brains[name].most < 1e-1, name
    assert {e.lost for e in found} == {0}


def test_float32_is_no_farther_off_than_its_rounding() -> None:
    ids = torch.randint(5, 60, (2, 24), generator=torch.Generator().manual_seed(0))
    family = Family("bert", tiny_model("bert"), ids, torch.zeros_like(ids).bool(), trained=False)
    arrays = [precision.measured(family, "float32", impl) for impl in ("auto", "reference")]
    for name in ("attention_entropy", "cone_index", "stream_kurtosis"):
        effect = precision._effect("bert", name, "float32", arrays[0][name], arrays[1][name])
        assert effect.largest < 1e-5, name


def test_numbers_that_are_lost_are_counted_apart() -> None:
    exact = np.array([1.0, 10.0, np.nan, 3.0])
    effect = precision._effect(
        "x", "attention_entropy", "float16", np.array([1.5, 11.0, 1.0, np.nan]), exact
    )
    assert effect.lost == 1
    assert effect.largest == 0.5
    moved = precision._effect(
        "x", "angle_histogram", "float16", np.array([[3, 1, 0]]), np.array([[2, 1, 1]])
    )
    assert moved.largest == 0.25


def test_the_page_has_what_was_measured_last() -> None:
    text = precision.PAGE.read_text("utf-8")
    assert with_tables(text, read_results()) == text
    names = {v.name for v in variables.VARIABLES.values()}
    assert {e.array for e in read_results()} <= names
