"""Which windows stand for a database: a sample that follows neither its order nor its period.

    windows, in order   [ stratum 0 | stratum 1 | ... | stratum n - 1 ]     one window of each
    place in its record  a permutation of n equal stretches, one a stratum

Neighbouring records share a stratum, so that a sorted database is covered from end to end; the
place within the record is drawn anew in every stratum, so that genomes of equal length do not
give the same window each time. Equal windows and seeds give equal samples.
"""

from __future__ import annotations

import itertools

import numpy as np

from bertgeom.kernels.arrays import Float64Array, Int64Array


def stratified(record: Int64Array, n: int, seed: int | tuple[int, ...] = 0) -> Int64Array:
    """Positions of at most n windows, ascending int64.

    Args:
        record: (M,) record of every window that may be drawn; equal records are neighbours.
        n: windows wanted.
        seed: of the permutations.
    """
    total = len(record)
    if total <= n or n < 1:
        return np.arange(min(total, max(n, 0)))
    random = np.random.default_rng(seed)
    place = _places(record)
    edges = np.arange(n + 1) * total // n
    wanted = (random.permutation(n) + random.random(n)) / n
    chosen = np.empty(n, np.int64)
    for i, (first, stop) in enumerate(itertools.pairwise(edges)):
        # By place, equal places in random order: every window of a stratum is as likely.
        order = np.lexsort((random.random(stop - first), place[first:stop]))
        chosen[i] = first + order[int(wanted[i] * len(order))]
    return chosen


def _places(record: Int64Array) -> Float64Array:
    """Where in its record every window is, between 0 and 1."""
    first = np.flatnonzero(np.r_[True, record[1:] != record[:-1]])
    sizes = np.diff(np.r_[first, len(record)])
    rank = np.arange(len(record)) - np.repeat(first, sizes)
    places: Float64Array = (rank + 0.5) / np.repeat(sizes, sizes)
    return places
