"""Samples cover records and places, whatever the order and period of the database."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgeom.pipelines.plan.sampling import stratified


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 10, 12, 15, 20, 28, 60, 105])
def test_genomes_of_equal_length_do_not_give_the_same_window_each_time(n: int) -> None:
    """60 genomes of 7 windows: every period of the even spacing that was used before."""
    record = np.repeat(np.arange(60), 7)
    chosen = stratified(record, n)
    places = np.bincount(chosen % 7, minlength=7)
    assert (places > 0).sum() >= min(n // 2 + 1, 6)
    assert places.max() <= max(2, 2 * n / 7)
    assert len(np.unique(record[chosen])) >= min(n, 60) * 0.6


def test_every_window_is_drawn_as_often_as_any_other() -> None:
    record = np.repeat(np.arange(6), 7)
    drawn = np.zeros(42)
    for seed in range(3000):
        drawn[stratified(record, 4, seed)] += 1
    assert abs(drawn / drawn.mean() - 1).max() < 0.25
    by_place = drawn.reshape(6, 7).sum(axis=0)
    assert abs(by_place / by_place.mean() - 1).max() < 0.1


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40), n=st.integers(0, 60))
def test_samples_are_sorted_distinct_in_every_stratum_and_repeatable(
    sizes: list[int], n: int
) -> None:
    record = np.repeat(np.arange(len(sizes)), sizes)
    chosen = stratified(record, n)
    assert len(chosen) == min(n, len(record))
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, stratified(record, n))
    if 0 < n < len(record):
        edges = np.arange(n + 1) * len(record) // n
        assert ((chosen >= edges[:-1]) & (chosen < edges[1:])).all()


def test_partitions_that_cut_alike_are_not_sampled_alike() -> None:
    """A genome a partition: one window of each, at different places."""
    places = {int(stratified(np.zeros(7, int), 1, (0, part))[0]) for part in range(40)}
    assert len(places) >= 6
