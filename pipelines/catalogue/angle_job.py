"""A comparison of all windows: what to compare, and how it is cut into tiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bertgeom.errors import UsageError
from bertgeom.store.dataset import check_flags
from bertgeom.store.storage import Storage


@dataclass(frozen=True)
class AngleSettings:
    """What to compare, and how.

    Attributes:
        vectors: array of the store, (window, hidden_state, hidden) or (window, hidden).
        hidden_state: name or position of the hidden state; negative from the last.
        tile: vectors of a tile.
        bins: equal bins of [0, 180] degrees.
        impl: kernel implementation, see `bertgeom.kernels`.
        device: "auto", "cpu" or "cuda".
        exclude_flags: windows with one of these flags are left out.
    """

    vectors: str = "cls"
    hidden_state: str | int = -1
    tile: int = 2048
    bins: int = 90
    impl: str = "auto"
    device: str = "auto"
    exclude_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude_flags", check_flags(self.exclude_flags))
        if self.tile < 1 or self.bins < 1:
            raise UsageError(
                f"expected a tile and bins of at least 1, found {self.tile} and {self.bins}"
            )


@dataclass(frozen=True)
class Tile:
    """A stretch of vectors of one cohort, by position in the sorted file."""

    cohort: int
    start: int
    stop: int


@dataclass(frozen=True)
class Job:
    """A prepared comparison.

    Attributes:
        folder: the work folder.
        fingerprint: of vectors, cohorts and settings.
        cohorts: names; sizes: windows of each in the file; valid: those with a vector that is
            finite and not zero, which alone have angles.
        hidden, dtype: of the vectors in the file.
        settings: see `AngleSettings`.
        sha256: of the file, "" in folders of earlier versions.
    """

    folder: str
    fingerprint: str
    cohorts: tuple[str, ...]
    sizes: tuple[int, ...]
    valid: tuple[int, ...]
    hidden: int
    dtype: str
    settings: AngleSettings
    sha256: str = ""

    @property
    def storage(self) -> Storage:
        return Storage(self.folder)

    @cached_property
    def tiles(self) -> list[Tile]:
        """All tiles, cohort by cohort."""
        ends = np.cumsum(self.sizes).tolist()
        return [
            Tile(cohort, start, min(start + self.settings.tile, end))
            for cohort, (size, end) in enumerate(zip(self.sizes, ends, strict=True))
            for start in range(end - size, end, self.settings.tile)
        ]

    @property
    def n_pairs(self) -> int:
        """Pairs of valid vectors: what the histograms must sum to."""
        n = sum(self.valid)
        return n * (n - 1) // 2

    def done(self) -> list[int]:
        """Rows with a completion record."""
        names = self.storage.names("rows")
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return [int(stem) for stem in stems if stem.isdecimal()]

    def missing(self) -> list[int]:
        return sorted(set(range(len(self.tiles))) - set(self.done()))

    def pairs_of_rows(self, rows: Iterable[int]) -> int:
        """Pairs that the rows compare, vectors without an angle included."""
        total = sum(self.sizes)
        count = 0
        for row in rows:
            tile = self.tiles[row]
            n = tile.stop - tile.start
            count += n * (n - 1) // 2 + n * (total - tile.stop)
        return count
