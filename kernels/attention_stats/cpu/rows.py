"""One row of a head at a time: the loops that touch every weight.

Rows are padded to a multiple of `LANES` so that no loop has a tail; padding and keys outside a
sliding window hold the logit -inf and hence the weight 0. A weight is visible if it is neither.
"""

from __future__ import annotations

import numpy as np

from bertgeom.kernels._cpu.runtime import inner
from bertgeom.kernels._cpu.vectors import (
    STEP,
    TILE,
    at_least,
    count_equal,
    exp2,
    larger,
    lowest_bit,
    smaller,
    sums_above,
    tile_dot,
    widest_vectors,
)
from bertgeom.kernels.attention_stats.options import K90_MASS, N_VALUE_BINS, SLACK

LANES = 64

f32 = np.float32
_HIDDEN = f32(-np.inf)
#: Below this log2 a weight relative to the row's largest is 0.
_LOWEST = f32(-127)
_SHARE = f32(K90_MASS)
_BIN_SHIFT = f32(N_VALUE_BINS * SLACK)


@inner
def padded(n):
    """n rounded up to a multiple of LANES."""
    return (n + LANES - 1) // LANES * LANES


@inner
def hide(row, first, last):
    """Make everything outside row[first:last] invisible."""
    row[:first] = _HIDDEN
    row[last:] = _HIDDEN


@inner
def extremes(row, first, last):
    """Smallest and largest logit of row[first:last]; overwrites the rest; undefined for NaN."""
    widest_vectors()
    row[:first] = row[first]
    row[last:] = row[first]
    low = row[0]
    high = row[0]
    for j in range(row.size):
        low = smaller(low, row[j])
        high = larger(high, row[j])
    return low, high


@inner
def exponentials(row, high):
    """Logits s (in units of log 2) become e = 2^(s - high); returns sum e and sum e (s - high)."""
    widest_vectors()
    total = f32(0)
    moment = f32(0)
    for j in range(row.size):
        x = row[j] - high
        e = exp2(x)
        row[j] = e
        total += e
        moment += e * (_LOWEST if x < _LOWEST else x)
    return total, moment


@inner
def spread(row, inverse, columns, diagonals):
    """Exponentials become weights, added to their columns and diagonals; returns their squares."""
    widest_vectors()
    square = f32(0)
    for j in range(row.size):
        p = row[j] * inverse
        row[j] = p
        columns[j] += p
        diagonals[j] += p
        square += p * p
    return square


@inner
def lift(row, first, last, lifted):
    """Move the near cells row[first:last] out of a row.

    They lie in `lifted` while the others are added to the far column sums, so that a far sum is
    never a difference of two larger ones.
    """
    for x in range(last - first):
        lifted[x] = row[first + x]
        row[first + x] = 0


@inner
def put_back(row, first, last, inverse, lifted):
    """Put the near cells back, as weights."""
    for x in range(last - first):
        row[first + x] = lifted[x] * inverse


@inner
def add_near(block, i0, c0, c1, begin, end, near, content, columns, sums):
    """Sum the near cells of rows begin to end of a block; returns the sum of their squares.

    Args:
        block: weights of the rows from i0 on and of the columns c0 to c1; others hold none.
        columns: column sums to add to.
        sums: (2, 2 near + 1) sums of the near diagonals, all cells and content cells.
    """
    square = 0.0
    for o in range(-near, near + 1):
        every = 0.0
        of_content = 0.0
        for i in range(max(begin, c0 - o), min(end, c1 - o)):
            p = block[i - i0, i + o - c0]
            columns[i + o] += p
            every += p
            of_content += p * content[i + o]
            square += p * p
        sums[0, near + o] += every
        sums[1, near + o] += of_content
    return square


@inner
def weights_again(row, high, inverse):
    """Logits become the weights that `exponentials` and `spread` made of them."""
    widest_vectors()
    for j in range(row.size):
        row[j] = exp2(row[j] - high) * inverse


@inner
def crossed_row(row, mirrored, highs, inverses):
    """sum_j A_ij A_ji from the weights A_ij and the logits S_ji, which become the weights A_ji."""
    widest_vectors()
    total = f32(0)
    for j in range(row.size):
        p = exp2(mirrored[j] - highs[j]) * inverses[j]
        mirrored[j] = p
        total += row[j] * p
    return total


@inner
def crossed_tiles(weights, n, pitch):
    """sum_ij A_ij A_ji of a head in memory; rows up to a multiple of TILE are there, and zero."""
    diagonal = 0.0
    above_it = 0.0
    for i in range(0, n, TILE):
        diagonal += tile_dot(weights, i, i, pitch)
        for j in range(i + TILE, n, TILE):
            above_it += tile_dot(weights, i, j, pitch)
    return diagonal + 2 * above_it


@inner
def confident_cells(row, theta, found):
    """Write the positions of weights >= theta to `found`; returns how many, at most found.size."""
    count = 0
    for start in range(0, row.size, STEP):
        bits = at_least(row, start, theta)
        while bits != np.uint64(0) and count < found.size:
            found[count] = start + lowest_bit(bits)
            count += 1
            bits &= bits - np.uint64(1)
    return count


@inner
def large_cells(row, least, found, n_found):
    """Write the weights >= least of a row to found[n_found:]; returns n_found with them.

    There must be room for a whole row.
    """
    for start in range(0, row.size, STEP):
        bits = at_least(row, start, least)
        while bits != np.uint64(0):
            found[n_found] = row[start + lowest_bit(bits)]
            n_found += 1
            bits &= bits - np.uint64(1)
    return n_found


@inner
def count_values(row, n_visible, low, factor, codes, bins):
    """Count the visible weights of a row in value bins from `low`, `factor` bins per unit.

    The weights become bytes, and every bin counts its own with one comparison per STEP cells,
    three bins at a time until all cells are counted: most stretches of a row lie in few bins.
    `bins` has one more than N_VALUE_BINS, for the largest weight.
    """
    _encode(row, low, factor, codes)
    codes[n_visible:] = 255
    for start in range(0, row.size, STEP):
        left = min(STEP, n_visible - start)
        b = 0
        while left > 0 and b < N_VALUE_BINS:
            first = count_equal(codes, start, np.uint8(b))
            second = count_equal(codes, start, np.uint8(b + 1))
            third = count_equal(codes, start, np.uint8(b + 2))
            bins[b] += first
            bins[b + 1] += second
            bins[b + 2] += third
            left -= first + second + third
            b += 3


@inner
def _encode(row, low, factor, codes):
    widest_vectors()
    for j in range(row.size):
        codes[j] = np.uint8(np.int32((row[j] - low) * factor + _BIN_SHIFT))


@inner
def smallest_count(row, n_visible, low, top, guess, step):
    """k90 of a row of weights from `low` to `top`: how many of the largest hold 0.9 of the mass.

    A threshold t splits the row into c weights above it with the sum s. Two thresholds with
    s(hi) < 0.9 <= s(lo) bracket the answer, and m = s(lo) - s(hi) and c = c(lo) - c(hi) bound it:
    of r = 0.9 - s(hi) still wanted, every weight between gives at most hi, those left out keep
    at least lo each, and the largest give at least the mean m / c. Where both bounds name the
    same count the search is over, long before lo and hi enclose a single weight.

    Args:
        guess: the first threshold, from the previous row.
        step: relative distance of neighbouring weights around the threshold, likewise.

    Returns:
        the count (0 for NaN), a guess and a step for the next row.
    """
    if not top >= low:
        return 0, guess, step
    if top >= _SHARE:
        return 1, guess, step
    hi, c_hi, s_hi = top, f32(0), f32(0)
    lo, c_lo, s_lo = low * f32(0.999999), f32(n_visible), f32(1)
    stride = step
    under = over = False
    t = guess
    for attempt in range(80):
        r = _SHARE - s_hi
        between = c_lo - c_hi
        mass = s_lo - s_hi
        most = np.ceil(r * between / mass)
        if max(r / hi, between - (mass - r) / lo) > most - f32(1) or between <= f32(1):
            break
        if under and over:
            # Every fourth time the middle: the secant alone may creep along one side.
            if attempt & 3 == 3:
                t = f32(0.5) * (lo + hi)
            else:
                t = hi - (hi - lo) * (r / mass)
        if not (lo < t and t < hi):
            t = f32(0.5) * (lo + hi)
        count, s = sums_above(row, t)
        if s >= _SHARE:
            lo, c_lo, s_lo = t, count, s
            over = True
        else:
            hi, c_hi, s_hi = t, count, s
            under = True
        if not (under and over):
            # Step to the other side of the answer: by as many weights as t is off, and three more.
            wanted = (_SHARE - s) / t
            wanted += f32(3) if wanted > f32(0) else f32(-3)
            t -= t * min(stride * wanted, f32(0.5))
            stride *= f32(2)
    if under and over:
        step = f32(0.5) * (step + (hi - lo) / (hi * (c_lo - c_hi)))
    k = min(max(c_hi + most, c_hi + f32(1)), c_lo)
    # The count is used as an index, so NaN must become 0.
    k = np.int64(k) if k >= f32(0) else 0
    return k, f32(0.5) * (lo + hi) if under and over else t, step
