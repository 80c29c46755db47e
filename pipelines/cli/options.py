"""The options that commands share. Those of a run come from the fields of `Settings`."""

from __future__ import annotations

import inspect
import json
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from bertgeom.config import MACHINE, Settings
from bertgeom.errors import InputError, UsageError

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
RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model on the hub; default: main.")
]


def _import(context: typer.Context, names: list[str] | None) -> list[str] | None:
    """Import the packages that were named, before a model is looked for."""
    if names and not context.resilient_parsing:
        from bertgeom.model.packages import import_packages

        import_packages(names)
    return names


ImportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="PACKAGE",
        callback=_import,
        help="Import a package that registers the model's classes, such as multimolecule; may be "
        "given several times. Its code runs.",
    ),
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

#: Options that say what a command prints; a settings file holds none of them.
_ABOUT_PRINTING = {"config", "print_config", "as_json"}
#: Options that may be given several times; other lists are one text with commas.
_LISTS = {"sources", "imports"}


def _read_config(context: typer.Context, path: str | None) -> str | None:
    """Take what a settings file says as the defaults of the command's options."""
    if path is not None:
        context.default_map = {**(context.default_map or {}), **read_config(path, context)}
    return path


def read_config(path: str, context: typer.Context) -> dict[str, Any]:
    """Options by name from a TOML file. Names are those of the options, with - or _.

    Raises:
        InputError: if the file cannot be read, or is no TOML.
        UsageError: for a name that is no option of the command.
    """
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("a settings file", error.strerror or str(error), source=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("settings as TOML (window = 512)", str(error), source=path) from error
    values = {name.replace("-", "_"): value for name, value in found.items()}
    if "import" in values:
        # The argument cannot have the name of the option.
        given = values.pop("import")
        values["imports"] = given if isinstance(given, list) else [given]
    known = {str(p.name) for p in context.command.params} - _ABOUT_PRINTING
    if unknown := sorted(set(values) - known):
        raise UsageError(
            f"{path}: expected names out of {', '.join(sorted(known))}, found {', '.join(unknown)}"
        )
    if tables := sorted(name for name, value in values.items() if isinstance(value, dict)):
        raise UsageError(f"{path}: expected a value, found a table: {', '.join(tables)}")
    # Lists are written with commas on the command line; sources are a list there too.
    return {
        name: ",".join(map(str, value)) if isinstance(value, list) and name not in _LISTS else value
        for name, value in values.items()
    }


def config_lines(settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings as a TOML file that `--config` reads, each with its help text."""
    for field in fields(Settings):
        value = settings[field.name]
        # What JSON writes of text, numbers, truth and lists is TOML as well.
        text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
        yield f"# {field.metadata['help']}"
        yield f"# {field.name} =" if value is None else f"{field.name} = {text}"


_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Settings as TOML (window = 512); options of the command line come first.",
            is_eager=True,
            callback=_read_config,
        ),
    ],
)


def _settle_for_printing(context: typer.Context, asked: bool) -> bool:
    """A command that only prints its settings needs no model and no place."""
    if asked:
        context.resilient_parsing = True
    return asked


_PRINT_CONFIG = inspect.Parameter(
    "print_config",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print the settings as a file for --config, and stop.",
            is_eager=True,
            callback=_settle_for_printing,
        ),
    ],
)


def with_settings(command: Command) -> Command:
    """Give a command one option for every field of `Settings`.

    The command takes what they say as one keyword argument, `settings`: values by name.
    """
    return _with(command, [_parameter(f) for f in fields(Settings)], [_CONFIG, _PRINT_CONFIG])


#: Settings that decide which numbers a model gives for given letters.
_OF_THE_MODEL = (
    "alphabet",
    "max_tokens",
    "tokenizer",
    "dtype",
    "impl",
    "device",
    "revision",
    "trust_remote_code",
)


def with_model_settings(command: Command) -> Command:
    """Give a command the options of `Settings` that concern the model and its tokenizer.

    The command takes what they say as one keyword argument, `settings`: values by name.
    """
    return _with(command, [_parameter(f) for f in fields(Settings) if f.name in _OF_THE_MODEL], [])


def _with(
    command: Command, options: list[inspect.Parameter], more: list[inspect.Parameter]
) -> Command:
    """The command with more options; what `options` say is its argument `settings`."""
    own = inspect.signature(command, eval_str=True).parameters
    names = {parameter.name for parameter in options}
    added = [*options, *more]

    def with_options(**values: Any) -> None:
        settings = {name: values.pop(name) for name in names}
        values.pop("config", None)
        if values.pop("print_config", False):
            typer.echo("\n".join(config_lines(vars(Settings(**settings)))))
        else:
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
