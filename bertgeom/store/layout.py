"""Which arrays a run's store holds: sizes, chunks, coordinates. Pure, no file is touched.

Chunks and files. All arrays are cut along `window`. `chunk_windows` consecutive windows are
one *row group*: it ends on a chunk boundary of every array, and one writer owns it.

    windows   0 ........................ C ........................ 2C
    gate      [          chunk           |          chunk           ]     narrow array
    profile   [  chunk   |    chunk      |  chunk   |    chunk      ]     wide array, C / 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bertgeom import variables
from bertgeom.variables import Variable

#: No chunk is larger, uncompressed; a window wider than that is a chunk of its own.
LARGEST_CHUNK = 32 * 2**20
#: Row groups grow until the mean chunk has this many bytes, uncompressed.
MEAN_CHUNK = 12 * 10**6
#: Assumed bytes of a string in a projection.
_STRING_BYTES = 24


@dataclass(frozen=True)
class Coordinate:
    """A one-dimensional array that names the positions of a dimension."""

    name: str
    dim: str
    values: Sequence[Any] | np.ndarray
    unit: str
    description: str


@dataclass(frozen=True)
class Shape:
    """What the model and the settings say about the sizes of arrays."""

    n_layers: int
    n_heads: int
    hidden: int
    class_names: tuple[str, ...]
    max_tokens: int
    tier: str = "full"
    keep: tuple[str, ...] = ()
    angles: str = "default"
    group_names: tuple[str, ...] = ()
    reduce: bool = False

    @property
    def n_offset_side(self) -> int:
        """One-sided bins of the offset profile."""
        return variables.n_offset_side(self.max_tokens)

    def sizes(self) -> dict[str, int]:
        """Length of every dimension but `window`."""
        ends, stations = self.n_layers + 1, 2 * self.n_layers + 1
        return {
            "layer": self.n_layers,
            "head": self.n_heads,
            "hidden": self.hidden,
            "station": stations,
            "angle_station": stations if self.angles == "all" else ends,
            "hidden_state": ends,
            "head_station": len(variables.HEAD_STATIONS),
            "gate": len(variables.GATES),
            "group": len(self.group_names),
            "angle": variables.N_ANGLES,
            "offset": 2 * self.n_offset_side + 1,
            "query_block": variables.N_BLOCKS,
            "key_block": variables.N_BLOCKS,
            "class": len(self.class_names),
            "token": self.max_tokens,
        }

    def measured(self) -> tuple[Variable, ...]:
        """Arrays computed for every window; without those of groups if there are no groups."""
        return tuple(
            v
            for v in variables.select(self.tier, self.keep)
            if "group" not in v.dims or self.group_names
        )

    def variables(self) -> tuple[Variable, ...]:
        """Arrays of the store: all of `measured`, or with `reduce` those that identify windows."""
        return tuple(v for v in self.measured() if not self.reduce or v.kind == "window" or v.keep)


@dataclass(frozen=True)
class Layout:
    """Arrays of a store.

    Attributes:
        shape_of: what the sizes are derived from.
        n_windows: rows of every array.
        chunk_windows: rows of a row group.
    """

    shape_of: Shape
    n_windows: int
    chunk_windows: int

    @cached_property
    def variables(self) -> tuple[Variable, ...]:
        return self.shape_of.variables()

    @cached_property
    def by_name(self) -> dict[str, Variable]:
        """`variables` by name."""
        return {variable.name: variable for variable in self.variables}

    @cached_property
    def measured(self) -> tuple[Variable, ...]:
        return self.shape_of.measured()

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {"window": self.n_windows, **self.shape_of.sizes()}

    @cached_property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """Coordinates of the dimensions of `measured`."""
        used = {dim for variable in self.measured for dim in variable.dims}
        shape = self.shape_of
        known = coordinates(
            shape.n_layers,
            shape.n_heads,
            shape.n_offset_side,
            angles=shape.angles,
            group_names=shape.group_names,
            class_names=shape.class_names,
        )
        return tuple(c for c in known if c.dim in used)

    @property
    def auxiliary(self) -> list[str]:
        """Arrays that describe windows or positions without being a dimension's own."""
        named = [c.name for c in self.coordinates if c.name != c.dim]
        return [*named, "record_index", "record_id", "start", "stop", "strand"]

    def shape(self, variable: Variable) -> tuple[int, ...]:
        return tuple(self.sizes[dim] for dim in variable.dims)

    def chunks(self, variable: Variable) -> tuple[int, ...]:
        """Chunk lengths: a divisor of `chunk_windows`, then whole dimensions."""
        rows = min(chunk_rows(row_bytes(variable, self.sizes), self.chunk_windows), self.n_windows)
        return (rows, *self.shape(variable)[1:])

    def fill(self, variable: Variable) -> Any:
        return missing_value(variable)

    def attributes(self, variable: Variable) -> dict[str, Any]:
        """Attributes of the array on disk, following the CF conventions where they apply."""
        attributes: dict[str, Any] = {
            "units": variable.unit,
            "description": variable.description,
            "source": variable.source,
        }
        if _masked(variable):
            attributes["_FillValue"] = missing_value(variable)
        if variable.name == "flags":
            attributes["flag_masks"] = [1 << i for i in range(len(variables.FLAGS))]
            attributes["flag_meanings"] = " ".join(variables.FLAGS)
            attributes["flag_descriptions"] = list(variables.FLAGS.values())
        if variable.name == "gate":
            attributes["flag_values"] = list(range(len(variables.GATES) + 1))
            attributes["flag_meanings"] = " ".join((*variables.GATES, "mixed"))
        return attributes

    def bytes_per_window(self) -> int:
        """Uncompressed bytes of one row of all arrays."""
        return sum(row_bytes(v, self.sizes) for v in self.variables)

    def n_files(self) -> int:
        """Number of chunk files if no chunk is missing or constant."""
        total = 0
        for variable in self.variables:
            rows = self.chunks(variable)[0]
            total += -(-self.n_windows // max(rows, 1))
        return total


def row_bytes(variable: Variable, sizes: dict[str, int]) -> int:
    """Uncompressed bytes of one window of an array."""
    if variable.dtype == "string":
        return _STRING_BYTES
    count = int(np.prod([sizes[dim] for dim in variable.dims[1:]], dtype=np.int64))
    return count * np.dtype(variable.dtype).itemsize


def chunk_rows(bytes_of_row: int, chunk_windows: int) -> int:
    """Rows of a chunk: `chunk_windows` halved until the chunk is small enough."""
    rows = chunk_windows
    while rows % 2 == 0 and rows * bytes_of_row > LARGEST_CHUNK:
        rows //= 2
    return rows


def row_group(shape: Shape, partition_windows: int, n_windows: int) -> int:
    """Windows of a row group: partitions doubled until chunks are large, or all are in one."""
    sizes = shape.sizes()
    rows = [row_bytes(v, sizes) for v in shape.measured()]
    windows = partition_windows
    while windows < n_windows:
        files = sum(windows // chunk_rows(r, windows) for r in rows)
        if windows * sum(rows) >= files * MEAN_CHUNK:
            break
        windows *= 2
    return windows


def missing_value(variable: Variable) -> Any:
    """The value where nothing was computed: NaN, or the largest value of an integer type."""
    if variable.dtype == "string":
        return ""
    dtype = np.dtype(variable.dtype)
    if dtype.kind == "f":
        return float("nan")
    if dtype.kind == "b":
        return False
    if variable.kind == "window":
        return -1 if variable.dims[-1] == "token" or variable.name == "label" else 0
    return int(np.iinfo(dtype).max)


def _masked(variable: Variable) -> bool:
    """Whether missing values need a mark that readers turn into NaN."""
    if variable.dtype == "string" or variable.kind == "window":
        return False
    return np.dtype(variable.dtype).kind in "iu"


def station_names(n_layers: int) -> list[str]:
    """Names of the 1 + 2L residual stations, in the order of the stream."""
    return ["embedding"] + [
        f"{part}_{layer}" for layer in range(n_layers) for part in ("attention", "output")
    ]


def hidden_state_names(n_layers: int) -> list[str]:
    """Names of the 1 + L stations at which a layer ends."""
    return ["embedding"] + [f"output_{layer}" for layer in range(n_layers)]


def coordinates(
    n_layers: int,
    n_heads: int,
    n_offset_side: int,
    *,
    angles: str = "default",
    group_names: Sequence[str] = (),
    class_names: Sequence[str] = (),
) -> list[Coordinate]:
    """Coordinates of all dimensions but `window`, `hidden` and `token`."""
    names = station_names(n_layers)
    ends = hidden_state_names(n_layers)
    width = 180 / variables.N_ANGLES
    low = np.arange(variables.N_ANGLES) * width
    edges = variables.offset_edges(n_offset_side)
    offset_low = np.concatenate([-_far(edges)[::-1], [0], edges])
    offset_high = np.concatenate([-edges[::-1], [0], _far(edges)])
    blocks = np.arange(variables.N_BLOCKS)
    block = "stretch of positions, 16 equal ones from the first token to the last"
    return [
        Coordinate("layer", "layer", np.arange(n_layers), "1", "encoder layer, from 0"),
        Coordinate("head", "head", np.arange(n_heads), "1", "attention head, from 0"),
        Coordinate("station", "station", names, "1", "station of the residual stream"),
        Coordinate(
            "angle_station",
            "angle_station",
            names if angles == "all" else ends,
            "1",
            "station of the residual stream with pairwise angles",
        ),
        Coordinate("hidden_state", "hidden_state", ends, "1", "station after which a layer ends"),
        Coordinate(
            "head_station", "head_station", list(variables.HEAD_STATIONS), "1", "vectors of a head"
        ),
        Coordinate("gate_name", "gate", list(variables.GATES), "1", "name of the gate"),
        Coordinate("group", "group", list(group_names), "1", "token group"),
        Coordinate("angle", "angle", low + width / 2, "degree", "centre of the angle bin"),
        Coordinate("angle_low", "angle", low, "degree", "lower edge of the angle bin, in it"),
        Coordinate(
            "angle_high",
            "angle",
            low + width,
            "degree",
            "upper edge of the angle bin, not in it but for 180 degrees",
        ),
        Coordinate(
            "offset",
            "offset",
            variables.offset_labels(n_offset_side),
            "token",
            "signed offset key - query of the bin",
        ),
        Coordinate("offset_low", "offset", offset_low, "token", "smallest offset of the bin"),
        Coordinate("offset_high", "offset", offset_high, "token", "largest offset of the bin"),
        Coordinate("query_block", "query_block", blocks, "1", f"query {block}"),
        Coordinate("key_block", "key_block", blocks, "1", f"key {block}"),
        Coordinate("class", "class", list(class_names), "1", "class of the model's head"),
    ]


def _far(edges: np.ndarray) -> np.ndarray:
    """Largest offset of each one-sided bin whose smallest are `edges`."""
    return np.concatenate([edges[1:] - 1, [2 * edges[-1] - 2 if len(edges) > 1 else 1]])
