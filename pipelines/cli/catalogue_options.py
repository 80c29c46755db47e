"""Options that the commands on finished stores share, and what their texts mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    import xarray

OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="File .zarr, .json or .tsv; default: a table on screen."),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        help="Table record<TAB>label in place of the store's labels; the keys are record ids or "
        "indices from 0."
    ),
]
WindowsOption = Annotated[
    int,
    typer.Option(min=1, help="Windows, drawn over all records and places; always the same ones."),
]
MovedOption = Annotated[str | None, typer.Option(help="Where the model is, if it was moved.")]
UnitOption = Annotated[
    str | None,
    typer.Option(
        metavar="window|record",
        help="What counts once: a window, or a record (the mean of its windows). Default: record "
        "with --contrast, window without.",
    ),
]
ExcludeOption = Annotated[
    str,
    typer.Option(
        "--exclude-flags",
        metavar="LIST",
        help="Leave out windows with one of these flags, commas between: unknown, short, "
        "truncated...",
    ),
]


def two_cohorts(given: list[str], known: list[str]) -> tuple[str, str]:
    """The two cohorts of `--contrast`, given twice, or once with a comma between."""
    from bertgeom.errors import UsageError

    if len(given) == 2:
        return given[0], given[1]
    if len(given) != 1:
        raise UsageError(f"expected --contrast once for each of two cohorts, found {len(given)}")
    text = given[0]
    cuts = [i for i, c in enumerate(text) if c == ","]
    pairs = [(text[:i], text[i + 1 :]) for i in cuts]
    found = [(a, b) for a, b in pairs if a in known and b in known]
    if len(found) != 1:
        what = f"{len(found)} ways to read" if found else "no two cohorts in"
        raise UsageError(
            f"expected --contrast NAME --contrast NAME out of {', '.join(map(repr, known))}, "
            f"found {what} {text!r}"
        )
    return found[0]


def cohorts_of(dataset: xarray.Dataset, labels: Path | None) -> tuple[np.ndarray, list[str]]:
    """Cohort of every window and names; all windows are one cohort where nothing is labelled."""
    import numpy as np

    from bertgeom.analysis.labels import label_records, read_labels
    from bertgeom.store.dataset import label_codes, label_names

    record = np.asarray(dataset["record_index"]).astype(np.int64)
    if labels is None:
        names = label_names(dataset)
        if not names:
            return np.zeros(len(record), dtype=np.int64), ["all"]
        return label_codes(dataset), names
    table = read_labels(labels)
    ids = [""] * (int(record.max(initial=-1)) + 1)
    for index, name in zip(record.tolist(), dataset["record_id"].values, strict=True):
        ids[index] = str(name)
    labelled = label_records(table, ids)
    for line in labelled.summary.lines():
        typer.echo(line, err=True)
    return labelled.codes[record], list(labelled.names)


def tile_rows(text: str, n_rows: int) -> range:
    from bertgeom.errors import UsageError

    first, _, last = text.partition(":")
    try:
        return range(int(first or 0), min(int(last or n_rows), n_rows))
    except ValueError:
        raise UsageError(f"expected --rows as I:J, found {text!r}") from None


def numbers_of(text: str | None) -> list[int] | None:
    from bertgeom.errors import UsageError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"expected numbers with commas between, found {text!r}") from None
