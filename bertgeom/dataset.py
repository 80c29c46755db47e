"""Statistics as `xarray` objects: coordinates, units and descriptions from `variables`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom import variables

if TYPE_CHECKING:
    import xarray

    from bertgeom.attention import MeasureSettings


def station_names(n_layers: int) -> list[str]:
    """Names of the 1 + 2L residual stations, in the order of the stream."""
    return ["embedding"] + [
        f"{part}_{layer}" for layer in range(n_layers) for part in ("attention", "output")
    ]


def hidden_state_names(n_layers: int) -> list[str]:
    """Names of the 1 + L stations at which a layer ends."""
    return ["embedding"] + [f"output_{layer}" for layer in range(n_layers)]


def coordinates(
    n_layers: int, n_heads: int, n_offset_side: int, angles: str = "default"
) -> dict[str, Any]:
    """Coordinate arrays of the fixed dimensions, by dimension name.

    `angle` is the centre of each 2-degree bin; block numbers count 16 equal stretches.
    """
    width = 180 / variables.N_ANGLES
    ends = hidden_state_names(n_layers)
    return {
        "layer": np.arange(n_layers),
        "head": np.arange(n_heads),
        "station": station_names(n_layers),
        "angle_station": station_names(n_layers) if angles == "all" else ends,
        "hidden_state": ends,
        "head_station": list(variables.HEAD_STATIONS),
        "gate_name": ("gate", list(variables.GATES)),
        "offset": variables.offset_labels(n_offset_side),
        "angle": (np.arange(variables.N_ANGLES) + 0.5) * width,
        "query_block": np.arange(variables.N_BLOCKS),
        "key_block": np.arange(variables.N_BLOCKS),
    }


def as_dataset(arrays: dict[str, np.ndarray], settings: MeasureSettings) -> xarray.Dataset:
    """An `xarray.Dataset` of statistics, one row a window.

    Args:
        arrays: by name, dimensions as declared in `bertgeom.variables`.
        settings: what was measured.
    """
    import xarray

    entropy = arrays["attention_entropy"]
    coords = coordinates(
        entropy.shape[1], entropy.shape[2], settings.n_offset_side, settings.angles
    )
    declared = {name: variables.VARIABLES[name] for name in arrays if name in variables.VARIABLES}
    used = {dim for variable in declared.values() for dim in variable.dims}
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
            name: values
            for name, values in coords.items()
            if (values[0] if isinstance(values, tuple) else name) in used
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
