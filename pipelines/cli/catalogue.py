"""Commands on a store, beyond the main job: spectra, regions, cohorts, angles, cluster and more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertgeom.pipelines.cli import catalogue_tables as tables
from bertgeom.pipelines.cli.catalogue_options import (
    ExcludeOption,
    LabelsOption,
    MovedOption,
    OutOption,
    UnitOption,
    WindowsOption,
    cohorts_of,
    numbers_of,
    tile_rows,
    two_cohorts,
)
from bertgeom.pipelines.cli.options import ImportOption, JsonOption, StoreArgument
from bertgeom.pipelines.cli.output import pairs_bar, print_json, print_rich, show


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in _COMMANDS:
        app.command()(command)


def spectra(
    store: StoreArgument,
    windows: WindowsOption = 8,
    model: MovedOption = None,
    imports: ImportOption = None,
    exclude_flags: ExcludeOption = "",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Exact singular values and eigenvalues of every head, of some windows.

    Of A, V, Z = A V, Q K^T and its symmetric part, and of the layer outputs, with ranks,
    condition, spectral entropy, and the entropies by the paper's normalisation. The windows are
    a sample over all records and places, run through the model again. Definitions:
    docs/catalogue.md.
    """
    from bertgeom.pipelines.catalogue.results import check_out
    from bertgeom.pipelines.catalogue.samples import store_spectra
    from bertgeom.store.dataset import check_flags

    check_out(out, store, model)
    found = store_spectra(store, windows, model=model, exclude_flags=check_flags(exclude_flags))
    show(found, out, as_json, tables.spectra_table)


def rollout(
    store: StoreArgument,
    windows: WindowsOption = 8,
    row: Annotated[int, typer.Option(min=0, help="Whose rollout: 0 is the first token.")] = 0,
    model: MovedOption = None,
    imports: ImportOption = None,
    exclude_flags: ExcludeOption = "",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Attention rollout with residuals of the first token, over all layers, of some windows.

    The head means of all layers, each mixed with the identity, multiplied (Abnar and Zuidema
    2020): a distribution over input tokens, with their bases in the record.
    """
    from bertgeom.pipelines.catalogue.results import check_out
    from bertgeom.pipelines.catalogue.samples import store_rollout
    from bertgeom.store.dataset import check_flags

    check_out(out, store, model)
    chosen = check_flags(exclude_flags)
    found = store_rollout(store, windows, model=model, row=row, exclude_flags=chosen)
    show(found, out, as_json, tables.rollout_table)


def regions(
    store: StoreArgument,
    annotations: Annotated[
        Path, typer.Option("--annotations", help="BED, GFF3 or GTF in record coordinates.")
    ],
    group_by: Annotated[
        str, typer.Option(metavar="name|type", help="What makes regions one group (GFF3).")
    ] = "name",
    windows: WindowsOption = 64,
    theta: Annotated[float, typer.Option(help="Weights of at least this are confident.")] = 0.3,
    model: MovedOption = None,
    imports: ImportOption = None,
    exclude_flags: ExcludeOption = "",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Attention mass, confident mass and count on annotated regions, of some windows.

    By region, layer and head, and relative to the region's share of tokens: 1 where attention
    ignores it. A token is in a region if one of its bases is.
    """
    from bertgeom.analysis.annotations import read_annotations
    from bertgeom.pipelines.catalogue.results import check_out
    from bertgeom.pipelines.catalogue.samples import store_regions
    from bertgeom.store.dataset import check_flags

    check_out(out, store, model, annotations)
    chosen = check_flags(exclude_flags)
    regions = read_annotations(annotations, group_by=group_by)
    found = store_regions(store, regions, windows, model=model, theta=theta, exclude_flags=chosen)
    show(found, out, as_json, tables.region_table)


def cohorts(
    store: StoreArgument,
    labels: LabelsOption = None,
    contrast: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare two cohorts, head by head: give it twice, once a name; A,B in one is "
            "understood where no name holds a comma.",
        ),
    ] = None,
    unit: UnitOption = None,
    family: Annotated[
        str,
        typer.Option(
            metavar="statistic|all",
            help="Tests among which the false discovery rate is controlled: layers x heads of "
            "one statistic, or all.",
        ),
    ] = "statistic",
    statistics: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these arrays; commas between.")
    ] = None,
    exclude_flags: ExcludeOption = "",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count, mean and variance of every statistic by cohort; contrasts between two cohorts.

    A contrast gives Cohen's d (difference over the pooled standard deviation), Welch's t with a
    two-sided p, and q by Benjamini and Hochberg. The test takes the values as independent;
    windows of a record are not, so that records are compared. Nothing is measured again.
    """
    from bertgeom.analysis import contrasts
    from bertgeom.pipelines.catalogue.cohorts import cohort_dataset
    from bertgeom.pipelines.catalogue.results import check_out, open_written
    from bertgeom.store.dataset import attribute

    check_out(out, store, labels)
    dataset = open_written(store)
    counted = unit or ("record" if contrast else "window")
    sums = cohort_dataset(
        store,
        dataset,
        None if labels is None else cohorts_of(dataset, labels),
        unit=counted,
        statistics=statistics.split(",") if statistics else None,
        exclude_flags=exclude_flags,
    ).assign_attrs(unit=counted, dtype=str(attribute(dataset, "dtype", "float32")))
    if not contrast:
        show(sums, out, as_json, tables.cohort_table)
        return
    first, second = two_cohorts(contrast, [str(name) for name in sums["cohort"].values])
    found = contrasts.contrast(sums, first, second, family=family)
    show(found, out, as_json, tables.contrast_table)


def angles(
    store: StoreArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File .json, .tsv or .zarr.")
    ] = None,
    labels: LabelsOption = None,
    vectors: Annotated[str, typer.Option(help="Array of window vectors.")] = "cls",
    hidden_state: Annotated[
        str, typer.Option(help="Name or position of the hidden state; -1 is the last.")
    ] = "-1",
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for vectors and finished rows; default: OUT.work or STORE.work."),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="I:J",
            help="Only these tile rows, and no result: one part of many on a cluster.",
        ),
    ] = None,
    tile: Annotated[int, typer.Option(min=1, help="Vectors of a tile.")] = 2048,
    bins: Annotated[int, typer.Option(min=1, help="Equal bins of [0, 180] degrees.")] = 90,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda...")] = "auto",
    impl: Annotated[str, typer.Option(metavar="auto|triton|numba|reference")] = "auto",
    exclude_flags: ExcludeOption = "",
    as_json: JsonOption = False,
) -> None:
    """Angles between all pairs of windows of the database, within and between cohorts.

    Exact counts of all M (M - 1) / 2 pairs in bounded memory. Stopped? Give the same command
    again. The store must hold the vectors (run --keep cls).
    """
    from bertgeom.pipelines.catalogue.angle_job import AngleSettings
    from bertgeom.pipelines.catalogue.angle_results import result_as_json, write_result
    from bertgeom.pipelines.catalogue.angles import database_angles, prepare, run_row
    from bertgeom.pipelines.catalogue.results import check_out, open_written
    from bertgeom.store.dataset import check_flags

    check_out(out, store, labels, work)
    dataset = open_written(store)
    codes, names = (None, None) if labels is None else cohorts_of(dataset, labels)
    left_out = check_flags(exclude_flags)
    settings = AngleSettings(vectors, hidden_state, tile, bins, impl, device, left_out)
    place = work or Path(f"{out or store}.work")
    if rows is not None:
        job = prepare(dataset, place, codes=codes, cohorts=names, settings=settings)
        for row in sorted(set(tile_rows(rows, len(job.tiles))) & set(job.missing())):
            run_row(job, row)
        typer.echo(f"{len(job.tiles) - len(job.missing())} of {len(job.tiles)} rows in {place}")
        return
    with pairs_bar() as progress:
        result = database_angles(
            dataset,
            place,
            codes=codes,
            cohorts=names,
            settings=settings,
            workers=workers,
            progress=progress,
        )
    if out is not None:
        write_result(result, out)
    if as_json:
        print_json(result_as_json(result))
    else:
        print_rich(tables.angle_table(result))


def cluster(
    store: StoreArgument,
    labels: LabelsOption = None,
    vectors: Annotated[str, typer.Option(help="Array of window vectors.")] = "cls",
    components: Annotated[
        int, typer.Option(min=1, help="Principal components that k-means sees.")
    ] = 50,
    clusters: Annotated[
        int | None, typer.Option(min=1, help="Clusters; default: as many as labels.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of k-means.")] = 0,
    memory: Annotated[
        float, typer.Option(help="GB for the vectors of one layer; beyond, work in steps.")
    ] = 2.0,
    exclude_flags: ExcludeOption = "",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """PCA and k-means of the first tokens' vectors by layer, compared with the labels.

    Homogeneity: every cluster has one label. Completeness: a label is in one cluster. Adjusted
    Rand index: 1 for equal partitions, 0 by chance. Needs run --keep cls and scikit-learn.
    """
    from bertgeom.analysis.clustering import ClusterSettings, cluster_layers
    from bertgeom.errors import StoreError
    from bertgeom.pipelines.catalogue.results import check_out, open_written
    from bertgeom.store.dataset import label_names, without_flagged

    check_out(out, store, labels)
    dataset = without_flagged(open_written(store), exclude_flags)
    if vectors not in dataset:
        raise StoreError(f"{store}: expected the array {vectors!r}, found none; run --keep cls")
    codes, _ = cohorts_of(dataset, labels)
    has_labels = labels is not None or bool(label_names(dataset))
    settings = ClusterSettings(
        n_components=components, n_clusters=clusters, seed=seed, memory=int(memory * 1e9)
    )
    found = cluster_layers(dataset[vectors], codes if has_labels else None, settings)
    show(found, out, as_json, tables.cluster_table)


def tracks(
    store: StoreArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File .tsv, .bedgraph or .bg, maybe .gz.")
    ],
    variable: Annotated[
        str, typer.Option(metavar="attention_received|query_entropy", help="What to draw.")
    ] = "attention_received",
    layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="Layers, commas between; default: all.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(metavar="LIST", help="Heads, commas between; default: all.")
    ] = None,
    mean: Annotated[
        str,
        typer.Option(metavar="none|head|all", help="Average over heads, or over layers too."),
    ] = "head",
    sizes: Annotated[
        Path | None, typer.Option(help="Also write names and lengths, as bedGraphToBigWig wants.")
    ] = None,
    exclude_flags: ExcludeOption = "",
) -> None:
    """Attention received and query entropy along the genome.

    A token's value belongs to each of its bases; overlapping tokens and windows are averaged.
    Needs run --keep tracks.
    """
    from bertgeom.analysis.tracks import chromosome_sizes, export_tracks
    from bertgeom.pipelines.catalogue.results import inputs_of, open_written
    from bertgeom.store.dataset import without_flagged
    from bertgeom.store.files import check_target, write_text

    inputs = inputs_of(store)
    for one, others in ((out, [sizes]), (sizes, [out])):
        if one is not None:
            check_target(one, inputs=[*inputs, *filter(None, others)])
    dataset = open_written(store)
    files = export_tracks(
        without_flagged(dataset, exclude_flags),
        out,
        variable,
        layers=numbers_of(layers),
        heads=numbers_of(heads),
        mean=mean,
    )
    if sizes is not None:
        text = "".join(f"{name}\t{length}\n" for name, length in chromosome_sizes(dataset))
        write_text(sizes, text, inputs=files)
        files.append(sizes)
    for file in files:
        typer.echo(str(file))


def distributions(
    store: StoreArgument,
    labels: LabelsOption = None,
    exclude_flags: ExcludeOption = "",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Moments and Jarque-Bera statistics of the stream's entries by cohort and station.

    Over all entries of all windows of a cohort together, merged exactly from the stored
    moments. JB = n/6 (S^2 + K^2/4) grows with the number of entries n; compare JB/n.
    """
    from bertgeom.analysis.moments import distribution_analysis
    from bertgeom.pipelines.catalogue.results import check_out, open_written
    from bertgeom.store.dataset import attribute, without_flagged

    check_out(out, store, labels)
    dataset = without_flagged(open_written(store), exclude_flags)
    codes, names = cohorts_of(dataset, labels)
    hidden = attribute(dataset, "model")["hidden"]
    found = distribution_analysis(dataset, hidden, codes, tuple(names))
    show(found, out, as_json, tables.distribution_table)


_COMMANDS = (
    spectra,
    rollout,
    regions,
    cohorts,
    distributions,
    angles,
    cluster,
    tracks,
)
