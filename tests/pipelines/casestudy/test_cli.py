from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bertgeom.errors import UsageError
from bertgeom.pipelines.casestudy.cli import app
from bertgeom.pipelines.casestudy.genomes.simulate import PROFILES

runner = CliRunner()


def run(*arguments: object) -> Result:
    return runner.invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    fasta = tmp_path_factory.mktemp("simulated") / "spikes.fasta.gz"
    result = run("simulate", "--out", fasta, "--count", 9, "--seed", 21, "--profile", "clean")
    assert result.exit_code == 0
    assert "9 spike sequences" in result.stdout
    return fasta, fasta.with_name("spikes.tsv")


def test_simulated_files_are_equal_for_equal_seeds(
    simulated: tuple[Path, Path], tmp_path: Path
) -> None:
    fasta, table = simulated
    again = tmp_path / fasta.name
    run("simulate", "--out", again, "--count", 9, "--seed", 21, "--profile", "clean")
    assert again.read_bytes() == fasta.read_bytes()
    assert again.with_name("spikes.tsv").read_bytes() == table.read_bytes()


def test_shipped_model_is_evaluated_by_default(
    simulated: tuple[Path, Path], tmp_path: Path
) -> None:
    fasta, table = simulated
    out = tmp_path / "figures.json"
    result = run("evaluate", fasta, table, "--out", out)
    assert result.exit_code == 0
    assert "macro F1" in result.stdout
    figures = json.loads(out.read_text())
    assert figures["n"] == 9
    assert set(figures["decided"]["per_class"]) == {row.split("\t")[1] for row in rows_of(table)}
    printed = run("evaluate", fasta, table, "--json").stdout
    assert json.loads(printed) == figures


def rows_of(table: Path) -> list[str]:
    return table.read_text().splitlines()[1:]


def test_spikes_are_written_and_skipped_genomes_named(
    simulated: tuple[Path, Path], tmp_path: Path
) -> None:
    fasta, _ = simulated
    source = tmp_path / "in.fasta"
    lines = gzip.decompress(fasta.read_bytes()).decode()
    source.write_text(lines + ">nothing but N\n" + "N" * 900 + "\n")
    out, skipped = tmp_path / "out.fasta", tmp_path / "skipped.tsv"
    result = run("spike", source, "--out", out, "--skipped", skipped)
    assert "9 spikes" in result.stdout
    assert out.read_text() == lines
    assert skipped.read_text().splitlines() == [
        "record_id\treason",
        "nothing\tno base is known (A, C, G or T)",
    ]


def test_without_genomes_held_out_simulations_are_evaluated(tmp_path: Path) -> None:
    result = run("evaluate", "--count", 9, "--out", tmp_path / "x.json")
    assert "no spike" in result.stdout
    figures = json.loads((tmp_path / "x.json").read_text())
    assert set(figures["profiles"]) == set(PROFILES)
    assert sum(row["n"] for row in figures["by_share_of_n"]) == 9 * len(PROFILES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--out", "x", "--preset", "huge"), "expected a preset of small, paper"),
        (("train", "--out", "x", "--fasta", "a.fa"), "--fasta and --labels together"),
        (("evaluate", "a.fa"), "a FASTA and its label table"),
        (("simulate", "--out", "x.fa", "--profile", "dirty"), "expected a profile"),
    ],
)
def test_wrong_usage_says_what_is_expected(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(*arguments)
