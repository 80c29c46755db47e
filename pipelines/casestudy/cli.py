"""`bertgeom casestudy simulate | spike | train | evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bertgeom.errors import UsageError
from bertgeom.store.files import check_target, replacing, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from bertgeom.pipelines.casestudy.classifier.classify import VariantClassifier
    from bertgeom.pipelines.casestudy.classifier.stream import LabelledSequences
    from bertgeom.pipelines.casestudy.classifier.train import Progress as TrainProgress

app = typer.Typer(
    help="SARS-CoV-2 variants: simulated genomes, a trained classifier, what it does and why.",
    no_args_is_help=True,
)


@cache
def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def register(parent: typer.Typer) -> None:
    """Mount these commands as `casestudy`."""
    parent.add_typer(app, name="casestudy")


Seed = Annotated[int, typer.Option(help="Equal seeds give equal results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
ClassifierFolder = Annotated[
    Path | None, typer.Option(help="Model folder; the shipped one if absent.")
]
Relabel = Annotated[
    list[str] | None, typer.Option(help="CLASS=CLASS, e.g. gh=background; may be repeated.")
]


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="FASTA to write; compressed by its suffix.")],
    labels: Annotated[
        Path | None, typer.Option(help="Label table; OUT with .tsv if absent.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many sequences.")] = 900,
    seed: Seed = 1,
    region: Annotated[str, typer.Option(help="spike or genome")] = "spike",
    profile: Annotated[str, typer.Option(help="clean, typical or poor")] = "typical",
    balanced: Annotated[bool, typer.Option(help="As many of every class.")] = True,
) -> None:
    """Simulate labelled SARS-CoV-2 spikes or genomes."""
    from bertgeom.pipelines.casestudy.genomes import simulate as simulation

    settings = simulation.Simulation(region=region, profiles=((profile, 1.0),))
    table = labels if labels is not None else Path(f"{_stem(out)}.tsv")
    samples = simulation.simulate(count, seed, settings, balanced=balanced)
    with _progress("simulate", count) as advance:
        n = simulation.write(samples, out, table, progress=advance)
    typer.echo(f"{n} {region} sequences in {out}, labels in {table}")


@app.command()
def spike(
    sources: Annotated[list[str], typer.Argument(help="Genomes or spikes: files, folders, URLs.")],
    out: Annotated[Path, typer.Option(help="FASTA to write; compressed by its suffix.")],
    skipped: Annotated[
        Path | None, typer.Option(help="Table of the genomes without a usable spike.")
    ] = None,
    min_known: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of known bases in the gene.")
    ] = 0.3,
) -> None:
    """Cut the spike gene out of whole genomes."""
    from bertgeom.pipelines.casestudy.genomes.fasta import open_fasta, write_record
    from bertgeom.pipelines.casestudy.genomes.spike import Skipped, extract_all
    from bertgeom.sequences.fasta import expand_sources, read_records

    kept, left = 0, []
    if skipped is not None:
        check_target(skipped, inputs=[*sources, out])
    with replacing(out, inputs=sources) as draft, open_fasta(draft) as file:
        records = read_records(expand_sources(sources))
        for found in extract_all(records, min_known=min_known):
            if isinstance(found, Skipped):
                left.append(found)
                _log(f"{found.id}: skipped, {found.reason}")
            else:
                write_record(file, found.id, found.bases)
                kept += 1
    if skipped is not None:
        rows = "".join(f"{one.id}\t{one.reason}\n" for one in left)
        write_text(skipped, f"record_id\treason\n{rows}", inputs=[*sources, out])
    typer.echo(f"{kept} spikes in {out}, {len(left)} genomes skipped")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder; an interrupted run in it is continued.")],
    seed: Seed = 7,
    preset: Annotated[str, typer.Option(help="small (CPU, minutes) or paper (GPU)")] = "small",
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the preset's.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Model folder or hub name to start from.")
    ] = None,
    fasta: Annotated[Path | None, typer.Option(help="Train on these genomes instead.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Their label table.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Train the variant classifier; its model folder is OUT/model."""
    from bertgeom.pipelines.casestudy.classifier.settings import PRESETS
    from bertgeom.pipelines.casestudy.classifier.train import train as run

    if preset not in PRESETS:
        raise UsageError(f"expected a preset of {', '.join(PRESETS)}, found {preset!r}")
    if (fasta is None) != (labels is None):
        raise UsageError("expected --fasta and --labels together, found only one of them")
    given = None if fasta is None or labels is None else _given(fasta, labels)
    settings = PRESETS[preset].changed(
        seed=seed, steps=steps, init=init, samples=None if given is None else len(given)
    )
    with _progress("train", settings.steps) as advance:

        def report(event: TrainProgress) -> None:
            advance(event.step)
            if event.validation is not None:
                _log(
                    f"step {event.step}: loss {event.loss:.4f}, validation loss "
                    f"{event.validation['loss']:.4f}, accuracy {event.validation['accuracy']:.4f}"
                )

        inputs = [p for p in (fasta, labels) if p is not None]
        figures = run(out, settings, given=given, device=device, report=report, inputs=inputs)
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        typer.echo(f"model in {out / 'model'}")


@app.command()
def evaluate(
    fasta: Annotated[
        Path | None, typer.Argument(help="Genomes or spikes; simulated spikes if absent.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Argument(help="Table with the columns record_id and class.")
    ] = None,
    model: ClassifierFolder = None,
    relabel: Relabel = None,
    count: Annotated[int, typer.Option(min=9, help="Simulated spikes of every quality.")] = 1800,
    out: Annotated[Path | None, typer.Option(help="Write all figures to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say how well a model classifies labelled genomes, or simulated ones it never saw."""
    from bertgeom import data
    from bertgeom.pipelines.casestudy.classifier.classify import load_classifier

    if (fasta is None) != (labels is None):
        raise UsageError("expected a FASTA and its label table, found only one of them")
    inputs = [p for p in (fasta, labels, model) if p is not None]
    if out is not None:
        check_target(out, kind=".json", inputs=inputs)
    classifier = load_classifier(data.demo_model() if model is None else model)
    if fasta is None or labels is None:
        from bertgeom.pipelines.casestudy.classifier.held_out import evaluate_held_out

        figures = evaluate_held_out(classifier, n=count, report=_log)
        summary = _held_out_summary(figures)
    else:
        figures = _evaluate_labelled(classifier, fasta, labels, relabel or [])
        summary = _summary(figures)
    text = json.dumps(figures, indent=1)
    if out is not None:
        write_text(out, text + "\n", kind=".json", inputs=inputs)
    typer.echo(text if as_json else summary)


@app.command()
def analyze(
    source: Annotated[str, typer.Argument(help="Genomes, spikes, or a store of bertgeom run.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; with genomes also the store.")],
    labels: Annotated[
        Path | None, typer.Option(help="Table record<TAB>class; needed with genomes.")
    ] = None,
    model: ClassifierFolder = None,
    relabel: Relabel = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of the run.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Find out what the model does with labelled genomes: heads, places on the spike, cones.

    One pass over the spikes makes a store; everything else is computed from it, and from some
    of its windows run once more (domains, spectra, an exact attention map).
    """
    from bertgeom.pipelines.casestudy.analyze import analyze as analyze_source

    found = analyze_source(
        source,
        out,
        labels=labels,
        model=model,
        relabel=dict(_pair(text) for text in relabel or []),
        tell=_log,
        workers=workers,
    )
    if as_json:
        typer.echo(json.dumps(found))
        return
    one = found["classification"]
    typer.echo(
        f"{one['n']} spikes: accuracy {one['accuracy']:.4f}, macro F1 {one['macro_f1']:.4f} "
        f"(most probable class)\n{out}: now bertgeom casestudy report {out}"
    )


@app.command()
def report(
    analysis: Annotated[Path, typer.Argument(help="Folder made by casestudy analyze.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path(
        "casestudy.html"
    ),
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSON written by casestudy evaluate --out, of genomes or of simulations; may be "
            "repeated."
        ),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Where the analysed store is, if it was moved.")
    ] = None,
) -> None:
    """Write one HTML page that is read from top to bottom, without a network."""
    from bertgeom.pipelines.casestudy.report import report as write_report

    found = write_report(analysis, out, evaluation=evaluation or [], store=store)
    typer.echo(f"{out}: {found['figures']} figures, {found['bytes'] / 1e6:.1f} MB")


def _evaluate_labelled(
    classifier: VariantClassifier, fasta: Path, labels: Path, relabel: list[str]
) -> dict[str, Any]:
    from bertgeom.pipelines.casestudy.classifier.evaluate import evaluate as figures_of
    from bertgeom.pipelines.casestudy.classifier.evaluate import outcomes, read_labels
    from bertgeom.sequences.fasta import read_records

    truth = read_labels(labels, classifier.classes, dict(_pair(text) for text in relabel))
    results = outcomes(classifier, read_records(fasta), truth)
    return figures_of(results, classifier.classes)


def _given(fasta: Path, labels: Path) -> LabelledSequences:
    from bertgeom.pipelines.casestudy.classifier.evaluate import read_labels
    from bertgeom.pipelines.casestudy.classifier.stream import LabelledSequences
    from bertgeom.pipelines.casestudy.genomes.lineages import CLASSES
    from bertgeom.pipelines.casestudy.genomes.spike import Spike, extract_all
    from bertgeom.sequences.fasta import read_records

    truth = read_labels(labels, CLASSES)
    bases, indices = [], []
    for found in extract_all(record for record in read_records(fasta) if record.id in truth):
        if isinstance(found, Spike):
            bases.append(found.bases)
            indices.append(CLASSES.index(truth[found.id]))
        else:
            _log(f"{found.id}: skipped, {found.reason}")
    if not bases:
        raise UsageError(f"expected labelled genomes with a spike in {fasta}, found none")
    return LabelledSequences(bases, indices)


def _pair(text: str) -> tuple[str, str]:
    old, found, new = text.partition("=")
    if not found:
        raise UsageError(f"expected --relabel CLASS=CLASS, found {text!r}")
    return old, new


def _summary(figures: dict[str, Any]) -> str:
    lines = [f"{figures['n']} labelled genomes, {figures['n_skipped']} without a usable spike"]
    for name, meaning in (
        ("forced", "most probable class"),
        ("decided", "'other' counts as wrong"),
        ("covered", f"the {figures['covered']['share']:.1%} that got a class"),
    ):
        row = figures[name]
        lines.append(
            f"{name:8} accuracy {row['accuracy']:.4f}  macro F1 {row['macro_f1']:.4f}  "
            f"MCC {row['mcc']:.4f}  ({meaning})"
        )
    lines.append(f"calibration error {figures['calibration']['ece']:.4f}")
    lines.append(f"{'class':12}{'n':>6}{'precision':>11}{'recall':>8}{'F1':>8}")
    for name, row in figures["decided"]["per_class"].items():
        lines.append(
            f"{name:12}{row['n']:>6}{row['precision']:>11.4f}{row['recall']:>8.4f}{row['f1']:>8.4f}"
        )
    return "\n".join(lines)


def _held_out_summary(figures: dict[str, Any]) -> str:
    lines = [f"{'quality':10}{'accuracy':>10}{'macro F1':>10}{'answered':>10}{'of them right':>15}"]
    for name, row in figures["profiles"].items():
        covered = row["covered"]
        lines.append(
            f"{name:10}{row['forced']['accuracy']:>10.4f}{row['forced']['macro_f1']:>10.4f}"
            f"{covered['share']:>10.4f}{covered['accuracy']:>15.4f}"
        )
    none = figures["no_spike"]
    lines.append(f"sequences that are no spike: {none['other']} of {none['n']} answered 'other'")
    return "\n".join(lines)


def _stem(path: Path) -> str:
    text = str(path)
    for ending in (".gz", ".bgz", ".bz2", ".xz", ".zst", ".fasta", ".fa", ".fna"):
        text = text.removesuffix(ending)
    return text


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere (there, log lines tell)."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(), disable=not _console().is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _log(line: str) -> None:
    if _console().is_terminal:
        _console().print(line, highlight=False, markup=False)
    else:
        print(line, file=sys.stderr, flush=True)
