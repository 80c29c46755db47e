"""Every kind of file of a finished store times every harm: named, and restored byte by byte."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damages import cut, empty, flip, longer

from bertgeom.errors import StoreError
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.run import prepare, stages
from bertgeom.pipelines.run.verify import verify

#: Files that come from sources, labels and regions, which `run` has and a repair has not.
INPUTS = {
    "run/run.json",
    "run/labels.i4",
    "run/annotations.json",
    "run/input.json",
    "run/windows.safetensors",
}
#: Files without which other damage cannot be seen.
HIDING = {"zarr.json", "run/run.json", "run/manifest.json", "run/windows.safetensors"}
#: Files that no checksum covers: what has a clock or a process in it.
UNLISTED = {"run/lock", "run/history.jsonl"}


def unlink(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS = [flip, cut, longer, empty, unlink, folder]


def bpe() -> Any:
    """A tokenizer whose windows are cut by tokens, of 48 tokens and a small vocabulary."""
    from tokenizers import Tokenizer, models, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from bertgeom.tokens.huggingface import HuggingFace

    letters = np.random.default_rng(1).choice(list("ACGT"), (20, 200))
    made = Tokenizer(models.BPE(unk_token="[UNK]"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        ["".join(row) for row in letters],
        trainers.BpeTrainer(special_tokens=special, vocab_size=40, show_progress=False),
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", made.token_to_id("[CLS]")), ("[SEP]", made.token_to_id("[SEP]"))],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    )
    return HuggingFace(fast, 48)


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, fake: Any, tiny_model: Path
) -> Iterator[dict[str, Any]]:
    """A finished store with all that a run can keep, and the call that made it."""
    from bertgeom.config import Settings
    from bertgeom.pipelines.context.run_context import load_model

    place = tmp_path_factory.mktemp("sweep")
    source = fake.write_fasta(place / "x.fa", (100, 7, 250, 90))
    (place / "labels.tsv").write_text("r0\tone\nr2\ttwo\n")
    (place / "regions.bed").write_text("r0\t2\t9\tgene\nr2\t5\t80\tgene\n")
    loaded = load_model(str(tiny_model), Settings(device="cpu"))
    encoder = replace(loaded, tokenizer=bpe(), max_tokens=48)

    def start(out: Path) -> stages.Status:
        return stages.run(
            source,
            model=tiny_model,
            out=out,
            labels=place / "labels.tsv",
            annotations=place / "regions.bed",
            tier="core",
            keep="cls",
            spectra=1,
            partition_windows=2,
            threads=1,
        )

    with pytest.MonkeyPatch.context() as patch:
        fake.take_the_place_of_models(patch, encoder)
        patch.setattr(prepare, "row_group", lambda shape, size, n: 2 * size)
        start(place / "whole.zarr")
        whole = fake.contents(place / "whole.zarr")
        yield {"place": place, "start": start, "whole": whole, "contents": fake.contents}


@pytest.fixture
def store(world: dict[str, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(world["place"] / "whole.zarr", tmp_path / "x.zarr"))


def kinds(whole: dict[str, bytes]) -> list[str]:
    """The largest file of every kind: files that are damaged and restored alike."""
    found: dict[str, str] = {}
    for key in sorted(whole, key=lambda key: (-len(whole[key]), key)):
        parts = key.split("/")
        top = parts[0] if parts[0] in ("run", "sequences", "cohorts", "spectra") else "array"
        name = "chunk" if "c" in parts else parts[-1]
        if parts[:2] == ["run", "groups"]:
            name = f"groups/*{Path(key).suffix}"
        if key not in UNLISTED:
            found.setdefault(f"{top} {name}" if len(parts) > 1 else key, key)
    return sorted(found.values())


def named(store: Path) -> str:
    """What `verify` says, whether it lists it or refuses the store with it in one line."""
    try:
        report = verify(store, windows=0)
    except StoreError as error:
        return str(error)
    assert not report.agrees
    return "\n".join(report.problems)


def test_there_are_files_of_every_kind(world: dict[str, Any]) -> None:
    found = kinds(world["whole"])
    assert set(found) >= INPUTS
    assert {key.split("/")[0] for key in found} >= {"cohorts", "spectra", "sequences", "zarr.json"}
    assert {Path(key).suffix for key in found if "groups" in key} == {".json", ".sums", ".spectra"}
    assert "run/manifest.json" in found
    assert len(world["whole"]) > 100


@pytest.mark.parametrize("harm", HARMS, ids=[harm.__name__ for harm in HARMS])
def test_every_kind_of_file_with_every_harm(
    harm: Callable[[Path], None], store: Path, world: dict[str, Any], capsys: Any
) -> None:
    whole = world["whole"]
    keys = [key for key in kinds(whole) if whole[key] or harm in (longer, unlink, folder)]
    alone = [key for key in keys if key in HIDING or key.startswith("sequences/")]
    for group in [[key] for key in alone] + [[key for key in keys if key not in alone]]:
        for key in group:
            harm(store / key)
        said = named(store)
        for key in group:
            path = store / key
            assert key.removeprefix("sequences/") in said, (key, said)
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            path.write_bytes(whole[key])
    # All that needs no inputs at once, by repair.
    ours = [key for key in keys if key not in INPUTS and not key.startswith("sequences/")]
    for key in ours:
        harm(store / key)
    assert main(["verify", str(store), "--windows", "0"]) == 1
    capsys.readouterr()
    stages.repair(store, threads=1)
    assert world["contents"](store) == whole
    # What needs them is refused in one line by the repair, and restored by the run.
    for key in sorted({*keys} - {*ours}):
        harm(store / key)
        with pytest.raises(StoreError, match="bertgeom run command of this store, given again"):
            stages.repair(store, threads=1)
    for key in ours:
        if key != "zarr.json":
            harm(store / key)
    world["start"](store)
    assert world["contents"](store) == whole
    assert verify(store, windows=0).agrees


def test_a_folder_with_contents_in_the_place_of_a_file_is_left_alone(
    store: Path, world: dict[str, Any]
) -> None:
    for key in ("run/groups/00000000.json", "gate/c/0/0/0", "run/input.json", "gate"):
        path = store / key
        shutil.move(path, store.parent / "aside")
        if key == "gate":
            path.write_text("mine")
        else:
            path.mkdir()
            (path / "thesis.txt").write_text("years of work")
        before = world["contents"](store)
        assert key in named(store)
        for restore in (lambda: stages.repair(store, threads=1), lambda: world["start"](store)):
            with pytest.raises(StoreError) as caught:
                restore()
            assert "\n" not in str(caught.value)
        # The run, which has the inputs, says what is in the way.
        assert re.search(f"{path}: .*move it away|move {path} away", str(caught.value))
        assert world["contents"](store) == before
        path.unlink() if key == "gate" else shutil.rmtree(path)
        shutil.move(store.parent / "aside", path)
    world["start"](store)
    assert world["contents"](store) == world["whole"]


def test_superfluous_files_in_every_folder_are_named(store: Path, world: dict[str, Any]) -> None:
    whole = world["whole"]
    places = sorted({os.path.dirname(key) for key in kinds(whole)})
    for place in places:
        (store / place / "notes.txt").write_text("mine")
        (store / place / "99").write_text("mine")
    said = named(store)
    stages.repair(store, threads=1)
    left = world["contents"](store)
    for place in places:
        for name in ("notes.txt", "99"):
            key = os.path.join(place, name)
            assert f"{key.removeprefix('sequences/')} is no part of" in said, key
            assert name == "99" or left.pop(key) == b"mine"
            left.pop(key, None)
    assert left == whole


def test_a_damaged_history_or_lock_stops_nothing(store: Path, world: dict[str, Any]) -> None:
    for harm in (flip, cut, longer, empty, unlink):
        shutil.copy(world["place"] / "whole.zarr/run/history.jsonl", store / "run/history.jsonl")
        harm(store / "run/history.jsonl")
        assert stages.status(str(store)).complete
        assert verify(store, windows=0).agrees
    text = (world["place"] / "whole.zarr/run/history.jsonl").read_text()
    (store / "run/history.jsonl").write_text(text.replace('"seconds"', '"sekonds"'))
    assert stages.status(str(store)).seconds == 0
    (store / "run/lock").unlink()
    assert verify(store, windows=0).agrees
    for key in sorted(UNLISTED):
        (store / key).unlink(missing_ok=True)
        (store / key).mkdir()
        with pytest.raises(StoreError, match=f"move .*{key} away") as caught:
            world["start"](store)
        assert "\n" not in str(caught.value)
        (store / key).rmdir()


@pytest.mark.parametrize("name", sorted(INPUTS - {"run/run.json"}))
def test_inputs_of_an_unfinished_run_are_checked_too(
    name: str, store: Path, world: dict[str, Any]
) -> None:
    """No list of all files vouches for them yet."""
    (store / "run/groups/00000000.json").unlink()
    (store / "run/manifest.json").unlink()
    root = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(root.replace('"complete": true', '"complete": false', 1))
    for harm in (flip, unlink):
        harm(store / name)
        assert name in named(store)
        (store / name).unlink(missing_ok=True)
        (store / name).write_bytes(world["whole"][name])
    (store / name).unlink()
    world["start"](store)
    assert world["contents"](store) == world["whole"]
