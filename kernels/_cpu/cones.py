"""Compiled pieces of the cone kernels: centred unit vectors, and tiles of pairwise angles.

`cone_angles/README.md` derives the formulas and their errors.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from bertgeom.kernels._cpu.amx import COMPILES
from bertgeom.kernels._cpu.rows import SMALLEST_NORM, inner_products
from bertgeom.kernels._cpu.runtime import inner
from bertgeom.kernels._cpu.vectors import larger, smaller
from bertgeom.kernels._definitions import NO_AXIS

#: Rows and columns of a tile of cosines. BLAS multiplies tall tiles faster than wide ones, and 48
#: columns, three vectors of 512 bits, faster than any other number near. The tile unit takes
#: multiples of 32.
TILE_ROWS, TILE_COLUMNS = 1024, 64 if COMPILES else 48
#: Rows of a tile whose cells are processed together.
STRETCH = 48
#: Pairs whose 1 - |cos| is below NEAR |y_i| |y_j| are computed from differences of vectors.
NEAR = 1e-3
#: A rounded angle is off by less than this share of 180 degrees.
EDGE_MARGIN = 4e-7
#: asin(sqrt z) / sqrt z on [0, 1/2], minimax to 1.5e-8, times 2 in degrees.
_P = tuple(
    np.float32(c * 360 / math.pi)
    for c in (
        0.999999985438151,
        0.16667020350691558,
        0.07485973492808352,
        0.04674161551944223,
        0.015222972784506529,
        0.08000983852382511,
        -0.09664462787672151,
        0.11344954362324261,
    )
)
_P0, _P1, _P2, _P3, _P4, _P5, _P6, _P7 = _P


@functools.lru_cache(maxsize=16)
def versine_edges(bins: int) -> Any:
    """1 - cos of the bin edges, (bins + 1,) float32; the ends lie outside of every angle."""
    edges = (2 * np.sin(np.linspace(0, np.pi / 2, bins + 1)) ** 2).astype(np.float32)
    edges[0], edges[-1] = -1, 4
    return edges


@inner
def cone_of(square, n):
    """Cone index, resultant and mean cosine of n unit vectors whose sum has this squared length.

    NaN for what n vectors do not have, and for all where n is negative.
    """
    index = np.sqrt(square) if n > 0 else np.nan
    mean_cosine = (square - n) / (n * (n - 1.0)) if n > 1 else np.nan
    return index, index / n, mean_cosine


@inner
def cone_axis(total, n, axis):
    """Squared length of the sum of n unit vectors; axis (D,): its direction, NaN if they cancel."""
    square = 0.0
    for d in range(len(total)):
        square += total[d] * total[d]
    index = np.sqrt(square) if n > 0 else np.nan
    for d in range(len(total)):
        axis[d] = total[d] / index if index > NO_AXIS * n else np.nan
    return square


@inner
def axis_angles(flat, start, step, first, last, norm, axis, scale, out):
    """Sum and maximum (degrees) of the angles between rows and scale * axis, a unit vector."""
    width = len(axis)
    total, largest = 0.0, 0.0
    for i in range(first, last):
        if norm[i] == 0:
            continue
        row = flat[start + i * step : start + i * step + width]
        along = 0.0
        for d in range(width):
            along += np.float64(row[d]) * axis[d]
        angle = math.degrees(math.acos(min(1.0, max(-1.0, scale * along / norm[i]))))
        total += angle
        largest = max(largest, angle)
    out[0], out[1] = total, largest


@inner
def centre_units(flat, start, step, first, last, norm, slot, shift, unit, half, size):
    """Writes y_i = x_i / |x_i| - shift of the non-zero rows of a block, packed.

    Args:
        norm, slot: (>= last,) norms, and rows of the output (-1 for zero vectors).
        shift: (D,) float32.
        unit: (m, D) float32, takes y; half, size: (m,) float32, take |y|^2 / 2 and |y|.
    """
    width = len(shift)
    moved = False
    for d in range(width):
        moved |= shift[d] != 0
    for i in range(first, last):
        to = slot[i]
        if to < 0:
            continue
        row = flat[start + i * step : start + i * step + width]
        y = unit[to]
        scale = np.float32(1 / norm[i])
        square = 0.0
        if norm[i] < SMALLEST_NORM:
            for d in range(width):
                value = np.float32(np.float64(row[d]) / norm[i]) - shift[d]
                y[d] = value
                square += np.float64(value) * np.float64(value)
            half[to] = square / 2 if moved else 0.5
            size[to] = math.sqrt(square) if moved else 1.0
            continue
        for d in range(width):
            value = row[d] * scale - shift[d]
            y[d] = value
            square += np.float64(value) * np.float64(value)
        # Without a shift |y| is 1 by definition, and orthogonal vectors meet at exactly 90.
        half[to] = square / 2 if moved else 0.5
        size[to] = math.sqrt(square) if moved else 1.0


#: For tiles, whose inputs are known to be finite.
_finite = functools.partial(inner, fastmath=True)


@_finite()
def angle_tile(
    how, a, b, half_a, half_b, size_a, size_b, shift, diagonal, edges, guess, tile, counts, sums
):
    """Angles of the pairs (i, j) of a tile; leaves 1 - cos in `tile`.

    Args:
        how: see `rows.Products`.
        a, b: (r, D), (c, D) centred unit vectors, c <= TILE_COLUMNS.
        half_a, size_a: (r,) as `centre_units` writes them; half_b, size_b: (>= TILE_COLUMNS,) the
            same of b, then any finite numbers.
        shift: (D,) float32, what was taken off them.
        diagonal: row i meets the columns before diagonal + i.
        edges: see `versine_edges`.
        guess: float32, an angle near the mean, in degrees.
        tile: (TILE_ROWS, TILE_COLUMNS) float32 scratch, finite.
        counts: (bins,) int64, overwritten.
        sums: (4,) float64, overwritten: sum of (angle - guess), of its square, least, largest.
    """
    bins = len(counts)
    inner_products(how, a, b, False, tile)
    cells = STRETCH * TILE_COLUMNS
    angle, place = np.empty(cells, np.float32), np.empty(cells, np.int32)
    packed = np.empty((2, cells), np.float32)
    partial = np.zeros((8, bins), np.int32)
    flat = tile.reshape(tile.size)
    sums[0], sums[1], sums[2], sums[3] = 0.0, 0.0, 180.0, 0.0
    for i in range(0, len(a), STRETCH):
        rows = min(STRETCH, len(a) - i)
        versine = flat[i * TILE_COLUMNS : (i + rows) * TILE_COLUMNS]
        degrees = angle[: rows * TILE_COLUMNS]
        # A vector and itself are not a pair: any angle will do that is not near, which takes time.
        for own in range(max(0, diagonal + i), min(TILE_COLUMNS, diagonal + i + rows)):
            versine[(own - diagonal - i) * TILE_COLUMNS + own] = 0
        if _stretch_angles(versine, half_a[i:], half_b, size_a[i:], size_b, degrees):
            for r in range(rows):
                met = columns_met(i + r, len(b), diagonal)
                one = slice(r * TILE_COLUMNS, r * TILE_COLUMNS + met)
                _near_angles(versine[one], a[i + r], b, size_a[i + r], size_b, shift, degrees[one])
        if columns_met(i, len(b), diagonal) < TILE_COLUMNS:
            found = 0
            for r in range(rows):
                met = columns_met(i + r, len(b), diagonal)
                for j in range(met):
                    packed[0, found + j] = versine[r * TILE_COLUMNS + j]
                    packed[1, found + j] = degrees[r * TILE_COLUMNS + j]
                found += met
            versine, degrees = packed[0, :found], packed[1, :found]
        at = place[: len(degrees)]
        _add_stretch(degrees, guess, sums)
        if _bins_of_stretch(degrees, bins, at):
            _compare_with_edges(versine, edges, at)
        _count(at, partial)
    for k in range(bins):
        counts[k] = 0
        for turn in range(8):
            counts[k] += partial[turn, k]


@inner
def columns_met(i, columns, diagonal):
    """How many cells of row i of a tile are pairs."""
    return max(0, min(columns, diagonal + i))


@_finite()
def _stretch_angles(cells, half_a, half_b, size_a, size_b, degrees):
    """cells: products of the centred vectors in, 1 - cos out; returns whether a pair is near.

    Whole rows are computed, met or not: a loop of fixed length has no tail.
    """
    zero, half, one, two = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
    near = zero
    for r in range(len(cells) // TILE_COLUMNS):
        half_row, bound = half_a[r], np.float32(NEAR) * size_a[r]
        row = cells[r * TILE_COLUMNS : (r + 1) * TILE_COLUMNS]
        out = degrees[r * TILE_COLUMNS : (r + 1) * TILE_COLUMNS]
        # Plain conditional expressions: min() and max() would keep the loop from vectorising.
        for j in range(TILE_COLUMNS):
            v = half_row + half_b[j] - row[j]
            v = v if v > zero else zero
            v = v if v < two else two
            row[j] = v
            acute = v if v < one else two - v
            near += one if acute < bound * size_b[j] else zero
            z = acute * half
            p = _P3 + z * (_P4 + z * (_P5 + z * (_P6 + z * _P7)))
            t = np.sqrt(z) * (_P0 + z * (_P1 + z * (_P2 + z * p)))
            out[j] = np.float32(180) - t if v > one else t
    return near > zero


@_finite()
def _near_angles(row, a, b, size_a, size_b, shift, degrees):
    """Angles of (anti)parallel pairs from |u - w|, or |u + w|: the cosine has lost its digits."""
    bound = np.float32(NEAR) * size_a
    for j in range(len(row)):
        v = row[j]
        if min(v, np.float32(2) - v) >= bound * size_b[j]:
            continue
        other = b[j]
        square = np.float32(0)
        if v < 1:
            for d in range(len(a)):
                apart = a[d] - other[d]
                square += apart * apart
        else:
            for d in range(len(a)):
                together = a[d] + other[d] + np.float32(2) * shift[d]
                square += together * together
        small = 2 * math.degrees(math.asin(min(1.0, math.sqrt(square) / 2)))
        degrees[j] = small if v < 1 else 180 - small
        row[j] = square / 2 if v < 1 else 2 - square / 2


@_finite()
def _add_stretch(degrees, guess, sums):
    first, second = np.float32(0), np.float32(0)
    least, largest = np.float32(180), np.float32(0)
    for j in range(len(degrees)):
        off = degrees[j] - guess
        first += off
        second += off * off
        least = smaller(least, degrees[j])
        largest = larger(largest, degrees[j])
    sums[0] += first
    sums[1] += second
    sums[2] = min(sums[2], np.float64(least))
    sums[3] = max(sums[3], np.float64(largest))


@_finite()
def _bins_of_stretch(degrees, bins, place):
    """Bins by the rounded angle; returns whether one is so close to an edge that it may be off."""
    scale, last = np.float32(bins / 180), np.int32(bins - 1)
    margin = np.float32(EDGE_MARGIN * bins)
    doubt = np.float32(0)
    for j in range(len(degrees)):
        x = degrees[j] * scale
        k = np.int32(x)
        into = x - np.float32(k)
        left = np.float32(1) - into
        doubt += np.float32(1) if (into if into < left else left) < margin else np.float32(0)
        place[j] = min(k, last)
    return doubt > np.float32(0)


@inner
def _compare_with_edges(row, edges, place):
    for j in range(len(row)):
        if row[j] < edges[place[j]]:
            place[j] -= 1
        elif row[j] >= edges[place[j] + 1]:
            place[j] += 1


@inner
def _count(place, partial):
    """Neighbours often share a bin: eight counters take turns, so that none waits for itself."""
    a, b, c, d = partial[0], partial[1], partial[2], partial[3]
    e, f, g, h = partial[4], partial[5], partial[6], partial[7]
    one = np.int32(1)
    whole = len(place) // 8 * 8
    for j in range(0, whole, 8):
        a[np.uintp(place[j])] += one
        b[np.uintp(place[j + 1])] += one
        c[np.uintp(place[j + 2])] += one
        d[np.uintp(place[j + 3])] += one
        e[np.uintp(place[j + 4])] += one
        f[np.uintp(place[j + 5])] += one
        g[np.uintp(place[j + 6])] += one
        h[np.uintp(place[j + 7])] += one
    for j in range(whole, len(place)):
        a[np.uintp(place[j])] += one
