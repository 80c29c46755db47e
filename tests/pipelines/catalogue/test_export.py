"""A store as a flat table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import bertgeom
from bertgeom.errors import UsageError
from bertgeom.pipelines.catalogue import export as module
from bertgeom.pipelines.catalogue.export import export


@pytest.mark.parametrize("ending", ["tsv", "tsv.gz"])
@pytest.mark.parametrize("step", [1, 10**9])
def test_every_head_is_a_row_with_the_numbers_of_the_store(
    ending: str, step: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", step)
    dataset = bertgeom.open(whole).load()
    rows = export(whole, tmp_path / f"x.{ending}")
    table = pandas.read_csv(tmp_path / f"x.{ending}", sep="\t")
    assert rows == len(table) == dataset.sizes["window"] * 4
    for i in (0, 7, rows - 1):
        row = table.iloc[i]
        one = dataset.isel(
            window=int(row["window"]), layer=int(row["layer"]), head=int(row["head"])
        )
        assert row["record_id"] == one["record_id"].item()
        np.testing.assert_allclose(row["attention_entropy"], one["attention_entropy"], rtol=1e-6)
        np.testing.assert_allclose(row["gate_mass.open"], one["gate_mass"][1], rtol=1e-6)
        np.testing.assert_allclose(
            row["head_cone_index.key"], one["head_cone_index"].sel(head_station="key"), rtol=1e-6
        )
    assert table["window"].is_monotonic_increasing


def test_windows_and_stations_are_rows_too(run: Callable[..., Any], tmp_path: Path) -> None:
    run(keep="logits")
    dataset = bertgeom.open(tmp_path / "x.zarr").load()
    assert export(tmp_path / "x.zarr", tmp_path / "w.tsv", "window") == dataset.sizes["window"]
    windows = pandas.read_csv(tmp_path / "w.tsv", sep="\t")
    np.testing.assert_allclose(windows["logits.b"], dataset["logits"][:, 1], rtol=1e-6)
    assert windows["n_tokens"].tolist() == dataset["n_tokens"].values.tolist()
    export(tmp_path / "x.zarr", tmp_path / "s.tsv", "station")
    stations = pandas.read_csv(tmp_path / "s.tsv", sep="\t")
    assert stations["station"].tolist()[:5] == dataset["station"].values.tolist()
    np.testing.assert_allclose(
        stations["cone_index"], dataset["cone_index"].values.reshape(-1), rtol=1e-6
    )


def test_what_cannot_be_written_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--level out of window, station, head"):
        export(whole, tmp_path / "x.tsv", "layer")
    with pytest.raises(UsageError, match="a file that ends in"):
        export(whole, tmp_path / "x.csv")


def test_a_missing_pyarrow_is_named_by_its_extra(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'bertgeom\[parquet\]', or write .tsv.gz"):
        export(whole, tmp_path / "x.parquet")
    assert not list(tmp_path.iterdir())
