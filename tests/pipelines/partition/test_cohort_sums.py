"""Sums by cohort: exact, whatever the partitions, and block maps that were never stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

import bertgeom
from bertgeom.analysis.cohorts import store_sums
from bertgeom.errors import StoreError
from bertgeom.pipelines.partition import cohort_sums
from bertgeom.pipelines.partition.cohort_sums import ALL
from bertgeom.pipelines.run import prepare
from bertgeom.store import root_file


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.tsv"
    path.write_text("r0\tone\nr2\ttwo\nr3\ttwo\n")
    return path


def cohorts(path: Path) -> xarray.Dataset:
    return bertgeom.open(path, group="cohorts").load()


def test_sums_are_those_of_the_stored_windows(
    run: Callable[..., Any], labels: Path, tmp_path: Path
) -> None:
    run(labels=labels, keep="logits", bitround=7)
    dataset = bertgeom.open(tmp_path / "x.zarr")
    found = cohorts(tmp_path / "x.zarr")
    assert found["cohort"].values.tolist() == [ALL, "one", "two"]
    everyone = np.zeros(dataset.sizes["window"], np.int64)
    by_label, total = store_sums(dataset), store_sums(dataset, everyone, 1)
    assert "gate_share" in by_label
    assert "logits" in by_label
    for name, moments in by_label.items():
        for part in ("count", "mean", "m2"):
            expected = np.concatenate([getattr(total[name], part), getattr(moments, part)])
            np.testing.assert_allclose(found[f"{name}_{part}"], expected, rtol=1e-10, atol=1e-12)
    assert found["attention_entropy_mean"].attrs["units"] == "nat"


@pytest.mark.parametrize("group", [1, 2])
def test_any_partitioning_gives_the_same_sums(
    group: int,
    run: Callable[..., Any],
    labels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("whole.zarr", labels=labels, partition_windows=100)
    monkeypatch.setattr(prepare, "row_group", lambda shape, size, n: group * size)
    run("cut.zarr", labels=labels, partition_windows=3)
    whole, cut = cohorts(tmp_path / "whole.zarr"), cohorts(tmp_path / "cut.zarr")
    assert set(whole.variables) == set(cut.variables)
    for name in whole.data_vars:
        np.testing.assert_allclose(whole[name], cut[name], rtol=1e-6, atol=1e-9, err_msg=str(name))


def test_block_maps_are_averaged_by_cohort_without_being_stored(
    run: Callable[..., Any], labels: Path, tmp_path: Path
) -> None:
    run("lean.zarr", labels=labels)
    run("kept.zarr", labels=labels, keep="block_map")
    lean, kept = cohorts(tmp_path / "lean.zarr"), cohorts(tmp_path / "kept.zarr")
    assert "block_map" not in bertgeom.open(tmp_path / "lean.zarr")
    stored = bertgeom.open(tmp_path / "kept.zarr").load()
    codes = stored["label_code"].values
    there = stored["flags"].values & 4 == 0
    for i, mine in enumerate((there, there & (codes == 0), there & (codes == 1))):
        expected = stored["block_map"].values[mine].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(lean["block_map_mean"][i], expected, atol=1e-3)
        assert int(lean["block_map_count"][i]) == mine.sum()
    np.testing.assert_allclose(lean["block_map_mean"], kept["block_map_mean"], atol=1e-3)
    assert lean["block_map_mean"].dims == ("cohort", "layer", "head", "query_block", "key_block")


def test_the_core_tier_has_no_block_maps(run: Callable[..., Any], tmp_path: Path) -> None:
    run(tier="core")
    found = cohorts(tmp_path / "x.zarr")
    assert "block_map_mean" not in found
    assert found["cohort"].values.tolist() == [ALL]


def test_a_cohort_without_windows_has_counts_of_zero_and_no_mean(
    run: Callable[..., Any], fake: Any, tmp_path: Path
) -> None:
    table = tmp_path / "labels.tsv"
    table.write_text("r0\tone\nr1\tnobody\n")
    run(source=fake.write_fasta(tmp_path / "e.fa", (50, 0)), labels=table)
    found = cohorts(tmp_path / "x.zarr").sel(cohort="nobody")
    assert (found["attention_entropy_count"] == 0).all()
    for name in ("attention_entropy_mean", "attention_entropy_m2", "block_map_mean"):
        assert np.isnan(found[name]).all()
    raw = xarray.open_zarr(tmp_path / "x.zarr", group="cohorts", consolidated=False)
    assert np.isnan(raw["attention_entropy_mean"].sel(cohort="nobody")).all()


def test_sums_of_earlier_stores_with_0_for_nothing_are_read_as_missing(
    run: Callable[..., Any], fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root_file, "FORMAT_VERSION", "1.0")
    table = tmp_path / "labels.tsv"
    table.write_text("r0\tone\nr1\tnobody\n")
    run(source=fake.write_fasta(tmp_path / "e.fa", (50, 0)), labels=table)
    mean = zarr.open_array(tmp_path / "x.zarr" / "cohorts" / "attention_entropy_mean", mode="r+")
    mean[2] = 0
    # Nor had they a list of all files.
    (tmp_path / "x.zarr" / "run" / "manifest.json").unlink()
    found = cohorts(tmp_path / "x.zarr").sel(cohort="nobody")
    assert np.isnan(found["attention_entropy_mean"]).all()


def test_too_many_labels_leave_the_sum_of_all(
    run: Callable[..., Any], labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort_sums, "LARGEST", 1)
    run(labels=labels)
    assert cohorts(tmp_path / "x.zarr")["cohort"].values.tolist() == [ALL]


def test_a_group_that_is_not_there_is_said(run: Callable[..., Any], tmp_path: Path) -> None:
    run(tier="core")
    with pytest.raises(StoreError, match="expected a group 'nix', found none"):
        bertgeom.open(tmp_path / "x.zarr", group="nix")
    table = bertgeom.open(tmp_path / "x.zarr", group="sequences")
    assert table["id"].values.tolist() == [f"r{i}" for i in range(6)]
