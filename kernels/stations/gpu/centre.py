"""Triton: what follows from the sums of a window, and its rows less their mean.

Every program adds the partial sums of its window itself, in order: the same few numbers come from
the cache, and no launch stands between the sums and the rows. The first program of a window also
stores its statistics, and clears what the tiles of the window count in.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from bertgeom.kernels import _definitions
from bertgeom.kernels._triton.programs import any_length, tokens_of
from bertgeom.kernels._triton.rows import (
    AT_ONCE,
    add_blocks,
    add_norms,
    angles_to,
    cone_of,
    inverse,
    load_rows,
    store_cone,
    store_rows,
    store_units,
)
from bertgeom.kernels.stations.gpu.places import (
    AT_DONE,
    AT_ENTRIES,
    AT_KEPT,
    AT_NEAR_MEAN,
    AT_NORMS,
    AT_OUTLIERS,
    AT_ROW_SUMS,
    AT_ZEROS,
    N_COUNTS,
    N_OUT,
    N_PARTS,
)

CONSTANT = tl.constexpr(_definitions.CONSTANT)
OUTLIER = tl.constexpr(_definitions.OUTLIER)
#: Blocks whose moments a program reads at once.
BLOCKS = tl.constexpr(16)


@triton.jit
def _load_wide(p, m):
    return tl.load(p, mask=m, other=0.0).to(tl.float64)


@triton.jit
def _mean_and_square(p_moments, used):
    """Count, mean and mean square of the entries of the first blocks of p_moments (K, 5)."""
    o = tl.arange(0, BLOCKS)
    count = tl.zeros((BLOCKS,), tl.float64)
    total = tl.zeros((BLOCKS,), tl.float64)
    square = tl.zeros((BLOCKS,), tl.float64)
    for first in range(0, used, BLOCKS):
        m = first + o < used
        p_in = p_moments + (first + o) * 5
        c = _load_wide(p_in, m)
        mean = _load_wide(p_in + 1, m)
        count += c
        total += c * mean
        square += _load_wide(p_in + 2, m) + c * mean * mean
    n = tl.sum(count, axis=0)
    some = tl.maximum(n, 1.0)
    return n, tl.sum(total, axis=0) / some, tl.sum(square, axis=0) / some


@triton.jit
def _central_moments(p_moments, used, mean):
    """M2, M3 and M4 of all entries about their mean, from those of every block about its own."""
    o = tl.arange(0, BLOCKS)
    m2 = tl.zeros((BLOCKS,), tl.float64)
    m3 = tl.zeros((BLOCKS,), tl.float64)
    m4 = tl.zeros((BLOCKS,), tl.float64)
    for first in range(0, used, BLOCKS):
        m = first + o < used
        p_in = p_moments + (first + o) * 5
        c = _load_wide(p_in, m)
        d = tl.where(m, _load_wide(p_in + 1, m) - mean, 0.0)
        own2 = _load_wide(p_in + 2, m)
        own3 = _load_wide(p_in + 3, m)
        square = d * d
        m2 += own2 + c * square
        m3 += own3 + 3 * d * own2 + c * square * d
        m4 += _load_wide(p_in + 4, m) + 4 * d * own3 + 6 * square * own2 + c * square * square
    return tl.sum(m2, axis=0), tl.sum(m3, axis=0), tl.sum(m4, axis=0)


@triton.jit
def _describe(p_out, good, count, mean, m2, m3, m4):
    """Stores mean, variance, skewness and excess kurtosis; NaN where not good or not defined."""
    some = tl.maximum(count, 1.0)
    variance = m2 / some
    spread = good & (variance > CONSTANT * (variance + mean * mean))
    safe = tl.where(spread, variance, 1.0)
    skewness = m3 / some / (safe * tl.sqrt(safe))
    kurtosis = m4 / some / (safe * safe) - 3.0
    tl.store(p_out, tl.where(good, mean, float("nan")).to(tl.float32))
    tl.store(p_out + 1, tl.where(good, variance, float("nan")).to(tl.float32))
    tl.store(p_out + 2, tl.where(spread, skewness, float("nan")).to(tl.float32))
    tl.store(p_out + 3, tl.where(spread, kurtosis, float("nan")).to(tl.float32))


@triton.jit
def _store_norms(p_out, p_norm, n, norm_sum, norm_max, good):
    """Stores mean, deviation and maximum of n norms; NaN where not good."""
    wide = tl.maximum(n, 1).to(tl.float64)
    mean = norm_sum / wide
    spread = tl.zeros((), tl.float64)
    for first in range(0, n, AT_ONCE):
        o_row = first + tl.arange(0, AT_ONCE)
        norm = tl.load(p_norm + o_row, mask=o_row < n, other=0.0).to(tl.float64)
        off = tl.where(o_row < n, norm - mean, 0.0)
        spread += tl.sum(off * off, axis=0)
    tl.store(p_out, tl.where(good, mean, float("nan")).to(tl.float32))
    tl.store(p_out + 1, tl.where(good, tl.sqrt(spread / wide), float("nan")).to(tl.float32))
    tl.store(p_out + 2, tl.where(good, norm_max, float("nan")))


@triton.jit
def _store_row_sums(p_out, rows, m_dim, good, WIDTH: tl.constexpr):
    """Stores the moments of the sum of the rows (BLOCK_DIM,); returns its outlier dimensions."""
    mean = tl.sum(rows, axis=0) / WIDTH
    d = tl.where(m_dim, rows - mean, 0.0)
    square = d * d
    r2 = tl.sum(square, axis=0)
    r3 = tl.sum(square * d, axis=0)
    r4 = tl.sum(square * square, axis=0)
    _describe(p_out, good, tl.full((), WIDTH, tl.float64), mean, r2, r3, r4)
    reach = OUTLIER * tl.sqrt(r2 / WIDTH)
    outliers = tl.sum(((tl.abs(d) > reach) & m_dim).to(tl.int32), axis=0)
    return tl.where(good, outliers, 0)


@any_length
def station_centre(
    p_x,
    p_lengths,
    p_norm,
    p_unit,
    p_rows,
    p_moments,
    p_out,
    p_counts,
    p_histogram,
    p_parts,
    p_vectors,
    p_alpha,
    p_scale,
    p_weight,
    n_slots,
    n_padded,
    stride_b,
    stride_n,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_BINS: tl.constexpr,
    ANGLES: tl.constexpr,
):
    """Program (block, window): p_parts (S, K, N_PARTS), see `places`, from the norms and sums of
    `row_sums`. The first of a window: p_out (S, N_OUT) but for axis, ratio and angles; p_counts
    (S, N_COUNTS), with nothing done; p_histogram (S, BINS), 0.

    With ANGLES p_vectors (S, n_padded, WIDTH_PADDED), p_alpha and p_scale (S, n_padded) take what
    `store_units` says, and p_weight (S, n_padded) x m - |m|^2 / 2; else p_vectors takes
    (x - m) / rms. Rows beyond the length are 0."""
    n_blocks = n_padded // BLOCK_ROWS
    i_block = tl.program_id(0) % n_blocks
    i_set = (tl.program_id(0) // n_blocks).to(tl.int64)
    n = tokens_of(p_lengths, i_set, n_slots)
    used = tl.cdiv(n, BLOCK_ROWS)
    o_dim = tl.arange(0, BLOCK_DIM)
    m_dim = o_dim < WIDTH
    p_window = p_norm + i_set * n_padded
    at_block = i_set * n_blocks
    kept, finite, norm_sum, norm_max = add_norms(p_window, n)
    is_finite = finite >= n
    some = is_finite & (kept > 0)
    total = add_blocks(p_unit + at_block * WIDTH, used, o_dim, WIDTH, BLOCK_DIM)
    index, resultant, cosine, axis, narrow, shift, near_mean = cone_of(total, kept, some)
    rows = add_blocks(p_rows + at_block * WIDTH, used, o_dim, WIDTH, BLOCK_DIM)
    mean = (rows / tl.maximum(n, 1).to(tl.float64)).to(tl.float32)
    p_in = p_moments + at_block * 5
    count, entry_mean, entry_square = _mean_and_square(p_in, used)
    if i_block == 0:
        good = is_finite & (n > 0)
        p_o = p_out + i_set * N_OUT
        store_cone(p_o, index, resultant, cosine, kept, some)
        m2, m3, m4 = _central_moments(p_in, used, entry_mean)
        _describe(p_o + AT_ENTRIES, good, count, entry_mean, m2, m3, m4)
        _store_norms(p_o + AT_NORMS, p_window, n, norm_sum, norm_max, good)
        outliers = _store_row_sums(p_o + AT_ROW_SUMS, rows, m_dim, good, WIDTH)
        tl.store(p_o + AT_NEAR_MEAN, near_mean)
        p_c = p_counts + i_set * N_COUNTS
        tl.store(p_c + AT_KEPT, tl.where(is_finite, kept, -1))
        tl.store(p_c + AT_OUTLIERS, outliers)
        tl.store(p_c + AT_ZEROS, tl.where(is_finite, n - kept, 0))
        tl.store(p_c + AT_DONE, 0)
        if ANGLES:
            o_bin = tl.arange(0, BLOCK_BINS)
            none = tl.zeros((BLOCK_BINS,), tl.int64)
            tl.store(p_histogram + i_set * BINS + o_bin, none, mask=o_bin < BINS)

    if ANGLES:
        half_square = tl.sum(mean * mean, axis=0) * 0.5
    else:
        known_scale = is_finite & (entry_square > 0)
        factor = (1.0 / tl.sqrt(tl.where(known_scale, entry_square, 1.0))).to(tl.float32)
    angle_sum = tl.zeros((STEP,), tl.float32)
    angle_max = tl.zeros((STEP,), tl.float32)
    trace = tl.zeros((STEP,), tl.float32)
    diagonal = tl.zeros((STEP,), tl.float32)
    p_set = p_x + i_set * stride_b
    for step in range(BLOCK_ROWS // STEP):
        o_row = i_block * BLOCK_ROWS + step * STEP + tl.arange(0, STEP)
        m_x = (o_row < n)[:, None] & m_dim[None, :]
        m_row = o_row < n_padded
        x = load_rows(p_set, o_row, stride_n, m_x, o_dim)
        o_out = i_set * n_padded + o_row
        norm = tl.load(p_norm + o_out)
        known = norm > 0
        unit = x * inverse(norm)[:, None]
        angle = angles_to(axis, unit, known)
        angle_sum += angle
        angle_max = tl.maximum(angle_max, angle)
        off = tl.where(m_x, x - mean[None, :], 0.0)
        if ANGLES:
            store_units(
                p_vectors, p_alpha, p_scale, unit, shift, narrow, known, m_dim, o_out, o_dim,
                m_row, WIDTH_PADDED,
            )  # fmt: skip
            tl.store(p_weight + o_out, tl.sum(x * mean[None, :], axis=1) - half_square)
            own = tl.sum(off * off, axis=1)
            diagonal += own * own
        else:
            own = store_rows(p_vectors, off * factor, o_out, o_dim, m_row, WIDTH_PADDED)
        trace += own
    p_part = p_parts + (at_block + i_block) * N_PARTS
    tl.store(p_part, tl.sum(angle_sum, axis=0))
    tl.store(p_part + 1, tl.max(angle_max, axis=0))
    tl.store(p_part + 2, tl.sum(trace, axis=0))
    tl.store(p_part + 3, tl.sum(diagonal, axis=0))
