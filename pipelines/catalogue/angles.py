"""Angles between all pairs of windows of a database, within and between cohorts.

M windows have M (M - 1) / 2 pairs: 5e11 for a million. They are never held as a matrix.

    prepare   one pass over the store: the vectors, sorted by cohort, in one flat file
    run_row   tile row i against the tiles j >= i; its completion record is renamed into place
    finalise  sums the records; refuses a total that is not M (M - 1) / 2

              tile  0   1   2   3            tiles never straddle two cohorts
    row 0         \\### ### ### ###           \\  pairs within the tile, each once
    row 1             \\### ### ###           ### all pairs of two tiles
    row 2                 \\### ###

Each step is idempotent and each row independent of the others: rows may be run by several
processes or machines that share the work folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertgeom.errors import DamagedError, MismatchError, StoreError, UsageError
from bertgeom.pipelines.catalogue.angle_job import AngleSettings, Job, Tile
from bertgeom.pipelines.catalogue.angle_results import Angles, as_dataset
from bertgeom.store.dataset import excluded, label_codes, label_names, without_flagged
from bertgeom.store.manifest import read_facts, sealed
from bertgeom.store.storage import PARTIAL, Storage, explain_write_errors

if TYPE_CHECKING:
    import torch
    import xarray

#: Name of the cohort of windows without a label, and of all windows if none has one.
UNLABELLED, ALL = "unlabelled", "all"
#: Within and between more cohorts than this, histograms would outgrow the database.
MAX_COHORTS = 256
_JOB, _VECTORS = "angles.json", "vectors.bin"
_STEP = 2048

#: Called with the number of pairs done and of all pairs.
Progress = Callable[[int, int], None]


def database_angles(
    dataset: xarray.Dataset,
    work: str | Path,
    *,
    codes: np.ndarray | None = None,
    cohorts: Sequence[str] | None = None,
    settings: AngleSettings | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> xarray.Dataset:
    """Angles between the window vectors of a store; resumes what `work` already holds.

    Args:
        dataset: a store with `--keep cls`, as `bertgeom.open` gives it.
        work: folder for vectors and completion records; may be deleted afterwards.
        codes: (windows,) cohort of every window, -1 without; default the store's labels.
        cohorts: their names; default the store's.
        settings: see `AngleSettings`.
        workers: processes; with one the kernel uses all cores of this process.
        progress: told of pairs done.

    Returns:
        See `finalise`.

    Raises:
        UsageError, StoreError, MismatchError: see `prepare` and `finalise`.

    Example:
        >>> import bertgeom
        >>> from bertgeom.pipelines.catalogue.angles import database_angles
        >>> found = database_angles(bertgeom.open("run.zarr"), "work")
        >>> int(found.all_n_pairs)  # of 8 windows
        28
    """
    job = prepare(dataset, work, codes=codes, cohorts=cohorts, settings=settings)
    total = job.pairs_of_rows(range(len(job.tiles)))
    missing = job.missing()
    count = total - job.pairs_of_rows(missing)
    if progress:
        progress(count, total)
    for row in _run_rows(job, missing, workers):
        count += job.pairs_of_rows([row])
        if progress:
            progress(count, total)
    return finalise(job)


def prepare(
    dataset: xarray.Dataset,
    work: str | Path,
    *,
    codes: np.ndarray | None = None,
    cohorts: Sequence[str] | None = None,
    settings: AngleSettings | None = None,
) -> Job:
    """Write the vectors, sorted by cohort, unless `work` holds them already.

    Memory: a few thousand vectors. Disk: one copy of the vectors in the store's type.

    Raises:
        StoreError: if the store lacks the vectors, or `work` cannot be written.
        UsageError: for an unknown hidden state, codes that do not fit, too many cohorts.
        MismatchError: if `work` holds another comparison.
    """
    settings = settings or AngleSettings()
    if settings.exclude_flags:
        kept = ~excluded(dataset, settings.exclude_flags)
        codes = None if codes is None else np.asarray(codes)[kept]
        dataset = without_flagged(dataset, settings.exclude_flags)
    vectors = _select(dataset, settings)
    codes, names = _cohorts(dataset, codes, cohorts)
    job = _describe(dataset, vectors, codes, names, settings, Path(work))
    known = _read_job(Path(work))
    if known is not None:
        if known.fingerprint != job.fingerprint:
            raise MismatchError(
                f"{work}: expected to resume these vectors, cohorts and settings, found those of "
                f"another comparison ({_difference(known, job)}); choose another work folder or "
                "delete this one"
            )
        if known.missing():
            _check_vectors(known)
        return replace(known, settings=job.settings)
    with explain_write_errors(work, f"vectors to {work}"):
        valid = _write_vectors(vectors, codes, job)
        job = replace(job, valid=valid, sha256=_digest(Path(work) / _VECTORS))
        job.storage.write(_JOB, sealed(asdict(job)))
    return job


def run_row(job: Job, row: int) -> None:
    """Compare tile `row` with itself and all later tiles, and record the result."""
    import torch

    vectors = _open_vectors(job)
    device = _device(job.settings)
    first = job.tiles[row]
    x = _load(vectors, first, device)
    found: dict[int, Angles] = {}
    for other in job.tiles[row:]:
        same = other is first
        y = None if same else _load(vectors, other, device)
        with torch.inference_mode():
            angles = _angles_of(x, y, job.settings)
        before = found.get(other.cohort, Angles(np.zeros(job.settings.bins, np.int64)))
        found[other.cohort] = before.merge(angles)
    record = {
        "fingerprint": job.fingerprint,
        "cohort": first.cohort,
        "angles": {str(cohort): angles.to_json() for cohort, angles in found.items()},
    }
    with explain_write_errors(job.folder, f"row {row} to {job.folder}"):
        job.storage.write(f"rows/{row:06d}.json", sealed(record, indent=None))


def finalise(job: Job) -> xarray.Dataset:
    """Histograms within and between cohorts, and over all pairs, from the rows' records.

    Returns:
        Dataset with dimensions cohort, other_cohort (symmetric) and angle: `angle_histogram`
        (int64), `n_pairs`, `angle_mean`, `angle_std`, `angle_min`, `angle_max` (degrees); the
        same with the prefix `all_` over all pairs; `n_windows` (cohort), and
        `n_without_angle`: windows whose vector is missing or zero.

    Raises:
        StoreError: if rows are missing or damaged, or totals do not add up.
    """
    missing = job.missing()
    if missing:
        raise StoreError(
            f"{job.folder}: expected {len(job.tiles)} rows, found {len(missing)} missing "
            f"(first {missing[0]}); run them"
        )
    empty = Angles(np.zeros(job.settings.bins, np.int64))
    pairs = dict.fromkeys(combinations_with_replacement(range(len(job.cohorts)), 2), empty)
    for row in range(len(job.tiles)):
        cohort, found = _read_row(job, row)
        for other, angles in found.items():
            pairs[cohort, other] = pairs[cohort, other].merge(angles)
    total = empty
    for (a, b), angles in pairs.items():
        n = job.valid[a] * (job.valid[a] - 1) // 2 if a == b else job.valid[a] * job.valid[b]
        if not angles.n_pairs == n == int(angles.histogram.sum()):
            raise StoreError(
                f"{job.folder}: expected {n} pairs of {job.cohorts[a]} and {job.cohorts[b]}, "
                f"found {angles.n_pairs} with {int(angles.histogram.sum())} counted; "
                "delete the work folder and start again"
            )
        total = total.merge(angles)
    return as_dataset(job, pairs, total)


def _run_rows(job: Job, rows: Sequence[int], workers: int) -> Iterable[int]:
    if workers <= 1 or len(rows) <= 1:
        for row in rows:
            run_row(job, row)
            yield row
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start_worker, initargs=(threads,)
    ) as pool:
        running = {pool.submit(run_row, job, row): row for row in rows}
        for future in as_completed(running):
            future.result()
            yield running[future]


def _start_worker(threads: int) -> None:
    from bertgeom.pipelines.context.run_context import set_threads

    set_threads(threads)


def _angles_of(x: torch.Tensor, y: torch.Tensor | None, settings: AngleSettings) -> Angles:
    from bertgeom.kernels import pairwise_angle_histogram

    found = pairwise_angle_histogram(x, y, bins=settings.bins, impl=settings.impl)
    values = {name: value.reshape(-1) for name, value in found.items()}
    n = int(values["n_pairs"])
    histogram = found["angle_histogram"].reshape(-1).cpu().numpy().astype(np.int64)
    if n == 0:
        return Angles(histogram)
    return Angles(
        histogram,
        n,
        float(values["angle_mean"]),
        float(values["angle_std"]) ** 2 * n,
        float(values["angle_min"]),
        float(values["angle_max"]),
    )


def _select(dataset: xarray.Dataset, settings: AngleSettings) -> xarray.DataArray:
    """The vectors (window, hidden), still on disk."""
    if settings.vectors not in dataset:
        raise StoreError(
            f"expected a store with the array {settings.vectors!r}, found none; run with --keep cls"
        )
    vectors = dataset[settings.vectors]
    if "hidden_state" not in vectors.dims:
        return vectors
    state = settings.hidden_state
    names = [str(name) for name in vectors["hidden_state"].values]
    if isinstance(state, str) and state in names:
        return vectors.isel(hidden_state=names.index(state))
    position = int(state) if str(state).lstrip("-").isdigit() else None
    if position is None or not -len(names) <= position < len(names):
        raise UsageError(
            f"expected a hidden state out of {', '.join(names)} or a position from "
            f"{-len(names)} to {len(names) - 1}, found {state!r}"
        )
    return vectors.isel(hidden_state=position)


def _cohorts(
    dataset: xarray.Dataset, codes: np.ndarray | None, cohorts: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes from 0 for every window, and names; the windows without a label come last."""
    n = dataset.sizes["window"]
    if codes is None:
        codes = label_codes(dataset)
        cohorts = label_names(dataset) if cohorts is None else cohorts
    codes = np.asarray(codes).astype(np.int64)
    if codes.shape != (n,):
        raise UsageError(f"expected {n} cohort codes, found {codes.shape}")
    names = [str(name) for name in cohorts or ()]
    names += [f"label {i}" for i in range(len(names), int(codes.max(initial=-1)) + 1)]
    if (codes < 0).any():
        rest = UNLABELLED if (codes >= 0).any() else ALL
        names.append(f"({rest})" if rest in names else rest)
    codes = np.where(codes < 0, len(names) - 1, codes)
    used = np.unique(codes)
    if len(used) > MAX_COHORTS:
        raise UsageError(
            f"expected at most {MAX_COHORTS} cohorts, found {len(used)}; give coarser labels"
        )
    return np.searchsorted(used, codes), tuple(names[i] for i in used)


def _describe(
    dataset: xarray.Dataset,
    vectors: xarray.DataArray,
    codes: np.ndarray,
    names: tuple[str, ...],
    settings: AngleSettings,
    work: Path,
) -> Job:
    sizes = tuple(int(x) for x in np.bincount(codes, minlength=len(names)))
    hidden = vectors.sizes["hidden"]
    state: str | int = ""
    if "hidden_state" in vectors.coords:
        state = str(vectors.coords["hidden_state"].values)
    settings = replace(settings, hidden_state=state)
    identity = {
        "store": dataset.attrs.get("fingerprint", ""),
        "vectors": [settings.vectors, state, list(vectors.shape), str(vectors.dtype)],
        "cohorts": names,
        "codes": hashlib.sha256(codes.astype("<i8").tobytes()).hexdigest(),
        "tile": settings.tile,
        "bins": settings.bins,
    }
    if settings.exclude_flags:
        numbers = np.asarray(dataset["window"]).astype("<i8")
        identity["windows"] = hashlib.sha256(numbers.tobytes()).hexdigest()
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    dtype = str(vectors.dtype)
    return Job(str(work), fingerprint, names, sizes, sizes, hidden, dtype, settings)


def _write_vectors(vectors: xarray.DataArray, codes: np.ndarray, job: Job) -> tuple[int, ...]:
    """Write the file; returns how many vectors of each cohort have angles."""
    work = Path(job.folder)
    work.mkdir(parents=True, exist_ok=True)
    place = np.empty(len(codes), dtype=np.int64)
    place[np.argsort(codes, kind="stable")] = np.arange(len(codes))
    valid = np.zeros(len(job.cohorts), dtype=np.int64)
    draft = work / f"{_VECTORS}.{os.getpid()}{PARTIAL}"
    shape = (max(len(codes), 1), job.hidden)
    file = np.memmap(draft, dtype=job.dtype, mode="w+", shape=shape)
    for start in range(0, len(codes), _STEP):
        here = slice(start, start + _STEP)
        rows = vectors[here].values
        good = np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
        # The kernels leave zero vectors out.
        file[place[here]] = np.where(good[:, None], rows, 0)
        valid += np.bincount(codes[here][good], minlength=len(valid))
    file.flush()
    del file
    os.replace(draft, work / _VECTORS)
    return tuple(valid.tolist())


def _open_vectors(job: Job) -> np.memmap:
    shape = (sum(job.sizes), job.hidden)
    return np.memmap(Path(job.folder) / _VECTORS, dtype=job.dtype, mode="r", shape=shape)


def _load(vectors: np.memmap, tile: Tile, device: str) -> torch.Tensor:
    import torch

    return torch.from_numpy(vectors[tile.start : tile.stop].astype(np.float32)).to(device)


def _device(settings: AngleSettings) -> str:
    import torch

    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _read_job(work: Path) -> Job | None:
    storage = Storage(str(work))
    if not storage.exists(_JOB):
        return None
    remedy = "delete the work folder and start again"
    facts = read_facts(storage, _JOB, "what this comparison is", remedy)
    try:
        for name in ("cohorts", "sizes", "valid"):
            facts[name] = tuple(facts[name])
        settings = AngleSettings(**facts["settings"])
        return Job(**{**facts, "folder": str(work), "settings": settings})
    except (KeyError, TypeError) as error:
        raise DamagedError(
            f"{work}/{_JOB}: expected what this comparison is, found other contents "
            f"({type(error).__name__}: {error}); {remedy}"
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_vectors(job: Job) -> None:
    """Compare the file of vectors with its checksum.

    Raises:
        DamagedError: if it is missing or another.
    """
    path = Path(job.folder) / _VECTORS
    there = path.is_file()
    if there and job.sha256 in ("", _digest(path)):
        return
    raise DamagedError(
        f"{path}: expected the vectors of this comparison, found "
        f"{'a damaged file' if there else 'no such file'}; delete the work folder and start again"
    )


def _read_row(job: Job, row: int) -> tuple[int, dict[int, Angles]]:
    key, what = f"rows/{row:06d}.json", "the record of a row of this comparison"
    record = read_facts(job.storage, key, what, "delete it and start again")
    try:
        if record["fingerprint"] != job.fingerprint:
            raise ValueError("fingerprint")
        angles = {int(k): Angles.from_json(v) for k, v in record["angles"].items()}
        return record["cohort"], angles
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{job.folder}/{key}: expected {what}, found a damaged one ({error}); delete it and "
            "start again"
        ) from error


def _difference(known: Job, job: Job) -> str:
    names = ("cohorts", "sizes", "hidden", "dtype", "settings")
    changed = [name for name in names if getattr(known, name) != getattr(job, name)]
    return ", ".join(changed) or "another store or other labels"
