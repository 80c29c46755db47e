"""No command writes over what it reads: refused before anything is computed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from bertgeom.pipelines.cli.main import main

#: Commands; `OUT` is the place that must be left alone, `in/` holds all inputs.
COMMANDS = {
    "weights, the model": "weights -m in/model -o in/model/config.json",
    "spectra, the model": "spectra in/x.zarr --model in/model -o in/model/new.json",
    "spectra, the store": "spectra in/x.zarr -o in/x.zarr",
    "spectra, in the store": "spectra in/x.zarr -o in/x.zarr/run/run.json",
    "rollout, the model": "rollout in/x.zarr --model in/model -o in/model/config.json",
    "regions, the annotations": "regions in/x.zarr --annotations in/t.tsv -o in/t.tsv",
    "regions, the model": "regions in/x.zarr --model in/model --annotations t -o in/model/a.tsv",
    "cohorts, the labels": "cohorts in/x.zarr --labels in/t.tsv -o in/t.tsv",
    "cohorts, a link to the labels": "cohorts in/x.zarr --labels in/t.tsv -o in/link.tsv",
    "distributions, the labels": "distributions in/x.zarr --labels in/t.tsv -o in/t.tsv",
    "cluster, the labels": "cluster in/x.zarr --labels in/t.tsv -o in/t.tsv",
    "angles, the labels": "angles in/x.zarr --labels in/t.tsv -o in/t.tsv",
    "angles, its own folder": "angles in/x.zarr --work in/w.zarr -o in/w.zarr",
    "tracks, in the store": "tracks in/x.zarr -o in/x.zarr/new.tsv",
    "tracks, the sizes": "tracks in/x.zarr -o in/new.tsv --sizes in/new.tsv",
    "export, in the store": "export in/x.zarr -o in/x.zarr/flags/new.tsv",
    "report, in the store": "report in/x.zarr -o in/x.zarr/page.html",
    "spike, a source": "casestudy spike in/x.fa --out in/x.fa",
    "spike, a pattern": "casestudy spike in/*.fa --out in/x.fa",
    "spike, the table": "casestudy spike in/x.fa --out in/new.fa --skipped in/x.fa",
    "spike, one file twice": "casestudy spike in/x.fa --out in/new.fa --skipped in/new.fa",
    "simulate, one file twice": "casestudy simulate --count 9 --out in/new --labels in/new",
    "evaluate, the labels": "casestudy evaluate in/x.fa in/t.tsv --out in/t.tsv",
    "evaluate, the model": "casestudy evaluate --model in/model --out in/model/config.json",
    "analyze, the labels": "casestudy analyze in/x.fa --labels in/labels.tsv --out in",
    "analyze, the genomes": "casestudy analyze in/spikes.fasta --labels in/t.tsv --out in",
    "train, the model": "casestudy train --init in/model --out in",
    "ingest, a source": "ingest in/x.fa --out in/x.fa",
    "run, a source": "run in/x.fa --model in/model --out in/x.fa",
    "run, the labels": "run in/x.fa --model in/model --labels in/t.tsv --out in/t.tsv",
    "run, in the model": "run in/x.fa --model in/model --out in/model/new.zarr",
}


@pytest.fixture
def given(
    whole: Path, tiny_model: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    folder = tmp_path / "work" / "in"
    shutil.copytree(whole, folder / "x.zarr")
    shutil.copytree(tiny_model, folder / "model")
    for name in ("x.fa", "spikes.fasta"):
        shutil.copy(fasta, folder / name)
    for name in ("t.tsv", "labels.tsv"):
        (folder / name).write_text("r0\ta\nr2\tb\n")
    (folder / "link.tsv").symlink_to("t.tsv")
    monkeypatch.chdir(folder.parent)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_an_input_is_refused_as_output(
    name: str, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(given)
    code = main(COMMANDS[name].split())
    err = capsys.readouterr().err
    assert code in (1, 2), err
    assert len(err.splitlines()) == 1, err
    assert "--out" in err
    assert digests(given) == before


def test_an_older_result_is_replaced(given: Path) -> None:
    for place in ("new.tsv", "new.json", "new.zarr"):
        for _ in range(2):
            assert main(["cohorts", "in/x.zarr", "--labels", "in/t.tsv", "-o", place]) == 0
