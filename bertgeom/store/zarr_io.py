"""The store on disk: the only module that touches zarr.

A store is one flat Zarr v3 group that `xarray.open_zarr` reads alone. Which arrays there
are, with which dimensions, types and units, comes from `bertgeom.variables`; what a reader
may rely on is written in `FORMAT.md`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from bertgeom.errors import DamagedError, StoreError
from bertgeom.store.dataset import name_gates, name_labels, portable
from bertgeom.store.manifest import REMEDY, Checks, has_checksums, read_facts_at_once
from bertgeom.store.storage import Storage, filesystem, make_way, naming, with_retries_async
from bertgeom.variables import WINDOW_VARIABLES

if TYPE_CHECKING:
    import xarray
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from bertgeom.store.layout import Coordinate, Layout

FORMAT = "bertgeom"
#: Format of sequence shards in a store of their own.
SEQUENCE_FORMAT = "bertgeom-sequences"
#: Major version: a reader refuses another one. Minor version: additions only.
FORMAT_VERSION = "1.1"
_LEVEL = 3
#: Bytes whose checksum is computed without asking a thread for it.
_AT_ONCE = 2**16
METADATA = "zarr.json"
#: Files of a zarr group or array: metadata, chunks, and what a killed write of them left.
_OF_ZARR = re.compile(r"(.*/)?(zarr\.json|c(/\d+)*|(zarr|\d+|c)\.[0-9a-f]+\.partial)")
#: Attribute of sequence shards with the checksum of all their metadata.
_SEAL = "metadata_sha256"


class UnfinishedStoreWarning(UserWarning):
    """A store was opened that its run has not finished; rows still to come are missing."""


class _Ledger(WrapperStore):
    """A zarr store that notes size and SHA-256 of everything that is written through it."""

    def __init__(self, store: Store, storage: Storage | None = None) -> None:
        super().__init__(store)
        self.files: dict[str, tuple[int, str]] = {}
        self._storage = storage

    async def set(self, key: str, value: Buffer) -> None:
        data = value.to_bytes()
        if self._storage is not None:
            self._storage.note(key)
            path = self._storage.folder / key if self._storage.folder else None
            if path is not None:
                make_way(path)
            with naming(path or key):
                await super().set(key, value)
        else:
            await super().set(key, value)
        self.files[key] = (len(data), hashlib.sha256(data).hexdigest())

    async def delete(self, key: str) -> None:
        await super().delete(key)
        self.files.pop(key, None)


class _Patient(WrapperStore):
    """A zarr store on an object store, whose failures are tried again for a while."""

    def __init__(self, store: Store, place: str = "") -> None:
        super().__init__(store)
        self._place = place

    def _with_store(self, store: Store) -> _Patient:
        return _Patient(store, self._place)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await with_retries_async(
            lambda: self._store.get(key, prototype, byte_range), self._place
        )

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        wanted = list(key_ranges)
        return await with_retries_async(
            lambda: self._store.get_partial_values(prototype, wanted), self._place
        )

    async def exists(self, key: str) -> bool:
        return await with_retries_async(lambda: self._store.exists(key), self._place)

    async def set(self, key: str, value: Buffer) -> None:
        await with_retries_async(lambda: self._store.set(key, value), self._place)

    async def delete(self, key: str) -> None:
        await with_retries_async(lambda: self._store.delete(key), self._place)

    async def delete_dir(self, prefix: str) -> None:
        await with_retries_async(lambda: self._store.delete_dir(prefix), self._place)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await with_retries_async(lambda: self._store.set_if_not_exists(key, value), self._place)

    async def is_empty(self, prefix: str) -> bool:
        return await with_retries_async(lambda: self._store.is_empty(prefix), self._place)

    async def clear(self) -> None:
        await with_retries_async(self._store.clear, self._place)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await asyncio.gather(*(self.set(key, value) for key, value in values))

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, part in requests:
            yield key, await self.get(key, prototype, part)

    def list(self) -> AsyncIterator[str]:
        return self._listed(self._store.list)

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(lambda: self._store.list_prefix(prefix))

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(lambda: self._store.list_dir(prefix))

    async def _listed(self, listing: Callable[[], AsyncIterator[str]]) -> AsyncIterator[str]:
        """A listing in one piece: what fails in its middle starts again."""

        async def whole() -> tuple[str, ...]:
            return tuple([name async for name in listing()])

        for name in await with_retries_async(whole, self._place):
            yield name


class _Checked(WrapperStore):
    """A zarr store that compares every file with the checksum it was written with.

    Raises:
        DamagedError: from whatever reads a file that was changed, or misses one.
    """

    def __init__(self, store: Store, checks: Checks) -> None:
        super().__init__(store)
        self._checks = checks

    def _with_store(self, store: Store) -> _Checked:
        return type(self)(store, self._checks)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        value = await self._store.get(key, prototype)
        if value is None or len(value) < _AT_ONCE:
            self._check(key, value)
        else:
            await asyncio.to_thread(self._check, key, value)
        if value is None or byte_range is None:
            return value
        return await self._store.get(key, prototype, byte_range)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, part in requests:
            yield key, await self.get(key, prototype, part)

    def _check(self, key: str, value: Buffer | None) -> None:
        self._checks.check(key, None if value is None else value.to_bytes())


@dataclass
class Arrays:
    """The arrays of one group.

    Attributes:
        storage: where the group lies.
        read_only: what is read is compared with its checksum, see `bertgeom.store.manifest`.
        format_version: of the store; decides how new arrays are encoded.
        written: key -> (size in bytes, SHA-256) of every file written through this object,
            chunks and metadata; the keys are relative to the group.
    """

    storage: Storage
    read_only: bool = False
    format_version: str = FORMAT_VERSION
    _store: _Ledger = field(init=False, repr=False)
    _opened: dict[str, zarr.Array] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.read_only:
            # zarr makes the folder when it opens the store.
            self.storage.note(METADATA)
        self._store = _Ledger(_zarr_store(self.storage, self.read_only), self.storage)

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
        """Make an array, in place of one of the same name."""
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

    def array(self, name: str) -> zarr.Array:
        """The zarr array `name`.

        Raises:
            StoreError: where there is none.
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
        """Put `rows` at `start` along the first dimension."""
        if rows.dtype.kind in "UO":
            rows = rows.astype(object)
        array = self.array(name)
        array[start : start + len(rows)] = rows

    def extend(self, name: str, rows: np.ndarray) -> None:
        """Make an array longer by `rows`."""
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
            StoreError: where there is no zarr group.
        """
        return _group_metadata(self.storage)["attributes"]

    def update_attributes(self, changes: Mapping[str, Any]) -> None:
        """Set attributes of the group in one atomic write."""
        metadata = _group_metadata(self.storage)
        metadata["attributes"].pop(_SEAL, None)
        metadata["attributes"] |= changes
        self.storage.write(METADATA, _json(metadata))


def create(
    storage: Storage,
    layout: Layout,
    attributes: Mapping[str, Any],
    constants: xarray.Dataset | None = None,
    format_version: str = FORMAT_VERSION,
) -> list[str]:
    """Make the arrays and coordinates of a store; nothing is measured yet.

    The root group must exist already. Chunks of arrays of the same names are deleted.

    Args:
        constants: arrays without windows, such as statistics of the model's weights; written
            at once.
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
    """Write a small dataset as a group, in place of the one there; returns the array names."""
    clear(storage)
    arrays = Arrays(storage, format_version=format_version)
    arrays.create_group(dataset.attrs)
    for name in dataset.variables:
        _write_array(arrays, str(name), dataset[name])
    return [str(name) for name in dataset.variables]


def is_of_zarr(key: str) -> bool:
    """Whether a file is, by its name, one of a group or array."""
    return bool(_OF_ZARR.fullmatch(key))


def clear(storage: Storage) -> None:
    """Delete the group or array of a place, file by file: what else lies there stays."""
    for key in storage.sizes():
        if is_of_zarr(key):
            storage.remove(key)
    storage.prune()


def write_coordinate(arrays: Arrays, coordinate: Coordinate) -> None:
    """Make a coordinate, values and all."""
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
    """Make the root group of a new store; one that exists is left alone.

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


def writers() -> dict[str, str]:
    """The attributes that say what wrote a store, for a new one."""
    from bertgeom._version import __version__

    return {"format_version": FORMAT_VERSION, "bertgeom_version": __version__}


def written_by(storage: Storage) -> dict[str, str] | None:
    """The same of a store that is there; None if it cannot be read."""
    try:
        attributes = _group_metadata(storage)["attributes"]
    except StoreError:
        return None
    return {name: str(attributes[name]) for name in writers() if name in attributes} or None


def create_plain_group(storage: Storage, description: str) -> None:
    """A group without arrays, so that zarr readers know the folder and leave it alone."""
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
    root = _group_metadata(storage)
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
    return _json(root)


def reopen(storage: Storage) -> None:
    """Mark a finished store as unfinished, in one atomic write."""
    root = _group_metadata(storage)
    root["attributes"]["complete"] = False
    root.pop("consolidated_metadata", None)
    storage.write(METADATA, _json(root))


def seal(storage: Storage) -> None:
    """Put a checksum of a group's metadata into its attributes; readers compare it."""
    root = _group_metadata(storage)
    root["attributes"][_SEAL] = _checksum(root)
    storage.write(METADATA, _json(root))


def _checksum(root: Mapping[str, Any]) -> str:
    attributes = {k: v for k, v in root["attributes"].items() if k != _SEAL}
    text = json.dumps({**root, "attributes": attributes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def open(path: str | Path, *, group: str | None = None) -> xarray.Dataset:
    """A store as a lazy `xarray.Dataset`, with units and descriptions.

    What tells windows apart (record, place, tokens, flags, label) is read at once, statistics
    when they are used. `label` holds names, "" without one, and `label_code` their codes.
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
        dataset = _load_identity(dataset, storage.shown)
    dataset = portable(name_gates(name_labels(_without_empty(dataset))))
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
        return xarray.open_zarr(
            _zarr_store(storage, read_only=True), group=group, consolidated=complete
        )
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise DamagedError(
            f"{storage.shown}: expected metadata of zarr arrays, found what cannot be read "
            f"({' '.join(str(error).split())}); {REMEDY}"
        ) from error


def _load_identity(dataset: xarray.Dataset, where: str) -> xarray.Dataset:
    """The dataset with all one-dimensional arrays that say what a row is in memory."""
    named = {v.name for v in WINDOW_VARIABLES} | {"window_index"}
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


def _without_empty(dataset: xarray.Dataset) -> xarray.Dataset:
    """Sums with NaN where nothing was counted; stores of earlier versions hold 0 there."""
    for name in [str(name) for name in dataset.data_vars]:
        for part in ("_mean", "_m2"):
            count = name.removesuffix(part) + "_count"
            if name.endswith(part) and count in dataset and "cohort" in dataset[name].dims:
                there = dataset[count] > 0
                dataset[name] = dataset[name].where(there).assign_attrs(dataset[name].attrs)
    return dataset


def check_format(storage: Storage, kind: str) -> dict[str, Any]:
    """Attributes of a store, if it is one of `kind` and of a version this code reads.

    Raises:
        StoreError: otherwise.
    """
    attributes = _group_metadata(storage)["attributes"]
    found = attributes.get("format")
    if found != kind:
        raise StoreError(
            f"{storage.shown}: expected a store of format {kind!r}, found {found or 'another'!r}"
        )
    version = str(attributes.get("format_version", "none"))
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise StoreError(
            f"{storage.shown}: expected format version {FORMAT_VERSION}, found {version}; "
            "open it with the bertgeom version that wrote it "
            f"({attributes.get('bertgeom_version', 'unknown')})"
        )
    return attributes


def is_store(storage: Storage, kind: str) -> bool:
    """Whether a zarr group of `kind` lies there, of whatever version."""
    try:
        return _group_metadata(storage)["attributes"].get("format") == kind
    except StoreError:
        return False


def _group_metadata(storage: Storage) -> dict[str, Any]:
    try:
        metadata = json.loads(storage.read(METADATA))
    except FileNotFoundError as error:
        raise StoreError(
            f"{storage.shown}: expected a store, found no {METADATA} there; check the path"
        ) from error
    except ValueError as error:
        raise DamagedError(
            f"{storage.shown}/{METADATA}: expected JSON, found: {error}; {REMEDY}"
        ) from error
    if not isinstance(metadata, dict) or metadata.get("node_type") != "group":
        what = "an array" if isinstance(metadata, dict) else "other JSON"
        raise StoreError(f"{storage.shown}: expected a zarr group, found {what}")
    attributes = metadata.setdefault("attributes", {})
    if _SEAL in attributes and attributes[_SEAL] != _checksum(metadata):
        raise DamagedError(
            f"{storage.shown}/{METADATA}: the file was changed: another checksum; {REMEDY}"
        )
    return metadata


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


def _zarr_store(storage: Storage, read_only: bool = False) -> Store:
    """The zarr store of a place; where nothing can be written, what is read is checked."""
    found: Store
    if storage.folder is not None:
        found = LocalStore(storage.folder, read_only=read_only)
    else:
        filesystem(storage.url)
        found = _Patient(FsspecStore.from_url(storage.url, read_only=read_only), storage.shown)
    return _Checked(found, Checks(storage)) if read_only else found
