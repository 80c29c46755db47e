"""A fake encoder in place of a model, and a tiny real one, for runs that take a second."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_encoder as fakes
import pytest

from bertgeom.pipelines.run import stages
from bertgeom.pipelines.run.stages import Status


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """The module `fake_encoder`."""
    return fakes


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fake encoder, which every run of the test gets as its model."""
    found = fakes.FakeEncoder()
    fakes.take_the_place_of_models(monkeypatch, found)
    return found


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Six records of 2 to 250 bases."""
    return fakes.write_fasta(tmp_path / "x.fa")


DEFAULTS: dict[str, Any] = {"window": 20, "partition_windows": 4, "threads": 1}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed `run()`, made once; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        fakes.take_the_place_of_models(patch, fakes.FakeEncoder())
        source = fakes.write_fasta(folder / "x.fa")
        stages.run(source, model="fake", out=folder / "x.zarr", **DEFAULTS)
    return folder / "x.zarr"


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole` where `run()` would put its store."""
    return Path(shutil.copytree(whole, tmp_path / "x.zarr"))


@pytest.fixture
def run(encoder: Any, fasta: Path, tmp_path: Path) -> Callable[..., Status]:
    """`bertgeom.run` of `fasta` with the fake encoder into `out` below the test's folder."""

    def start(out: str = "x.zarr", **options: Any) -> Status:
        source = None if "sequences" in options else options.pop("source", fasta)
        return stages.run(source, model="fake", out=tmp_path / out, **{**DEFAULTS, **options})

    return start


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer BERT classifier with 3-mers of 64 tokens."""
    from bertgeom.testing import save_tiny_classifier

    return save_tiny_classifier(tmp_path_factory.mktemp("tiny") / "model")
