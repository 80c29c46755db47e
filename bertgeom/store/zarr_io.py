"""The store on disk: makes, writes and opens the arrays of a zarr group.

A store is one flat Zarr v3 group that `xarray.open_zarr` can read without this package. Its arrays,
with their dimensions, types and units, are declared in `bertgeom.variables`; what a reader may rely
on is written in `FORMAT.md`. Every file passes through the wrappers of `zarr_stores`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from bertgeom.errors import DamagedError, StoreError
from bertgeom.store.dataset import (
    load_identity,
    name_gates,
    name_labels,
    portable,
    without_empty,
)
from bertgeom.store.manifest import REMEDY, has_checksums, read_facts_at_once
from bertgeom.store.root_file import (
    FORMAT,
    FORMAT_VERSION,
    METADATA,
    attributes_of,
    check_format,
    clear,
    group_metadata,
    to_bytes,
    update_attributes,
    writers,
)
from bertgeom.store.storage import Storage
from bertgeom.store.zarr_stores import NotingStore, zarr_store

if TYPE_CHECKING:
    import xarray
    from zarr.types import AnyArray

    from bertgeom.store.layout import Coordinate, Layout

_LEVEL = 3


class UnfinishedStoreWarning(UserWarning):
    """A store was opened that its run has not finished; rows still to come are missing."""


@dataclass
class Arrays:
    """The arrays of one group.

    Attributes:
        storage: where the group is.
        read_only: what is read is compared with its checksum, see `bertgeom.store.manifest`.
        format_version: of the store; decides how new arrays are encoded.
        written: key -> (size in bytes, SHA-256) of every file written through this object,
            chunks and metadata; the keys are relative to the group.
    """

    storage: Storage
    read_only: bool = False
    format_version: str = FORMAT_VERSION
    _store: NotingStore = field(init=False, repr=False)
    _opened: dict[str, AnyArray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.read_only:
            # zarr makes the folder when it opens the store.
            self.storage.note(METADATA)
        self._store = NotingStore(zarr_store(self.storage, self.read_only), self.storage)

    @property
    def _compressor(self) -> ZstdCodec:
        return ZstdCodec(level=_LEVEL, checksum=has_checksums(self.format_version))

    @property
    def written(self) -> dict[str, tuple[int, str]]:
        return self._store.files

    def create_group(self, attributes: Mapping[str, Any]) -> None:
        """Make the group, or replace its attributes."""
        options: dict[str, Any] = {"attributes": dict(attributes), "overwrite": False}
        zarr.create_group(self._store, **options)

    def create(
        self,
        name: str,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: str,
        fill: Any,
        attributes: Mapping[str, Any],
    ) -> None:
        """Make an array; one of the same name is replaced."""
        options = {
            "name": name,
            "shape": shape,
            "chunks": tuple(max(1, n) for n in chunks),
            "dtype": dtype,
            "dimension_names": dims,
            "fill_value": fill,
            "attributes": dict(attributes),
            "compressors": self._compressor,
            "overwrite": False,
        }
        clear(self.storage.child(name))
        self._opened[name] = zarr.create_array(self._store, **options)

    def array(self, name: str) -> AnyArray:
        """The zarr array `name`.

        Raises:
            StoreError: if there is none.
        """
        if name not in self._opened:
            try:
                array = zarr.open_array(
                    self._store, path=name, mode="r" if self.read_only else "r+"
                )
            except FileNotFoundError as error:
                raise StoreError(
                    f"{self.storage.shown}: expected an array {name!r}, found none"
                ) from error
            self._opened[name] = array
        return self._opened[name]

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        """Write `rows` from `start` along the first dimension."""
        if rows.dtype.kind in "UO":
            rows = rows.astype(object)
        array = self.array(name)
        array[start : start + len(rows)] = rows

    def extend(self, name: str, rows: np.ndarray) -> None:
        """Append `rows` to an array."""
        array = self.array(name)
        start = array.shape[0]
        array.resize((start + len(rows), *array.shape[1:]))
        self.write(name, start, rows)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop of an array."""
        array = self.array(name)
        return np.asarray(array[start:stop])

    def attributes(self) -> dict[str, Any]:
        """Attributes of the group.

        Raises:
            StoreError: if there is no zarr group.
        """
        return attributes_of(self.storage)

    def update_attributes(self, changes: Mapping[str, Any]) -> None:
        """Set attributes of the group in one atomic write."""
        update_attributes(self.storage, changes)


def create(
    storage: Storage,
    layout: Layout,
    attributes: Mapping[str, Any],
    constants: xarray.Dataset | None = None,
    format_version: str = FORMAT_VERSION,
) -> list[str]:
    """Make the arrays and coordinates of a store, without results.

    The root group must exist already. Chunks of arrays of the same names are deleted.

    Args:
        constants: arrays without windows, such as statistics of the model's weights; written
            immediately.
        format_version: of the root.

    Returns:
        Names of the constants.
    """
    arrays = Arrays(storage, format_version=format_version)
    for variable in layout.variables:
        arrays.create(
            variable.name,
            variable.dims,
            layout.shape(variable),
            layout.chunks(variable),
            variable.dtype,
            layout.fill(variable),
            layout.attributes(variable),
        )
    for coordinate in layout.coordinates:
        write_coordinate(arrays, coordinate)
    known = {coordinate.name for coordinate in layout.coordinates}
    extra = {} if constants is None else {str(n): constants[n] for n in constants.variables}
    names = [name for name in extra if name not in known]
    for name in names:
        _write_array(arrays, name, extra[name])
    arrays.update_attributes({**attributes, "coordinates": " ".join(layout.auxiliary)})
    return names


def write_dataset(
    storage: Storage, dataset: xarray.Dataset, format_version: str = FORMAT_VERSION
) -> list[str]:
    """Write a small dataset as a group, replacing an old one; returns the array names."""
    clear(storage)
    arrays = Arrays(storage, format_version=format_version)
    arrays.create_group(dataset.attrs)
    for name in dataset.variables:
        _write_array(arrays, str(name), dataset[name])
    return [str(name) for name in dataset.variables]


def write_coordinate(arrays: Arrays, coordinate: Coordinate) -> None:
    """Make a coordinate with its values."""
    about = {"units": coordinate.unit, "description": coordinate.description}
    values = np.asarray(coordinate.values)
    _write_whole(arrays, coordinate.name, (coordinate.dim,), values, about)


def _write_array(arrays: Arrays, name: str, values: xarray.DataArray) -> None:
    dims = tuple(str(dim) for dim in values.dims)
    _write_whole(arrays, name, dims, values.values, values.attrs)


def _write_whole(
    arrays: Arrays,
    name: str,
    dims: tuple[str, ...],
    values: np.ndarray,
    attributes: Mapping[str, Any],
) -> None:
    text = values.dtype.kind in "UO"
    dtype, fill = ("string", "") if text else (str(values.dtype), 0)
    arrays.create(name, dims, values.shape, values.shape, dtype, fill, attributes)
    arrays.write(name, 0, values)


def create_root(
    storage: Storage, kind: str = FORMAT, written_by: Mapping[str, str] | None = None
) -> None:
    """Make the root group of a new store; an existing one is not changed.

    Args:
        written_by: of an older store that is restored, see `written_by`; default: this code.
    """
    from bertgeom.variables import DEFINITIONS_VERSION

    if storage.exists(METADATA):
        return
    attributes: dict[str, Any] = {"format": kind, **(written_by or writers()), "complete": False}
    if kind == FORMAT:
        attributes["definitions_version"] = DEFINITIONS_VERSION
    Arrays(storage).create_group(attributes)


def create_plain_group(storage: Storage, description: str) -> None:
    """Make a group without arrays, so that zarr readers recognise the folder."""
    if not storage.exists(METADATA):
        Arrays(storage).create_group({"description": description})


def consolidate(
    storage: Storage, members: Iterable[str], attributes: Mapping[str, Any] | None = None
) -> None:
    """Gather the metadata of all `members` in the root, sorted by name: one read opens all.

    Args:
        attributes: set in the same write.
    """
    storage.write(METADATA, consolidated(storage, members, attributes))


def consolidated(
    storage: Storage, members: Iterable[str], attributes: Mapping[str, Any] | None = None
) -> bytes:
    """The root metadata that `consolidate` writes."""
    root = group_metadata(storage)
    root["attributes"] |= attributes or {}
    names = sorted(members)
    keys = [f"{name}/{METADATA}" for name in names]
    what = "the metadata of an array or group"
    gathered = dict(zip(names, read_facts_at_once(storage, keys, what, REMEDY), strict=True))
    for metadata in gathered.values():
        if metadata["node_type"] == "group":
            empty = {"kind": "inline", "must_understand": False, "metadata": {}}
            metadata["consolidated_metadata"] = empty
    root["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": gathered,
    }
    return to_bytes(root)


def open(path: str | Path, *, group: str | None = None) -> xarray.Dataset:
    """A store as a lazy `xarray.Dataset`, with units and descriptions.

    Arrays that identify windows (record, place, tokens, flags, label) are read at once,
    statistics when they are used. `label` holds names, "" for none, and `label_code` the codes.
    Attributes that are mappings or lists of names are JSON texts, so that the dataset can be
    written by `to_netcdf`; `bertgeom.store.dataset.attribute(dataset, "settings")` reads one.

    Works while a run is still writing: rows still to come are NaN or fill values, the
    attribute `complete` is false, and an `UnfinishedStoreWarning` is given.

    Args:
        path: folder or fsspec URL of a store made by `bertgeom run`.
        group: None for the windows; "cohorts" for the sums by cohort of a finished run,
            "sequences" for the record table and bases.

    Returns:
        Dimensions and arrays as in `bertgeom.variables`. Missing integers are masked, so that
        integer statistics come as floats; `gate_name` can be used to select.

    Raises:
        StoreError: no store there, not one of bertgeom, or of another major format version.
        DamagedError: here or when values are read: a file is missing or was changed.

    Example:
        >>> import bertgeom
        >>> ds = bertgeom.open("run.zarr")
        >>> ds.gate_mass.dims
        ('window', 'layer', 'head', 'gate')
        >>> sorted(set(ds.label.values))
        ['a', 'b']
    """
    storage = Storage(str(path))
    attributes = check_format(storage, FORMAT)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
        dataset = _open_group(storage, group, bool(attributes.get("complete")))
        dataset = load_identity(dataset, storage.shown)
    dataset = portable(name_gates(name_labels(without_empty(dataset))))
    if not attributes.get("complete"):
        warnings.warn(
            f"{storage.shown}: the run has not finished; rows still to come are missing",
            UnfinishedStoreWarning,
            stacklevel=2,
        )
    return dataset


def _open_group(storage: Storage, group: str | None, complete: bool) -> xarray.Dataset:
    import xarray

    if group is not None and not storage.exists(f"{group}/{METADATA}"):
        remedy = "" if complete else "; the run has not finished, which writes it last"
        raise StoreError(f"{storage.shown}: expected a group {group!r}, found none{remedy}")
    try:
        dataset: xarray.Dataset = xarray.open_zarr(
            zarr_store(storage, read_only=True), group=group, consolidated=complete
        )
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise DamagedError(
            f"{storage.shown}: expected metadata of zarr arrays, found what cannot be read "
            f"({' '.join(str(error).split())}); {REMEDY}"
        ) from error
    return dataset
