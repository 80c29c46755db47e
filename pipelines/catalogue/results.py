"""Small results as files: a Zarr group, JSON, or a table of one number a line."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertgeom.errors import StoreError, UsageError
from bertgeom.pipelines.context.folder import RUN, RunFolder
from bertgeom.store import root_file, zarr_io
from bertgeom.store.dataset import written_windows
from bertgeom.store.files import check_folder, check_target, replacing_folder, write_text
from bertgeom.store.manifest import FOLDER
from bertgeom.store.storage import Storage

if TYPE_CHECKING:
    import xarray

#: Format of a zarr group that may be replaced: a result, not a store.
FORMAT = "bertgeom-result"
SUFFIXES = (".zarr", ".json", ".tsv")


def open_written(path: str | Path) -> xarray.Dataset:
    """A store for an analysis; of an unfinished run the windows that are there, with a note.

    Raises:
        StoreError: none there, or nothing is written yet.
    """
    import typer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr_io.UnfinishedStoreWarning)
        dataset = zarr_io.open(path)
    found = written_windows(dataset)
    if not dataset.attrs.get("complete", True):
        typer.echo(
            f"{Storage(str(path)).shown}: the run has not finished, "
            f"{found.sizes['window']} of {dataset.sizes['window']} windows are there",
            err=True,
        )
    return found


def write_dataset(dataset: xarray.Dataset, path: str | Path) -> Path:
    """Write a dataset that fits in memory.

    `.zarr`: a group that `xarray.open_zarr` reads. `.json`: dimensions, units and values;
    missing numbers are null. `.tsv`: columns array, dimensions (by name where a dimension has
    names) and value.

    Raises:
        UsageError: for another suffix, or something else at `path`.
        StoreError: if the file cannot be written.

    Example:
        >>> from bertgeom.pipelines.catalogue.results import write_dataset
        >>> from bertgeom.pipelines.catalogue.samples import store_rollout
        >>> write_dataset(store_rollout("run.zarr", 2), "rollout.json").name
        'rollout.json'
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"expected a file {', '.join(SUFFIXES)}, found {path.name}")
    if path.suffix == ".zarr":
        with replacing_folder(path, _is_result) as draft, warnings.catch_warnings():
            # zarr announces that strings may be stored differently one day.
            warnings.simplefilter("ignore")
            dataset.to_zarr(draft, mode="w", zarr_format=3, consolidated=False)
            zarr_io.Arrays(Storage(str(draft))).update_attributes({"format": FORMAT})
        return path
    if path.suffix == ".json":
        text = json.dumps(as_json(dataset), indent=1) + "\n"
    else:
        text = "".join(f"{line}\n" for line in as_lines(dataset))
    write_text(path, text)
    return path


def check_out(out: str | Path | None, *inputs: str | Path | None) -> None:
    """Refuse a result's place before anything is computed for it.

    Args:
        out: where it will be written; nothing happens for None.
        inputs: files and folders that the command reads; None for what was not given. Of a store
            also its model is one.

    Raises:
        UsageError: for another suffix, something else at `out`, or an input.
    """
    if out is None:
        return
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"expected a file {', '.join(SUFFIXES)}, found {path.name}")
    given = inputs_of(*inputs)
    if path.suffix == ".zarr":
        check_folder(path, _is_result, inputs=given)
    else:
        check_target(path, inputs=given)


def inputs_of(*given: str | Path | None) -> list[str]:
    """What a command reads: the places it was given, and the models of the stores among them."""
    found = []
    for place in map(str, filter(None, given)):
        found.append(place)
        storage = Storage(place)
        if storage.folder is not None and storage.exists(f"{FOLDER}/{RUN}"):
            with suppress(StoreError):
                facts = RunFolder(storage).read_run()
                found += [facts.model] if facts is not None and os.path.isdir(facts.model) else []
    return found


def _is_result(folder: Path) -> bool:
    return root_file.is_store(Storage(str(folder)), FORMAT)


def as_json(dataset: xarray.Dataset) -> dict[str, Any]:
    """JSON-able content of a dataset."""
    facts = dataset.to_dict()
    kept = ("attrs", "dims", "coords", "data_vars")
    return {name: _clean(facts[name]) for name in kept}


def as_lines(dataset: xarray.Dataset) -> Iterator[str]:
    """Tab-separated lines: header, then one number a line."""
    dims = [str(dim) for dim in dataset.sizes]
    yield tsv_line(["array", *dims, "value"])
    names = {
        dim: dataset[dim].values.tolist() if dim in dataset.coords else range(dataset.sizes[dim])
        for dim in dims
    }
    for name, array in dataset.data_vars.items():
        places = product(*(names[str(dim)] for dim in array.dims))
        used = [dims.index(str(dim)) for dim in array.dims]
        for place, value in zip(places, array.values.ravel().tolist(), strict=True):
            cells = [""] * len(dims)
            for column, position in zip(used, place, strict=True):
                cells[column] = str(position)
            text = "" if isinstance(value, float) and math.isnan(value) else f"{value}"
            yield tsv_line([str(name), *cells, text])


def tsv_line(cells: Iterable[object]) -> str:
    """Cells with tabs between; names that hold tabs, line ends or quotes are quoted as in CSV."""
    return "\t".join(map(_quoted, map(str, cells)))


def _quoted(text: str) -> str:
    if not any(c in text for c in '\t\n\r"'):
        return text
    return '"' + text.replace('"', '""') + '"'


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
