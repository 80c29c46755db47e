"""A run in which most tokens are unknown is refused before it begins, and shares are said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bertgeom
from bertgeom.errors import ModelError
from bertgeom.pipelines.run import stages
from bertgeom.pipelines.run.progress import Status
from bertgeom.pipelines.run.shares import share_lines, shares
from bertgeom.pipelines.run.unknown import UnknownTokens


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
    assert shares(done.counts).unknown_tokens == 100
    # The option is none of the identity: what is under way goes on without it.
    assert run(source=source).complete


def test_a_handful_of_windows_is_measured_with_a_warning(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    assert run(source=write(tmp_path / "n.fa", "N" * 60)).complete
    few = write(tmp_path / "few.fa", "ACGT" * 5, "N" * 60)
    done = run("few.zarr", source=few)
    assert done.counts["unknown"] == 3
    assert any("most tokens are unknown" in line for line in share_lines(done.counts))


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
    found = shares(done.counts)
    assert found.unknown_tokens == pytest.approx(100 * float(ds.n_unknown.sum() / content.sum()))
    assert found.unknown_windows == pytest.approx(100 * float((ds.flags & 1 > 0).mean()))
    assert found.truncated_windows == 0
    assert any(line.startswith("unknown tokens: ") for line in share_lines(done.counts))


@pytest.fixture
def first_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports end after their first section, which tells the shares; figures take seconds."""
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    from bertgeom.pipelines.report import build as report
    from bertgeom.pipelines.report.page import Page

    def build(summary: Any) -> Page:
        page = Page("title", "subtitle")
        page.add("analysed", "What was analysed", *report.analysed(summary))
        return page

    monkeypatch.setattr(report, "build", build)


@pytest.mark.parametrize("source", ["few", "many"])
def test_run_status_and_report_say_the_same_share(
    source: str,
    encoder: Any,
    first_section: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bertgeom.pipelines.cli.main import main

    bases = {"few": ["ACGT" * 9 + "NACGTAC"] * 3, "many": ["ACGT" * 3 + "N" * 24] * 2}[source]
    store, page = tmp_path / "x.zarr", tmp_path / "x.html"
    fasta = write(tmp_path / "x.fa", *bases)
    command = ["run", str(fasta), "-m", "fake", "-o", str(store), "--window", "20"]
    assert main([*command, "--threads", "1"]) == 0
    ran = capsys.readouterr().out
    assert main(["status", str(store)]) == 0
    asked = capsys.readouterr().out
    assert main(["report", str(store), "-o", str(page)]) == 0
    ds = bertgeom.open(store).load()
    share = 100 * float(ds.n_unknown.sum() / (ds.n_tokens - 2).clip(0).sum())
    assert share != pytest.approx(100 * float(ds.n_unknown.sum() / ds.n_tokens.sum()), rel=1e-2)
    assert f"unknown tokens: {share:.3g} %," in ran
    assert f"unknown tokens: {share:.3g} %," in asked
    assert f"Unknown tokens: {share:.3g} %" in page.read_text("utf-8")
    warned = ("most tokens are unknown" in ran, "draw no conclusion" in page.read_text("utf-8"))
    assert warned == ((share > 50,) * 2)


def test_a_share_between_the_two_definitions_is_more_than_half(
    run: Callable[..., Any], first_section: None, tmp_path: Path
) -> None:
    """Special tokens, which are never unknown, do not make a database of N a known one."""
    from bertgeom.pipelines.report.build import report

    # Four windows of six 3-mers and two special tokens: 14 of 24 are unknown, 14 of 32.
    done = run(source=write(tmp_path / "n.fa", "NNNGTACG", *["ACGNNNNN"] * 2, "ACGTNACG"))
    ds = bertgeom.open(tmp_path / "x.zarr").load()
    assert ds.n_unknown.sum() * 2 <= ds.n_tokens.sum()
    share = shares(done.counts).unknown_tokens
    assert share is not None
    assert share > 50
    report(tmp_path / "x.zarr", tmp_path / "x.html")
    assert "draw no conclusion" in (tmp_path / "x.html").read_text("utf-8")


def test_records_of_an_older_version_do_not_say(copied: Path) -> None:
    import json

    groups = sorted((copied / "run" / "groups").glob("*.json"))
    record = json.loads(groups[0].read_text())
    for name in ("content_tokens", "unknown_tokens", "truncated_windows"):
        del record["counts"][name]
    record.pop("checksum")
    groups[0].write_text(json.dumps(record, indent=2))
    found: Status = stages.status(str(copied))
    assert shares(found.counts).unknown_tokens is None
    assert shares(found.counts).unknown_windows is not None
    assert share_lines(found.counts)[0].startswith("unknown tokens: not recorded")
