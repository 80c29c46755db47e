"""The commands of the catalogue, on a small store that a real run has made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import xarray
from typer.testing import CliRunner, Result

import bertgeom
from bertgeom.analysis.tracks import genome_tracks
from bertgeom.errors import InputError, UsageError
from bertgeom.pipelines.catalogue.samples import store_regions, store_rollout, store_spectra
from bertgeom.pipelines.cli import catalogue, models
from bertgeom.pipelines.run import stages
from bertgeom.testing import eager_forward, save_tiny_classifier

N_RECORDS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on six records of two labels: FASTA, labels, model and store."""
    folder = tmp_path_factory.mktemp("catalogue")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(N_RECORDS):
        bases = "".join(rng.choice(list("ACGT"), 70 + 13 * i))
        lines.append(f">r{i}\n{bases}\n")
    (folder / "x.fasta").write_text("".join(lines))
    labels = "".join(f"r{i}\t{'even' if i % 2 == 0 else 'odd'}\n" for i in range(N_RECORDS))
    (folder / "labels.tsv").write_text(labels)
    save_tiny_classifier(folder / "model")
    stages.run(
        folder / "x.fasta",
        model=str(folder / "model"),
        out=folder / "run.zarr",
        labels=folder / "labels.tsv",
        keep="cls,tracks",
        window=50,
        stride=40,
        strand="both",
        impl="reference",
        threads=1,
    )
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> xarray.Dataset:
    return bertgeom.open(folder / "run.zarr").load()


def call(*arguments: str | Path) -> Result:
    app = typer.Typer()
    catalogue.register(app)
    models.register(app)
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_weights_are_printed_and_written(folder: Path, tmp_path: Path) -> None:
    assert "symmetry" in call("weights", "--model", folder / "model").output
    found = json.loads(call("weights", "--model", folder / "model", "--json").stdout)
    assert np.shape(found["data_vars"]["weight_symmetry"]["data"]) == (2, 2)
    call("weights", "--model", folder / "model", "-o", tmp_path / "w.zarr")
    read = xarray.open_zarr(tmp_path / "w.zarr", consolidated=False)
    assert read.projection_rank.dims == ("layer", "head", "projection")


def test_cohort_means_are_those_of_the_store(folder: Path, dataset: xarray.Dataset) -> None:
    found = json.loads(call("cohorts", folder / "run.zarr", "--json").stdout)["data_vars"]
    for code in range(2):
        rows = dataset.label.values == ["even", "odd"][code]
        x = dataset.attention_entropy.values[rows].astype(np.float64)
        np.testing.assert_allclose(
            np.array(found["attention_entropy_mean"]["data"][code]), x.mean(axis=0), rtol=1e-9
        )
        assert found["attention_entropy_count"]["data"][code][0][0] == rows.sum()
    assert "even" in call("cohorts", folder / "run.zarr").output


def test_contrasts_by_record_count_records(folder: Path, tmp_path: Path) -> None:
    command = ("cohorts", folder / "run.zarr", "--contrast", "even,odd")
    table = tmp_path / "c.tsv"
    call(*command, "--statistics", "attention_entropy,gate_mass", "-o", table)
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert (lines[0][0], lines[0][-1]) == ("array", "value")
    assert {"gate_mass_q", "attention_entropy_cohens_d"} <= {line[0] for line in lines}
    found = json.loads(call(*command, "--unit", "record", "--json").stdout)["data_vars"]
    degrees = np.array(found["attention_entropy_df"]["data"])
    assert (degrees <= N_RECORDS - 2).all()
    default = json.loads(call(*command, "--json").stdout)["data_vars"]
    assert default["attention_entropy_df"] == found["attention_entropy_df"]
    twice = ("cohorts", folder / "run.zarr", "--contrast", "even", "--contrast", "odd", "--json")
    assert json.loads(call(*twice).stdout)["data_vars"] == default
    assert "strongest heads" in call(*command).output


def test_labels_can_be_given_afterwards(folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text("index\tlabel\n0\tx\n1\ty\n")
    found = json.loads(call("cohorts", folder / "run.zarr", "--labels", labels, "--json").stdout)
    assert found["coords"]["cohort"]["data"] == ["x", "y"]
    labels.write_text("nobody\tx\n")
    with pytest.raises(InputError, match="none of them among 6 record ids"):
        call("cohorts", folder / "run.zarr", "--labels", labels)


def test_angles_compare_all_windows(folder: Path, dataset: xarray.Dataset, tmp_path: Path) -> None:
    command = ("angles", folder / "run.zarr", "--tile", "20", "-o", tmp_path / "a.json")
    assert "of" in call(*command, "--rows", "0:1").output
    call(*command)
    facts = json.loads((tmp_path / "a.json").read_text())
    n = dataset.sizes["window"]
    assert facts["all"]["n_pairs"] == n * (n - 1) // 2
    assert [pair["cohort"] for pair in facts["pairs"]] == ["even", "even", "odd"]
    with pytest.raises(UsageError, match="expected --rows as I:J"):
        call(*command, "--rows", "x")


def test_clusters_and_distributions_are_printed(folder: Path) -> None:
    assert "homogeneity" in call("cluster", folder / "run.zarr", "--components", "4").output
    assert "skewness" in call("distributions", folder / "run.zarr").output


def test_tracks_are_written_with_sizes(
    folder: Path, dataset: xarray.Dataset, tmp_path: Path
) -> None:
    sizes = tmp_path / "sizes"
    out = call("tracks", folder / "run.zarr", "-o", tmp_path / "t.bedgraph", "--sizes", sizes)
    assert out.output.count("bedgraph") == 2
    assert sizes.read_text().split()[:2] == ["r0", "70"]
    # A window's mean attention received is 1; all but the special tokens have bases.
    rows = dataset.isel(window=0).attention_received.values
    np.testing.assert_allclose(np.nanmean(rows, axis=-1), 1, atol=2e-3)
    blocks = list(genome_tracks(dataset, "attention_received", mean="all"))
    covered = sum(int((b.stop - b.start).sum()) for b in blocks if b.record_index == 0)
    assert covered == 70


@pytest.fixture(scope="module")
def eager(folder: Path, dataset: xarray.Dataset) -> tuple[int, torch.Tensor, list[torch.Tensor]]:
    """Window number, attention maps (layer, head, n, n) and hidden states of one window."""
    from bertgeom import load_encoder

    number = 9
    encoder = load_encoder(str(folder / "model"), dtype="float32", device="cpu")
    text = (folder / "x.fasta").read_text().split(">")[1 + int(dataset.record_index[number])]
    bases = np.frombuffer("".join(text.split("\n")[1:]).encode(), np.uint8)
    piece = bases[int(dataset.start[number]) : int(dataset.stop[number])]
    if dataset.strand[number] < 0:
        swap = {65: 84, 84: 65, 67: 71, 71: 67}
        piece = np.array([swap[b] for b in piece[::-1].tolist()], np.uint8)
    ids = torch.from_numpy(encoder.tokenizer.encode(piece).ids.astype(np.int64))[None]
    out = eager_forward(encoder.model.double(), ids, torch.ones_like(ids))
    return number, torch.cat(out.attentions), list(out.hidden_states)


def test_spectra_are_those_of_the_models_maps(
    folder: Path, dataset: xarray.Dataset, eager: tuple[int, torch.Tensor, list[torch.Tensor]]
) -> None:
    number, maps, states = eager
    n = dataset.sizes["window"]
    found = store_spectra(folder / "run.zarr", n)
    one = found.isel(sample=number)
    assert one.window_index == number
    assert str(one.record_id.values) == str(dataset.record_id.values[number])
    expected = np.linalg.svd(maps.numpy(), compute_uv=False)
    size = expected.shape[-1]
    np.testing.assert_allclose(one.attention_singular_values[..., :size], expected, atol=1e-5)
    for layer in range(2):
        values = np.linalg.svd(states[layer + 1][0].numpy(), compute_uv=False)
        np.testing.assert_allclose(
            one.output_singular_values[layer, : len(values)], values, rtol=1e-4, atol=1e-5
        )
    assert "spectra" in call("spectra", folder / "run.zarr", "--windows", "2").output


def test_rollout_is_the_product_of_the_models_maps(
    folder: Path, dataset: xarray.Dataset, eager: tuple[int, torch.Tensor, list[torch.Tensor]]
) -> None:
    number, maps, _ = eager
    identity = torch.eye(maps.shape[-1], dtype=torch.float64)
    first, second = ((a.mean(0) + identity) / 2 for a in maps)
    one = store_rollout(folder / "run.zarr", dataset.sizes["window"]).isel(sample=number)
    values = one.rollout.values[: maps.shape[-1]]
    np.testing.assert_allclose(values, (second @ first)[0], atol=1e-6)
    stored = dataset.token_start.values[number] + int(dataset.start[number])
    has_bases = dataset.token_start.values[number] >= 0
    np.testing.assert_array_equal(
        one.token_start.values[has_bases[: one.sizes["token"]]], stored[has_bases]
    )
    assert "largest shares" in call("rollout", folder / "run.zarr", "--windows", "2").output


def test_regions_have_the_mass_of_the_models_maps(
    folder: Path,
    dataset: xarray.Dataset,
    eager: tuple[int, torch.Tensor, list[torch.Tensor]],
    tmp_path: Path,
) -> None:
    from bertgeom.analysis.annotations import read_annotations

    number, maps, _ = eager
    bed = tmp_path / "r.bed"
    record = str(dataset.record_id.values[number])
    bed.write_text(f"{record}\t40\t65\tdomain\n{record}\t0\t200\tall\n")
    annotations = read_annotations(bed)
    found = store_regions(folder / "run.zarr", annotations, dataset.sizes["window"], theta=0.1)
    one = found.isel(sample=number).sel(group="domain")
    start = dataset.token_start.values[number][: maps.shape[-1]] + int(dataset.start[number])
    stop = dataset.token_stop.values[number][: maps.shape[-1]] + int(dataset.start[number])
    bases = dataset.token_start.values[number][: maps.shape[-1]] >= 0
    inside = bases & (start < 65) & (stop > 40)
    assert inside.any()
    assert not inside.all()
    weights = maps.numpy()
    np.testing.assert_allclose(one.region_mass, weights[..., inside].sum(-1).mean(-1), rtol=1e-4)
    strong = np.where(weights >= 0.1, weights, 0)
    np.testing.assert_allclose(
        one.region_confident_mass, strong[..., inside].sum(-1).mean(-1), rtol=1e-4, atol=1e-6
    )
    assert one.token_share == inside.mean()
    output = call("regions", folder / "run.zarr", "--annotations", bed, "--windows", "3").output
    assert "domain" in output
