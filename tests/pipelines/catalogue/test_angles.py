"""Angles over a database: exact totals, by definition, however it is cut and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from bertgeom.errors import DamagedError, MismatchError, StoreError, UsageError
from bertgeom.pipelines.catalogue import angles
from bertgeom.pipelines.catalogue.angle_job import AngleSettings
from bertgeom.pipelines.catalogue.angle_results import write_result
from bertgeom.pipelines.catalogue.angles import (
    database_angles,
    finalise,
    prepare,
    run_row,
)
from bertgeom.store.manifest import sealed, unsealed

N, HIDDEN = 150, 12


@pytest.fixture(scope="module")
def store() -> xarray.Dataset:
    """Vectors of three cohorts in mixed order; a zero vector, a missing one, two equal ones."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((N, 3, HIDDEN)) + 0.7).astype(np.float16)
    x[4, 2], x[11, 2] = 0, np.nan
    x[20, 2] = x[21, 2]
    label = rng.integers(-1, 2, N).astype(np.int32)
    return xarray.Dataset(
        {"cls": (("window", "hidden_state", "hidden"), x), "label": ("window", label)},
        coords={"hidden_state": ["embedding", "output_0", "output_1"]},
        attrs={"labels": ["a", "b"], "fingerprint": "f"},
    )


def angles_by_definition(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Degrees of all pairs i < j of x, or of all pairs of x and y, in float64."""

    def units(v: np.ndarray) -> np.ndarray:
        v = v.astype(np.float64)
        v = v[np.isfinite(v).all(axis=1) & (v != 0).any(axis=1)]
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    u = units(x)
    w = u if y is None else units(y)
    degrees = np.degrees(
        2
        * np.arctan2(
            np.linalg.norm(u[:, None] - w[None], axis=-1),
            np.linalg.norm(u[:, None] + w[None], axis=-1),
        )
    )
    return degrees[np.triu_indices(len(u), 1)] if y is None else degrees.ravel()


def assert_same_angles(one: xarray.Dataset, expected: np.ndarray, prefix: str = "") -> None:
    counts, _ = np.histogram(expected, bins=90, range=(0, 180))
    found = one[f"{prefix}angle_histogram"].values
    # A pair within rounding of an edge may be in either bin.
    assert np.abs(found - counts).sum() <= 2
    assert found.sum() == len(expected) == one[f"{prefix}n_pairs"]
    np.testing.assert_allclose(one[f"{prefix}angle_mean"], expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(one[f"{prefix}angle_std"], expected.std(), rtol=1e-5)
    np.testing.assert_allclose(one[f"{prefix}angle_min"], expected.min(), atol=2e-3)
    np.testing.assert_allclose(one[f"{prefix}angle_max"], expected.max(), atol=2e-3)


@pytest.fixture(scope="module")
def result(store: xarray.Dataset, tmp_path_factory: pytest.TempPathFactory) -> xarray.Dataset:
    work = tmp_path_factory.mktemp("angles")
    return database_angles(store, work, settings=AngleSettings(tile=32))


def test_every_pair_is_counted_within_and_between_cohorts(
    store: xarray.Dataset, result: xarray.Dataset
) -> None:
    assert result.cohort.values.tolist() == ["a", "b", "unlabelled"]
    x, label = store.cls.values[:, 2], store.label.values
    members = [x[label == 0], x[label == 1], x[label == -1]]
    for a in range(3):
        for b in range(3):
            one = result.isel(cohort=a, other_cohort=b)
            y = None if a == b else members[b]
            assert_same_angles(one, angles_by_definition(members[a], y))
    assert result.n_windows.values.tolist() == [len(m) for m in members]
    assert result.n_without_angle.sum() == 2
    assert result.attrs["hidden_state"] == "output_1"


def test_the_database_as_a_whole_has_all_pairs(
    store: xarray.Dataset, result: xarray.Dataset
) -> None:
    assert result.all_n_pairs == (N - 2) * (N - 3) // 2
    assert_same_angles(result, angles_by_definition(store.cls.values[:, 2]), "all_")


@pytest.mark.parametrize("tile", [7, 1000])
def test_tiles_change_nothing(
    store: xarray.Dataset, result: xarray.Dataset, tile: int, tmp_path: Path
) -> None:
    found = database_angles(store, tmp_path, settings=AngleSettings(tile=tile))
    for name, array in result.data_vars.items():
        if "histogram" in str(name):
            assert np.abs(found[name] - array).sum() <= 4
        else:
            np.testing.assert_allclose(found[name], array, rtol=1e-6)


def test_an_interrupted_comparison_goes_on(
    store: xarray.Dataset,
    result: xarray.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = AngleSettings(tile=32)
    job = prepare(store, tmp_path, settings=settings)
    for row in (0, 3):
        run_row(job, row)
    (tmp_path / "rows" / "000001.json.77.partial").write_text("{")
    vectors = (tmp_path / "vectors.bin").stat().st_mtime_ns
    assert job.missing() == [1, 2, *range(4, len(job.tiles))]
    with pytest.raises(StoreError, match=r"missing \(first 1\)"):
        finalise(job)

    again: list[int] = []

    def noted(job: Any, row: int) -> None:
        again.append(row)
        run_row(job, row)

    monkeypatch.setattr(angles, "run_row", noted)
    seen: list[tuple[int, int]] = []
    found = database_angles(
        store, tmp_path, settings=settings, progress=lambda *pairs: seen.append(pairs)
    )
    assert found.identical(result)
    assert again == [1, 2, *range(4, len(job.tiles))]
    assert (tmp_path / "vectors.bin").stat().st_mtime_ns == vectors
    assert seen[0][0] > 0
    assert seen[-1] == (N * (N - 1) // 2,) * 2


def test_processes_change_nothing(
    store: xarray.Dataset, result: xarray.Dataset, tmp_path: Path
) -> None:
    settings = AngleSettings(tile=32, impl="reference")
    found = database_angles(store, tmp_path, settings=settings, workers=2)
    assert np.abs(found.angle_histogram - result.angle_histogram).sum() <= 4
    np.testing.assert_allclose(found.angle_mean, result.angle_mean, rtol=1e-6)


def test_another_comparison_is_not_resumed(store: xarray.Dataset, tmp_path: Path) -> None:
    prepare(store, tmp_path)
    with pytest.raises(MismatchError, match=r"\(settings\); choose another work folder"):
        prepare(store, tmp_path, settings=AngleSettings(tile=9))
    with pytest.raises(MismatchError, match=r"\(cohorts, sizes\)"):
        prepare(store, tmp_path, codes=np.zeros(N, int), cohorts=["a"])
    with pytest.raises(MismatchError, match="another store or other labels"):
        prepare(store.assign_attrs(fingerprint="g"), tmp_path)
    assert prepare(store, tmp_path, settings=AngleSettings(device="cpu")).settings.device == "cpu"


def test_damaged_records_are_found(store: xarray.Dataset, tmp_path: Path) -> None:
    job = prepare(store, tmp_path, settings=AngleSettings(tile=1000))
    for row in range(len(job.tiles)):
        run_row(job, row)
    path = tmp_path / "rows" / "000001.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(StoreError, match=r"000001.json: expected the record of a row"):
        finalise(job)
    record = unsealed(whole)
    path.write_bytes(sealed({**record, "fingerprint": "0"}))
    with pytest.raises(StoreError, match="fingerprint"):
        finalise(job)
    record["angles"]["1"]["histogram"][45] += 1
    path.write_bytes(sealed(record))
    with pytest.raises(StoreError, match=r"expected \d+ pairs of b and b, found"):
        finalise(job)


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "unlink", "folder"])
@pytest.mark.parametrize("name", ["angles.json", "rows/000001.json", "vectors.bin"])
def test_a_damaged_work_folder_is_one_line_with_the_remedy(
    name: str, harm: str, store: xarray.Dataset, tmp_path: Path
) -> None:
    job = prepare(store, tmp_path, settings=AngleSettings(tile=50))
    for row in range(3):
        run_row(job, row)
    path = tmp_path / name
    data = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm != "unlink":
        flipped = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1])
        flipped += data[len(data) // 2 + 1 :]
        path.write_bytes({"flip": flipped, "cut": data[:-5], "empty": b""}[harm])
    whole = database_angles(store, tmp_path / "whole", settings=AngleSettings(tile=50))
    lost_job = name == "angles.json" and harm in ("unlink", "folder")
    if lost_job or (name.startswith("rows") and harm == "unlink"):
        # A folder without its job is a new one; a row without its record is not done.
        found = database_angles(store, tmp_path, settings=AngleSettings(tile=50))
        assert found.identical(whole)
        return
    with pytest.raises(DamagedError, match="again") as caught:
        database_angles(store, tmp_path, settings=AngleSettings(tile=50))
    assert str(path) in str(caught.value)
    assert "delete" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_labels_all_windows_are_one_cohort(store: xarray.Dataset, tmp_path: Path) -> None:
    settings = AngleSettings(hidden_state="embedding")
    found = database_angles(store.drop_vars("label"), tmp_path, settings=settings)
    assert found.cohort.values.tolist() == ["all"]
    assert_same_angles(
        found.isel(cohort=0, other_cohort=0), angles_by_definition(store.cls.values[:, 0])
    )


def test_an_empty_store_has_no_pairs(store: xarray.Dataset, tmp_path: Path) -> None:
    found = database_angles(store.isel(window=slice(0, 0)), tmp_path)
    assert found.all_n_pairs == 0
    assert np.isnan(found.all_angle_mean)


def test_results_are_written_in_three_forms(result: xarray.Dataset, tmp_path: Path) -> None:
    facts = json.loads(write_result(result, tmp_path / "x.json").read_text())
    assert facts["all"]["n_pairs"] == int(result.all_n_pairs)
    assert [pair["cohort"] for pair in facts["pairs"]] == [*"aaabb", "unlabelled"]
    assert sum(sum(pair["histogram"]) for pair in facts["pairs"]) == facts["all"]["n_pairs"]
    lines = [
        x.split("\t") for x in write_result(result, tmp_path / "x.tsv").read_text().splitlines()
    ]
    assert lines[0] == ["cohort", "other_cohort", "angle_low", "angle_high", "pairs"]
    assert sum(int(line[-1]) for line in lines[1:]) == facts["all"]["n_pairs"]
    assert lines[1][2:4] == ["0", "2"]
    read = xarray.open_zarr(write_result(result, tmp_path / "x.zarr"), consolidated=False)
    xarray.testing.assert_equal(read.load(), result)
    with pytest.raises(UsageError, match=r"expected a file \.json, \.tsv or \.zarr"):
        write_result(result, tmp_path / "x.csv")


def test_wrong_requests_are_refused(store: xarray.Dataset, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run with --keep cls"):
        prepare(store.drop_vars("cls"), tmp_path)
    with pytest.raises(UsageError, match="hidden state out of embedding, output_0, output_1"):
        prepare(store, tmp_path, settings=AngleSettings(hidden_state="output_9"))
    with pytest.raises(UsageError, match="from -3 to 2, found 3"):
        prepare(store, tmp_path, settings=AngleSettings(hidden_state=3))
    with pytest.raises(UsageError, match="150 cohort codes"):
        prepare(store, tmp_path, codes=np.zeros(3, int))
    with pytest.raises(UsageError, match="at least 1, found 0"):
        AngleSettings(tile=0)
    with pytest.raises(UsageError, match="at most 256 cohorts, found 300"):
        prepare(store.isel(window=np.arange(300) % N), tmp_path, codes=np.arange(300))
