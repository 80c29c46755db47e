"""Statistics in memory as `xarray` objects, with the coordinates, units and words of a store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom import variables
from bertgeom.errors import StoreError, UsageError
from bertgeom.store.layout import coordinates

if TYPE_CHECKING:
    import xarray

#: What `--exclude-flags` can name: the bits of `flags`, and windows that were cut off.
EXCLUDABLE = (*variables.FLAGS, "truncated")


def as_dataset(
    arrays: dict[str, np.ndarray], *, n_offset_side: int, angles: str = "default"
) -> xarray.Dataset:
    """An `xarray.Dataset` of statistics, one row per window.

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
    """The dataset with `gate` as data and `gate_name` as the index of its dimension.

    xarray takes the array `gate` for a coordinate, because it has the name of a dimension.
    """
    if "gate" in dataset.coords:
        dataset = dataset.reset_coords("gate")
    if "gate_name" in dataset.coords and "gate_name" not in dataset.xindexes:
        dataset = dataset.set_xindex("gate_name")
    return dataset


def name_labels(dataset: xarray.Dataset) -> xarray.Dataset:
    """The dataset with names in `label`, "" for none, and their codes in `label_code`."""
    if "label" not in dataset.variables:
        return dataset
    codes = np.asarray(dataset["label"])
    names = np.array([*label_names(dataset), ""], dtype=object)
    named = {"units": "1", "description": "label of the window, empty without one"}
    code = {"units": "1", "description": "position of the label among the labels, -1 without one"}
    return dataset.assign(label=("window", names[codes], named), label_code=("window", codes, code))


def label_names(dataset: xarray.Dataset) -> list[str]:
    """Names of the labels by code; "label 3" if the store has no names."""
    found = attribute(dataset, "labels", [])
    names = [str(name) for name in found] if isinstance(found, (list, tuple)) else []
    if "label" in dataset.variables and dataset["label"].dtype.kind in "iu":
        most = int(np.asarray(dataset["label"]).max(initial=-1)) + 1
        names += [f"label {i}" for i in range(len(names), most)]
    return names


def label_codes(dataset: xarray.Dataset) -> np.ndarray:
    """Label code of every window, (windows,) int64; -1 without a label.

    Of a dataset that `bertgeom.open` gave, or of one with the codes themselves in `label`.
    """
    for name in ("label_code", "label"):
        if name in dataset.variables and dataset[name].dtype.kind in "iu":
            return np.asarray(dataset[name]).astype(np.int64)
    return np.full(dataset.sizes["window"], -1, dtype=np.int64)


def excluded(dataset: xarray.Dataset, flags: Iterable[str]) -> np.ndarray:
    """Windows with one of these flags, (windows,) bool.

    Args:
        flags: names out of `EXCLUDABLE`.

    Raises:
        UsageError: for another name.
    """
    names = check_flags(flags)
    n = dataset.sizes["window"]
    bits = np.asarray(dataset["flags"]) if "flags" in dataset.variables else np.zeros(n, np.uint16)
    cut = np.asarray(dataset["truncated"]) if "truncated" in dataset.variables else np.zeros(n)
    return flagged(bits, cut, names)


def without_flagged(dataset: xarray.Dataset, flags: Iterable[str]) -> xarray.Dataset:
    """The windows without any of these flags; their numbers become the coordinate `window`.

    Raises:
        UsageError: for an unknown name, or if no window is left.
    """
    names = check_flags(flags)
    if not names:
        return dataset
    kept = np.flatnonzero(~excluded(dataset, names))
    if not len(kept):
        raise UsageError(
            f"expected windows without the flags {', '.join(names)}, found none among "
            f"{dataset.sizes['window']}; leave out fewer"
        )
    return name_gates(dataset.isel(window=kept).assign_coords(window=kept))


def written_windows(dataset: xarray.Dataset) -> xarray.Dataset:
    """The windows of a store whose run has written them; all of a finished one.

    Rows still to come hold 0 where a window has its strand, +1 or -1. Without this their zeros
    would count as windows of record 0.

    Raises:
        StoreError: if there is none yet.
    """
    if dataset.attrs.get("complete", True) or "strand" not in dataset.variables:
        return dataset
    there = np.flatnonzero(np.asarray(dataset["strand"]))
    if not len(there):
        raise StoreError(
            "expected a store with windows, found a run that has not written one yet; give the "
            "bertgeom run command again"
        )
    if len(there) == dataset.sizes["window"]:
        return dataset
    return dataset.isel(window=there).assign_coords(window=there)


def flagged(flags: np.ndarray, truncated: np.ndarray, names: Iterable[str]) -> np.ndarray:
    """Windows with one of the named flags, (windows,) bool, from the two arrays of a store."""
    found = np.zeros(len(flags), dtype=bool)
    for name in check_flags(names):
        if name == "truncated":
            found |= truncated.astype(bool)
        else:
            found |= flags.astype(np.int64) & variables.flag_bit(name) != 0
    return found


def flag_names(flags: np.ndarray) -> np.ndarray:
    """Comma-separated names of the flags of every window, (windows,) object; "" for none."""
    distinct, place = np.unique(flags.astype(np.int64), return_inverse=True)
    texts = [
        ",".join(name for name in variables.FLAGS if bits & variables.flag_bit(name))
        for bits in distinct.tolist()
    ]
    return np.array(texts, dtype=object)[place]


def check_flags(names: Iterable[str]) -> tuple[str, ...]:
    """Unique names of flags; a text is split at its commas.

    Raises:
        UsageError: for an unknown name.
    """
    given = names.split(",") if isinstance(names, str) else names
    found = tuple(dict.fromkeys(name.strip() for name in given if name.strip()))
    if unknown := [name for name in found if name not in EXCLUDABLE]:
        raise UsageError(
            f"expected --exclude-flags out of {', '.join(EXCLUDABLE)}, found {', '.join(unknown)}"
        )
    return found


def attribute(dataset: xarray.Dataset, name: str, default: Any = None) -> Any:
    """An attribute of a dataset, as it was before `portable` made it text."""
    value = dataset.attrs.get(name, default)
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def portable(dataset: xarray.Dataset) -> xarray.Dataset:
    """The dataset with attributes and encodings that every netCDF writer takes.

    Numbers, texts and lists of numbers stay. Mappings and other lists become JSON, which
    `attribute` reads back; true and false become 1 and 0; None becomes an empty text. Masked
    integers are floats in memory and are written as such.
    """
    out = dataset.copy()
    out.attrs = _portable(dataset.attrs)
    for variable in out.variables.values():
        variable.attrs = _portable(variable.attrs)
        if (
            variable.dtype.kind == "f"
            and np.dtype(variable.encoding.get("dtype", "f4")).kind != "f"
        ):
            kept = ("chunks", "preferred_chunks", "source")
            variable.encoding = {k: v for k, v in variable.encoding.items() if k in kept}
    return out


def _portable(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): _plain_value(value) for name, value in attributes.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        numbers = value and all(
            isinstance(x, (int, float)) and not isinstance(x, bool) for x in value
        )
        return list(value) if numbers else json.dumps(list(value))
    return value


def load_identity(dataset: xarray.Dataset, where: str) -> xarray.Dataset:
    """The dataset with all one-dimensional arrays that identify rows loaded into memory."""
    named = {v.name for v in variables.WINDOW_VARIABLES} | {"window_index"}
    names = [
        name
        for name, array in dataset.variables.items()
        if (array.dims == ("window",) and name in named)
        or array.dims in (("sample",), ("record",))
        or (name in dataset.coords and array.ndim == 1)
    ]
    for name in names:
        try:
            dataset.variables[name].load()
        except (OSError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"{where}: expected to read the array {name!r}, found it damaged "
                f"({type(error).__name__}: {error}); bertgeom verify says what else is"
            ) from error
    return dataset


def without_empty(dataset: xarray.Dataset) -> xarray.Dataset:
    """Sums with NaN where nothing was counted; stores of earlier versions hold 0 there."""
    for name in [str(name) for name in dataset.data_vars]:
        for part in ("_mean", "_m2"):
            count = name.removesuffix(part) + "_count"
            if name.endswith(part) and count in dataset and "cohort" in dataset[name].dims:
                there = dataset[count] > 0
                dataset[name] = dataset[name].where(there).assign_attrs(dataset[name].attrs)
    return dataset
