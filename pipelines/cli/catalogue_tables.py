"""Results of the catalogue as small tables for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bertgeom.pipelines.cli.output import plain

if TYPE_CHECKING:
    import numpy as np
    import xarray
    from rich.table import Table


def weight_table(result: xarray.Dataset) -> Table:
    columns = {
        "symmetry": result["weight_symmetry"],
        "directionality": result["weight_directionality"],
        "subspace cosine": result["weight_subspace_cosines"].mean("component"),
        "eigenvalues > 0": result["weight_eigen_positive"] / result.sizes["component"],
        "effective rank": result["weight_effective_rank"],
    }
    rows = {name: x.mean("head").values for name, x in columns.items()}
    return _table("weights, mean over heads", "layer", result["layer"].values, rows)


def spectra_table(result: xarray.Dataset) -> Table:
    over = ("sample", "head")
    attention = result.sel(spectrum="attention")
    columns = {
        "rank of A": attention["spectrum_rank"],
        "spectral entropy of A": attention["spectral_entropy"],
        "of Q K^T": result["spectral_entropy"].sel(spectrum="logit"),
        "paper's von Neumann": result["paper_von_neumann_entropy"],
        "paper's Shannon": result["paper_shannon_entropy"],
    }
    rows = {name: x.mean(over).values for name, x in columns.items()}
    title = f"spectra, mean over heads of {result.sizes['sample']} windows"
    return _table(title, "layer", range(result.sizes["layer"]), rows)


def rollout_table(result: xarray.Dataset) -> Table:
    """The tokens that each window's rollout rests on most."""
    from rich.table import Table

    table = Table(title="rollout, five largest shares", title_justify="left")
    for name in ("window", "record", "token: share (bases)"):
        table.add_column(name)
    for i in range(result.sizes["sample"]):
        one = result.isel(sample=i)
        values = one["rollout"].fillna(-1).values
        cells = []
        for j in values.argsort()[::-1][:5]:
            start, stop = (int(one[f"token_{end}"].values[j]) for end in ("start", "stop"))
            place = f" ({start}-{stop})" if start >= 0 else ""
            cells.append(f"{j}: {values[j]:.3f}{place}")
        record = plain(one["record_id"].values)
        table.add_row(str(int(one["window_index"])), record, ", ".join(cells))
    return table


def region_table(result: xarray.Dataset) -> Table:

    def mean(name: str) -> np.ndarray:
        array = result[name]
        return array.mean([dim for dim in array.dims if dim != "group"]).values

    parts = ("mass", "relative_mass", "confident_mass", "confident_share")
    rows = {"token share": mean("token_share")}
    rows |= {part.replace("_", " "): mean(f"region_{part}") for part in parts}
    title = f"attention on regions, mean over {result.sizes['sample']} windows, layers and heads"
    return _table(title, "region", result["group"].values, rows)


def cohort_table(result: xarray.Dataset) -> Table:
    """Means over layers, heads and whatever else of some statistics."""
    shown = ("attention_entropy", "attention_distance", "attention_special", "cone_resultant")
    found = [name for name in shown if f"{name}_mean" in result]
    found = found or [str(n)[:-5] for n in result.data_vars if str(n).endswith("_mean")][:4]
    rows = {
        name: result[f"{name}_mean"].mean([d for d in result[f"{name}_mean"].dims if d != "cohort"])
        for name in found
    }
    counts = result[f"{found[0]}_count"]
    n = counts.max([d for d in counts.dims if d != "cohort"])
    return _table("means by cohort", "cohort", result["cohort"].values, {"n": n, **rows})


def contrast_table(result: xarray.Dataset) -> Table:
    from rich.table import Table

    from bertgeom.analysis import contrasts

    first, second = result.attrs["first"], result.attrs["second"]
    unit = f", {result.attrs['unit']}s" if "unit" in result.attrs else ""
    title = f"{plain(first)} against {plain(second)}{unit}, strongest heads"
    table = Table(title=title, title_justify="left")
    for name in ("statistic", "where", "difference", "Cohen's d", "q"):
        table.add_column(name)
    numbers = {"difference", "cohens_d", "t", "df", "p", "q"}
    seen: dict[str, int] = {}
    for row in contrasts.contrast_table(result):
        name = str(row["statistic"])
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 3:
            continue
        place = " ".join(f"{k} {v}" for k, v in row.items() if k not in numbers | {"statistic"})
        values = [_number(row[k], ".3g") for k in ("difference", "cohens_d", "q")]
        table.add_row(name, place, *values)
    return table


def cluster_table(result: xarray.Dataset) -> Table:
    names = ("homogeneity", "completeness", "adjusted_rand")
    named = "hidden_state" in result.coords
    states: Any = result["hidden_state"].values if named else range(result.sizes["hidden_state"])
    title = f"{result.attrs['n_clusters']} clusters of {result.attrs['n_windows']} windows"
    return _table(title, "hidden state", states, {n: result[n].values for n in names})


def distribution_table(result: xarray.Dataset) -> Table:
    one = result.isel(cohort=0)
    names = ("mean", "variance", "skewness", "kurtosis", "jarque_bera_per_entry")
    rows = {name.replace("_", " "): one[f"stream_{name}"].values for name in names}
    title = f"entries of the token vectors, cohort {plain(result['cohort'].values[0])}"
    return _table(title, "station", result["station"].values, rows)


def angle_table(result: xarray.Dataset) -> Table:
    from rich.table import Table

    table = Table(title="angles between windows, degrees", title_justify="left")
    for name in ("cohort", "other cohort", "pairs", "mean", "std", "least", "largest"):
        table.add_column(name)
    names = result["cohort"].values.tolist()
    parts = ("angle_mean", "angle_std", "angle_min", "angle_max")
    for a, first in enumerate(names):
        for b in range(a, len(names)):
            one = result.isel(cohort=a, other_cohort=b)
            values = [_number(one[part], ".2f") for part in parts]
            table.add_row(plain(first), plain(names[b]), f"{int(one['n_pairs']):,}", *values)
    values = [_number(result[f"all_{part}"], ".2f") for part in parts]
    table.add_row("all", "all", f"{int(result['all_n_pairs']):,}", *values)
    return table


def _table(title: str, first: str, names: Any, columns: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in (first, *columns):
        table.add_column(name, justify="right")
    for i, name in enumerate(names):
        table.add_row(plain(name), *(_number(values[i], ".4g") for values in columns.values()))
    return table


def _number(value: Any, form: str) -> str:
    """A number for a cell, empty where it is missing."""
    number = float(value)
    return "" if math.isnan(number) else format(number, form)
