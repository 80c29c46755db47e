"""A run in which most tokens are unknown is refused before it begins, and shares are said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bertgeom
from bertgeom.errors import ModelError
from bertgeom.pipelines import stages
from bertgeom.pipelines.progress import Status, share_lines, shares
from bertgeom.pipelines.unknown import UnknownTokens


def write(path: Path, *records: str) -> Path:
    path.write_text("".join(f">r{i}\n{text}\n" for i, text in enumerate(records)))
    return path


def test_mostly_unknown_tokens_are_refused_before_anything_is_there(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    source = write(tmp_path / "codes.fa", *["RYKMSWBDHV" * 16] * 8)
    with pytest.raises(ModelError, match=r"found 100 % unknown .*--allow-unknown") as caught:
        run(source=source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.zarr").exists()
    done = run(source=source, allow_unknown=True)
    assert shares(done).unknown_tokens == 100
    # The option is none of the identity: what is under way goes on without it.
    assert run(source=source).complete


def test_a_handful_of_windows_is_measured_with_a_warning(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    assert run(source=write(tmp_path / "n.fa", "N" * 60)).complete
    few = write(tmp_path / "few.fa", "ACGT" * 5, "N" * 60)
    done = run("few.zarr", source=few)
    assert done.counts["unknown"] == 3
    assert any("most tokens are unknown" in line for line in share_lines(done))


def test_a_database_of_n_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown"):
        run(source=write(tmp_path / "n.fa", "ACGT" * 20 + "N" * 600))


@pytest.mark.parametrize(
    ("found", "too_many"),
    [
        (UnknownTokens(64, 1000, 501), True),
        (UnknownTokens(64, 1000, 500), False),
        (UnknownTokens(8, 1000, 1000), True),
        (UnknownTokens(7, 1000, 1000), False),
    ],
)
def test_the_rule(found: UnknownTokens, too_many: bool) -> None:
    assert found.too_many == too_many


def test_shares_are_exact(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run()
    ds = bertgeom.open(tmp_path / "x.zarr").load()
    content = (ds.n_tokens - 2).clip(0)
    found = shares(done)
    assert found.unknown_tokens == pytest.approx(100 * float(ds.n_unknown.sum() / content.sum()))
    assert found.unknown_windows == pytest.approx(100 * float((ds.flags & 1 > 0).mean()))
    assert found.truncated_windows == 0
    assert any(line.startswith("unknown tokens: ") for line in share_lines(done))


def test_records_of_an_older_version_do_not_say(copied: Path) -> None:
    import json

    groups = sorted((copied / "run" / "groups").glob("*.json"))
    record = json.loads(groups[0].read_text())
    for name in ("content_tokens", "unknown_tokens", "truncated_windows"):
        del record["counts"][name]
    record.pop("checksum")
    groups[0].write_text(json.dumps(record, indent=2))
    found: Status = stages.status(str(copied))
    assert shares(found).unknown_tokens is None
    assert shares(found).unknown_windows is not None
    assert share_lines(found)[0].startswith("unknown tokens: not recorded")
