"""Value entropy and asymmetry: what needs the weights of a head, or of mirrored cells, once more.

Short heads lie in memory (`look_at_weights`). Of a longer one

- the mirrored cells A_ji of a block of rows are computed while its cells A_ij, j < i, are at hand
  (`crossed_block`): maxima and sums of all rows up to the last of the block are known by then;
- weights too small for any bin but the first are only counted, however the bins will come to lie;
  the others, the candidates, are kept (`keep_candidates`).

If the candidates are too many, which tells a flat head, both are done afterwards: tiles (i, j) and
(j, i) of logits are computed again, side by side (`look_at_pairs`).
"""

from __future__ import annotations

import numpy as np

from bertgeom.kernels._cpu import amx as _amx
from bertgeom.kernels._cpu.runtime import CHECKED, check_extent, inner
from bertgeom.kernels.attention_stats.cpu.bias import add_cells
from bertgeom.kernels.attention_stats.cpu.products import logits, mirrored_logits
from bertgeom.kernels.attention_stats.cpu.rows import (
    LANES,
    count_values,
    crossed_row,
    crossed_tiles,
    hide,
    large_cells,
    padded,
    weights_again,
)
from bertgeom.kernels.attention_stats.cpu.work import (
    MIRROR_ROWS,
    MIRROR_WEIGHTS,
    MIRROR_WIDTH,
    PAIRS,
    check_blocks,
    padded_rows,
)
from bertgeom.kernels.attention_stats.options import N_VALUE_BINS

f32 = np.float32
#: A weight below this share of a head's largest is in the first bin: the bins are from the smallest
#: weight, at least 0, to the largest. A hundredth less than the first edge, for rounding.
_FIRST_BIN = f32(0.99 / N_VALUE_BINS)


@inner
def look_at_weights(n, work, smallest, factor):
    """Fill the bins from the weights of a head in memory; returns sum_ij A_ij A_ji."""
    pitch = padded(n)
    work.weights[n * pitch : padded_rows(n) * pitch] = 0
    weights, codes, bins = work.weights, work.codes, work.bins
    for i in range(n):
        row = weights[i * pitch : (i + 1) * pitch]
        count_values(row, n, smallest, factor, codes, bins)
    return crossed_tiles(work.weights, n, pitch)


@inner
def may_be_beyond(weight, largest):
    """Whether a weight may lie beyond the first bin of a head with this largest weight so far."""
    return weight >= largest * _FIRST_BIN


@inner
def keep_candidates(row, largest, candidates, kept):
    """Add the weights of a row that may lie beyond the first bin to the first `kept` candidates.

    Args:
        largest: the largest weight of the head so far, that of this row included.

    Returns:
        the number of candidates, or -1 if there are more than half as many as there is room for
        after those of a smaller `largest` have been dropped.
    """
    least = largest * _FIRST_BIN
    if kept + row.size > candidates.size:
        left = 0
        for x in candidates[:kept]:
            candidates[left] = x
            left += x >= least
        kept = left if 2 * left <= candidates.size else -1
    return large_cells(row, least, candidates, kept) if kept >= 0 else kept


@inner
def count_candidates(n, candidates, kept, smallest, factor, codes, bins):
    """Fill the bins of the n^2 weights of a head from its candidates."""
    bins[0] += n * n - kept
    at = 0
    while at < kept:
        size = min(kept - at, padded(n))
        count_values(candidates[at : at + padded(size)], size, smallest, factor, codes, bins)
        at += size


@inner
def _mirrored(blas, strips, settings, d, matrices, bias, i0, i1, j0, j1, out, pitch):
    """Logits (j, i) of rows i0 to i1 and columns j0 to j1, in rows of i."""
    mirrored_logits(blas, strips, settings.scale, d, matrices, i0, i1, j0, j1, out, pitch)
    if bias.address != 0:
        add_cells(bias, True, i0, i1, j0, j1, out, pitch)


@inner
def crossed_block(blas, strips, settings, d, matrices, bias, i0, i1, c0, block, work):
    """sum A_ij A_ji over the rows i of a block of weights and all j, with j < i counted twice.

    Args:
        block: weights of rows i0 to i1 and of columns from c0 on.
    """
    reach, mirror = settings.reach, work.mirror
    here = np.int64(mirror.ctypes.data)
    highs, inverses = work.highs, work.inverses
    rows = min(i1 - i0, MIRROR_ROWS)
    width = min(MIRROR_WIDTH, MIRROR_WEIGHTS // rows // LANES * LANES)
    below = 0.0
    diagonal = 0.0
    for r0 in range(i0, i1, rows):
        r1 = min(i1, r0 + rows)
        j0 = c0 + max(0, r0 - reach - c0) // width * width
        while j0 < r1:
            j1 = min(r1, j0 + width)
            pitch = padded(j1 - j0)
            if CHECKED:
                check_extent(here, (r1 - r0) * pitch, here, here + 4 * mirror.size)
            _mirrored(blas, strips, settings, d, matrices, bias, r0, r1, j0, j1, here, pitch)
            for i in range(r0, r1):
                first, last = max(j0, i - reach), min(j1, i)
                if first < last:
                    size = padded(last - j0)
                    mirrored = mirror[(i - r0) * pitch : (i - r0) * pitch + size]
                    hide(mirrored, first - j0, last - j0)
                    row = block[i - i0, j0 - c0 : j0 - c0 + size]
                    below += crossed_row(
                        row, mirrored, highs[j0 : j0 + size], inverses[j0 : j0 + size]
                    )
            j0 = j1
        for i in range(r0, r1):
            diagonal += block[i - i0, i - c0] ** 2
    return 2 * below + diagonal


@inner
def look_at_pairs(blas, pieces, strips, settings, n, d, matrices, bias, work, smallest, factor):
    """Fill the bins from weights that are computed again; returns sum_ij A_ij A_ji."""
    reach = settings.reach
    pitch = padded(min(n, PAIRS))
    size = _amx.in_blocks(min(n, PAIRS)) * pitch
    below, mirrored = work.weights[:size], work.weights[size : 2 * size]
    here, there = np.int64(below.ctypes.data), np.int64(mirrored.ctypes.data)
    highs, inverses, codes, bins = work.highs, work.inverses, work.codes, work.bins
    crossed = 0.0
    for i0 in range(0, n, PAIRS):
        i1 = min(n, i0 + PAIRS)
        for j0 in range(max(0, i0 - reach) // PAIRS * PAIRS, i1, PAIRS):
            j1 = min(n, j0 + PAIRS)
            if CHECKED:
                check_blocks(work, here, i1 - i0, j1 - j0, pitch)
                check_blocks(work, there, i1 - i0, j1 - j0, pitch)
            logits(blas, pieces, strips, settings.scale, d, matrices, i0, i1, j0, j1, here, pitch)
            if bias.address != 0:
                add_cells(bias, False, i0, i1, j0, j1, here, pitch)
            _mirrored(blas, strips, settings, d, matrices, bias, i0, i1, j0, j1, there, pitch)
            for i in range(i0, i1):
                first, last = max(j0, i - reach) - j0, min(j1, i + 1) - j0
                if first >= last:
                    continue
                at, width = (i - i0) * pitch, padded(last)
                row, other = below[at : at + width], mirrored[at : at + width]
                n_others = last - first
                hide(row, first, last)
                weights_again(row, highs[i], inverses[i])
                if j0 + last > i:
                    # The cell on the diagonal is its own mirror.
                    n_others -= 1
                    crossed += row[last - 1] ** 2
                hide(other, first, first + n_others)
                crossed += 2 * crossed_row(
                    row, other, highs[j0 : j0 + width], inverses[j0 : j0 + width]
                )
                for x in range(2):
                    cells, n_cells = (other, n_others) if x else (row, last - first)
                    count_values(cells[first:], n_cells, smallest, factor, codes[:width], bins)
    return crossed
