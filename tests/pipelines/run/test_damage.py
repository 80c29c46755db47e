"""Damage of every kind of file: named, never read as numbers, and restored byte by byte."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from damages import cut, empty, flip, longer

import bertgeom
from bertgeom.errors import DamagedError, MismatchError, StoreError
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.context.events import Damaged, PartitionDone
from bertgeom.pipelines.run import inventory, prepare, stages
from bertgeom.pipelines.run.verify import verify
from bertgeom.store import manifest, root_file
from bertgeom.store.storage import Storage

Run = Callable[..., stages.Status]
SEED = 5
OPTIONS: dict[str, Any] = {"window": 30, "partition_windows": 2, "threads": 1, "keep": "cls"}


HARMS: list[Callable[[Path], Any]] = [flip, cut, longer, Path.unlink, empty]


def kind_of(key: str) -> str:
    """Files that are damaged and restored alike."""
    parts = key.split("/")
    if parts[0] in ("run", "sequences", "cohorts", "records"):
        return "/".join([parts[0], Path(parts[-1]).suffix or ("c" if "c" in parts else "")])
    return "chunk" if "c" in parts and parts[0].startswith(("att", "cone", "gate")) else parts[-1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, fake: Any) -> Iterator[dict[str, Any]]:
    """Two finished stores of several row groups, with labels and regions; one of means only."""
    folder = tmp_path_factory.mktemp("damage")
    source = fake.write_fasta(folder / "x.fa")
    (folder / "labels.tsv").write_text("r0\tone\nr2\ttwo\n")
    (folder / "regions.bed").write_text("r0\t2\t9\tgene\nr2\t5\t80\tgene\n")
    asked = {
        "model": "fake",
        "labels": folder / "labels.tsv",
        "annotations": folder / "regions.bed",
        **OPTIONS,
    }
    with pytest.MonkeyPatch.context() as patch:
        fake.take_the_place_of_models(patch, fake.FakeEncoder())
        patch.setattr(prepare, "row_group", lambda shape, size, n: 2 * size)
        for name, more in (("full", {"tier": "core"}), ("means", {"reduce": True})):
            stages.run(source, out=folder / f"{name}.zarr", **asked, **more)
        yield {"folder": folder, "source": source, "asked": asked, "contents": fake.contents}


@pytest.fixture
def store(world: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name = getattr(request, "param", "full")
    return Path(shutil.copytree(world["folder"] / f"{name}.zarr", tmp_path / "x.zarr"))


def again(world: dict[str, Any], store: Path, **more: Any) -> stages.Status:
    more = more or {"tier": "core"}
    return stages.run(world["source"], out=store, **world["asked"], **more)


def samples(contents: dict[str, bytes]) -> list[str]:
    """A file of every kind, drawn by seed."""
    rng = random.Random(SEED)
    kinds: dict[str, list[str]] = {}
    for key in sorted(contents):
        kinds.setdefault(kind_of(key), []).append(key)
    return [rng.choice(keys) for _, keys in sorted(kinds.items())]


def is_of_inputs(key: str) -> bool:
    """Whether a file comes from the sources, labels and regions, which a repair does not have."""
    return key.startswith("sequences/") or key in (
        "run/run.json",
        "run/labels.i4",
        "run/annotations.json",
    )


@pytest.mark.parametrize("store", ["full", "means"], indirect=True)
def test_every_kind_of_file_is_named_and_restored(
    store: Path, world: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    whole = world["contents"](store)
    more = {"reduce": True} if (store / "records").exists() else {"tier": "core"}
    rng = random.Random(SEED)
    keys = [key for key in samples(whole) if key != "run/lock"]
    assert len(keys) >= 12
    for key in keys:
        rng.choice(HARMS)(store / key)
        try:
            named = verify(store, windows=0).problems
        except StoreError as error:
            named = (str(error),)
        name = key.removeprefix("sequences/")
        assert any(name in problem for problem in named), (key, named)
        (store / key).write_bytes(whole[key])
    # Those that need no inputs at once, by repair; then all but the root, by the run.
    ours = [key for key in keys if not is_of_inputs(key)]
    theirs = [key for key in keys if is_of_inputs(key)]
    for key in ours:
        rng.choice(HARMS)(store / key)
    stages.repair(store, threads=1)
    assert world["contents"](store) == whole
    rng.choice(HARMS)(store / rng.choice([k for k in theirs if k != "run/run.json"]))
    with pytest.raises(StoreError, match="bertgeom run command of this store, given again"):
        stages.repair(store, threads=1)
    for key in [k for k in keys if k != "zarr.json"]:
        (store / key).unlink(missing_ok=True)
        (store / key).write_bytes(whole[key])
        rng.choice(HARMS)(store / key)
    again(world, store, **more)
    assert world["contents"](store) == whole
    assert verify(store, windows=0).agrees


@pytest.mark.parametrize("harm", HARMS, ids=["flip", "cut", "longer", "unlink", "empty"])
def test_a_damaged_chunk_is_never_read_as_numbers(
    harm: Callable[[Path], Any], store: Path, world: dict[str, Any], tmp_path: Path
) -> None:
    harm(store / "attention_entropy" / "c" / "1" / "0" / "0")
    with pytest.raises(DamagedError, match=r"attention_entropy/c/1/0/0.*verify --repair"):
        _ = bertgeom.open(store)["attention_entropy"].values
    assert main(["export", str(store), "-o", str(tmp_path / "x.tsv")]) == 1
    whole = world["contents"](world["folder"] / "full.zarr")
    events: list[Any] = []
    again(world, store, tier="core", subscribers=[events.append])
    done = [event.partition for event in events if isinstance(event, PartitionDone)]
    assert sorted(done) == [2, 3]
    assert any("attention_entropy/c/1/0/0" in e.what for e in events if isinstance(e, Damaged))
    assert world["contents"](store) == whole


def test_readers_refuse_a_missing_or_superfluous_file(store: Path) -> None:
    dataset = bertgeom.open(store)
    # Chunks of the fill value alone have no file; a file in such a place is none of the store's.
    absent = next(n for n in range(9) if not (store / f"truncated/c/{n}").exists())
    (store / "truncated/c").mkdir(exist_ok=True)
    shutil.copy(store / "n_tokens/c/0", store / f"truncated/c/{absent}")
    (store / "attention_top1/c/1/0/0").unlink()
    with pytest.raises(DamagedError, match="attention_top1/c/1/0/0: the file is missing"):
        _ = dataset["attention_top1"].values
    # Arrays that say what a row is are read when the store is opened.
    with pytest.raises(DamagedError, match=f"truncated/c/{absent}: the file is no part"):
        bertgeom.open(store)
    flip(store / "cohorts/attention_entropy_mean/c/0/0/0")
    with pytest.raises(DamagedError, match="cohorts/attention_entropy_mean"):
        bertgeom.open(store, group="cohorts").load()


@pytest.mark.parametrize(
    "change",
    [
        lambda root: root["attributes"]["model"].update(id="another"),
        lambda root: root["attributes"]["settings"].update(theta=0.9),
        lambda root: root["consolidated_metadata"]["metadata"]["label"].update(shape=[3]),
    ],
)
def test_an_edited_root_is_found_and_restored(
    change: Callable[[Any], Any], store: Path, world: dict[str, Any]
) -> None:
    whole = world["contents"](store)
    root = json.loads((store / "zarr.json").read_text())
    change(root)
    (store / "zarr.json").write_text(json.dumps(root, indent=2))
    with pytest.raises(DamagedError, match=r"zarr\.json"):
        bertgeom.open(store)
    (problem,) = verify(store, windows=0).problems
    assert problem.startswith("zarr.json ")
    stages.repair(store)
    assert world["contents"](store) == whole


def test_superfluous_files_are_named_and_only_our_own_are_removed(
    store: Path, world: dict[str, Any]
) -> None:
    whole = world["contents"](store)
    shutil.copy(store / "label/c/0", store / "label/c/77")
    (store / "run/groups/00000099.json").write_text("{}")
    (store / "notes.txt").write_text("mine")
    problems = verify(store, windows=0).problems
    for key in ("label/c/77", "run/groups/00000099.json", "notes.txt"):
        assert any(problem.startswith(f"{key} is no part") for problem in problems), problems
    stages.repair(store)
    assert (store / "notes.txt").read_text() == "mine"
    (store / "notes.txt").unlink()
    assert world["contents"](store) == whole


def test_a_lost_run_file_is_said_in_one_line_and_restored(
    store: Path, world: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = world["contents"](store)
    cut(store / "run/run.json")
    for command in (["status"], ["verify", "--windows", "0"], ["verify", "--repair"]):
        assert main([command[0], str(store), *command[1:]]) == 1
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        assert "run.json" in said
        assert "given again, restores it" in said
    with pytest.raises(MismatchError, match="theta"):
        again(world, store, tier="core", theta=0.4)
    events: list[Any] = []
    again(world, store, tier="core", subscribers=[events.append])
    assert not any(isinstance(event, PartitionDone) for event in events)
    assert world["contents"](store) == whole


def test_records_count_for_their_own_run_alone(store: Path, world: dict[str, Any]) -> None:
    whole = world["contents"](store)
    place = store / "run/groups/00000001.json"
    record = manifest.unsealed(place.read_bytes())
    for change in ({"fingerprint": "another"}, {"windows": [0, 4]}, {"counts": None}):
        place.write_bytes(manifest.sealed({**record, **change}))
        state = stages.status(str(store))
        assert not state.complete
        assert state.groups_written == state.groups - 1
        again(world, store)
        assert world["contents"](store) == whole
    # Edited counts do not fit the checksum that the record holds of itself.
    text = place.read_text()
    place.write_text(text.replace('"windows": 4', '"windows": 5', 1))
    assert any("00000001.json" in problem for problem in verify(store, windows=0).problems)


def test_large_stores_are_checked_by_size_when_run_again(
    store: Path, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "CHECKED_WHOLE", 0)
    whole = world["contents"](store)
    chunk = store / "attention_entropy/c/0/0/0"
    cut(chunk)
    flip(store / "layer/c/0")
    again(world, store)
    assert world["contents"](store) == whole
    flip(chunk)
    again(world, store)
    assert not verify(store, windows=0).agrees
    stages.repair(store, threads=1)
    assert world["contents"](store) == whole


def test_a_lost_list_of_files_is_damage(store: Path, world: dict[str, Any]) -> None:
    whole = world["contents"](store)
    for restore in (lambda: stages.repair(store, threads=1), lambda: again(world, store)):
        (store / manifest.KEY).unlink()
        assert verify(store, windows=0).problems == (f"{manifest.KEY} is missing",)
        for group in (None, "cohorts"):
            with pytest.raises(
                DamagedError, match=r"manifest\.json: the file is missing.*--repair"
            ):
                bertgeom.open(store, group=group)
        # What nobody but the list vouches for is made anew with it.
        flip(store / "cohorts/attention_entropy_mean/c/0/0/0")
        restore()
        assert world["contents"](store) == whole


def test_a_store_of_format_1_0_has_no_list_of_files_and_gets_one(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "old.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(root_file, "FORMAT_VERSION", "1.0")
        again(world, store)
    whole = world["contents"](store)
    (store / manifest.KEY).unlink()
    report = verify(store, windows=0)
    assert report.agrees
    assert "format 1.0 has no list of its files" in report.notes[0]
    flip(store / "attention_entropy/c/0/0/0")
    with pytest.raises(DamagedError):
        _ = bertgeom.open(store)["attention_entropy"].values
    again(world, store)
    assert world["contents"](store) == whole
    assert verify(store, windows=0).notes == ()


def test_xarray_alone_meets_a_flip(store: Path) -> None:
    import xarray

    flip(store / "attention_entropy/c/0/0/0")
    with pytest.raises(RuntimeError):
        _ = xarray.open_zarr(store)["attention_entropy"].values


def test_damaged_shards_are_read_again_from_the_same_sources_alone(
    store: Path, world: dict[str, Any], fake: Any, tmp_path: Path
) -> None:
    whole = world["contents"](store)
    flip(store / "sequences/zarr.json")
    other = fake.write_fasta(tmp_path / "y.fa", seed=3)
    with pytest.raises(MismatchError, match="sha256"):
        stages.run(other, out=store, **world["asked"], tier="core")
    moved = Path(shutil.copy(world["source"], tmp_path / "moved.fa"))
    stages.run(moved, out=store, **world["asked"], tier="core")
    assert world["contents"](store) == whole


def test_every_file_has_an_owner_and_an_entry(store: Path, world: dict[str, Any]) -> None:
    files = manifest.read(Storage(str(store)))
    assert files is not None
    unlisted = {k for k in world["contents"](store) if not manifest.is_listed(k)}
    assert files.keys() | unlisted == world["contents"](store).keys()
    from bertgeom.pipelines.context.run_context import open_context

    context = open_context(str(store))
    owners = {key: inventory.owner(context, key)[0] for key in files}
    assert inventory.Kind.LEFTOVER not in owners.values()
    assert owners["zarr.json"] is inventory.Kind.ROOT
