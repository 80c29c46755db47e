"""Windows cover what they should, once and in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgeom.sequences.windows import count_windows, windows_of


def test_windows_at_every_stride_and_a_short_tail() -> None:
    assert windows_of(100, 40, 25).tolist() == [[0, 40], [25, 65], [50, 90], [75, 100]]


def test_last_full_window_that_ends_with_the_record_has_no_tail() -> None:
    assert windows_of(90, 40, 25).tolist() == [[0, 40], [25, 65], [50, 90]]


def test_a_tail_below_the_minimum_becomes_a_full_window_at_the_end() -> None:
    assert windows_of(100, 40, 25, 26).tolist() == [[0, 40], [25, 65], [50, 90], [60, 100]]


def test_a_short_record_is_one_short_window() -> None:
    assert windows_of(7, 40, 25).tolist() == [[0, 7]]


def test_an_empty_record_has_no_window() -> None:
    windows = windows_of(0, 40, 25)
    assert windows.shape == (0, 2)
    assert windows.dtype == np.int64


def test_a_record_below_the_minimum_has_no_window() -> None:
    assert windows_of(9, 40, 25, 10).shape == (0, 2)
    assert windows_of(10, 40, 25, 10).tolist() == [[0, 10]]


def test_a_stride_beyond_the_size_leaves_gaps_and_no_tail_below_the_minimum() -> None:
    assert windows_of(100, 10, 30).tolist() == [[0, 10], [30, 40], [60, 70], [90, 100]]
    assert windows_of(95, 10, 30).tolist() == [[0, 10], [30, 40], [60, 70], [90, 95]]
    assert windows_of(95, 10, 30, 6).tolist() == [[0, 10], [30, 40], [60, 70]]
    assert windows_of(85, 10, 30).tolist() == [[0, 10], [30, 40], [60, 70]]


@pytest.mark.parametrize("wrong", [{"size": 0}, {"stride": 0}, {"min_length": 0}])
def test_sizes_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"expected a {next(iter(wrong))} of at least 1"):
        windows_of(10, **{"size": 5, "stride": 5, "min_length": 1, **wrong})


lengths = st.integers(0, 3000)
small = st.integers(1, 300)


@settings(deadline=None)
@given(length=lengths, size=small, stride=small, min_length=small)
def test_every_base_is_covered_and_no_window_is_out_of_bounds(
    length: int, size: int, stride: int, min_length: int
) -> None:
    windows = windows_of(length, size, stride, min_length)
    start, stop = windows.T
    assert len(windows) == count_windows(length, size, stride, min_length)
    assert (np.diff(start) > 0).all()
    assert (np.diff(stop) > 0).all()
    assert ((start >= 0) & (stop <= length) & (stop - start <= size)).all()
    assert (stop - start >= min(min_length, size)).all()
    if length < min_length:
        assert not len(windows)
    elif stride <= size and length:
        assert start[0] == 0
        assert stop[-1] == length
        assert (start[1:] <= stop[:-1]).all()


@settings(deadline=None)
@given(length=lengths, size=small, stride=small)
def test_all_windows_but_the_last_lie_on_the_stride_and_are_full(
    length: int, size: int, stride: int
) -> None:
    windows = windows_of(length, size, stride)
    start, stop = windows[:-1].T
    assert (start == np.arange(len(start)) * stride).all()
    assert (stop - start == size).all()


@settings(deadline=None)
@given(many=st.lists(lengths, max_size=20), size=small, stride=small, min_length=small)
def test_counts_of_many_records_are_those_of_each(
    many: list[int], size: int, stride: int, min_length: int
) -> None:
    counts = count_windows(np.array(many, dtype=np.int64), size, stride, min_length)
    assert counts.tolist() == [len(windows_of(n, size, stride, min_length)) for n in many]
