"""Statistics in memory as `xarray` objects, with the coordinates, units and words of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bertgeom import variables
from bertgeom.layout import coordinates

if TYPE_CHECKING:
    import xarray


def as_dataset(
    arrays: dict[str, np.ndarray], *, n_offset_side: int, angles: str = "default"
) -> xarray.Dataset:
    """An `xarray.Dataset` of statistics, one row a window.

    Args:
        arrays: by name, dimensions as declared in `bertgeom.variables`.
        n_offset_side: one-sided bins of the offset profile.
        angles: "default" or "all", the stations that have pairwise angles.
    """
    import xarray

    declared = {name: variables.VARIABLES[name] for name in arrays if name in variables.VARIABLES}
    used = {dim for variable in declared.values() for dim in variable.dims}
    _, n_layers, n_heads = arrays["attention_entropy"].shape
    dataset = xarray.Dataset(
        {
            name: (
                variable.dims,
                arrays[name],
                {"units": variable.unit, "description": variable.description},
            )
            for name, variable in declared.items()
        },
        coords={
            c.name: (c.dim, np.asarray(c.values), {"units": c.unit, "description": c.description})
            for c in coordinates(n_layers, n_heads, n_offset_side, angles=angles)
            if c.dim in used - {"group", "class"}
        },
    )
    return name_gates(dataset)


def name_gates(dataset: xarray.Dataset) -> xarray.Dataset:
    """The dataset with `gate` as the data it is and `gate_name` as the index of its dimension.

    xarray takes the array `gate` for a coordinate, for it is called like a dimension.
    """
    if "gate" in dataset.coords:
        dataset = dataset.reset_coords("gate")
    return dataset.set_xindex("gate_name") if "gate_name" in dataset.coords else dataset
