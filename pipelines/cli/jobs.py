"""Commands of a run in tasks of a batch scheduler: init, run-partitions, finalise."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bertgeom.pipelines.cli.listeners import listening
from bertgeom.pipelines.cli.options import (
    AnnotationsOption,
    ImportOption,
    JsonOption,
    LabelsOption,
    MemoryOption,
    ModelOption,
    SequencesOption,
    SourcesArgument,
    StoreArgument,
    ThreadsOption,
    with_settings,
)
from bertgeom.pipelines.cli.output import print_json
from bertgeom.urls import shown_url


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (init, run_partitions, finalise):
        app.command()(command)


@with_settings
def init(
    sources: SourcesArgument = None,
    *,
    model: ModelOption,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL of the store.")],
    imports: ImportOption = None,
    sequences: SequencesOption = None,
    labels: LabelsOption = None,
    annotations: AnnotationsOption = None,
    threads: ThreadsOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
    settings: dict[str, Any],
) -> None:
    """Set up a run for tasks of a batch scheduler, and measure nothing yet."""
    from bertgeom.pipelines.run import stages

    with listening() as listeners:
        begun = stages.init(
            sources,
            model=model,
            out=out,
            sequences=sequences,
            labels=labels,
            annotations=annotations,
            threads=threads,
            memory=memory,
            imports=imports or (),
            subscribers=listeners,
            **settings,
        )
    if as_json:
        print_json(begun)
        return
    for line in begun.input.lines() if begun.input else ():
        typer.echo(line)
    where = shown_url(begun.store)
    typer.echo(f"{begun.partitions} partitions: at most as many tasks")
    typer.echo(f"tasks 0 to N - 1: bertgeom run-partitions {where} --task I --of N")
    typer.echo(f"after the last one: bertgeom finalise {where}")


def run_partitions(
    store: StoreArgument,
    task: Annotated[int | None, typer.Option(help="Which task, from 0.")] = None,
    of: Annotated[int | None, typer.Option(help="Number of tasks.")] = None,
    partitions: Annotated[
        str | None,
        typer.Option(metavar="FIRST-LAST", help="These partitions, in place of a task."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the model is, if not as for init.")] = (
        None
    ),
    imports: ImportOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the share of one task. Stopped, or in doubt? Give the same command again."""
    from bertgeom.pipelines.jobs import tasks

    with listening() as listeners:
        found = tasks.run_partitions(
            store,
            task=task,
            of=of,
            partitions=None if partitions is None else _range(partitions),
            model=model,
            threads=threads,
            imports=imports or (),
            subscribers=listeners,
        )
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found.partitions_done} of {found.partitions} partitions are done")


def _range(text: str) -> tuple[int, int]:
    """Two numbers, or one for both."""
    from bertgeom.errors import UsageError

    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise UsageError(f"--partitions: expected FIRST-LAST, such as 100-199, found {text!r}")
    return int(first), int(last if dash else first)


def finalise(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Complete a store whose tasks are all done: sums, the list of files, the mark of its end."""
    from bertgeom.pipelines.jobs import tasks

    done = tasks.finalise(store)
    if as_json:
        print_json(done)
    else:
        where = shown_url(done.store)
        typer.echo(f'{where} complete: bertgeom.open("{where}") in Python')
