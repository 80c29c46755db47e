"""Typed facts of a run: written as they were read, refused in one line where damaged."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bertgeom.config import fingerprint
from bertgeom.errors import DamagedError
from bertgeom.pipelines.context.facts import RunFacts
from bertgeom.pipelines.context.folder import RunFolder
from bertgeom.store.manifest import sealed, unsealed
from bertgeom.store.storage import Storage

OLD = Path(__file__).parents[2] / "data" / "store-1.0.tar.xz"


def test_what_a_run_wrote_is_written_again_byte_by_byte(whole: Path) -> None:
    written = (whole / "run" / "run.json").read_bytes()
    facts = RunFolder(Storage(str(whole))).read_run()
    assert facts is not None
    assert sealed(facts.to_json()) == written
    assert facts.fingerprint == facts.identity.fingerprint


def test_what_the_first_version_wrote_keeps_its_identity() -> None:
    with tarfile.open(OLD) as archive:
        names = [name for name in archive.getnames() if name.endswith("run/run.json")]
        members = [archive.extractfile(name) for name in names]
        found = [unsealed(member.read()) for member in members if member is not None]
    assert len(found) >= 2
    for old in found:
        new = RunFacts.from_json(old).to_json()
        assert new["identity"] == old["identity"]
        assert new["settings"].items() >= old["settings"].items()
        assert {name: new[name] for name in old if name != "settings"}.items() == {
            name: value for name, value in old.items() if name != "settings"
        }.items()
        assert new.keys() == old.keys()


def _without(name: str) -> Any:
    return lambda facts: facts.pop(name)


def _with(*path: str, value: Any) -> Any:
    def change(facts: dict[str, Any]) -> None:
        *outer, last = path
        inner = facts
        for name in outer:
            inner = inner[name]
        inner[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("shape"), "no shape"),
        (_without("settings"), "no settings"),
        (_without("sequences"), "no sequences"),
        (_with("group_windows", value="8"), "group_windows: another type than int"),
        (_with("shape", value=[1]), "shape: not a JSON object"),
        (_with("shape", "class_names", value=[1]), "shape.class_names: another type than str"),
        (_with("settings", "theta", value=7), "--theta"),
        (_with("settings", "newer", value=7), "settings: .*newer"),
        (_with("settings", "batch_tokens", value=None), "batch_tokens is not decided"),
        (_with("settings", "keep", value=None), "settings"),
        (_with("files", value=3), "not a list of files"),
        (_with("identity", value={}), "no identity.definitions_version"),
        (_with("identity", "model", "dtype", value=32), "identity.model.dtype: another type"),
        (_with("identity", "labels", value="x"), "a fingerprint of something else"),
        (_with("fingerprint", value="x"), "a fingerprint of something else"),
    ],
)
def test_damaged_facts_are_one_line(change: Any, message: str, copied: Path) -> None:
    path = copied / "run" / "run.json"
    facts = unsealed(path.read_bytes())
    change(facts)
    path.write_bytes(json.dumps(facts).encode())
    with pytest.raises(DamagedError, match=f"{message}.*bertgeom run command") as caught:
        RunFolder(Storage(str(copied))).read_run()
    assert "\n" not in str(caught.value)


def test_an_identity_of_a_later_version_is_not_taken_for_this_one(copied: Path) -> None:
    path = copied / "run" / "run.json"
    facts = unsealed(path.read_bytes())
    facts["identity"]["newer"] = 1
    facts["fingerprint"] = fingerprint(facts["identity"])
    path.write_bytes(sealed(facts))
    with pytest.raises(DamagedError, match="a later version of bertgeom"):
        RunFolder(Storage(str(copied))).read_run()
