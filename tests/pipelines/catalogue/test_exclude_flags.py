"""--exclude-flags: what is left out is as good as never there, command by command.

The flagged windows of one store are missing in another, made of the same sequences without
them. Every command must say the same of both, and something else without the option.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import bertgeom
from bertgeom.pipelines.catalogue.export import LEVELS
from bertgeom.pipelines.cli.main import command_group, main
from bertgeom.pipelines.report import build as report
from bertgeom.pipelines.run import stages
from bertgeom.store.dataset import excluded

OPTION = ("--exclude-flags", "unknown,short")
WINDOW = 40
#: Coordinates that count windows of the whole store.
_NUMBERS = {"window", "window_index"}


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`all.zarr` has windows full of N and short ones, `rest.zarr` has all but these."""
    folder = tmp_path_factory.mktemp("flags")
    rng = np.random.default_rng(5)

    def bases(n: int) -> str:
        return "".join(rng.choice(list("ACGT"), n))

    good = [bases(WINDOW * n) for n in (2, 1, 3, 1, 2, 1)]
    # Windows of N at the ends of two records; records that are short, and one that is N alone.
    more = ["N" * WINDOW, "", "", "N" * WINDOW * 2, "", ""]
    gone = [bases(9), bases(11), "N" * WINDOW, bases(30)]
    texts = {"rest": good, "all": [*(a + b for a, b in zip(good, more, strict=True)), *gone]}
    labels = folder / "labels.tsv"
    labels.write_text("".join(f"r{i}\t{'ab'[i % 2]}\n" for i in range(10)))
    (folder / "x.bed").write_text("r0\t5\t30\tone\nr2\t40\t90\ttwo\nr6\t0\t9\tone\n")
    for name, records in texts.items():
        source = folder / f"{name}.fa"
        source.write_text("".join(f">r{i}\n{text}\n" for i, text in enumerate(records)))
        stages.run(
            source,
            model=tiny_model,
            out=folder / f"{name}.zarr",
            labels=labels,
            keep="cls,logits,tracks",
            window=WINDOW,
            stride=WINDOW,
            impl="reference",
            threads=1,
        )
    return folder


@pytest.fixture
def say(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Standard output of a command on one of the stores; OUT becomes a file of its own."""

    def call(command: str, store: str, *options: str) -> str:
        place = tmp_path / f"{store}{len(list(tmp_path.iterdir()))}"
        filled = [o.replace("OUT", str(place)).replace("BED", f"{folder}/x.bed") for o in options]
        code = main([command, str(folder / f"{store}.zarr"), *filled])
        out = capsys.readouterr()
        assert code == 0, out.err
        return out.out

    return call


def the_three(say: Callable[..., Any], command: str, *options: str) -> tuple[Any, Any, Any]:
    """Without the flagged windows by the option, without them from the start, and with them."""
    return (
        say(command, "all", *options, *OPTION),
        say(command, "rest", *options),
        say(command, "all", *options),
    )


def numbers(facts: Any) -> dict[str, Any]:
    """Arrays and other values of a printed result, by name."""
    if isinstance(facts, dict) and {"data_vars", "coords"} <= set(facts):
        every = {**facts["data_vars"], **facts["coords"]}
        return {k: v["data"] for k, v in every.items() if k not in _NUMBERS}
    return {name: value for name, value in facts.items() if name != "fingerprint"}


def agree(a: Any, b: Any) -> bool:
    """Whether two results are the same but for rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(agree(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(agree, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return (a is None) == (b is None) and (a is None or bool(np.isclose(a, b, 1e-3, 1e-4)))
    return bool(a == b)


def test_the_stores_are_as_this_file_takes_for_granted(folder: Path) -> None:
    whole, rest = (bertgeom.open(folder / f"{name}.zarr").load() for name in ("all", "rest"))
    for flag, n in (("unknown", 4), ("short", 3)):
        assert excluded(whole, [flag]).sum() == n
        assert not excluded(rest, [flag]).any()
    kept = whole.isel(window=np.flatnonzero(~excluded(whole, ["unknown", "short"])))
    for name in ("record_id", "record_index", "start", "stop"):
        np.testing.assert_array_equal(kept[name].values, rest[name].values)


@pytest.mark.parametrize(
    "line",
    [
        "cohorts",
        "cohorts --unit record",
        "cohorts --contrast a,b --statistics attention_entropy,gate_mass",
        "distributions",
        "angles --work OUT",
        "cluster --components 3",
        "spectra --windows 99",
        "spectra --windows 3",
        "rollout --windows 99",
        "rollout --windows 3",
        "regions --annotations BED --windows 99",
        "regions --annotations BED --windows 3",
    ],
)
def test_flagged_windows_count_for_nothing(line: str, say: Callable[..., Any]) -> None:
    command, *options = line.split()
    texts = the_three(say, command, *options, "--json")
    found, expected, everything = (numbers(json.loads(text)) for text in texts)
    assert found.keys() == expected.keys() == everything.keys()
    wrong = [name for name, value in found.items() if not agree(value, expected[name])]
    assert not wrong
    assert not agree(found, everything)


@pytest.mark.parametrize("variable", ["attention_received", "query_entropy"])
def test_flagged_windows_are_in_no_track(variable: str, say: Callable[..., Any]) -> None:
    tables = []
    for text in the_three(
        say, "tracks", "-o", "OUT.bedgraph", "--variable", variable, "--mean", "all"
    ):
        lines = Path(text.split()[0]).read_text().splitlines()
        tables.append([line.split() for line in lines if not line.startswith("track")])
    found, expected, everything = tables
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    some, same = (np.array([float(row[3]) for row in table]) for table in (found, expected))
    np.testing.assert_allclose(some, same, rtol=2e-3, atol=2e-3)
    assert {row[0] for row in everything} > {row[0] for row in found}


@pytest.mark.parametrize("level", LEVELS)
def test_flagged_windows_are_in_no_row(level: str, say: Callable[..., Any]) -> None:
    tables = [
        pandas.read_csv(text.split()[-1], sep="\t")
        for text in the_three(say, "export", "-o", "OUT.tsv", "--level", level)
    ]
    found, expected, everything = tables
    flags = everything["flags"].fillna("").str.split(",")
    kept = everything[[not {"unknown", "short"} & set(names) for names in flags]]
    assert list(found) == list(kept) == list(expected)
    pandas.testing.assert_frame_equal(found, kept.reset_index(drop=True), check_dtype=False)
    assert len(found) < len(everything)
    own = found.drop(columns="window"), expected.drop(columns="window")
    pandas.testing.assert_frame_equal(*own, check_dtype=False, rtol=1e-3, atol=1e-4)


def test_flagged_windows_are_in_no_figure(
    say: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    summaries: list[Any] = []

    def build(summary: Any) -> Any:
        """All figures are drawn from the summary alone."""
        summaries.append(summary)
        return report.Page("title", "subtitle")

    monkeypatch.setattr(report, "build", build)
    the_three(say, "report", "-o", "OUT.html")
    found, expected, everything = summaries
    for name in found.mean.data_vars:
        for part in ("mean", "variance"):
            some, same = (getattr(one, part)[name].values for one in (found, expected))
            np.testing.assert_allclose(some, same, rtol=1e-3, atol=1e-4, err_msg=str(name))
    for name, moments in found.effects.items():
        other = expected.effects[name]
        np.testing.assert_array_equal(moments.count, other.count)
        np.testing.assert_allclose(moments.mean, other.mean, rtol=1e-4)
    assert found.counts.cohorts == expected.counts.cohorts
    assert found.counts.measured == expected.counts.measured < everything.counts.measured
    assert found.counts.excluded == everything.counts.measured - found.counts.measured
    for name in found.sample.data_vars:
        some, same = (np.asarray(one.sample[name], float) for one in (found, expected))
        np.testing.assert_allclose(some, same, rtol=1e-3, atol=1e-3, err_msg=str(name))
    assert not np.allclose(found.of("attention_entropy"), everything.of("attention_entropy"))


def test_every_command_with_the_option_is_tested_here() -> None:
    """A command that gets the option gets a test of what it does."""
    tested = {"cohorts", "distributions", "angles", "cluster", "spectra", "rollout", "regions"}
    tested |= {"tracks", "export", "report"}
    taking = {
        name
        for name, command in command_group().commands.items()
        if any("--exclude-flags" in parameter.opts for parameter in command.params)
    }
    assert taking == tested
