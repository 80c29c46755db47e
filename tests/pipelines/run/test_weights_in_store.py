"""Statistics of the model's weights are in every store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import bertgeom
from bertgeom.analysis.weights import weight_statistics
from bertgeom.pipelines.run import stages


def test_a_store_holds_the_weights_of_its_model(
    tiny_model: Path, fasta: Path, tmp_path: Path
) -> None:
    stages.run(fasta, model=tiny_model, out=tmp_path / "x.zarr", threads=1)
    ds = bertgeom.open(tmp_path / "x.zarr")
    expected = weight_statistics(bertgeom.load_encoder(tiny_model, device="cpu").model)
    assert "weight_symmetry" in ds
    for name in expected.data_vars:
        assert ds[name].dims == expected[name].dims
        np.testing.assert_allclose(ds[name].values, expected[name].values, rtol=1e-9, atol=1e-12)
        assert ds[name].attrs["description"] == expected[name].attrs["description"]
    assert list(ds.projection.values) == ["query", "key", "value"]
