"""Does a store hold what it says? Completeness, checksums, and a sample against the oracle.

The oracle is the float64 reference of every kernel, fed with the queries, keys, values and
hidden states of the same model. What is left between the two is the rounding of the store's
precision, and single cells that lie on a threshold or a bin's edge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom import store
from bertgeom.config import check_same
from bertgeom.errors import StoreError
from bertgeom.layout import missing_value
from bertgeom.storage import Storage
from bertgeom.variables import LOST, Variable

from . import cohort_sums
from .compute import encode_windows, measure_batch
from .progress import status
from .rundir import BESIDE, FOLDER, RunFolder, beside_key
from .workplace import Workplace, load_model, model_identity, open_workplace

if TYPE_CHECKING:
    from rich.table import Table

    from bertgeom.encoder import Encoder

#: Largest difference to the oracle, absolute up to 1 and relative beyond, by compute type.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
#: The same for angles, in degrees: the arc cosine magnifies rounding where it is steep.
ANGLE_TOLERANCE = {"float32": 5e-2, "float16": 2.0, "bfloat16": 5.0}
#: Arrays with a threshold or bins: a cell on the edge may fall to either side, and moves its
#: number by a whole cell. This share of an array's numbers may be such.
_EDGES = {
    "attention_confident_mass",
    "attention_confident_count",
    "attention_value_entropy",
    "gate_mass",
    "gate",
    "attention_k90_median",
    "attention_k90_min",
    "stream_outlier_dims",
}
EDGE_SHARE = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.3}
#: Share of the pairs of a window that may lie on the edge of an angle bin.
PAIR_SHARE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}


@dataclass(frozen=True)
class Comparison:
    """One array against the oracle.

    Attributes:
        values: numbers compared. largest: largest difference beyond rounding of the type on
            disk, in units of max(1, |oracle|); for histograms the largest share of pairs in
            another bin.
        tolerance: what `largest` may be. outside: numbers beyond it; allowed: how many may be.
    """

    array: str
    values: int
    largest: float
    tolerance: float
    outside: int
    allowed: int

    @property
    def agrees(self) -> bool:
        return self.outside <= self.allowed


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        problems: one line each; what is missing, changed or superfluous.
        files: files whose checksums were compared.
        windows: numbers of the windows that were measured again.
    """

    store: str
    problems: tuple[str, ...]
    files: int
    windows: tuple[int, ...]
    comparisons: tuple[Comparison, ...]

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
        StoreError: if there is no store.
        MismatchError: if the model is not the one the store was made with.
    """
    url = str(path)
    state = status(url)
    place = open_workplace(url)
    problems = []
    if state.missing:
        problems.append(
            f"{state.partitions - state.partitions_done} of {state.partitions} partitions are "
            f"missing, the first {state.missing[0]}"
        )
    elif not state.complete:
        problems.append("all partitions are there, but the store was not finalised")
    files, damaged = check_files(place)
    if state.complete and not damaged:
        damaged = check_cohorts(place)
    problems += damaged
    chosen: list[int] = []
    comparisons: list[Comparison] = []
    if windows and not damaged:
        chosen = _sample(place, windows, seed)
    if chosen:
        encoder = _oracle(place, model)
        comparisons = compare(Workplace(place.storage, place.facts, encoder), chosen)
    return Report(url, tuple(problems), files, tuple(chosen), tuple(comparisons))


def check_files(place: Workplace) -> tuple[int, list[str]]:
    """Compare every chunk with its completion record: number of files, and problems."""
    n, problems = 0, []
    for group in place.folder.written_groups():
        record = place.folder.read_group(group)
        if record["fingerprint"] != place.fingerprint:
            problems.append(f"row group {group} was written by another run")
        problems += _check_group(place.storage, record["files"])
        beside = {f"{FOLDER}/{beside_key(group, k)}": record[k] for k in BESIDE if record[k]}
        problems += _check_group(place.storage, beside)
        n += len(record["files"]) + len(beside)
    inner = place.sequences.storage
    files = place.sequences.attributes["files"]
    problems += [f"sequences: {line}" for line in _check_group(inner, files)]
    return n + len(files), problems


def check_cohorts(place: Workplace) -> list[str]:
    """Compare the sums by cohort with those of the row groups, which their records vouch for."""
    expected = cohort_sums.merged(place, place.beside("sums"))
    try:
        found = store.open(place.storage.url, group=cohort_sums.GROUP).load()
    except (OSError, RuntimeError, ValueError, StoreError) as error:
        return [f"{cohort_sums.GROUP}: cannot be read: {error}"]
    return [
        f"{cohort_sums.GROUP}/{name} is not the sum of the row groups"
        for name in expected.variables
        if name not in found.variables or not found[name].equals(expected[name])
    ]


def _check_group(storage: Storage, files: Mapping[str, list[Any]]) -> list[str]:
    problems = []
    for key, (size, digest) in files.items():
        try:
            data = storage.read(key)
        except FileNotFoundError:
            problems.append(f"{key} is missing")
            continue
        if len(data) != size:
            problems.append(f"{key} has {len(data)} bytes in place of {size}")
        elif hashlib.sha256(data).hexdigest() != digest:
            problems.append(f"{key} was changed: another checksum")
    return problems


def _sample(place: Workplace, n: int, seed: int) -> list[int]:
    """Numbers of windows with statistics, spread over what is written, in order."""
    arrays = store.Arrays(place.storage, read_only=True)
    found: list[int] = []
    for group in RunFolder(place.storage).written_groups():
        first, stop = place.plan.group(group)
        flags = arrays.read("flags", first, stop)
        found += (first + np.flatnonzero(flags & LOST == 0)).tolist()
    rng = np.random.default_rng(seed)
    return sorted(rng.choice(found, min(n, len(found)), replace=False).tolist()) if found else []


def _oracle(place: Workplace, model: str | None) -> Encoder:
    """The model, with the reference implementation of every kernel."""
    import torch

    settings = place.settings
    if settings.device == "cuda" and not torch.cuda.is_available():
        settings = replace(settings, device="cpu", dtype="float32")
    encoder = load_model(model or place.facts["model"], settings, impl="reference")
    expected = place.facts["identity"]["model"]
    same = ("fingerprint", "tokenizer")
    found = model_identity(encoder)
    check_same(place.storage.url, {k: expected[k] for k in same}, {k: found[k] for k in same})
    return encoder


def compare(place: Workplace, windows: Iterable[int]) -> list[Comparison]:
    """Measure windows again and compare them with the store, array by array."""
    numbers = list(windows)
    parts = [place.plan.index.windows(i, i + 1) for i in numbers]
    oracle_settings = replace(place.measure_settings, impl="reference")
    measured = [
        measure_batch(place, encode_windows(place, part), part, oracle_settings) for part in parts
    ]
    arrays = store.Arrays(place.storage, read_only=True)
    found = []
    for variable in place.layout.variables:
        if variable.kind == "window" and variable.name not in ("n_tokens", "n_unknown"):
            continue
        old = np.concatenate([arrays.read(variable.name, i, i + 1) for i in numbers])
        new = np.concatenate([_as_stored(place, variable, m[variable.name]) for m in measured])
        found.append(_compare(place, variable, old, new))
    return found


def _as_stored(place: Workplace, variable: Variable, values: np.ndarray) -> np.ndarray:
    """Oracle values in the shape of the store: a shorter token dimension is filled up."""
    shape = place.layout.shape(variable)[1:]
    full = np.full((len(values), *shape), missing_value(variable), np.float64)
    full[(slice(None), *(slice(0, n) for n in values.shape[1:]))] = values
    return full


def _compare(place: Workplace, variable: Variable, old: np.ndarray, new: np.ndarray) -> Comparison:
    precision = place.facts["identity"]["model"]["dtype"]
    if variable.name == "angle_histogram":
        return _compare_histograms(old, new, PAIR_SHARE[precision])
    if variable.unit == "degree":
        tolerance = ANGLE_TOLERANCE[precision]
    else:
        tolerance = TOLERANCE[precision]
    old = old.astype(np.float64)
    scale = np.maximum(1.0, np.abs(new))
    with np.errstate(invalid="ignore"):
        difference = np.abs(old - new) - _rounding(place, variable) * np.abs(new)
    difference = np.where(np.isnan(old) & np.isnan(new), 0.0, difference / scale)
    difference = np.where(np.isnan(difference), np.inf, np.maximum(difference, 0.0))
    outside = int((difference > tolerance).sum())
    allowed = 0
    if variable.name in _EDGES:
        allowed = max(1, int(EDGE_SHARE[precision] * difference.size))
    return Comparison(
        variable.name,
        difference.size,
        float(difference.max(initial=0.0)),
        tolerance,
        outside,
        allowed,
    )


def _rounding(place: Workplace, variable: Variable) -> float:
    """Relative rounding of the type on disk and of --bitround."""
    if np.dtype(variable.dtype).kind != "f":
        return 0.0
    error = float(np.finfo(variable.dtype).eps) if variable.dtype == "float16" else 0.0
    bits = place.settings.bitround
    return error + (0.0 if bits is None else 2.0**-bits)


def _compare_histograms(old: np.ndarray, new: np.ndarray, tolerance: float) -> Comparison:
    """Pairs that moved to another bin; the totals must be equal."""
    old, new = old.astype(np.float64), new.astype(np.float64)
    moved = np.abs(np.cumsum(old - new, axis=-1)).max(axis=-1)
    total = new.sum(axis=-1)
    share = np.where(total > 0, moved / np.maximum(total, 1), moved)
    # One or two pairs of a short window are more than the share.
    bad = (share > tolerance) & (moved > 2) | (old.sum(axis=-1) != total)
    return Comparison(
        "angle_histogram", share.size, float(share.max(initial=0.0)), tolerance, int(bad.sum()), 0
    )


def report_table(report: Report) -> Table:
    """The comparisons for a terminal."""
    from rich.table import Table

    table = Table(
        title=f"{len(report.windows)} windows against the float64 oracle", title_justify="left"
    )
    table.add_column("array")
    for name in ("values", "largest", "tolerance", "beyond", "allowed", ""):
        table.add_column(name, justify="right")
    for c in report.comparisons:
        verdict = "ok" if c.agrees else "[bold red]differs[/bold red]"
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
