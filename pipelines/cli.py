"""The command `bertgeom`. Imports of torch and the like wait until a command runs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bertgeom._version import __version__

if TYPE_CHECKING:
    from .events import Subscriber

#: Modules that add commands: each has `register(app)` and imports heavy things when called.
COMMANDS: tuple[str, ...] = (
    "bertgeom.pipelines.export",
    "bertgeom.pipelines.report",
    "bertgeom.pipelines.catalogue_cli",
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

_WHAT, _CUT, _NUMBERS, _MACHINE = "What to measure", "Windows", "Precision", "Where to work"

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
    typer.Option(help="Table record<TAB>label; the keys are record ids or indices from 0."),
]
AnnotationsOption = Annotated[
    str | None,
    typer.Option(help="BED or GFF3 regions in record coordinates: attention by region."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON for a program to read.")
]
WindowOption = Annotated[
    int | None,
    typer.Option(help="Bases of a window; default: what fits the model.", rich_help_panel=_CUT),
]
StrideOption = Annotated[
    int | None,
    typer.Option(
        help="Bases from one window to the next; default: the window.", rich_help_panel=_CUT
    ),
]
MinLengthOption = Annotated[
    int, typer.Option(help="Leave out records shorter than this.", rich_help_panel=_CUT)
]
StrandOption = Annotated[
    str,
    typer.Option(
        metavar="+|-|both", help="As in the record, reverse complement.", rich_help_panel=_CUT
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(help="A lower limit of tokens a window than the model's.", rich_help_panel=_CUT),
]
MaxUnknownOption = Annotated[
    float,
    typer.Option(help="Flag windows with a larger share of unknown tokens.", rich_help_panel=_CUT),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        help="In place of the model's: kmer:k=12,stride=9, dnabert:k=6, hf...",
        rich_help_panel=_CUT,
    ),
]
TierOption = Annotated[
    str,
    typer.Option(
        metavar="core|full", help="Core leaves out the costlier arrays.", rich_help_panel=_WHAT
    ),
]
KeepOption = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="Opt-in arrays: block_map, cls, logits, tracks; separated by commas.",
        rich_help_panel=_NUMBERS,
    ),
]
AnglesOption = Annotated[
    str,
    typer.Option(
        metavar="default|all",
        help="Pairwise angles at the embedding and layer outputs, or at all stations.",
        rich_help_panel=_NUMBERS,
    ),
]
ThetaOption = Annotated[
    float,
    typer.Option(help="Weights of at least this are confident.", rich_help_panel=_WHAT),
]
NearOption = Annotated[
    int,
    typer.Option(
        help="Tokens from the diagonal that count as near (gates).", rich_help_panel=_WHAT
    ),
]
ReduceOption = Annotated[
    bool,
    typer.Option(
        "--reduce",
        help="Store no statistics of windows, only their means by record and sums by cohort.",
        rich_help_panel=_NUMBERS,
    ),
]
SpectraOption = Annotated[
    int,
    typer.Option(
        metavar="K",
        help="Exact spectra of K windows of every partition, in the group `spectra`.",
        rich_help_panel=_NUMBERS,
    ),
]
BitroundOption = Annotated[
    int | None,
    typer.Option(
        metavar="BITS",
        help="Keep this many mantissa bits of floats: lossy, smaller stores.",
        rich_help_panel=_NUMBERS,
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|float16|bfloat16",
        help="Auto: float16 on CUDA, float32 on a CPU.",
        rich_help_panel=_NUMBERS,
    ),
]
ImplOption = Annotated[
    str,
    typer.Option(
        metavar="auto|triton|numba|reference",
        help="Kernels: auto is Triton on CUDA, Numba on a CPU.",
        rich_help_panel=_NUMBERS,
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1...", rich_help_panel=_MACHINE)
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        help="Padded tokens of a batch; default: 4096 on a CPU, 65536 on CUDA.",
        rich_help_panel=_MACHINE,
    ),
]
PartitionOption = Annotated[
    int | None,
    typer.Option(
        help="Windows of a partition, the unit of work; default: seconds of work.",
        rich_help_panel=_MACHINE,
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        help="Worker processes; more than one starts a Dask cluster here.",
        rich_help_panel=_MACHINE,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="Compute threads a worker; default: cores / workers.", rich_help_panel=_MACHINE
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        metavar="tcp://HOST:PORT",
        help="A running Dask scheduler, whose workers see the store, the model and the shards.",
        rich_help_panel=_MACHINE,
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Refuse a plan beyond this, like 8GB; default: what the machine has.",
        rich_help_panel=_MACHINE,
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run code that the model brings.", rich_help_panel=_MACHINE
    ),
]


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
) -> None:
    pass


@app.command()
def ingest(
    sources: SourcesArgument,
    out: Annotated[str, typer.Option(help="Folder or URL of the shards.")],
    as_json: JsonOption = False,
) -> None:
    """Read sequences into shards that several runs can share."""
    from . import stages

    with listening() as listeners:
        found = stages.ingest(sources or [], out, subscribers=listeners)
    facts = {name: found.attributes[name] for name in ("n_records", "n_bases", "content_sha256")}
    if as_json:
        print_json({"shards": out, **facts})
    else:
        typer.echo(f"{facts['n_records']} records, {facts['n_bases']} bases in {out}")


@app.command()
def plan(
    sources: SourcesArgument = None,
    *,
    model: ModelOption,
    sequences: SequencesOption = None,
    annotations: AnnotationsOption = None,
    window: WindowOption = None,
    stride: StrideOption = None,
    min_length: MinLengthOption = 1,
    strand: StrandOption = "+",
    max_tokens: MaxTokensOption = None,
    tokenizer: TokenizerOption = None,
    tier: TierOption = "full",
    keep: KeepOption = "",
    angles: AnglesOption = "default",
    reduce: ReduceOption = False,
    dtype: DtypeOption = "auto",
    impl: ImplOption = "auto",
    device: DeviceOption = "auto",
    batch_tokens: BatchOption = None,
    partition_windows: PartitionOption = None,
    workers: WorkersOption = 1,
    threads: ThreadsOption = None,
    memory: MemoryOption = None,
    trust_remote_code: TrustOption = False,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Time a batch, to say how long the run takes."),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would do and cost, and stop."""
    from .preview import preview, preview_table

    found = preview(
        sources,
        model=model,
        sequences=sequences,
        annotations=annotations,
        workers=workers,
        threads=threads,
        memory=memory,
        measure=measure,
        window=window,
        stride=stride,
        min_length=min_length,
        strand=strand,
        max_tokens=max_tokens,
        tokenizer=tokenizer,
        tier=tier,
        keep=keep,
        angles=angles,
        reduce=reduce,
        dtype=dtype,
        impl=impl,
        device=device,
        batch_tokens=batch_tokens,
        partition_windows=partition_windows,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json(found)
    else:
        print_rich(preview_table(found))


@app.command()
def run(
    sources: SourcesArgument = None,
    *,
    model: ModelOption,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL of the store.")],
    sequences: SequencesOption = None,
    labels: LabelsOption = None,
    annotations: AnnotationsOption = None,
    window: WindowOption = None,
    stride: StrideOption = None,
    min_length: MinLengthOption = 1,
    strand: StrandOption = "+",
    max_tokens: MaxTokensOption = None,
    max_unknown: MaxUnknownOption = 0.5,
    tokenizer: TokenizerOption = None,
    tier: TierOption = "full",
    keep: KeepOption = "",
    angles: AnglesOption = "default",
    theta: ThetaOption = 0.3,
    near: NearOption = 4,
    reduce: ReduceOption = False,
    spectra: SpectraOption = 0,
    bitround: BitroundOption = None,
    dtype: DtypeOption = "auto",
    impl: ImplOption = "auto",
    device: DeviceOption = "auto",
    batch_tokens: BatchOption = None,
    partition_windows: PartitionOption = None,
    workers: WorkersOption = 1,
    threads: ThreadsOption = None,
    scheduler: SchedulerOption = None,
    memory: MemoryOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure all windows of a database. Stopped? Give the same command again."""
    from . import stages

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
            subscribers=listeners,
            window=window,
            stride=stride,
            min_length=min_length,
            strand=strand,
            max_tokens=max_tokens,
            max_unknown=max_unknown,
            tokenizer=tokenizer,
            tier=tier,
            keep=keep,
            angles=angles,
            theta=theta,
            near=near,
            reduce=reduce,
            spectra=spectra,
            bitround=bitround,
            dtype=dtype,
            impl=impl,
            device=device,
            batch_tokens=batch_tokens,
            partition_windows=partition_windows,
            trust_remote_code=trust_remote_code,
        )
    if as_json:
        print_json(done)
    else:
        typer.echo(_flagged(done.counts))
        typer.echo(f'{done.store}: bertgeom.open("{done.store}") in Python')


@app.command()
def status(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Say how far the run of a store is."""
    from .progress import status as status_of

    found = status_of(store)
    if as_json:
        print_json(found)
        return
    state = "complete" if found.complete else "unfinished"
    typer.echo(f"{found.store}: {state}")
    typer.echo(f"windows     {found.windows_done} of {found.windows}")
    typer.echo(f"partitions  {found.partitions_done} of {found.partitions}")
    typer.echo(f"row groups  {found.groups_written} of {found.groups}")
    typer.echo(_flagged(found.counts))


@app.command()
def verify(
    store: StoreArgument,
    windows: Annotated[int, typer.Option(min=0, help="Windows to measure again.")] = 4,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    model: Annotated[str | None, typer.Option(help="Where the model is, if it was moved.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check completeness and checksums, and a sample against the float64 oracle."""
    from .verify import report_table
    from .verify import verify as verify_store

    found = verify_store(store, windows=windows, seed=seed, model=model)
    if as_json:
        comparisons = [{**dataclasses.asdict(c), "agrees": c.agrees} for c in found.comparisons]
        facts = dataclasses.asdict(found)
        print_json({**facts, "agrees": found.agrees, "comparisons": comparisons})
    else:
        for problem in found.problems:
            typer.echo(problem)
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
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the store.")] = Path("demo"),
    workers: WorkersOption = 1,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the main job on the genomes and the model that the package ships."""
    from bertgeom.data import demo_genomes, demo_labels, demo_model

    from . import stages
    from .tables import cone_table, gate_table, overview

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
    typer.echo(_flagged(done.counts))
    typer.echo(f"store: {where}")
    typer.echo(f"report: {_demo_report(where, out / 'report.html')}")


def _demo_report(store: Path, page: Path) -> str:
    """Write the report of the demo; where it is, or what is missing for it."""
    from bertgeom.errors import ImplementationUnavailableError

    from .report import report

    try:
        report(store, page)
    except ImplementationUnavailableError as error:
        return str(error)
    return str(page)


@contextmanager
def listening() -> Iterator[list[Subscriber]]:
    """Subscribers that show progress: a bar on a terminal, lines elsewhere."""
    from .events import for_people

    shown = for_people()
    try:
        yield [shown]
    finally:
        close = getattr(shown, "close", None)
        if close is not None:
            close()


def print_json(value: Any) -> None:
    """Print a result for a program."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    typer.echo(json.dumps(value, indent=2, default=str))


def print_rich(value: Any) -> None:
    """Print a table for people."""
    from .screen import print_rich as show

    show(value)


def _flagged(counts: dict[str, int]) -> str:
    """Windows by flag, those that are met."""
    from bertgeom.variables import FLAGS

    met = [f"{counts[name]} {name}" for name in FLAGS if counts.get(name)]
    return "flagged windows: " + (", ".join(met) or "none")


@cache
def _command() -> Any:
    """All commands, those of other modules included."""
    for module in COMMANDS:
        importlib.import_module(module).register(app)
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    from bertgeom.errors import BertgeomError

    arguments = sys.argv[1:] if arguments is None else arguments
    # Understood before and after the name of the command.
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = _command().main(args=arguments, prog_name="bertgeom", standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except BertgeomError as error:
        return _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _fail("interrupted; give the same command again to go on", 1, False)
    except Exception as error:
        # The command line library's own errors know how to show themselves.
        show = getattr(error, "show", None)
        if callable(show):
            show()
            return int(getattr(error, "exit_code", 2))
        if isinstance(error, typer.Abort):
            return _fail("interrupted; give the same command again to go on", 1, False)
        reason = " ".join(str(error).split()) or "no message"
        text = f"{type(error).__name__}: {reason}; run again with --debug to see where"
        return _fail(text, 1, debug)


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"error: {' '.join(text.splitlines())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
