"""The command line: exit codes, one-line errors, JSON, and bad input that leaves nothing."""

from __future__ import annotations

import gzip
import json
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import bertgeom
from bertgeom.config import Settings
from bertgeom.pipelines.cli import main as cli
from bertgeom.pipelines.cli.main import command_group, main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line here: exit code, standard output, standard error."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def run_options(source: Path, out: Path) -> list[Any]:
    fixed = ["--window", 20, "--threads", 1, "--tier", "core"]
    return ["run", source, "--model", "fake", "--out", out, *fixed]


def test_version(command: Command) -> None:
    assert command("--version") == (0, f"bertgeom {bertgeom.__version__}\n", "")


@pytest.mark.parametrize("name", ["ingest", "plan", "run", "status", "verify", "demo", "export"])
def test_every_command_explains_its_options(name: str, command: Command) -> None:
    code, out, _ = command(name, "--help")
    assert code == 0
    assert "Usage: bertgeom" in out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["run"],
        ["run", "x.fa", "--model", "m"],
        ["run", "x.fa", "--model", "m", "--out", "o", "--window", "many"],
        ["status"],
    ],
)
def test_wrong_usage_is_exit_code_two(arguments: list[str], command: Command) -> None:
    code, _, err = command(*arguments)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "options",
    [
        ["--theta", "2"],
        ["--keep", "everything"],
        ["--strand", "sideways"],
        ["--window", "0"],
        ["--workers", "0"],
        ["--memory", "much"],
    ],
)
def test_impossible_values_are_exit_code_two_and_one_line(
    options: list[str], command: Command, encoder: Any, fasta: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.zarr"
    code, _, err = command("run", fasta, "--model", "fake", "--out", out, *options)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "expected" in lines[0]
    assert "found" in lines[0]
    assert not out.exists()


def test_run_status_verify_and_json(
    command: Command, encoder: Any, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.zarr"
    code, text, log = command(*run_options(fasta, out), "--json")
    assert code == 0
    assert json.loads(text)["complete"] is True
    assert "windows in" in log
    code, text, _ = command("status", out, "--json")
    assert code == 0
    assert json.loads(text)["windows"] == 27
    assert command("status", out)[1].startswith(f"{out}: complete\nwindows     27 of 27\n")
    code, text, _ = command("verify", out, "--windows", 2, "--json")
    assert code == 0
    report = json.loads(text)
    assert report["agrees"] is True
    assert len(report["windows"]) == 2
    code, text, _ = command("verify", out, "--windows", 1)
    assert code == 0
    assert "agrees with the oracle" in text
    (out / "gate" / "c" / "0" / "0" / "0").unlink()
    code, text, _ = command("verify", out, "--windows", 0)
    assert code == 1
    assert "gate/c/0/0/0 is missing" in text


def test_ingest_and_a_run_from_its_shards(
    command: Command, encoder: Any, fasta: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "db"
    code, text, _ = command("ingest", fasta, "--out", shards, "--json")
    assert code == 0
    assert json.loads(text)["n_records"] == 6
    assert command(*run_options(shards, tmp_path / "x.zarr"))[0] == 0


def test_a_traceback_is_shown_only_when_asked(command: Command, tmp_path: Path) -> None:
    code, out, err = command("status", tmp_path / "nothing")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    for arguments in (["--debug", "status"], ["status", "--debug"]):
        code, _, err = command(*arguments, tmp_path / "nothing")
        assert code == 1
        assert "Traceback" in err


def test_a_fault_of_ours_is_one_line_too(
    command: Command, encoder: Any, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(encoder, "measure", broken)
    code, _, err = command(*run_options(fasta, tmp_path / "x.zarr"))
    assert code == 1
    assert "error: RuntimeError: two lines; run again with --debug to see where" in err
    assert "Traceback" not in err


def test_an_interrupted_run_says_how_to_go_on(
    command: Command, encoder: Any, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder, "measure", interrupt)
    code, _, err = command(*run_options(fasta, tmp_path / "x.zarr"))
    assert code == 1
    assert "interrupted; give the same command again" in err


GOOD = {
    "crlf": b">a x\r\nACGTACGT\r\nACGT\r\n>b\r\nGGGG\r\n",
    "cr": b">a x\rACGTACGT\rACGT\r>b\rGGGG\r",
    "blank lines": b"\n>a x\n\nACGTACGT\n\nACGT\n>b\n\nGGGG\n\n",
    "no newline at the end": b">a x\nACGTACGTACGT\n>b\nGGGG",
    "lower case and U": b">a x\nacguacgu\nacgu\n>b\ngggg\n",
    "a header with >": b">a x>y\nACGTACGTACGT\n>b\nGGGG\n",
    "fastq": b"@a x\nACGTACGTACGT\n+\nIIIIIIIIIIII\n@b\nGGGG\n+\nIIII\n",
}


@pytest.mark.parametrize("case", GOOD)
def test_odd_but_meaningful_input_works(
    case: str, command: Command, encoder: Any, tmp_path: Path
) -> None:
    source, out = tmp_path / "odd.fa", tmp_path / "x.zarr"
    source.write_bytes(GOOD[case])
    assert command(*run_options(source, out))[0] == 0
    dataset = bertgeom.open(out)
    assert dataset["record_id"].values.tolist() == ["a", "b"]
    assert dataset["stop"].values.tolist() == [12, 4]
    assert dataset["n_ambiguous"].values.tolist() == [0, 0]


def test_duplicate_ids_are_told_apart_by_their_index(
    command: Command, encoder: Any, tmp_path: Path
) -> None:
    source, out = tmp_path / "twice.fa", tmp_path / "x.zarr"
    source.write_bytes(b">a\nACGTACGT\n>a\nGGGGCCCC\n")
    assert command(*run_options(source, out))[0] == 0
    dataset = bertgeom.open(out)
    assert dataset["record_id"].values.tolist() == ["a", "a"]
    assert dataset["record_index"].values.tolist() == [0, 1]


BAD = {
    "no header": b"ACGTACGT\n",
    "binary": bytes(range(256)) * 4,
    "not utf-8": b">a \xff\xfe\nACGT\n",
    "empty": b"",
    "only blanks": b"\n\n",
    "protein": b">a\nMKVLAEF\n",
    "header inside a line": b">a\nACGT>b\nACGT\n",
    "truncated gzip": gzip.compress(b">a\n" + b"ACGT" * 5000 + b"\n")[:-20],
    "only empty records": b">a\n>b\n",
    "broken fastq": b"@a\nACGT\n+\nII\n",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_stops_before_any_compute_and_leaves_nothing(
    case: str, command: Command, encoder: Any, tmp_path: Path
) -> None:
    source, out = tmp_path / "bad.fa", tmp_path / "x.zarr"
    source.write_bytes(BAD[case])
    code, _, err = command(*run_options(source, out))
    assert code == 1
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    assert encoder.batches == []
    assert not out.exists()


def test_bad_input_behind_good_leaves_earlier_work_alone(
    command: Command, encoder: Any, fasta: Path, tmp_path: Path, fake: Any
) -> None:
    out, bad = tmp_path / "x.zarr", tmp_path / "bad.fa"
    assert command(*run_options(fasta, out))[0] == 0
    before = fake.contents(out)
    bad.write_bytes(BAD["no header"])
    assert command(*run_options(bad, out))[0] == 1
    assert fake.contents(out) == before


@pytest.mark.parametrize("source", ["missing.fa", "nothing*.fa", "."])
def test_a_source_that_is_not_there_is_one_line(
    source: str, command: Command, encoder: Any, tmp_path: Path
) -> None:
    code, _, err = command(*run_options(tmp_path / source, tmp_path / "out" / "x.zarr"))
    assert code == 1
    assert err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out" / "x.zarr").exists()


def test_a_plan_is_shown_and_nothing_is_written(
    command: Command, tiny_model: Path, fasta: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    options = ["--model", tiny_model, "--window", 20, "--threads", 1]
    code, text, _ = command("plan", fasta, *options, "--no-measure", "--json")
    assert code == 0
    found = json.loads(text)
    assert found["windows"] == 27
    code, text, _ = command("plan", fasta, *options, "--measure")
    assert code == 0
    for words in ("windows of 20 bases", "FLOP", "store, a window", "windows/s", "activations"):
        assert words in text
    assert sorted(tmp_path.iterdir()) == before


def test_a_plan_takes_the_options_of_a_run() -> None:
    run, plan = (
        {option.name: option for option in cli.command_group().commands[name].params}
        for name in ("run", "plan")
    )
    only_run, only_plan = {"out"}, {"measure"}
    assert set(run) - only_run == set(plan) - only_plan
    assert {field.name for field in fields(Settings)} <= set(plan)
    for name in set(run) - only_run:
        about = [(o.opts, o.default, o.help, o.rich_help_panel) for o in (run[name], plan[name])]
        assert about[0] == about[1]


def test_a_plan_takes_regions_labels_and_spectra(
    command: Command, tiny_model: Path, fasta: Path, tmp_path: Path
) -> None:
    names = [line[1:].split()[0] for line in fasta.read_text().splitlines() if line[:1] == ">"]
    regions, labels = tmp_path / "regions.bed", tmp_path / "labels.tsv"
    regions.write_text(f"{names[0]}\t0\t10\tgene\n{names[0]}\t5\t12\tother\n")
    labels.write_text(f"{names[0]}\ta\n")
    options = ["--model", tiny_model, "--window", 20, "--threads", 1, "--spectra", 2, "--json"]
    tables = ["--annotations", regions, "--labels", labels]
    code, text, err = command("plan", fasta, *options, *tables)
    assert code == 0, err
    assert json.loads(text)["spectra"] > 0
    labels.write_text("nobody\ta\n")
    code, _, err = command("plan", fasta, *options, *tables)
    assert code == 1
    assert "labels of records of this database" in err


def test_bench_passes_its_arguments_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert "python -m bench.run" in capfd.readouterr().out


def test_bench_needs_a_checkout(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bertgeom, "__file__", str(tmp_path / "lib" / "bertgeom" / "__init__.py"))
    code, _, err = command("bench")
    assert code == 2
    assert "expected the folder bench/ beside the package" in err


@pytest.mark.parametrize("name", ["run", "plan"])
def test_printed_settings_are_a_file_that_gives_them_again(
    name: str, command: Command, tmp_path: Path
) -> None:
    asked = ["--window", 20, "--keep", "cls,tracks", "--theta", 0.25, "--tokenizer", "kmer:k=3"]
    code, text, err = command(name, *asked, "--print-config")
    assert (code, err) == (0, "")
    values = tomllib.loads(text)
    assert values["keep"] == ["cls", "tracks"]
    expected = {field.name for field in fields(Settings)}
    assert expected == {line.lstrip("# ").split(" =")[0] for line in text.splitlines()[1::2]}
    (tmp_path / "x.toml").write_text(text)
    assert command(name, "--config", tmp_path / "x.toml", "--print-config")[1] == text
    assert command(name, "--print-config", "--config", tmp_path / "x.toml")[1] == text


def test_a_settings_file_stands_for_options_and_options_come_first(
    command: Command, encoder: Any, fasta: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        f"model = 'fake'\nwindow = 20\nstride = 10\nthreads = 1\ntier = 'core'\n"
        f"keep = ['cls']\npartition-windows = 4\nsources = ['{fasta}']\n"
    )
    code, _, err = command("run", "--config", file, "--out", tmp_path / "x.zarr", "--stride", 20)
    assert code == 0, err
    settings = bertgeom.open(tmp_path / "x.zarr").attrs["settings"]
    found = json.loads(settings) if isinstance(settings, str) else settings
    assert (found["window"], found["stride"], found["tier"]) == (20, 20, "core")
    assert (found["keep"], found["partition_windows"]) == (["cls"], 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("windo = 3", "found windo"),
        ("window = ", "settings as TOML"),
        ("window = 'many'", "--window"),
        ("near = 100", "--near"),
        ("[window]\nbases = 3", "found a table: window"),
        ("\xff", "settings as TOML"),
        (None, "expected a settings file"),
    ],
)
def test_bad_settings_files_are_one_line(
    text: str | None, said: str, command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "x.toml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    code, out, err = command("run", "x.fa", "--config", file, "--model", "m", "-o", tmp_path / "o")
    assert code in (1, 2)
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_defaults_of_commands_are_those_of_what_they_call() -> None:
    """They stand twice: help must not import what a report is made with."""
    from bertgeom.pipelines.catalogue.export import LEVELS
    from bertgeom.pipelines.report.summary import SAMPLE

    commands = command_group().commands
    (sample,) = [p for p in commands["report"].params if p.name == "sample"]
    (level,) = [p for p in commands["export"].params if p.name == "level"]
    assert sample.default == SAMPLE
    assert level.metavar == "|".join(LEVELS)
