"""The command `bertgeom`. Imports of torch and the like wait until a command runs."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bertgeom._version import __version__
from bertgeom.pipelines.cli.listeners import listening
from bertgeom.pipelines.cli.logs import show_more, showing_logs
from bertgeom.pipelines.cli.options import (
    AnnotationsOption,
    ImportOption,
    JsonOption,
    LabelsOption,
    MemoryOption,
    ModelOption,
    SchedulerOption,
    SequencesOption,
    SourcesArgument,
    StoreArgument,
    ThreadsOption,
    WorkersOption,
    with_settings,
)
from bertgeom.pipelines.cli.output import print_json, print_rich
from bertgeom.urls import shown_url, without_secrets

if TYPE_CHECKING:
    from bertgeom.pipelines.run.progress import Status

#: Modules that add commands: each has `register(app)` and imports heavy things when called.
COMMANDS: tuple[str, ...] = (
    "bertgeom.pipelines.cli.whole_store",
    "bertgeom.pipelines.cli.models",
    "bertgeom.pipelines.cli.jobs",
    "bertgeom.pipelines.cli.catalogue",
    "bertgeom.pipelines.casestudy.cli",
)

app = typer.Typer(
    name="bertgeom",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "What all attention heads and layers of an encoder do on a whole genome database.\n\n"
        "Start with [bold]bertgeom demo[/bold], then [bold]bertgeom run genomes.fasta "
        "--model MODEL --out run.zarr[/bold]; open the result with bertgeom.open in Python."
    ),
)

#: What the command line library returns after Ctrl-C.
_INTERRUPTED = 130
_GO_ON = "interrupted; give the same command again to go on"


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"bertgeom {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and stop.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, help="Show log records, -vv all: bertgeom -v COMMAND."
        ),
    ] = 0,
) -> None:
    show_more(verbose)


@app.command()
def ingest(
    sources: SourcesArgument,
    out: Annotated[str, typer.Option(help="Folder or URL of the shards.")],
    alphabet: Annotated[
        str | None,
        typer.Option(
            metavar="dna|rna|protein|text",
            help="What the input is made of; default: nucleotides.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read sequences into shards that several runs can share."""
    from bertgeom.pipelines.run import stages

    with listening() as listeners:
        found = stages.ingest(sources or [], out, alphabet=alphabet, subscribers=listeners)
    facts = {name: found.attributes[name] for name in ("n_records", "n_bases", "content_sha256")}
    if as_json:
        print_json({"shards": out, **facts})
    else:
        typer.echo(f"{facts['n_records']} records, {facts['n_bases']} bases in {shown_url(out)}")
        if empty := int((found.lengths == 0).sum()):
            typer.echo(f"records: {empty} of {facts['n_records']} have no bases")


@app.command()
@with_settings
def plan(
    sources: SourcesArgument = None,
    *,
    model: ModelOption,
    imports: ImportOption = None,
    sequences: SequencesOption = None,
    labels: LabelsOption = None,
    annotations: AnnotationsOption = None,
    workers: WorkersOption = 1,
    threads: ThreadsOption = None,
    scheduler: SchedulerOption = None,
    memory: MemoryOption = None,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Time a batch, to say how long the run takes."),
    ] = True,
    as_json: JsonOption = False,
    settings: dict[str, Any],
) -> None:
    """Show what a run would do and cost, and stop."""
    from bertgeom.pipelines.run.estimate import preview, preview_table

    found = preview(
        sources,
        model=model,
        sequences=sequences,
        labels=labels,
        annotations=annotations,
        workers=workers,
        threads=threads,
        scheduler=scheduler,
        memory=memory,
        measure=measure,
        **settings,
    )
    if as_json:
        print_json(found)
    else:
        print_rich(preview_table(found))


@app.command()
@with_settings
def run(
    sources: SourcesArgument = None,
    *,
    model: ModelOption,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL of the store.")],
    imports: ImportOption = None,
    sequences: SequencesOption = None,
    labels: LabelsOption = None,
    annotations: AnnotationsOption = None,
    workers: WorkersOption = 1,
    threads: ThreadsOption = None,
    scheduler: SchedulerOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
    settings: dict[str, Any],
) -> None:
    """Measure all windows of a database. Stopped? Give the same command again."""
    from bertgeom.pipelines.run import stages

    with listening() as listeners:
        done = stages.run(
            sources,
            model=model,
            out=out,
            sequences=sequences,
            labels=labels,
            annotations=annotations,
            workers=workers,
            threads=threads,
            scheduler=scheduler,
            memory=memory,
            imports=imports or (),
            subscribers=listeners,
            **settings,
        )
    if as_json:
        print_json(done)
    else:
        for line in done.input.lines() if done.input else ():
            typer.echo(line)
        _tell_windows(done)
        where = shown_url(done.store)
        typer.echo(f'{where}: bertgeom.open("{where}") in Python')


@app.command()
def status(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Say how far the run of a store is."""
    from bertgeom.pipelines.run.progress import status as status_of

    found = status_of(store)
    if as_json:
        print_json(found)
        return
    state = "complete" if found.complete else "unfinished"
    typer.echo(f"{shown_url(found.store)}: {state}")
    typer.echo(f"windows     {found.windows_done} of {found.windows}")
    typer.echo(f"partitions  {found.partitions_done} of {found.partitions}")
    typer.echo(f"row groups  {found.groups_written} of {found.groups}")
    for line in found.input.lines() if found.input else ():
        typer.echo(line)
    _tell_windows(found)


@app.command()
def verify(
    store: StoreArgument,
    windows: Annotated[int, typer.Option(min=0, help="Windows to measure again.")] = 4,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    model: Annotated[str | None, typer.Option(help="Where the model is, if it was moved.")] = None,
    imports: ImportOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Measure damaged row groups again, restore the rest.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check completeness and checksums, and a sample against the float64 oracle."""
    from bertgeom.pipelines.run.verify import report_table
    from bertgeom.pipelines.run.verify import verify as verify_store

    if repair:
        from bertgeom.pipelines.run import stages

        with listening() as listeners:
            stages.repair(store, model=model, subscribers=listeners)
    found = verify_store(store, windows=windows, seed=seed, model=model)
    if as_json:
        comparisons = [{**dataclasses.asdict(c), "agrees": c.agrees} for c in found.comparisons]
        facts = dataclasses.asdict(found)
        print_json({**facts, "agrees": found.agrees, "comparisons": comparisons})
    else:
        for line in (*found.problems, *found.notes):
            typer.echo(line)
        typer.echo(f"{found.files} files, {len(found.problems)} problems")
        if found.comparisons:
            print_rich(report_table(found))
        typer.echo("agrees with the oracle" if found.agrees else "does not agree")
    if not found.agrees:
        raise typer.Exit(1)


@app.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
def bench(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGUMENTS]", help="As of bench.run.")
    ] = None,
) -> None:
    """Time whole forwards side by side: `python -m bench.run` of a checkout of the project."""
    import subprocess

    import bertgeom
    from bertgeom.errors import UsageError

    root = Path(bertgeom.__file__).parents[1]
    if not (root / "bench" / "run.py").exists():
        raise UsageError(
            f"expected the folder bench/ beside the package, found none in {root}; install from a "
            "checkout of the project (make bench)"
        )
    command = [sys.executable, "-m", "bench.run", *(arguments or [])]
    code = subprocess.run(command, cwd=root, check=False).returncode  # noqa: S603
    if code:
        raise typer.Exit(1)


@app.command()
def warm() -> None:
    """Compile the CPU kernels ahead of the first run, once a machine."""
    import time

    from bertgeom.pipelines.run.warm import warm as compile_kernels

    typer.echo("compiling the CPU kernels; a minute or two where none are kept", err=True)
    begin = time.monotonic()
    compile_kernels()
    typer.echo(f"CPU kernels are ready: {time.monotonic() - begin:.0f} s")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the store.")] = Path("demo"),
    workers: WorkersOption = 1,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the main job on the genomes and the model that the package ships."""
    from bertgeom.data import demo_genomes, demo_labels, demo_model
    from bertgeom.pipelines.cli.tables import cone_table, gate_table, overview
    from bertgeom.pipelines.run import stages

    where = out / "demo.zarr"
    with listening() as listeners:
        done = stages.run(
            demo_genomes(),
            model=demo_model(),
            out=where,
            labels=demo_labels(),
            keep="block_map,cls,logits",
            workers=workers,
            threads=threads,
            subscribers=listeners,
        )
    if as_json:
        print_json(done)
        return
    found = overview(where)
    print_rich(gate_table(found))
    print_rich(cone_table(found))
    _tell_windows(done)
    typer.echo(f"store: {where}")
    typer.echo(f"report: {_demo_report(where, out / 'report.html')}")


def _demo_report(store: Path, page: Path) -> str:
    """Write the report of the demo; where it is, or what is missing for it."""
    from bertgeom.errors import ImplementationUnavailableError
    from bertgeom.pipelines.report.build import report

    try:
        report(store, page)
    except ImplementationUnavailableError as error:
        return str(error)
    return str(page)


def _tell_windows(found: Status) -> None:
    """Flagged windows, and the shares of unknown and cut off tokens."""
    from bertgeom.pipelines.run.shares import share_lines

    typer.echo(_flagged(found.counts))
    for line in share_lines(found.counts):
        typer.echo(line)


def _flagged(counts: dict[str, int]) -> str:
    """Windows by flag, those that are met."""
    from bertgeom.variables import FLAGS

    met = [f"{counts[name]} {name}" for name in FLAGS if counts.get(name)]
    return "flagged windows: " + (", ".join(met) or "none")


@cache
def command_group() -> Any:
    """All commands, those of other modules included."""
    for module in COMMANDS:
        importlib.import_module(module).register(app)
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Understood before and after the name of the command.
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _signals_interrupt(), showing_logs():
            code = command_group().main(args=arguments, prog_name="bertgeom", standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _fail(_GO_ON, 1, False)
    except Exception as error:
        return _failed(error, debug)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP, which batch schedulers and closed terminals send, act like Ctrl-C.

    A second one ends the process at once. An ignored signal stays ignored, as under nohup.
    """

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failed(error: Exception, debug: bool) -> int:
    """Tell an error on one line; the exit code."""
    from bertgeom.errors import BertgeomError
    from bertgeom.store.storage import reason

    if isinstance(error, BertgeomError):
        return _fail(str(error), error.exit_code, debug)
    if type(error).__module__.startswith("bertgeom.kernels"):
        return _fail(str(error), 1, debug)
    # The command line library's own errors know how to show themselves.
    show = getattr(error, "show", None)
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, typer.Abort):
        return _fail(_GO_ON, 1, False)
    if isinstance(error, BrokenPipeError):
        # Who reads the output has gone: nothing more can be printed, at the exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and isinstance(error.filename, str):
        place = shown_url(error.filename)
        text = f"{place}: expected a file that can be used, found: {reason(error)}"
        return _fail(f"{text}; check the path and the permissions", 1, debug)
    text = without_secrets(str(error)) or "no message"
    return _fail(f"{type(error).__name__}: {text}; run again with --debug to see where", 1, debug)


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"error: {' '.join(text.splitlines())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
