"""A fake encoder in place of a model, and a tiny real one, for runs that take a second."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bertgeom.pipelines import stages
from bertgeom.pipelines.stages import Status

_SPEC = importlib.util.spec_from_file_location(
    "fake_encoder", Path(__file__).with_name("fake_encoder.py")
)
fakes = importlib.util.module_from_spec(_SPEC)
sys.modules["fake_encoder"] = fakes
_SPEC.loader.exec_module(fakes)


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """The module `fake_encoder`."""
    return fakes


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fake encoder, which every run of the test gets as its model."""
    found = fakes.FakeEncoder()
    monkeypatch.setattr(stages, "load_model", lambda *args, **options: found)
    return found


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Six records of 2 to 250 bases."""
    return fakes.write_fasta(tmp_path / "x.fa")


@pytest.fixture
def run(encoder: Any, fasta: Path, tmp_path: Path) -> Callable[..., Status]:
    """`bertgeom.run` of `fasta` with the fake encoder into `out` below the test's folder."""

    def start(out: str = "x.zarr", **options: Any) -> Status:
        defaults: dict[str, Any] = {"window": 20, "partition_windows": 4, "threads": 1}
        source = None if "sequences" in options else options.pop("source", fasta)
        return stages.run(source, model="fake", out=tmp_path / out, **{**defaults, **options})

    return start


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer BERT classifier with 3-mers of 64 tokens."""
    from bertgeom.testing import save_tiny_classifier

    return save_tiny_classifier(tmp_path_factory.mktemp("tiny") / "model")
