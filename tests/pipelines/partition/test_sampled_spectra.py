"""`run --spectra K`: exact spectra of a few windows of every partition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertgeom
from bertgeom.errors import UsageError
from bertgeom.pipelines.catalogue.samples import store_spectra
from bertgeom.pipelines.partition import sampled_spectra
from bertgeom.pipelines.run import stages
from bertgeom.pipelines.run.verify import verify
from bertgeom.variables import SPECTRUM_VARIABLES

LENGTHS = (100, 7, 250, 0, 31, 90)
PLACES = ("window_index", "record_index", "start", "stop", "strand")


def run(folder: Path, name: str, model: Path, fake: Any, **options: Any) -> Path:
    source = fake.write_fasta(folder / "x.fa", LENGTHS)
    asked = {"window": 20, "partition_windows": 8, "threads": 1, "spectra": 2} | options
    assert stages.run(source, model=model, out=folder / name, **asked).complete
    return folder / name


def test_they_are_those_of_the_windows_run_again(
    tiny_model: Path, fake: Any, tmp_path: Path
) -> None:
    path = run(tmp_path, "x.zarr", tiny_model, fake)
    found = bertgeom.open(path, group="spectra").load()
    windows = found["window_index"].values
    n = bertgeom.open(path).sizes["window"]
    # Two of every partition of eight windows, or all of a last one that is smaller.
    counts = np.bincount(windows // 8)
    assert counts.tolist() == [min(2, min(8, n - first)) for first in range(0, n, 8)]
    every = store_spectra(path, n)
    for variable in SPECTRUM_VARIABLES:
        values = every[variable.name].values[windows]
        here = found[variable.name].values
        # Samples are padded to the longest of them.
        values = values[..., : here.shape[-1]]
        np.testing.assert_allclose(
            here, values, rtol=1e-5, atol=1e-6, equal_nan=True, err_msg=variable.name
        )
        assert found[variable.name].dtype == variable.dtype
    rows = bertgeom.open(path).isel(window=windows)
    for name in PLACES[1:]:
        np.testing.assert_array_equal(found[name].values, rows[name].values)
    assert found["record_id"].values.tolist() == rows["record_id"].values.tolist()
    assert verify(path, windows=2).agrees


def test_more_than_there_are_are_all_that_have_statistics(
    tiny_model: Path, fake: Any, tmp_path: Path
) -> None:
    path = run(tmp_path, "x.zarr", tiny_model, fake, spectra=100, tier="core")
    windows = bertgeom.open(path, group="spectra")["window_index"].values
    assert windows.tolist() == list(range(bertgeom.open(path).sizes["window"]))


def test_a_run_without_them_has_no_such_group(tiny_model: Path, fake: Any, tmp_path: Path) -> None:
    path = run(tmp_path, "x.zarr", tiny_model, fake, spectra=0)
    assert not (path / "spectra").exists()


def test_row_groups_of_several_partitions_and_a_second_process_change_no_byte(
    tiny_model: Path, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, "a.zarr", tiny_model, fake)
    calls = [0]

    def stop(event: Any) -> None:
        calls[0] += type(event).__name__ == "PartitionDone"
        if calls[0] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "b.zarr", tiny_model, fake, subscribers=[stop])
    second = run(tmp_path, "b.zarr", tiny_model, fake)
    for name in SPECTRUM_VARIABLES:
        a, b = (bertgeom.open(p, group="spectra")[name.name].values for p in (first, second))
        np.testing.assert_array_equal(a, b)
    assert {k for k in fake.contents(first) if "spectra" in k} == {
        k for k in fake.contents(second) if "spectra" in k
    }
    for key, data in fake.contents(first).items():
        if "spectra" in key:
            assert fake.contents(second)[key] == data


def test_damaged_spectra_are_found(tiny_model: Path, fake: Any, tmp_path: Path) -> None:
    path = run(tmp_path, "x.zarr", tiny_model, fake)
    file = path / "run" / "groups" / "00000000.spectra"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert any(".spectra" in problem for problem in verify(path, windows=0).problems)


@pytest.mark.parametrize("length", [3, 4, 5])
def test_windows_shorter_than_the_head_dimension_have_spectra(
    length: int, tiny_model: Path, fake: Any, tmp_path: Path
) -> None:
    """The head dimension is 8; 3-mers of 3 to 5 bases are 3 to 5 tokens with [CLS] and [SEP]."""
    source = fake.write_fasta(tmp_path / "short.fa", (length,) * 3)
    options: dict[str, Any] = {"window": 20, "threads": 1, "spectra": 2}
    assert stages.run(source, model=tiny_model, out=tmp_path / "x.zarr", **options).complete
    found = bertgeom.open(tmp_path / "x.zarr", group="spectra").load()
    tokens = int(bertgeom.open(tmp_path / "x.zarr")["n_tokens"][0])
    values = found["value_singular_values"].values
    head = found.sizes["head_component"]
    assert tokens < head
    assert np.isfinite(values[..., :tokens]).all()
    assert np.isnan(values[..., tokens:]).all()
    assert found["logit_eigenvalues_real"].shape == values.shape
    again = store_spectra(tmp_path / "x.zarr", 2)
    np.testing.assert_allclose(again["value_singular_values"], values, rtol=1e-4, atol=1e-6)


def test_windows_without_statistics_have_no_spectra(
    tiny_model: Path, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled_spectra, "with_statistics", lambda flags: np.arange(0))
    path = run(tmp_path, "x.zarr", tiny_model, fake)
    assert not (path / "spectra").exists()


def test_a_negative_number_is_refused(tiny_model: Path, fake: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--spectra of at least 0"):
        run(tmp_path, "x.zarr", tiny_model, fake, spectra=-1)
