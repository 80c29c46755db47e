"""Does a store hold what it says? Completeness, checksums, and a sample against the oracle.

Without a sample of windows neither the model nor torch is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertgeom.advisories import advisories
from bertgeom.errors import StoreError
from bertgeom.pipelines.context.run_context import RunContext, open_context, reopened
from bertgeom.pipelines.partition import cohort_sums
from bertgeom.pipelines.run.inventory import Inspection, inspect
from bertgeom.pipelines.run.progress import status
from bertgeom.sequences import shards
from bertgeom.store import root_file
from bertgeom.store import zarr_io as store
from bertgeom.store.storage import Storage, shown_url
from bertgeom.variables import LOST

if TYPE_CHECKING:
    from rich.table import Table

    from bertgeom.pipelines.run.oracle import Comparison


_UNLISTED = (
    "a store of format 1.0 has no list of its files: coordinates, weights and metadata cannot be "
    "checked; bertgeom verify --repair, or the run command, writes one"
)


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        problems: one line each; what is missing, changed or superfluous, and faults of the version
            that wrote the store which may have changed its numbers.
        files: files whose checksums were compared.
        windows: numbers of the windows that were measured again.
        notes: what is said for information, one line each; no fault of the store.
    """

    store: str
    problems: tuple[str, ...]
    files: int
    windows: tuple[int, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return not self.problems and all(c.agrees for c in self.comparisons)


def verify(
    path: str | Path, *, windows: int = 4, seed: int = 0, model: str | None = None
) -> Report:
    """Check a store, finished or not.

    Args:
        path: the store. windows: how many to measure again with the oracle; 0 for none.
        seed: which ones. model: where the model is now, if it was moved.

    Raises:
        StoreError: if there is no store, or what the run is cannot be read.
        MismatchError: if the model is not the one the store was made with.

    Example:
        >>> from bertgeom.pipelines.run.verify import verify
        >>> verify("run.zarr", windows=0).problems
        ()
    """
    url = str(path)
    context = open_context(url)
    found = inspect(context)
    problems = [str(damage) for damage in found.damages]
    problems += _elsewhere(context)
    sound = not problems
    notes: list[str] = []
    try:
        problems += _missing(url, found)
        if found.complete and sound and not found.listed:
            notes.append(_UNLISTED)
            problems += check_cohorts(context)
    except StoreError as error:
        problems += [] if problems else [str(error)]
    if sound:
        problems += _advisories(context)
    chosen: list[int] = []
    comparisons: list[Comparison] = []
    if windows and sound:
        chosen = _sample(context, windows, seed)
    if chosen:
        from bertgeom.pipelines.run.oracle import compare

        oracle = reopened(context, model, elsewhere=True, impl="reference")
        comparisons = compare(oracle, chosen)
    return Report(
        context.storage.shown,
        tuple(problems),
        found.files,
        tuple(chosen),
        tuple(comparisons),
        tuple(notes),
    )


def _missing(url: str, found: Inspection) -> list[str]:
    """What was not measured, or not finalised."""
    if found.complete and found.damages:
        return []
    state = status(url)
    if state.missing:
        return [
            f"{state.partitions - state.partitions_done} of {state.partitions} partitions are "
            f"missing, the first {state.missing[0]}"
        ]
    return [] if state.complete else ["all partitions are there, but the store was not finalised"]


def _elsewhere(context: RunContext) -> list[str]:
    """What is wrong with shards that lie in a store of their own."""
    where = context.facts.sequences
    return (
        [] if where is None else [f"{shown_url(where)}: {x}" for x in shards.damage(Storage(where))]
    )


def _advisories(context: RunContext) -> list[str]:
    """Known faults of the version that wrote the row groups that are done."""
    arrays = store.Arrays(context.storage, read_only=True)
    done = [arrays.read("n_tokens", *context.plan.group(g)) for g in sorted(context.records()[0])]
    n_tokens = np.concatenate([np.zeros(0, np.uint32), *done])
    return advisories(root_file.check_format(context.storage, root_file.FORMAT), n_tokens)


def check_cohorts(context: RunContext) -> list[str]:
    """Compare the sums by cohort with those of the row groups, which their records vouch for."""
    expected = cohort_sums.merged(context, context.sidecars("sums"))
    try:
        found = store.open(context.storage.url, group=cohort_sums.GROUP).load()
    except (OSError, RuntimeError, ValueError, StoreError) as error:
        return [f"{cohort_sums.GROUP}: cannot be read: {error}"]
    return [
        f"{cohort_sums.GROUP}/{name} is not the sum of the row groups"
        for name in expected.variables
        if name not in found.variables or not found[name].equals(expected[name])
    ]


def _sample(context: RunContext, n: int, seed: int) -> list[int]:
    """Numbers of windows with statistics, spread over what is written, in order."""
    arrays = store.Arrays(context.storage, read_only=True)
    found: list[int] = []
    for group in sorted(context.records()[0]):
        first, stop = context.plan.group(group)
        flags = arrays.read("flags", first, stop)
        found += (first + np.flatnonzero(flags & LOST == 0)).tolist()
    rng = np.random.default_rng(seed)
    return sorted(rng.choice(found, min(n, len(found)), replace=False).tolist()) if found else []


def report_table(report: Report) -> Table:
    """The comparisons for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{len(report.windows)} windows against the float64 oracle", title_justify="left"
    )
    table.add_column("array")
    for name in ("values", "largest", "tolerance", "beyond", "allowed", ""):
        table.add_column(name, justify="right")
    for c in report.comparisons:
        verdict = "ok" if c.agrees else Text("differs", style="bold red")
        table.add_row(
            c.array,
            str(c.values),
            f"{c.largest:.2g}",
            f"{c.tolerance:.0e}",
            str(c.outside),
            str(c.allowed),
            verdict,
        )
    return table
