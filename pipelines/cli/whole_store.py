"""Commands that turn a whole store into one file: a flat table, or a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertgeom.pipelines.cli.catalogue_options import ExcludeOption
from bertgeom.pipelines.cli.options import StoreArgument


def register(app: typer.Typer) -> None:
    """Add the commands `export` and `report`."""
    app.command()(export)
    app.command()(report)


def export(
    store: StoreArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="File: .tsv, .tsv.gz or .parquet.")],
    level: Annotated[
        str, typer.Option(metavar="window|station|head", help="What a row of the table is.")
    ] = "head",
    exclude_flags: ExcludeOption = "",
) -> None:
    """Write a flat table: a row a window, a station or a head, a column an array."""
    from bertgeom.pipelines.catalogue.export import export as write_table

    rows = write_table(store, out, level, exclude_flags=exclude_flags)
    typer.echo(f"{rows} rows in {out}")


def report(
    store: StoreArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path(
        "report.html"
    ),
    sample: Annotated[
        int, typer.Option(min=3, help="Windows in distributions and scatter plots at most.")
    ] = 2000,
    exclude_flags: ExcludeOption = "",
    unit: Annotated[
        str,
        typer.Option(metavar="window|record", help="What counts once in effect sizes."),
    ] = "record",
) -> None:
    """Write one HTML file that says what the heads and layers do."""
    from bertgeom.pipelines.report.build import report as write_page

    found = write_page(store, out, n_sample=sample, exclude_flags=exclude_flags, unit=unit)
    typer.echo(f"{out}: {found['figures']} figures, {found['bytes'] / 1e6:.1f} MB")
