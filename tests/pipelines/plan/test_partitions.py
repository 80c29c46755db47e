"""Windows by number, partitions and row groups, batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgeom.config import Settings
from bertgeom.pipelines.plan.partitions import Plan, WindowIndex, batches, window_index
from bertgeom.sequences.windows import windows_of

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=8)
SIZES = st.integers(1, 30)


def by_hand(index: WindowIndex) -> list[tuple[int, int, int, int]]:
    found = []
    for record, length in enumerate(index.lengths):
        for start, stop in windows_of(int(length), index.size, index.stride, index.min_length):
            signs = {"+": [1], "-": [-1], "both": [1, -1]}[index.strand]
            found += [(record, int(start), int(stop), sign) for sign in signs]
    return found


@settings(max_examples=60, deadline=None)
@given(LENGTHS, SIZES, SIZES, st.integers(1, 5), st.sampled_from(["+", "-", "both"]), st.data())
def test_windows_by_number_are_those_in_order(
    lengths: list[int], size: int, stride: int, least: int, strand: str, data: st.DataObject
) -> None:
    index = WindowIndex(np.array(lengths, dtype=np.int64), size, stride, least, strand)
    expected = by_hand(index)
    assert index.n_windows == len(expected)
    first = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(first, len(expected)))
    found = index.windows(first, stop)
    rows = zip(
        found.record.tolist(),
        found.start.tolist(),
        found.stop.tolist(),
        found.strand.tolist(),
        strict=True,
    )
    assert list(rows) == expected[first:stop]
    assert len(found) == stop - first


def test_a_chromosome_is_indexed_without_a_list_of_its_windows() -> None:
    index = WindowIndex(np.array([250_000_000, 3]), 510, 100, 1, "+")
    last = index.windows(index.n_windows - 1, index.n_windows)
    assert (last.record[0], last.start[0], last.stop[0]) == (1, 0, 3)
    assert index.n_windows == len(windows_of(250_000_000, 510, 100)) + 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5))
def test_partitions_and_row_groups_cut_the_windows_without_rest(
    n: int, size: int, partitions_a_group: int
) -> None:
    index = WindowIndex(np.full(n, 1), 1, 1, 1, "+")
    plan = Plan.of(index, size, size * partitions_a_group, 100)
    cuts = [plan.partition(i) for i in range(plan.n_partitions)]
    assert [i for a, b in cuts for i in range(a, b)] == list(range(n))
    groups = [plan.group(i) for i in range(plan.n_groups)]
    assert [i for a, b in groups for i in range(a, b)] == list(range(n))
    for group in range(plan.n_groups):
        inside = plan.partitions_of(group)
        assert plan.partition(inside[0])[0] == plan.group(group)[0]
        assert plan.partition(inside[-1])[1] == plan.group(group)[1]
        assert all(plan.group_of(i) == group for i in inside)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_every_row_with_tokens_once_and_stay_small(
    tokens: list[int], budget: int
) -> None:
    counts = np.array(tokens, dtype=np.int64)
    found = batches(counts, budget)
    rows = sorted(int(i) for batch in found for i in batch)
    assert rows == [i for i, n in enumerate(tokens) if n]
    for batch in found:
        assert len(batch) == 1 or counts[batch].max() * len(batch) <= budget
    order = [(-tokens[i], i) for batch in found for i in map(int, batch)]
    assert order == sorted(order)


def test_unresolved_settings_are_no_plan() -> None:
    with pytest.raises(ValueError, match="resolved settings"):
        window_index(np.array([1]), Settings())
