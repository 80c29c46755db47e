"""Compiled pieces of the stream kernels: mergeable moments, and the norm of the covariance.

Moments are kept as (count, mean, M2, M3, M4), M_k the sum of the k-th powers of the deviations.
README.md derives the formulas and their errors.
"""

from __future__ import annotations

import math

import numpy as np

from bertgeom.kernels._cpu.rows import inner_products
from bertgeom.kernels._cpu.runtime import inner
from bertgeom.kernels._definitions import CONSTANT, OUTLIER

#: Rows whose entries get one provisional mean; they fit into the L1 cache.
GROUP = 8


@inner
def group_moments(flat, start, step, first, last, width, norm, moments):
    """Moments (5,) of the entries of a few rows.

    About a provisional mean, and scaled to about 1 so that no power over- or underflows."""
    entries = 0.0
    largest = 0.0
    for i in range(first, last):
        row = flat[start + i * step : start + i * step + width]
        line = np.float32(0)
        for d in range(width):
            line += row[d]
        entries += np.float64(line)
        largest = max(largest, norm[i])
    count = float((last - first) * width)
    unit = math.sqrt(width) / largest if largest > 0 else 1.0
    if not in_float_range(unit):
        _moments_in_double(flat, start, step, first, last, width, moments)
        return
    # A power of two, so that scaling rounds nothing.
    scale = np.float32(math.ldexp(1.0, math.frexp(unit)[1]))
    about = np.float32(entries / count) * scale
    s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0
    for i in range(first, last):
        row = flat[start + i * step : start + i * step + width]
        a1, a2, a3, a4 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for d in range(width):
            x = row[d] * scale - about
            square = x * x
            a1 += x
            a2 += square
            a3 += square * x
            a4 += square * square
        s1 += np.float64(a1)
        s2 += np.float64(a2)
        s3 += np.float64(a3)
        s4 += np.float64(a4)
    _recentre(count, about, s1, s2, s3, s4, scale, moments)


@inner
def in_float_range(factor):
    """Whether float32 can scale by a factor: not for subnormal numbers, nor for the largest."""
    return 1e-30 <= factor <= 1e30


@inner
def _moments_in_double(flat, start, step, first, last, width, moments):
    """`group_moments` of numbers whose powers are out of the range of float32."""
    count = float((last - first) * width)
    total = 0.0
    for i in range(first, last):
        for d in range(width):
            total += np.float64(flat[start + i * step + d])
    mean = total / count
    m2, m3, m4 = 0.0, 0.0, 0.0
    for i in range(first, last):
        for d in range(width):
            off = np.float64(flat[start + i * step + d]) - mean
            square = off * off
            m2 += square
            m3 += square * off
            m4 += square * square
    moments[0], moments[1], moments[2], moments[3], moments[4] = count, mean, m2, m3, m4


@inner
def _recentre(count, about, s1, s2, s3, s4, scale, moments):
    """Moments from power sums of scale * x about a point near the mean; s1 is a rounding error."""
    off = s1 / count
    square = off * off
    m2 = s2 - count * square
    m3 = s3 - 3 * off * s2 + 2 * count * square * off
    m4 = s4 - 4 * off * s3 + 6 * square * s2 - 3 * count * square * square
    width = 1 / np.float64(scale)
    area = width * width
    moments[0] = count
    moments[1] = (about + off) * width
    moments[2] = max(m2, 0.0) * area
    moments[3] = m3 * area * width
    moments[4] = max(m4, 0.0) * area * area


@inner
def merge_moments(into, other):
    """into = moments of both samples (Chan et al. 1983; Pebay 2008); (5,) float64 each."""
    na, nb = into[0], other[0]
    n = na + nb
    if nb == 0:
        return
    if na == 0:
        for k in range(5):
            into[k] = other[k]
        return
    delta = other[1] - into[1]
    a, b = na / n, nb / n
    between = delta * delta * n * a * b
    into[4] += (
        other[4]
        + between * delta * delta * (a * a - a * b + b * b)
        + 6 * delta * delta * (a * a * other[2] + b * b * into[2])
        + 4 * delta * (a * other[3] - b * into[3])
    )
    into[3] += other[3] + between * delta * (a - b) + 3 * delta * (a * other[2] - b * into[2])
    into[2] += other[2] + between
    into[1] += delta * b
    into[0] = n


@inner
def moments_of(values, moments):
    """Moments of a float64 vector, by two passes."""
    count = float(len(values))
    total = 0.0
    for x in values:
        total += x
    mean = total / count
    m2, m3, m4 = 0.0, 0.0, 0.0
    for x in values:
        off = x - mean
        square = off * off
        m2 += square
        m3 += square * off
        m4 += square * square
    moments[0], moments[1], moments[2], moments[3], moments[4] = count, mean, m2, m3, m4


@inner
def describe(moments, out):
    """Mean, population variance, skewness, excess kurtosis; the last two NaN for a constant."""
    count, mean, m2 = moments[0], moments[1], moments[2]
    variance = m2 / count if count > 0 else np.nan
    spread = variance > CONSTANT * (variance + mean * mean)
    out[0] = mean if count > 0 else np.nan
    out[1] = variance
    out[2] = moments[3] / count / (variance * math.sqrt(variance)) if spread else np.nan
    out[3] = moments[4] / count / (variance * variance) - 3 if spread else np.nan


@inner
def outlier_dims(total):
    """Entries of a vector beyond `OUTLIER` population standard deviations of its entries."""
    moments = np.empty(5)
    moments_of(total, moments)
    reach = OUTLIER * math.sqrt(moments[2] / moments[0])
    found = 0
    for x in total:
        if abs(x - moments[1]) > reach:
            found += 1
    return found


@inner
def centre_rows(flat, start, step, first, last, mean, scale, centred):
    """centred[i] = (x_i - mean) * scale for a block of rows; returns the sum of its squares.

    Args:
        mean: (D,), and scale: float32, or both float64. centred: (>= last, D) float32.
    """
    total = 0.0
    for i in range(first, last):
        row = flat[start + i * step : start + i * step + len(mean)]
        y = centred[i]
        square = np.float32(0)
        for d in range(len(mean)):
            value = np.float32((row[d] - mean[d]) * scale)
            y[d] = value
            square += value * value
        total += np.float64(square)
    return total


@inner
def square_tile(how, a, b, transposed, diagonal, tile):
    """Sum of the squares of a b^T (or a^T b) and of its mirror image across the diagonal.

    Args:
        how, a, b, transposed: see `_cpu.rows.inner_products`.
        diagonal: row i meets the diagonal in column diagonal + i; 0, or at least the columns.
        tile: (TILE_ROWS, TILE_COLUMNS) float32 scratch.
    """
    inner_products(how, a, b, transposed, tile)
    rows, columns = (a.shape[1], b.shape[1]) if transposed else (a.shape[0], b.shape[0])
    # The square block on the diagonal contains both halves already.
    square = max(0, min(rows, columns - diagonal))
    return _squares(tile, 0, square, columns) + 2 * _squares(tile, square, rows, columns)


@inner
def _squares(tile, first, last, columns):
    total = 0.0
    for i in range(first, last):
        square = np.float32(0)
        for j in range(columns):
            square += tile[i, j] * tile[i, j]
        total += np.float64(square)
    return total


@inner
def covariance_row(versine, norm, norms, half_row, half_rows):
    """Sum over j of <x_i - m, x_j - m>^2, from the angles of a row of pairs.

    <x_i, x_j> = |x_i| |x_j| (1 - versine_j); m is the mean vector, half_i = <x_i, m> - |m|^2 / 2.
    """
    total = 0.0
    for j in range(len(versine)):
        entry = norm * norms[j] * (1 - np.float64(versine[j])) - half_row - half_rows[j]
        total += entry * entry
    return total
