"""`bertgeom report STORE -o report.html`: what the heads and layers of a model do on a database.

One self-contained HTML file, read top to bottom: what was analysed, what the heads do, how
far they look, how the cone opens and closes, what sets cohorts apart, and the definitions.
Equal stores give equal bytes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.errors import StoreError, UsageError
from bertgeom.pipelines.report import sections
from bertgeom.pipelines.report.figures import style
from bertgeom.pipelines.report.figures.cohorts import Plane, plane
from bertgeom.pipelines.report.page import Html, Page, codes, facts, join, paragraph, table, tiles
from bertgeom.pipelines.report.summary import SAMPLE, Kept, Summary, summarise
from bertgeom.pipelines.run.shares import percent
from bertgeom.store.dataset import attribute, check_flags
from bertgeom.store.files import check_target, write_text
from bertgeom.variables import FLAGS

if TYPE_CHECKING:
    import xarray


def report(
    store: str | Path | xarray.Dataset,
    out: str | Path,
    *,
    n_sample: int = SAMPLE,
    exclude_flags: str | Iterable[str] = (),
    unit: str = "record",
) -> dict[str, int]:
    """Write the report of a store.

    Args:
        store: folder or URL of a store made by `bertgeom run`, or the dataset itself.
        out: HTML file to write.
        n_sample: windows in distributions and scatter plots at most.
        exclude_flags: windows with one of these flags are left out.
        unit: "record" or "window", what counts once in effect sizes.

    Returns:
        `figures` and `bytes` of the report.

    Raises:
        StoreError: no store there, or of another format version.
        ImplementationUnavailableError: matplotlib or Jinja2 is not installed.
        UsageError: `out` is a folder, or lies in a folder that does not exist; an unknown flag
            or unit.

    Example:
        >>> from bertgeom.pipelines.report.build import report
        >>> report("run.zarr", "report.html")["figures"] > 5
        True
    """
    from bertgeom.pipelines.catalogue.results import inputs_of
    from bertgeom.pipelines.run.progress import counts_of

    target = writable(out, inputs_of(store) if isinstance(store, str | Path) else ())
    with style.settings():
        pass
    dataset = opened(store) if isinstance(store, str | Path) else store
    found = summarise(
        dataset,
        n_sample=n_sample,
        exclude_flags=check_flags(exclude_flags),
        unit=unit,
        kept=_kept(store, dataset),
        counts=counts_of(str(store)) if isinstance(store, str | Path) else None,
    )
    page = build(found)
    text = page.render()
    write_text(target, text, kind=".html")
    return {"figures": page.n_figures, "bytes": len(text.encode())}


def build(summary: Summary) -> Page:
    """The page of a store."""
    name = model_name(summary.attributes)
    page = Page(
        f"What {name} does" if name else "What the heads do",
        "Geometry of attention and of the token vectors, over "
        f"{summary.counts.measured:,} windows of {summary.counts.records:,} records.",
    )
    page.add("analysed", "What was analysed", *analysed(summary))
    page.caution = "Most tokens here are unknown ones." if summary.counts.mostly_unknown else ""
    page.add("heads", "What the heads do", sections.gates(page, summary))
    page.add("reach", "How far attention reaches", sections.reach(page, summary))
    page.add("regions", "Attention on regions", sections.groups(page, summary))
    page.add("cone", "How the cone opens and closes", sections.cone(page, summary))
    page.add("stream", "The information stream", sections.information_stream(page, summary))
    page.add("spectra", "Spectra", sections.spectra(page, summary))
    page.add("weights", "What the weights say", sections.weights(page, summary))
    page.add(
        "cohorts", "What sets cohorts apart", sections.cohorts(page, summary, cls_planes(summary))
    )
    page.caution = ""
    page.add("definitions", "Definitions", sections.definitions(summary))
    return page


def analysed(summary: Summary) -> list[Html]:
    """Counts, provenance, sources, flags, cohorts."""
    counts, attributes = summary.counts, summary.attributes
    parts = [tiles(sections.overview(summary)), *cautions(summary)]
    if "complete" in attributes and not attributes["complete"]:
        parts.append(
            paragraph(
                "The run has not finished: windows still to come are missing here.", kind="warn"
            )
        )
    entries: list[tuple[str, object]] = [
        (label, value)
        for label, value in (
            ("model", model_name(attributes)),
            ("weights", _nested(attributes, "model", "fingerprint")),
            ("tokenizer", attributes.get("tokenizer")),
            ("numbers", _numbers(attributes)),
            ("settings", attributes.get("settings")),
            ("bertgeom", attributes.get("bertgeom_version")),
        )
        if value
    ]
    entries = [(label, _plain(value)) for label, value in entries]
    entries += [
        (
            "tokens of a window",
            f"{counts.tokens_least:,} to {counts.tokens_most:,}, median "
            f"{counts.tokens_median:,.0f}",
        ),
        ("unknown tokens", f"{counts.unknown:,} ({counts.unknown_share})"),
        ("ambiguous bases", f"{counts.ambiguous:,}"),
        ("windows cut off", f"{counts.truncated:,} ({percent(counts.shares.truncated_windows)})"),
    ]
    parts.append(facts(entries))
    parts.append(_sources(attributes.get("sources")))
    flagged = [(name, FLAGS[name], f"{n:,}") for name, n in counts.flags.items() if n]
    if flagged:
        parts.append(table("Flagged windows.", ["flag", "meaning", "windows"], flagged, text=2))
    if counts.cohorts:
        rows = [(name, f"{n:,}") for name, n in counts.cohorts.items()]
        parts.append(table("Measured windows by cohort.", ["cohort", "windows"], rows))
    return parts


def cautions(summary: Summary) -> list[Html]:
    """What stands between the numbers and the genomes: unknown tokens, and bases cut off."""
    counts, parts = summary.counts, []
    if counts.mostly_unknown:
        parts.append(
            f"Unknown tokens: {counts.unknown_share}. What follows describes how the model "
            "treats its unknown token, and says little about these genomes: draw no conclusion "
            "about them."
        )
    elif counts.unknown:
        parts.append(
            f"Unknown tokens: {counts.unknown_share}; "
            f"{counts.flags.get('unknown', 0):,} windows are flagged for it "
            "(--exclude-flags unknown leaves them out)."
        )
    if counts.truncated:
        parts.append(
            f"{percent(counts.shares.truncated_windows)} of the windows were cut off at the "
            "model's longest input: their last bases are in no number here (--exclude-flags "
            "truncated leaves these windows out)."
        )
    if not counts.measured:
        parts.append("No window has statistics: there is nothing to show.")
    return [paragraph(text, kind="warn") for text in parts]


def _kept(store: str | Path | xarray.Dataset, dataset: xarray.Dataset) -> Kept | None:
    """What a store made with --reduce keeps; None of other stores."""
    if not isinstance(store, str | Path):
        return None
    settings = attribute(dataset, "settings", {})
    if not (isinstance(settings, dict) and settings.get("reduce")):
        return None
    if not attribute(dataset, "complete"):
        raise StoreError(
            f"{store}: expected a finished run, for its sums by cohort, found an unfinished one; "
            "give the bertgeom run command again"
        )
    return Kept(opened(store, "cohorts").load(), opened(store, "records").load())


def model_name(attributes: dict[str, Any]) -> str:
    """Name of the model as the store tells it."""
    found = attributes.get("model", "")
    return str(found.get("id", "")) if isinstance(found, dict) else str(found)


def cls_planes(summary: Summary) -> list[Plane]:
    """Principal planes of the first token by station, with clustering scores.

    Of stations between first and last, every second (third...) where there are more than nine.
    """
    if "cls" not in summary.sample or summary.sample.sizes["window"] < 3:
        return []
    names = summary.names("hidden_state")
    step = max(1, -(-len(names) // 9))
    last = len(names) - 1
    shown = [i for i in range(len(names)) if (last - i) % step == 0]
    scores = clustering_scores(summary)
    vectors = np.nan_to_num(np.asarray(summary.sample["cls"], dtype=np.float64))
    return [plane(names[i], vectors[:, i], scores[i]) for i in shown]


def clustering_scores(summary: Summary) -> list[dict[str, float] | None]:
    """Agreement of k-means clusters with the labels by hidden state, over the sample.

    None without scikit-learn or with fewer than two labels.
    """
    from importlib.util import find_spec

    from bertgeom.analysis.clustering import ClusterSettings, cluster_layers

    vectors = summary.sample["cls"]
    labelled = summary.codes >= 0
    k = len(np.unique(summary.codes[labelled]))
    if k < 2 or k >= labelled.sum() or find_spec("sklearn") is None:
        return [None] * vectors.sizes["hidden_state"]
    parts = min(50, int(labelled.sum()), vectors.sizes["hidden"])
    found = cluster_layers(
        vectors[labelled],
        summary.codes[labelled],
        ClusterSettings(n_components=parts, n_clusters=k),
    )
    names = ("homogeneity", "completeness", "adjusted_rand")
    return [
        {name: float(found[name][i]) for name in names}
        for i in range(vectors.sizes["hidden_state"])
    ]


def writable(out: str | Path, inputs: Sequence[str | Path] = ()) -> Path:
    """A file that can be written, and is no input.

    Raises:
        UsageError: it is a folder, or lies in a folder that does not exist.
    """
    target = Path(out)
    if target.is_dir():
        raise UsageError(f"expected a file to write the report to, found the folder {target}")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"expected a folder {target.parent} for the report, found none; make it")
    return check_target(target, kind=".html", inputs=inputs)


def opened(store: str | Path, group: str | None = None) -> xarray.Dataset:
    """A store or one of its groups; of an unfinished run the windows that are there.

    Raises:
        StoreError: none there, or of another format version.
    """
    from bertgeom.store.dataset import written_windows
    from bertgeom.store.zarr_io import UnfinishedStoreWarning
    from bertgeom.store.zarr_io import open as open_store

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnfinishedStoreWarning)
        found = open_store(store, group=group)
    return found if group is not None else written_windows(found)


def _sources(sources: object, most: int = 50) -> Html:
    if not isinstance(sources, list) or not sources:
        return Html()
    rows = [_source_row(entry) for entry in sources[:most]]
    parts = [table("Sources.", ["file", "SHA-256", "bytes"], rows, text=2)]
    if len(sources) > most:
        parts.append(paragraph(f"and {len(sources) - most:,} more files."))
    return join(parts)


def _source_row(entry: object) -> Sequence[object]:
    if not isinstance(entry, dict):
        return (str(entry), "", "")
    size, digest = entry.get("size"), str(entry.get("sha256", ""))
    return (
        entry.get("name", ""),
        codes([style.shown(digest, 20)]) if digest else "",
        f"{size:,}" if isinstance(size, int) else "",
    )


def _numbers(attributes: dict[str, Any]) -> str:
    return ", ".join(str(attributes[k]) for k in ("dtype", "device") if attributes.get(k))


def _nested(attributes: dict[str, Any], outer: str, inner: str) -> object:
    found = attributes.get(outer)
    return found.get(inner) if isinstance(found, dict) else None


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{k} {json.dumps(v) if isinstance(v, dict | list | bool | None.__class__) else v}"
            for k, v in sorted(value.items())
            if v is not None and v != []
        )
    return str(value)
