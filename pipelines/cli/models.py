"""Commands on a model, without a store: check, weights, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bertgeom.pipelines.cli import catalogue_tables as tables
from bertgeom.pipelines.cli.catalogue_options import OutOption
from bertgeom.pipelines.cli.options import (
    ImportOption,
    JsonOption,
    RevisionOption,
    SourcesArgument,
    with_model_settings,
)
from bertgeom.pipelines.cli.output import print_json, print_rich, show

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder or hub name of a model.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (check, weights, convert):
        app.command()(command)


@with_model_settings
def check(
    model: ModelArgument,
    sources: SourcesArgument = None,
    *,
    windows: Annotated[int, typer.Option(min=1, help="Windows to compare.")] = 4,
    tokens: Annotated[int, typer.Option(min=8, help="Longest of them, at most.")] = 256,
    imports: ImportOption = None,
    as_json: JsonOption = False,
    settings: dict[str, Any],
) -> None:
    """Say whether a model can be trusted: exit code 0 if so, 1 with the reason if not.

    Outputs, hidden states and attention of windows of the input (without one: of random letters)
    against eager attention in float64, every statistic against the oracle, and what the tokenizer
    makes of the input. Speed and memory are those of these windows in one batch.
    """
    from bertgeom.pipelines.run.check import check as check_model
    from bertgeom.pipelines.run.check import check_table

    found = check_model(model, sources, windows=windows, tokens=tokens, **settings)
    if as_json:
        print_json(found.to_json())
    else:
        for table in check_table(found):
            print_rich(table)
        for problem in found.problems:
            typer.echo(problem)
        typer.echo("can be trusted" if found.trusted else "not to be trusted")
    if not found.trusted:
        raise typer.Exit(1)


def weights(
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or hub name of an encoder.")],
    revision: RevisionOption = None,
    out: OutOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")
    ] = False,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Symmetry, directionality, subspaces, ranks and spectra of every head's weights.

    W = W_q^T W_k per head, in float64. weight_symmetry is 1 for a symmetric and -1 for a skew
    W; weight_directionality is positive where outlier columns (keys) outweigh outlier rows
    (queries); weight_subspace_cosines are those of the principal angles between the subspaces
    of queries and keys. Definitions: docs/statistics.md section 5, docs/catalogue.md.
    """
    from transformers.utils import logging

    from bertgeom.analysis.weights import weight_statistics
    from bertgeom.model.loading import read_model
    from bertgeom.pipelines.catalogue.results import check_out

    check_out(out, model)
    logging.disable_progress_bar()
    loaded, _ = read_model(model, trust_remote_code, revision)
    show(weight_statistics(loaded), out, as_json, tables.weight_table)


def convert(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the model.")],
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make safetensors of pickled weights (pytorch_model.bin); no code of the pickle runs."""
    from bertgeom.model.convert import convert as write_folder

    found = write_folder(model, out, revision=revision)
    if as_json:
        print_json({**vars(found), "folder": str(found.folder)})
    else:
        size = f"{found.n_weights} weights, {found.n_bytes / 1e6:.1f} MB"
        typer.echo(f"{size} in {found.n_files} file(s) of {found.folder}")
