"""A store that was set up and has no result binds nobody to its model and settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bertgeom.errors import MismatchError
from bertgeom.pipelines.run import stages
from bertgeom.pipelines.run.stages import Status

Run = Callable[..., Status]
FIRST = {"keep": "block_map,cls,logits,tracks", "angles": "all"}
OTHERS: dict[str, dict[str, Any]] = {
    "the same": FIRST,
    "window": {**FIRST, "window": 30},
    "fewer arrays": {"tier": "core"},
    "reduced": {"reduce": True},
    "partitions": {**FIRST, "partition_windows": 8},
}


def interrupt(run: Run, patch: pytest.MonkeyPatch, **options: Any) -> None:
    """A run that ends when it is set up."""

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with patch.context() as inner:
        inner.setattr(stages, "execute", stop)
        with pytest.raises(KeyboardInterrupt):
            run("x.zarr", **options)


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_set_up_as_in_a_new_place(
    name: str, run: Run, fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labels.tsv").write_text("r0\ta\nr2\tb\n")
    interrupt(run, monkeypatch, labels=tmp_path / "labels.tsv", **FIRST)
    assert (tmp_path / "x.zarr" / "run" / "run.json").exists()
    for place in ("x.zarr", "new.zarr"):
        assert run(place, **OTHERS[name]).complete
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(tmp_path / "new.zarr")


def test_another_model_is_let_in(
    run: Run, encoder: Any, fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(run, monkeypatch)
    encoder.fingerprint, encoder.n_layers = "another", 3
    for place in ("x.zarr", "new.zarr"):
        run(place)
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(tmp_path / "new.zarr")


@pytest.mark.parametrize("key", ["notes.txt", "cls/mine", "run/groups/00000000.json"])
def test_files_of_others_or_results_are_never_replaced(
    key: str, run: Run, fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(run, monkeypatch, **FIRST)
    path = tmp_path / "x.zarr" / key
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = fake.contents(tmp_path / "x.zarr")
    with pytest.raises(MismatchError, match="give the same options, or another --out"):
        run("x.zarr", window=30)
    assert fake.contents(tmp_path / "x.zarr") == before


def test_a_take_back_killed_at_any_write_is_taken_up_again(
    run: Run, fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bertgeom.store.storage import Storage

    run("new.zarr", window=30)
    interrupt(run, monkeypatch, **FIRST)
    remove, calls = Storage.remove, []

    def dying(self: Storage, key: str) -> None:
        remove(self, key)
        calls.append(key)
        if len(calls) in (2, 9, 80):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove", dying)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run("x.zarr", window=30)
    assert run("x.zarr", window=30).complete
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(tmp_path / "new.zarr")
