"""A store as one flat table, for programs that do not read Zarr: TSV, or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertgeom.errors import StoreError, UsageError
from bertgeom.store.dataset import flag_names, without_flagged
from bertgeom.store.files import check_target, replacing

if TYPE_CHECKING:
    import pandas
    import xarray

#: What a row is -> its dimensions, in the order of the rows.
LEVELS = {
    "window": ("window",),
    "station": ("window", "station"),
    "head": ("window", "layer", "head"),
}
_ENDINGS = (".tsv", ".tsv.gz", ".parquet")
#: Values in memory at a time.
_AT_ONCE = 4 * 2**20


def export(
    store: str | Path,
    out: str | Path,
    level: str = "head",
    *,
    exclude_flags: str | Iterable[str] = (),
) -> int:
    """Write the arrays of a level as columns; returns the number of rows.

    Every row begins with its window's record, place, strand, flags (names, commas between) and
    label (its name, empty without one). Arrays with
    further dimensions (spectra, histograms, profiles) come as one column a position, named
    `array.position`, as `gate_mass.closed`.

    Args:
        store: a finished store. out: .tsv, .tsv.gz or .parquet (needs pyarrow).
        level: "window", "station" or "head".
        exclude_flags: windows with one of these flags are left out.

    Raises:
        UsageError: for an unknown level, flag or file ending, or if pyarrow is missing.
        StoreError: if there is no store.

    Example:
        >>> from bertgeom.pipelines.catalogue.export import export
        >>> export("run.zarr", "heads.tsv")  # 8 windows, 2 layers, 2 heads
        32
    """
    from bertgeom.pipelines.catalogue.results import inputs_of, open_written

    path = Path(out)
    if level not in LEVELS:
        raise UsageError(f"expected --level out of {', '.join(LEVELS)}, found {level!r}")
    if not path.name.endswith(_ENDINGS):
        raise UsageError(f"expected a file that ends in {', '.join(_ENDINGS)}, found {path.name}")
    check_target(path, kind=".gz" if path.suffix == ".gz" else None, inputs=inputs_of(store))
    dataset = without_flagged(open_written(store), exclude_flags)
    dims = LEVELS[level]
    if not any(array.dims[: len(dims)] == dims for array in dataset.data_vars.values()):
        raise StoreError(
            f"{store}: expected arrays by {', '.join(dims)}, found none; a store made "
            "with --reduce has its means by record in the group `records`"
        )
    tables = _tables(dataset, level)
    if path.name.endswith(".parquet"):
        return _write_parquet(path, tables)
    return _write_tsv(path, tables)


def _tables(dataset: xarray.Dataset, level: str) -> Iterator[pandas.DataFrame]:
    """The table in pieces of whole windows."""
    names = _columns(dataset, level)
    windows = dataset.sizes["window"]
    width = sum(int(dataset[name][:1].size) for name in names)
    step = max(1, _AT_ONCE // max(width, 1))
    for start in range(0, windows, step):
        part = dataset[names].isel(window=slice(start, start + step)).load()
        yield _flat(part, level, start)


def _columns(dataset: xarray.Dataset, level: str) -> list[str]:
    """Identity of the window, then the arrays of the level."""
    dims = LEVELS[level]
    identity = [
        str(name)
        for name in ("record_index", "record_id", "start", "stop", "strand", "flags", "label")
        if name in dataset.variables
    ]
    arrays = [
        str(name)
        for name, array in dataset.data_vars.items()
        if array.dims[: len(dims)] == dims
        and name not in (*identity, "label_code")
        and (len(array.dims) <= len(dims) + 1)
        and "token" not in array.dims
        and not (level == "window" and len(array.dims) > 1 and array.dims[1] in _INNER)
    ]
    return [*identity, *sorted(arrays)]


#: Dimensions that have a level of their own.
_INNER = ("layer", "station", "angle_station", "hidden_state")


def _flat(part: xarray.Dataset, level: str, start: int) -> pandas.DataFrame:
    import numpy as np
    import pandas

    dims = LEVELS[level]
    shape = tuple(part.sizes[dim] for dim in dims)
    columns: dict[str, Any] = {"window": np.arange(start, start + part.sizes["window"])}
    inner = shape[1:]
    repeat = int(np.prod(inner, dtype=np.int64))
    table = {"window": np.repeat(columns["window"], repeat)}
    for name in part.variables:
        if part[name].dims == ("window",):
            values = part[name].values
            values = flag_names(values) if name == "flags" else values
            table[str(name)] = np.repeat(values, repeat)
    for axis, dim in enumerate(dims[1:], start=1):
        values = part[dim].values
        before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
        table[dim] = np.tile(np.repeat(values, after), before)
    for name in part.data_vars:
        array = part[name]
        if array.dims[: len(dims)] != dims or str(name) in table:
            continue
        if array.dims == dims:
            table[str(name)] = array.values.reshape(-1)
            continue
        extra = array.dims[-1]
        flat = array.values.reshape(-1, array.shape[-1])
        for i, position in enumerate(_positions(part, str(extra))):
            table[f"{name}.{position}"] = flat[:, i]
    return pandas.DataFrame(table)


def _positions(part: xarray.Dataset, dim: str) -> list[str]:
    name = "gate_name" if dim == "gate" else dim
    if name not in part.variables:
        return [str(i) for i in range(part.sizes[dim])]
    return [f"{x:g}" if isinstance(x, float) else str(x) for x in part[name].values]


def _write_tsv(path: Path, tables: Iterator[pandas.DataFrame]) -> int:
    from xopen import xopen

    rows = 0
    # xopen compresses by the file's ending.
    with (
        replacing(path, kind=".gz" if path.suffix == ".gz" else None) as draft,
        xopen(draft, "w", encoding="utf-8", threads=0) as file,
    ):
        for table in tables:
            table.to_csv(file, sep="\t", index=False, header=rows == 0, na_rep="NA")
            rows += len(table)
    return rows


def _write_parquet(path: Path, tables: Iterator[pandas.DataFrame]) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "expected pyarrow for a .parquet file, found none; pip install 'bertgeom[parquet]', "
            "or write .tsv.gz"
        ) from error
    rows, writer = 0, None
    with replacing(path) as draft:
        try:
            for table in tables:
                piece = pyarrow.Table.from_pandas(table, preserve_index=False)
                writer = writer or pyarrow.parquet.ParquetWriter(draft, piece.schema)
                writer.write_table(piece)
                rows += len(table)
        finally:
            if writer is not None:
                writer.close()
    return rows
