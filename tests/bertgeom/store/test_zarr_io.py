"""The store on disk, as xarray and bertgeom.open see it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray

import bertgeom
from bertgeom.errors import StoreError
from bertgeom.store import manifest, root_file, zarr_io
from bertgeom.store.layout import Layout, Shape
from bertgeom.store.storage import Storage
from bertgeom.variables import KEEP, VARIABLES

SHAPE = Shape(2, 3, 8, ("a", "b"), 16, keep=KEEP, group_names=("special",))


def make(storage: Storage, n_windows: int = 5, chunk: int = 4) -> Layout:
    layout = Layout(SHAPE, n_windows, chunk)
    zarr_io.create_root(storage)
    zarr_io.create(storage, layout, {"fingerprint": "f"})
    return layout


def fill(storage: Storage, layout: Layout) -> dict[str, np.ndarray]:
    """Rows with all kinds of values; the second window is missing."""
    rng = np.random.default_rng(0)
    arrays, written = zarr_io.Arrays(storage), {}
    for variable in layout.variables:
        shape = layout.shape(variable)
        if variable.dtype == "string":
            values = np.array([f"récord {i}" for i in range(shape[0])], dtype=object)
        elif np.dtype(variable.dtype).kind == "f":
            values = rng.normal(size=shape).astype(variable.dtype)
        else:
            values = rng.integers(0, 2, shape).astype(variable.dtype)
        if variable.kind != "window":
            values[1] = layout.fill(variable)
        for start in range(0, shape[0], layout.chunk_windows):
            arrays.write(variable.name, start, values[start : start + layout.chunk_windows])
        written[variable.name] = values
    return written


def finish(storage: Storage, layout: Layout) -> None:
    names = [v.name for v in layout.variables] + [c.name for c in layout.coordinates]
    root = zarr_io.consolidated(storage, names, {"complete": True})
    keys = storage.sizes().keys() - {root_file.METADATA}
    files = {key: manifest.entry_of(storage.read(key)) for key in keys}
    manifest.write(storage, files | {root_file.METADATA: manifest.entry_of(root)})
    storage.write(root_file.METADATA, root)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_what_was_written_is_opened_with_units_and_descriptions(kind: str, tmp_path: Path) -> None:
    url = str(tmp_path / "x.zarr") if kind == "local" else f"memory://{tmp_path.name}/x.zarr"
    storage = Storage(url)
    layout = make(storage)
    written = fill(storage, layout)
    finish(storage, layout)
    dataset = bertgeom.open(url)
    for name, values in written.items():
        variable, found = VARIABLES[name], dataset[name]
        assert found.dims == variable.dims
        identity = variable.dims == ("window",) and variable.kind == "window"
        assert (found.chunks is None) == identity, "statistics are lazy, identities are loaded"
        assert found.attrs["units"] == variable.unit
        if name != "label":
            assert found.attrs["description"] == variable.description
        loaded = (dataset["label_code"] if name == "label" else found).values
        if variable.kind != "window":
            assert np.isnan(loaded[1]).all()
            loaded, values = np.delete(loaded, 1, 0), np.delete(values, 1, 0)
        assert (loaded == values).all(), name
    assert dataset.attrs["complete"] == 1


def test_xarray_alone_reads_the_same_numbers(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    layout = make(storage)
    fill(storage, layout)
    finish(storage, layout)
    plain = xarray.open_zarr(tmp_path)
    ours = bertgeom.open(tmp_path)
    assert {*plain.variables, "label_code"} == set(ours.variables)
    for name in plain.variables:
        mine = "label_code" if name == "label" else name
        np.testing.assert_array_equal(plain[name].values, ours[mine].values)
    raw = xarray.open_zarr(tmp_path, mask_and_scale=False)
    assert raw["attention_k90_median"].dtype == np.uint32
    assert (raw["attention_k90_median"].values[1] == 2**32 - 1).all()


def test_positions_are_selected_by_name(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    layout = make(storage)
    fill(storage, layout)
    finish(storage, layout)
    dataset = bertgeom.open(tmp_path)
    assert "gate" in dataset.data_vars
    closed = dataset["gate_mass"].sel(gate_name="closed")
    np.testing.assert_array_equal(closed.values, dataset["gate_mass"].values[..., 0])
    assert dataset["cone_index"].sel(station="output_1").dims == ("window",)
    assert dataset["angle_histogram"].sel(angle=slice(0, 10)).sizes["angle"] == 5
    assert dataset["record_id"].values[0] == "récord 0"
    assert {"record_index", "start", "stop", "strand", "record_id"} <= set(dataset.coords)
    names = dataset["gate"].attrs["flag_meanings"].split()
    assert names[0] == "closed"
    assert names[-1] == "mixed"


def test_equal_contents_are_equal_bytes_and_metadata_is_sorted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        storage = Storage(str(tmp_path / name))
        layout = make(storage)
        fill(storage, layout)
        finish(storage, layout)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    root = json.loads((tmp_path / "a" / "zarr.json").read_text())
    names = list(root["consolidated_metadata"]["metadata"])
    assert names == sorted(names)


def test_every_file_that_is_written_is_noted_with_its_checksum(tmp_path: Path) -> None:
    import hashlib

    storage = Storage(str(tmp_path))
    make(storage)
    arrays = zarr_io.Arrays(storage)
    arrays.write("n_tokens", 0, np.arange(1, 5))
    size, digest = arrays.written["n_tokens/c/0"]
    data = (tmp_path / "n_tokens" / "c" / "0").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)


def test_an_unfinished_store_opens_and_says_so(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    make(storage)
    zarr_io.create_plain_group(storage.child("run"), "bookkeeping")
    (tmp_path / "run" / "history.jsonl").write_text("{}\n")
    with pytest.warns(zarr_io.UnfinishedStoreWarning, match="has not finished"):
        dataset = bertgeom.open(tmp_path)
    assert dataset.attrs["complete"] == 0
    assert np.isnan(dataset["attention_entropy"].values).all()


def test_making_a_store_twice_changes_nothing(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    make(storage)
    before = files(tmp_path)
    make(storage)
    assert files(tmp_path) == before


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.1"])
def test_another_major_version_is_refused_by_name(version: str, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    make(storage)
    facts = {"format_version": version, "bertgeom_version": "9.9"}
    zarr_io.Arrays(storage).update_attributes(facts)
    with pytest.raises(StoreError, match=rf"expected format version 1\.1, found {version}.*9\.9"):
        bertgeom.open(tmp_path)


def test_a_later_minor_version_is_read(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    layout = make(storage)
    zarr_io.Arrays(storage).update_attributes({"format_version": "1.7"})
    finish(storage, layout)
    assert bertgeom.open(tmp_path).attrs["format_version"] == "1.7"


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected a store, found no zarr\.json"):
        bertgeom.open(tmp_path / "nothing")
    (tmp_path / "zarr.json").write_text("not json")
    with pytest.raises(StoreError, match="expected JSON"):
        bertgeom.open(tmp_path)
    xarray.Dataset({"x": ("i", [1.0])}).to_zarr(tmp_path / "other.zarr", consolidated=False)
    with pytest.raises(StoreError, match="expected a store of format 'bertgeom'"):
        bertgeom.open(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="expected a zarr group, found an array"):
        bertgeom.open(tmp_path / "other.zarr" / "x")
    make(Storage(str(tmp_path / "x.zarr")))
    with pytest.raises(StoreError, match="expected an array 'nix'"):
        zarr_io.Arrays(Storage(str(tmp_path / "x.zarr")), read_only=True).read("nix")
