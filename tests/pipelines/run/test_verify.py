"""verify finds what was damaged, and nothing where nothing was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertgeom import _version
from bertgeom.errors import MismatchError, StoreError
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.context.events import PartitionDone
from bertgeom.pipelines.run.stages import Status
from bertgeom.pipelines.run.verify import verify
from bertgeom.store import manifest
from bertgeom.store import zarr_io as store_module
from bertgeom.store.storage import Storage
from bertgeom.tokens.select import DnabertKmer

Run = Callable[..., Status]


pytestmark = pytest.mark.usefixtures("encoder")


def test_a_sound_store_agrees(run: Run, tmp_path: Path) -> None:
    run(keep="cls,logits,tracks,block_map", strand="both", bitround=8)
    report = verify(tmp_path / "x.zarr", windows=5)
    assert report.agrees, [c for c in report.comparisons if not c.agrees]
    assert report.problems == ()
    assert report.files > 50
    assert len(report.windows) == 5
    assert verify(tmp_path / "x.zarr", windows=5).windows == report.windows
    assert verify(tmp_path / "x.zarr", windows=5, seed=1).windows != report.windows
    assert verify(tmp_path / "x.zarr", windows=0).comparisons == ()


@pytest.mark.parametrize(
    ("key", "damage", "problem"),
    [
        ("attention_entropy/c/0/0/0", lambda p: p.unlink(), "is missing"),
        ("gate/c/0/0/0", lambda p: p.write_bytes(p.read_bytes()[:-3]), "in place of"),
        ("cone_index/c/0/0", lambda p: _flip(p), "was changed"),
        ("run/groups/00000000.sums", lambda p: _flip(p), "was changed"),
        ("cohorts/gate_mass_mean/c/0/0/0/0", lambda p: p.unlink(), "is missing"),
        ("sequences/bases/c/0", lambda p: _flip(p), "sequences: bases/c/0 was changed"),
    ],
)
def test_a_damaged_file_is_named(
    key: str, damage: Callable[[Path], Any], problem: str, copied: Path
) -> None:
    damage(copied / key)
    report = verify(copied)
    assert not report.agrees
    assert len(report.problems) == 1
    assert problem in report.problems[0]
    assert key.removeprefix("sequences/").split("/c/")[0] in report.problems[0]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_an_unfinished_store_is_told_with_what_is_missing(run: Run, tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, PartitionDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(subscribers=[stop])
    report = verify(tmp_path / "x.zarr")
    assert "of 7 partitions are missing" in report.problems[0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("attention_entropy", lambda x: x + 1e-3),
        ("angle_histogram", lambda x: np.roll(x, 1, axis=-1)),
        ("cone_axis_angle_max", lambda x: x + 1),
        ("gate", lambda x: x + 1),
        ("stream_norm_max", lambda x: np.where(np.arange(len(x))[:, None] % 2, np.nan, x)),
    ],
)
def test_wrong_numbers_with_right_checksums_are_found(
    name: str, change: Callable[[np.ndarray], np.ndarray], copied: Path
) -> None:
    storage = Storage(str(copied))
    arrays = store_module.Arrays(storage)
    before = arrays.read(name)
    arrays.write(name, 0, change(before).astype(before.dtype))
    place = "run/groups/00000000.json"
    record = manifest.unsealed(storage.read(place))
    for key, entry in arrays.written.items():
        record["files"][key] = list(entry)
    storage.write(place, manifest.sealed(record))
    files = manifest.read(storage) or {}
    manifest.write(
        storage, files | arrays.written | {place: manifest.entry_of(storage.read(place))}
    )
    report = verify(copied, windows=6)
    assert report.problems == ()
    assert [c.array for c in report.comparisons if not c.agrees] == [name]
    assert not report.agrees


def test_another_model_is_no_oracle(encoder: Any, whole: Path) -> None:
    encoder.fingerprint = "another"
    with pytest.raises(MismatchError, match="fingerprint"):
        verify(whole)


def test_where_nothing_is_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a store that bertgeom run has set up"):
        verify(tmp_path / "nothing")


@pytest.mark.parametrize("reduce", [False, True])
def test_numbers_that_an_earlier_version_may_have_spoiled_are_named(
    reduce: bool, encoder: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.tokenizer = DnabertKmer(3, max_tokens=1500)
    source = tmp_path / "long.fa"
    records = {"whole": 1200, "less": 1000, "short": 300}
    source.write_text("".join(f">{name}\n{'ACGGT' * (n // 5)}\n" for name, n in records.items()))

    def made_by(version: str) -> Path:
        monkeypatch.setattr(_version, "__version__", version)
        run(f"{version}.zarr", source=source, window=1300, reduce=reduce)
        return tmp_path / f"{version}.zarr"

    mended = verify(made_by("0.2.0"), windows=0)
    assert mended.agrees
    old = made_by("0.1.0")
    (problem,) = verify(old, windows=0).problems
    assert "bertgeom 0.1.0 wrote this store on the CPU" in problem
    assert "1 windows of 1000 to 1000 tokens may be wrong" in problem
    assert "measure again with this version into a new store" in problem
    assert main(["verify", str(old), "--windows", "0"]) == 1
    assert main(["verify", str(tmp_path / "0.2.0.zarr"), "--windows", "0"]) == 0
