"""Stores that a fault of an earlier version may have touched are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bertgeom.advisories import advisories


def written_by(version: str = "0.1.0", head_dim: int = 16, **changes: Any) -> dict[str, Any]:
    return {
        "bertgeom_version": version,
        "device": "cpu",
        "model": {"hidden": 4 * head_dim, "n_heads": 4},
        "settings": {"impl": "auto"},
    } | changes


@pytest.mark.parametrize(
    ("head_dim", "longest", "first", "last"),
    [(16, 1200, 673, 1152), (64, 2048, 833, 1024), (64, 4096, 961, 1024)],
)
def test_lengths_that_needed_more_than_the_longest_are_named(
    head_dim: int, longest: int, first: int, last: int
) -> None:
    attributes = written_by(head_dim=head_dim)
    for n in (first, last):
        (line,) = advisories(attributes, np.array([longest, n, n]))
        assert f"2 windows of {n} to {n} tokens" in line
        assert "measure again" in line
    for n in (first - 1, last + 1, longest, 3):
        assert advisories(attributes, np.array([longest, n])) == [], n


def test_other_versions_devices_and_lengths_are_not_named() -> None:
    lengths = np.array([1200, 700])
    assert advisories(written_by(), lengths)
    assert advisories(written_by("0.2.0"), lengths) == []
    assert advisories(written_by(device="cuda"), lengths) == []
    assert advisories(written_by(settings={"impl": "reference"}), lengths) == []
    assert advisories(written_by(), np.array([700, 700])) == []
    assert advisories(written_by(), np.array([], np.int64)) == []
