"""Angles of sets of pairs, and what a comparison gives: a dataset, JSON, a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.errors import UsageError
from bertgeom.pipelines.catalogue.results import tsv_line, write_dataset
from bertgeom.store.files import write_text

if TYPE_CHECKING:
    import xarray

    from bertgeom.pipelines.catalogue.angle_job import Job


@dataclass(frozen=True)
class Angles:
    """Angles of a set of pairs; the sets of two `Angles` to merge are disjoint.

    Attributes:
        histogram: (bins,) int64.
        n_pairs: number of pairs.
        mean, m2: degrees; sum of squared deviations from the mean.
        least, largest: degrees.
    """

    histogram: np.ndarray
    n_pairs: int = 0
    mean: float = 0.0
    m2: float = 0.0
    least: float = 180.0
    largest: float = 0.0

    def merge(self, other: Angles) -> Angles:
        """Angles of both sets (Chan et al. 1983)."""
        n = self.n_pairs + other.n_pairs
        if other.n_pairs == 0 or self.n_pairs == 0:
            return self if other.n_pairs == 0 else other
        delta = other.mean - self.mean
        share = other.n_pairs / n
        return Angles(
            self.histogram + other.histogram,
            n,
            self.mean + delta * share,
            self.m2 + other.m2 + delta**2 * self.n_pairs * share,
            min(self.least, other.least),
            max(self.largest, other.largest),
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "histogram": self.histogram.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Angles:
        return cls(**{**values, "histogram": np.array(values["histogram"], dtype=np.int64)})


def write_result(result: xarray.Dataset, path: str | Path) -> Path:
    """Write the result of `finalise` as `.json`, `.tsv` (one line a pair of cohorts and bin) or
    `.zarr`.

    Raises:
        UsageError: for another suffix.
    """
    path = Path(path)
    if path.suffix == ".zarr":
        return write_dataset(result, path)
    if path.suffix == ".json":
        text = json.dumps(result_as_json(result), indent=2) + "\n"
    elif path.suffix == ".tsv":
        text = "".join(f"{tsv_line(line)}\n" for line in _as_lines(result))
    else:
        raise UsageError(f"expected a file .json, .tsv or .zarr, found {path.name}")
    write_text(path, text)
    return path


def as_dataset(job: Job, pairs: Mapping[tuple[int, int], Angles], total: Angles) -> xarray.Dataset:
    """The result of a comparison, see `bertgeom.pipelines.catalogue.angles.finalise`.

    Args:
        job: the comparison.
        pairs: angles of the pairs of cohorts (a, b), a <= b. total: of all pairs.
    """
    import xarray

    n, bins = len(job.cohorts), job.settings.bins
    both = ("cohort", "other_cohort")
    histogram = np.zeros((n, n, bins), np.int64)
    rows: dict[str, np.ndarray] = {name: np.full((n, n), np.nan) for name in _SUMMARY}
    rows["n_pairs"] = np.zeros((n, n), np.int64)
    for (a, b), angles in pairs.items():
        histogram[a, b] = histogram[b, a] = angles.histogram
        for name, value in _summary(angles).items():
            rows[name][a, b] = rows[name][b, a] = value
    width = 180 / bins
    arrays: dict[str, Any] = {
        "angle_histogram": (
            (*both, "angle"),
            histogram,
            {"units": "1", "description": "pairs of windows by angle"},
        )
    }
    for name, (unit, text) in _SUMMARY.items():
        attributes = {"units": unit, "description": f"{text} of two cohorts"}
        arrays[name] = (both, rows[name], attributes)
        attributes = {"units": unit, "description": f"{text} of the whole database"}
        arrays[f"all_{name}"] = ((), _summary(total)[name], attributes)
    text = "pairs of windows of the whole database by angle"
    arrays["all_angle_histogram"] = (
        ("angle",),
        total.histogram,
        {"units": "1", "description": text},
    )
    arrays["n_windows"] = ("cohort", list(job.sizes), {"units": "1", "description": "windows"})
    without = [size - valid for size, valid in zip(job.sizes, job.valid, strict=True)]
    text = "windows whose vector is missing or zero; they are in no pair"
    arrays["n_without_angle"] = ("cohort", without, {"units": "1", "description": text})
    return xarray.Dataset(
        arrays,
        coords={
            "cohort": list(job.cohorts),
            "other_cohort": list(job.cohorts),
            "angle": ("angle", (np.arange(bins) + 0.5) * width, {"units": "degree"}),
        },
        attrs={
            "vectors": job.settings.vectors,
            "hidden_state": str(job.settings.hidden_state),
            "fingerprint": job.fingerprint,
        },
    )


_SUMMARY = {
    "n_pairs": ("1", "number of pairs of windows"),
    "angle_mean": ("degree", "mean angle between windows"),
    "angle_std": ("degree", "population standard deviation of the angles between windows"),
    "angle_min": ("degree", "smallest angle between windows"),
    "angle_max": ("degree", "largest angle between windows"),
}


def _summary(angles: Angles) -> dict[str, float]:
    n = angles.n_pairs
    nothing = float("nan")
    return {
        "n_pairs": n,
        "angle_mean": angles.mean if n else nothing,
        "angle_std": (angles.m2 / n) ** 0.5 if n else nothing,
        "angle_min": angles.least if n else nothing,
        "angle_max": angles.largest if n else nothing,
    }


def result_as_json(result: xarray.Dataset) -> dict[str, Any]:
    names = result["cohort"].values.tolist()
    pairs = []
    for a, b in combinations_with_replacement(range(len(names)), 2):
        one = result.isel(cohort=a, other_cohort=b)
        facts = {name: _number(one[name]) for name in _SUMMARY}
        histogram = one["angle_histogram"].values.tolist()
        pairs.append(
            {"cohort": names[a], "other_cohort": names[b], **facts} | {"histogram": histogram}
        )
    return {
        **{str(key): value for key, value in result.attrs.items()},
        "angle_bin_centres": result["angle"].values.tolist(),
        "cohorts": [
            {
                "cohort": name,
                "n_windows": int(result["n_windows"][i]),
                "n_without_angle": int(result["n_without_angle"][i]),
            }
            for i, name in enumerate(names)
        ],
        "all": {name: _number(result[f"all_{name}"]) for name in _SUMMARY}
        | {"histogram": result["all_angle_histogram"].values.tolist()},
        "pairs": pairs,
    }


def _number(x: xarray.DataArray) -> float | int | None:
    value = x.item()
    return None if value != value else value


def _as_lines(result: xarray.Dataset) -> Iterable[tuple[object, ...]]:
    names = result["cohort"].values.tolist()
    width = 180 / result.sizes["angle"]
    yield "cohort", "other_cohort", "angle_low", "angle_high", "pairs"
    for a, b in combinations_with_replacement(range(len(names)), 2):
        counts = result["angle_histogram"].values[a, b]
        for i, count in enumerate(counts.tolist()):
            yield names[a], names[b], f"{i * width:g}", f"{(i + 1) * width:g}", count
