"""The options that commands share. Those of a run come from the fields of `Settings`."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from bertgeom.config import MACHINE, Settings

SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE]...",
        help="FASTA or FASTQ, plain or compressed: files, folders, globs, URLs; "
        "or sequence shards made by [bold]bertgeom ingest[/bold].",
    ),
]
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="A store made by run.")]
ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="Folder or hub name of an encoder with safetensors."),
]
SequencesOption = Annotated[
    str | None, typer.Option(help="Sequence shards made by ingest, in place of sources.")
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        help="Table of records and labels (tabs or commas); keys are record ids, or indices from 0."
    ),
]
AnnotationsOption = Annotated[
    str | None,
    typer.Option(help="BED, GFF3 or GTF regions in record coordinates: attention by region."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON for a program to read.")
]
WorkersOption = Annotated[
    int,
    typer.Option(
        help="Worker processes; more than one starts a Dask cluster here.",
        rich_help_panel=MACHINE,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="Compute threads a worker; default: cores / workers.", rich_help_panel=MACHINE
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        metavar="tcp://HOST:PORT",
        help="A running Dask scheduler, whose workers see the store, the model and the shards.",
        rich_help_panel=MACHINE,
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Refuse a plan beyond this, like 8GB; default: what the machine has.",
        rich_help_panel=MACHINE,
    ),
]

Command = Callable[..., None]


def with_settings(command: Command) -> Command:
    """Give a command one option for every field of `Settings`.

    The command takes what they say as one keyword argument, `settings`: values by name.
    """
    own = inspect.signature(command, eval_str=True).parameters
    added = [_parameter(field) for field in fields(Settings)]
    names = {parameter.name for parameter in added}

    def with_options(**values: Any) -> None:
        settings = {name: values.pop(name) for name in names}
        command(**values, settings=settings)

    parameters = [p for p in own.values() if p.name != "settings"]
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    with_options.__annotations__ = {p.name: p.annotation for p in [*parameters, *added]}
    signature = inspect.Signature([*(p.replace(kind=p.KEYWORD_ONLY) for p in parameters), *added])
    with_options.__signature__ = signature  # type: ignore[attr-defined]
    return with_options


def _parameter(field: Field[Any]) -> inspect.Parameter:
    """A field of `Settings` as an option; lists are written with commas."""
    kind, default = typing.get_type_hints(Settings)[field.name], field.default
    if isinstance(default, tuple):
        kind, default = str, ",".join(default)
    declaration = [f"--{field.name.replace('_', '-')}"] if kind is bool else []
    option = typer.Option(
        *declaration,
        help=field.metadata["help"],
        metavar=field.metadata["metavar"],
        rich_help_panel=field.metadata["panel"],
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, option],
    )
