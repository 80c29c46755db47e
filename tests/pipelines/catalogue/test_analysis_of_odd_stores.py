"""What follows from stores with nothing, one or very many of something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import report_data
import xarray

import bertgeom
from bertgeom.errors import StoreError, UsageError
from bertgeom.pipelines.catalogue.export import export
from bertgeom.pipelines.catalogue.results import tsv_line
from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.report import build as report_module
from bertgeom.store.dataset import attribute, excluded, label_codes
from bertgeom.variables import flag_bit

Run = Callable[..., Any]


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def labelled(run: Run, tmp_path: Path) -> Path:
    """Six records, two of each of three labels; the short ones are flagged."""
    labels = tmp_path / "labels.tsv"
    names = ("E. coli, K12", "influenza [/B] :smile:", 'a "quoted" one')
    labels.write_text("".join(f"r{i}\t{names[i % 3]}\n" for i in range(6)))
    run(labels=labels)
    return tmp_path / "x.zarr"


def test_the_readmes_groupby_works_and_gives_names(labelled: Path) -> None:
    dataset = bertgeom.open(labelled)
    found = dataset.cone_index.groupby(dataset.label).mean()
    assert set(found["label"].values) == set(attribute(dataset, "labels"))
    assert dataset.cone_index.groupby("record_id").mean().sizes["record_id"] == 6
    codes = label_codes(dataset)
    names = np.array(attribute(dataset, "labels"), object)[codes]
    np.testing.assert_array_equal(names, dataset["label"].values)
    assert xarray.open_zarr(labelled)["label"].dtype == np.int32


@pytest.mark.parametrize("group", [None, "cohorts"])
def test_a_store_can_be_written_as_netcdf_and_zarr(
    group: str | None, labelled: Path, tmp_path: Path
) -> None:
    dataset = bertgeom.open(labelled, group=group)
    dataset.to_netcdf(tmp_path / "x.nc", engine="scipy")
    read = xarray.open_dataset(tmp_path / "x.nc", engine="scipy")
    for name in dataset.data_vars:
        np.testing.assert_array_equal(read[name].values, dataset[name].values, err_msg=str(name))
    dataset.to_zarr(tmp_path / "copy.zarr", consolidated=False)
    values = [a for x in dataset.variables.values() for a in x.attrs.values()]
    for value in [*dataset.attrs.values(), *values]:
        texts = isinstance(value, (list, tuple)) and any(isinstance(x, str) for x in value)
        assert not isinstance(value, (dict, bool)), "h5netcdf and netCDF4 refuse these"
        assert value is not None
        assert not texts


def test_labels_with_commas_brackets_and_quotes_can_be_named_and_read(
    labelled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    one, two, three = attribute(bertgeom.open(labelled), "labels")
    code, out, _ = outcome(capsys, "cohorts", labelled)
    assert code == 0
    for name in (one, two, three):
        assert name in out
    base = ("cohorts", labelled, "--statistics", "attention_entropy", "--contrast")
    assert outcome(capsys, *base, one, "--contrast", two)[0] == 0
    joined = json.loads(outcome(capsys, *base, f"{one},{two}", "--json")[1])
    twice = json.loads(outcome(capsys, *base, one, "--contrast", two, "--json")[1])
    assert joined == twice
    for wrong in ((one,), (one, "--contrast", two, "--contrast", three), ("x,y",)):
        code, _, err = outcome(capsys, *base, *wrong)
        assert code == 2
        assert "--contrast" in err
    assert outcome(capsys, "cohorts", labelled, "--out", tmp_path / "c.tsv")[0] == 0
    table = pandas.read_csv(tmp_path / "c.tsv", sep="\t")
    assert {one, two, three} == set(table["cohort"].dropna())
    assert tsv_line(["a\tb", 'c"', 1]) == '"a\tb"\t"c"""\t1'


def test_records_are_compared_unless_windows_are_asked_for(
    labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, _ = attribute(bertgeom.open(labelled), "labels")
    base = ("cohorts", labelled, "--contrast", one, "--contrast", two, "--json")
    found = {
        name: json.loads(outcome(capsys, *base, *options)[1])
        for name, options in {
            "": (),
            "record": ("--unit", "record"),
            "w": ("--unit", "window"),
        }.items()
    }
    assert found[""] == found["record"]
    assert found[""]["attrs"]["unit"] == "record"
    assert found[""]["data_vars"] != found["w"]["data_vars"]


def test_flagged_windows_can_be_left_out_everywhere(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = bertgeom.open(labelled).load()
    short = excluded(dataset, "short")
    assert 0 < short.sum() < len(short)
    np.testing.assert_array_equal(short, dataset["flags"].values & flag_bit("short") > 0)
    option = ("--exclude-flags", "short,truncated")
    found = json.loads(outcome(capsys, "cohorts", labelled, *option, "--json")[1])["data_vars"]
    for code, name in enumerate(attribute(dataset, "labels")):
        rows = (dataset["label"].values == name) & ~short
        values = dataset["attention_entropy"].values[rows].astype(float)
        expected = values.mean(axis=0) if len(values) else np.full(values.shape[1:], None)
        got = found["attention_entropy_mean"]["data"][code]
        np.testing.assert_allclose(np.array(got, float), np.array(expected, float), rtol=1e-6)
    code, _, err = outcome(capsys, "distributions", labelled, *option, "--json")
    assert code == 0, err
    rows = export(labelled, tmp_path / "w.tsv", "window", exclude_flags="short")
    assert rows == (~short).sum()
    table = pandas.read_csv(tmp_path / "w.tsv", sep="\t")
    assert table["window"].tolist() == np.flatnonzero(~short).tolist()
    for command in ("cohorts", "distributions", "cluster", "angles"):
        code, _, err = outcome(capsys, command, labelled, "--exclude-flags", "tall")
        assert code in (1, 2)
        assert "unknown, short" in err or "cls" in err


def test_exported_rows_carry_names_of_labels_and_flags(labelled: Path, tmp_path: Path) -> None:
    export(labelled, tmp_path / "w.tsv", "window")
    table = pandas.read_csv(tmp_path / "w.tsv", sep="\t", keep_default_na=False)
    dataset = bertgeom.open(labelled)
    assert table["label"].tolist() == dataset["label"].values.tolist()
    short = excluded(dataset, "short")
    assert all(
        ("short" in text.split(",")) == is_short
        for text, is_short in zip(table["flags"], short, strict=True)
    )
    assert "label_code" not in table


@pytest.mark.parametrize("case", ["one window", "no label", "one cohort", "all flagged", "lone"])
def test_every_command_says_something_of_odd_stores(
    case: str, run: Run, fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    lengths = {"one window": (20,), "all flagged": (5, 6, 7), "lone": (20, 25, 0)}
    source = fake.write_fasta(tmp_path / "odd.fa", lengths.get(case, (50, 60, 20)))
    options: dict[str, Any] = {}
    if case in ("one cohort", "lone"):
        table = tmp_path / "l.tsv"
        names = ("a", "a", "a") if case == "one cohort" else ("a", "b", "c")
        table.write_text("".join(f"r{i}\t{name}\n" for i, name in enumerate(names)))
        options["labels"] = table
    run(source=source, keep="cls,logits", **options)
    path = tmp_path / "x.zarr"
    for arguments in (
        ("cohorts", path),
        ("distributions", path),
        ("angles", path, "--work", tmp_path / "work"),
        ("export", path, "-o", tmp_path / "x.tsv"),
        ("report", path, "-o", tmp_path / "x.html"),
    ):
        code, _, err = outcome(capsys, *arguments)
        assert code == 0, (arguments, err)
    text = (tmp_path / "x.html").read_text("utf-8")
    assert ">nan" not in text
    assert "The largest is" not in text
    code, _, err = outcome(capsys, "cohorts", path, "--exclude-flags", "short")
    assert (code, "found none among" in err) in ((0, False), (2, True))
    assert (code == 2) == (case == "all flagged")


def test_five_hundred_cohorts(run: Run, fake: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    source = fake.write_fasta(tmp_path / "many.fa", (20,) * 500)
    table = tmp_path / "l.tsv"
    table.write_text("".join(f"r{i}\tlabel {i}\n" for i in range(500)))
    run(source=source, labels=table, partition_windows=250, tier="core")
    assert main(["cohorts", str(tmp_path / "x.zarr")]) == 0
    assert report_module.report(tmp_path / "x.zarr", tmp_path / "x.html")["figures"] > 0


def test_the_report_of_a_reduced_store_says_what_that_of_a_whole_one_says(
    run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    table = tmp_path / "labels.tsv"
    table.write_text("".join(f"r{i}\t{'ab'[i % 2]}\n" for i in range(6)))
    pages = {}
    for reduce in (False, True):
        place = tmp_path / f"{reduce}.zarr"
        run(f"{reduce}.zarr", labels=table, reduce=reduce)
        report_module.report(place, tmp_path / f"{reduce}.html")
        pages[reduce] = (tmp_path / f"{reduce}.html").read_text("utf-8")
    for heading in ("What the heads do", "How far attention reaches", "Heads that tell cohorts"):
        assert heading in pages[True]
    rows = [
        page[page.index("All heads in numbers") :].split("</details>")[0] for page in pages.values()
    ]
    assert rows[0] == rows[1]
    sentence = [
        page.split("The largest is ")[1].split(".</")[0][:8]
        for page in pages.values()
        if "The largest is " in page
    ]
    assert len(set(sentence)) <= 1
    with pytest.raises(UsageError, match="--reduce"):
        report_module.report(tmp_path / "True.zarr", tmp_path / "y.html", exclude_flags="short")


def test_mostly_unknown_tokens_are_said_before_anything_else() -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    data = report_data.dataset(20, layers=1, heads=2)
    data["n_unknown"].values[:] = (0.87 * data["n_tokens"].values).astype("u4")
    data["truncated"].values[:5] = True
    page = report_module.build(report_module.summarise(data)).render()
    share = data["n_unknown"].values.sum() / data["n_tokens"].values.sum()
    # Without the run's own counts nobody knows which tokens stand for bases.
    assert f"Unknown tokens: at least {100 * share:.3g} %" in page
    assert "draw no conclusion" in page
    assert "25 % of the windows were cut off" in page
    assert page.count("Most tokens here are unknown ones.") >= 4


def test_a_damaged_label_is_named_when_a_store_is_opened(labelled: Path) -> None:
    chunk = next((labelled / "label" / "c").rglob("0"))
    chunk.write_bytes(b"\x00" * 10)
    with pytest.raises(StoreError, match=r"label/c/0: the file has 10 bytes.*verify"):
        bertgeom.open(labelled)
