"""Small tables of a store for a terminal: gates per layer, cones per station."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import bertgeom
from bertgeom.variables import GATES

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Overview:
    """Means over all windows of a store.

    Attributes:
        gates: (layers, 8), mean gate spectrum over windows and heads.
        stations: names of the residual stations.
        cone_index, cone_resultant, mean_angle: (stations,); the angle in degrees, NaN at
            stations without pairwise angles.
        n_windows: rows of the store; n_tokens: mean tokens of a window.
    """

    gates: np.ndarray
    stations: tuple[str, ...]
    cone_index: np.ndarray
    cone_resultant: np.ndarray
    mean_angle: np.ndarray
    n_windows: int
    n_tokens: float


def overview(path: str | Path) -> Overview:
    """Read the means from a finished store."""
    dataset = bertgeom.open(path)
    cones = dataset[["cone_index", "cone_resultant"]].mean("window").compute()
    angles = dataset["angle_mean"].mean("window").compute()
    return Overview(
        dataset["gate_mass"].mean(("window", "head")).values,
        tuple(str(name) for name in dataset["station"].values),
        cones["cone_index"].values,
        cones["cone_resultant"].values,
        angles.reindex(angle_station=dataset["station"].values).values,
        dataset.sizes["window"],
        float(dataset["n_tokens"].mean()),
    )


def gate_table(found: Overview) -> Table:
    """Gates per layer: the share of attention that follows each pattern."""
    from rich.text import Text

    table = _table("attention by gate, mean over windows and heads")
    table.add_column("layer", justify="right")
    for name in GATES:
        table.add_column(name, justify="right")
    for layer, row in enumerate(found.gates):
        best = int(np.argmax(np.nan_to_num(row)))
        cells = [Text(f"{x:.3f}", style="bold" if i == best else "") for i, x in enumerate(row)]
        table.add_row(str(layer), *cells)
    return table


def cone_table(found: Overview) -> Table:
    """Cones along the stream: how narrow the bundle of token vectors is."""
    isotropic = found.n_tokens**0.5
    table = _table(f"cones, mean over windows; an isotropic cone index is about {isotropic:.1f}")
    table.add_column("station")
    for name in ("cone index", "index / tokens", "mean angle"):
        table.add_column(name, justify="right")
    for i, name in enumerate(found.stations):
        angle = found.mean_angle[i]
        table.add_row(
            name,
            f"{found.cone_index[i]:.2f}",
            f"{found.cone_resultant[i]:.3f}",
            "" if np.isnan(angle) else f"{angle:.1f} deg",
        )
    return table


def _table(title: str) -> Table:
    """An empty table that fits 80 columns."""
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        min_width=len(title),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
