"""Triton: tiles of products of centred vectors, their angles, and the end of every statistic.

    angle_tiles    histogram and moments of angles
    fold_tiles     partial results of many tiles as those of one
    finish_sets    all partial results of a set, added in order

The histogram needs no atomics. A pair's bin gives a group (bin / 4) and a byte (bin % 4) of a
32-bit counter. For every group that a tile touches, a masked sum along its rows counts four bins
at once; a row has 128 columns, so no byte overflows.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from bertgeom.kernels._triton.programs import any_length
from bertgeom.kernels._triton.rows import NO_AXIS, degrees_of

#: Degrees by which an angle may be rounded up: those on an edge must not fall below it.
EDGE = tl.constexpr(2e-5)


@triton.jit
def triangle(t):
    """Row and column, row <= column, of tile t of an upper triangle counted by columns."""
    j = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    j = tl.where(j * (j + 1) // 2 > t, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= t, j + 1, j)
    return t - j * (j + 1) // 2, j


@triton.jit
def products(
    acc, p_a, p_b, depth, step_a, step_b, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """acc + inner products of BLOCK rows at p_a and at p_b, or of their columns if COLUMNS."""
    o_tile = tl.arange(0, BLOCK)
    o_k = tl.arange(0, BLOCK_K)
    if COLUMNS:
        p_a += o_k.to(tl.int64)[:, None] * step_a + o_tile[None, :]
        p_b += o_k.to(tl.int64)[:, None] * step_b + o_tile[None, :]
        for _ in range(0, depth, BLOCK_K):
            acc = tl.dot(tl.trans(tl.load(p_a)), tl.load(p_b), acc, input_precision=PRECISION)
            p_a += BLOCK_K * step_a
            p_b += BLOCK_K * step_b
    else:
        p_a += o_tile.to(tl.int64)[:, None] * step_a + o_k[None, :]
        p_b += o_tile.to(tl.int64)[:, None] * step_b + o_k[None, :]
        for _ in range(0, depth, BLOCK_K):
            acc = tl.dot(tl.load(p_a), tl.trans(tl.load(p_b)), acc, input_precision=PRECISION)
            p_a += BLOCK_K
            p_b += BLOCK_K
    return acc


@triton.jit
def halves(x, COLUMNS: tl.constexpr):
    """The left and the right half of x (rows, COLUMNS), without moving data between threads."""
    rows: tl.constexpr = x.shape[0]
    return tl.split(tl.permute(tl.reshape(x, (rows, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def read_side(p_norm, p_alpha, p_scale, first, o_row, n):
    """Whether rows exist, and their norm, alpha and scale."""
    norm = tl.load(p_norm + first + o_row)
    return o_row < n, norm, tl.load(p_alpha + first + o_row), tl.load(p_scale + first + o_row)


@triton.jit
def covariance_squares(v, norm_a, norm_b, weight_a, weight_b, m_pair):
    """Row sums of <x_i - m, x_j - m>^2 from 1 - cos; see `stations/README.md`."""
    entry = norm_a[:, None] * norm_b[None, :] * (1.0 - v)
    entry = tl.where(m_pair, (entry - weight_a[:, None]) - weight_b[None, :], 0.0)
    return tl.sum(entry * entry, axis=1)


@triton.jit
def add_counts(counts, angle, m_pair, least, largest, scale, bins, BLOCK_BINS: tl.constexpr):
    """Adds a tile to counts (BLOCK_BINS,), whose fours of bins are in the order 0, 2, 1, 3."""
    place = tl.minimum(((angle + EDGE) * scale).to(tl.int32), bins - 1)
    group = tl.where(m_pair, place >> 2, -1)
    unit = tl.full((), 1, tl.uint32) << ((place & 3) << 3).to(tl.uint32)
    first = ((least + EDGE) * scale).to(tl.int32) >> 2
    last = tl.minimum(((largest + EDGE) * scale).to(tl.int32), bins - 1) >> 2
    o_bin = tl.arange(0, BLOCK_BINS)
    shift = ((o_bin & 3) << 4).to(tl.uint64)
    for g in range(first, tl.where(largest >= 0, last + 1, first)):
        row = tl.sum(tl.where(group == g, unit, 0), axis=1)
        # Bytes 0, 2 and 1, 3 become 16-bit fields: a tile holds 128^2 pairs.
        wide = (row & 0x00FF00FF).to(tl.uint64) | (((row >> 8) & 0x00FF00FF).to(tl.uint64) << 32)
        field = ((tl.sum(wide, axis=0) >> shift) & 0xFFFF).to(tl.int32)
        counts += tl.where((o_bin >> 2) == g, field, 0)
    return counts


@triton.jit
def angles_of_tile(
    p_a, p_b, p_alpha_a, p_alpha_b, p_scale_a, p_scale_b, p_norm_a, p_norm_b, p_weight, first_a,
    first_b, i, j, n_a, n_b, near_mean, bins, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_BINS: tl.constexpr, PARTS: tl.constexpr,
    TRIANGLE: tl.constexpr, RATIO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tile (i, j) of the pairs of n_a rows from first_a on and of n_b from first_b on.

    Returns counts (BLOCK_BINS,), see `add_counts`; sums of angle - near_mean and of its square;
    least and largest angle; with RATIO the sum of the squares of the covariance right of the
    diagonal."""
    product = products(
        tl.zeros((BLOCK, BLOCK), tl.float32),
        p_a + (first_a + i.to(tl.int64) * BLOCK) * WIDTH,
        p_b + (first_b + j.to(tl.int64) * BLOCK) * WIDTH,
        tl.where((i * BLOCK < n_a) & (j * BLOCK < n_b), WIDTH, 0),
        WIDTH,
        WIDTH,
        BLOCK,
        BLOCK_K,
        PRECISION,
        False,
    )
    o_a = i * BLOCK + tl.arange(0, BLOCK)
    m_a, norm_a, alpha_a, scale_a = read_side(p_norm_a, p_alpha_a, p_scale_a, first_a, o_a, n_a)
    scale = bins / 180.0
    counts = tl.zeros((BLOCK_BINS,), tl.int32)
    least, largest = 360.0, -1.0
    first = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    # A part at a time: the numbers of a whole tile would fill the registers.
    parts = halves(product, BLOCK)
    if PARTS == 4:
        parts = halves(parts[0], BLOCK // 2) + halves(parts[1], BLOCK // 2)
    for part in tl.static_range(PARTS):
        o_b = j * BLOCK + part * (BLOCK // PARTS) + tl.arange(0, BLOCK // PARTS)
        m_b, norm_b, alpha_b, scale_b = read_side(p_norm_b, p_alpha_b, p_scale_b, first_b, o_b, n_b)
        v = (alpha_a[:, None] + alpha_b[None, :]) - parts[part] * scale_a[:, None] * scale_b[
            None, :
        ]
        v = tl.minimum(tl.maximum(v, 0.0), 2.0)
        if RATIO:
            weight_a = tl.load(p_weight + first_a + o_a)
            weight_b = tl.load(p_weight + first_b + o_b)
            m_pair = m_a[:, None] & m_b[None, :] & (o_a[:, None] < o_b[None, :])
            squares += covariance_squares(v, norm_a, norm_b, weight_a, weight_b, m_pair)
        m_pair = (m_a & (norm_a > 0))[:, None] & (m_b & (norm_b > 0))[None, :]
        if TRIANGLE:
            m_pair = m_pair & (o_a[:, None] < o_b[None, :])
        angle = degrees_of(v)
        off = tl.where(m_pair, angle - near_mean, 0.0)
        first += tl.sum(off, axis=1)
        second += tl.sum(off * off, axis=1)
        low = tl.min(tl.min(tl.where(m_pair, angle, 360.0), axis=1), axis=0)
        high = tl.max(tl.max(tl.where(m_pair, angle, -1.0), axis=1), axis=0)
        least = tl.minimum(least, low)
        largest = tl.maximum(largest, high)
        counts = add_counts(counts, angle, m_pair, low, high, scale, bins, BLOCK_BINS)
    return (
        counts,
        tl.sum(first, axis=0),
        tl.sum(second, axis=0),
        least,
        largest,
        tl.sum(squares, axis=0),
    )


@triton.jit
def bins_of_fields(BLOCK_BINS: tl.constexpr):
    """Bin (BLOCK_BINS,) of every place of `add_counts`."""
    o_bin = tl.arange(0, BLOCK_BINS)
    return (o_bin & ~3) + ((o_bin & 1) << 1) + ((o_bin & 2) >> 1)


@any_length
def angle_tiles(
    p_a,
    p_b,
    p_alpha_a,
    p_alpha_b,
    p_scale_a,
    p_scale_b,
    p_norm_a,
    p_norm_b,
    p_lengths_a,
    p_lengths_b,
    p_kept_a,
    p_kept_b,
    p_near_mean,
    p_counts,
    p_sums,
    rows_a,
    rows_b,
    n_tiles,
    tiles_b,
    step_near_mean,
    bins,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_BINS: tl.constexpr,
    PARTS: tl.constexpr,
    TRIANGLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile, set): p_counts (S, T, bins) int32; p_sums (S, T, 4): sum of angle - near
    mean, of its square, least, largest. Vectors (S, rows, WIDTH) and their numbers are those of
    `centre_rows`."""
    i_tile = tl.program_id(0) % n_tiles
    i_set = (tl.program_id(0) // n_tiles).to(tl.int64)
    if TRIANGLE:
        i, j = triangle(i_tile)
    else:
        i = i_tile // tiles_b
        j = i_tile % tiles_b
    good = (tl.load(p_kept_a + i_set) >= 0) & (tl.load(p_kept_b + i_set) >= 0)
    n_a = tl.where(good, tl.load(p_lengths_a + i_set), 0)
    n_b = tl.where(good, tl.load(p_lengths_b + i_set), 0)
    near_mean = tl.load(p_near_mean + i_set * step_near_mean)
    counts, first, second, least, largest, _ = angles_of_tile(
        p_a, p_b, p_alpha_a, p_alpha_b, p_scale_a, p_scale_b, p_norm_a, p_norm_b, None,
        i_set * rows_a, i_set * rows_b, i, j, n_a, n_b, near_mean, bins,
        WIDTH, BLOCK, BLOCK_K, BLOCK_BINS, PARTS, TRIANGLE, False, PRECISION,
    )  # fmt: skip
    o_out = i_set * n_tiles + i_tile
    tl.store(p_sums + o_out * 4, first)
    tl.store(p_sums + o_out * 4 + 1, second)
    tl.store(p_sums + o_out * 4 + 2, least)
    tl.store(p_sums + o_out * 4 + 3, largest)
    o_field = bins_of_fields(BLOCK_BINS)
    tl.store(p_counts + o_out * bins + o_field, counts, mask=o_field < bins)


@any_length
def fold_tiles(
    p_counts,
    p_sums,
    p_folded_counts,
    p_folded_sums,
    n_tiles,
    bins,
    FOLD: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_BINS: tl.constexpr,
):
    """Program (fold, set): the counts and sums of FOLD tiles as those of one."""
    n_folds = tl.cdiv(n_tiles, FOLD)
    i_fold = tl.program_id(0) % n_folds
    i_set = (tl.program_id(0) // n_folds).to(tl.int64)
    o_bin = tl.arange(0, BLOCK_BINS)
    counts = tl.zeros((STEP, BLOCK_BINS), tl.int32)
    first = tl.zeros((STEP,), tl.float64)
    second = tl.zeros((STEP,), tl.float64)
    least = tl.full((STEP,), 360.0, tl.float32)
    largest = tl.full((STEP,), -1.0, tl.float32)
    for step in range(0, FOLD, STEP):
        o_tile = i_fold * FOLD + step + tl.arange(0, STEP)
        m_tile = o_tile < n_tiles
        o_in = i_set * n_tiles + o_tile
        m_count = m_tile[:, None] & (o_bin < bins)[None, :]
        p_in = p_counts + o_in[:, None] * bins + o_bin[None, :]
        counts += tl.load(p_in, mask=m_count, other=0)
        first += tl.load(p_sums + o_in * 4, mask=m_tile, other=0.0).to(tl.float64)
        second += tl.load(p_sums + o_in * 4 + 1, mask=m_tile, other=0.0).to(tl.float64)
        least = tl.minimum(least, tl.load(p_sums + o_in * 4 + 2, mask=m_tile, other=360.0))
        largest = tl.maximum(largest, tl.load(p_sums + o_in * 4 + 3, mask=m_tile, other=-1.0))
    o_out = i_set * n_folds + i_fold
    tl.store(p_folded_counts + o_out * bins + o_bin, tl.sum(counts, axis=0), mask=o_bin < bins)
    p_out = p_folded_sums + o_out * 4
    tl.store(p_out, tl.sum(first, axis=0).to(tl.float32))
    tl.store(p_out + 1, tl.sum(second, axis=0).to(tl.float32))
    tl.store(p_out + 2, tl.min(least, axis=0))
    tl.store(p_out + 3, tl.max(largest, axis=0))


@triton.jit
def axis_angles(angle_sum, angle_max, kept, has_axis):
    """Mean and maximum of the angles to the axis from their float64 sum; NaN without an axis."""
    mean = angle_sum / tl.maximum(kept, 1).to(tl.float64)
    mean = tl.where(has_axis, mean, float("nan")).to(tl.float32)
    return mean, tl.where(has_axis, angle_max, float("nan"))


@triton.jit
def store_angles(p_out, pairs, first, second, least, largest, near_mean):
    """Stores mean, deviation, least and largest of so many angles; NaN without one.

    first, second: float64 sums of angle - near_mean and of its square."""
    wide = tl.maximum(pairs, 1).to(tl.float64)
    off = first / wide
    deviation = tl.sqrt(tl.maximum(second / wide - off * off, 0.0))
    some = pairs > 0
    mean = near_mean.to(tl.float64) + off
    tl.store(p_out, tl.where(some, mean, float("nan")).to(tl.float32))
    tl.store(p_out + 1, tl.where(some, deviation, float("nan")).to(tl.float32))
    tl.store(p_out + 2, tl.where(some, least, float("nan")))
    tl.store(p_out + 3, tl.where(some, largest, float("nan")))


@any_length
def finish_sets(
    p_near_mean,
    p_parts,
    p_counts,
    p_sums,
    p_lengths,
    p_kept,
    p_out,
    p_histogram,
    heads,
    n_blocks,
    n_tiles,
    step_near_mean,
    bins,
    BLOCK_BINS: tl.constexpr,
    N_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    WITH_AXIS: tl.constexpr,
    ANGLES: tl.constexpr,
):
    """Program (set,): writes to p_out (S, N_OUT) the angles to the axis at 3, or those of all
    pairs there; and p_histogram (S, bins) int64."""
    i_set = tl.program_id(0).to(tl.int64)
    p_set = p_out + i_set * N_OUT
    if WITH_AXIS:
        n = tl.load(p_lengths + i_set // heads)
        kept = tl.load(p_kept + i_set)
        angle_sum = tl.zeros((), tl.float64)
        angle_max = 0.0
        for k in range(tl.cdiv(n, BLOCK_ROWS)):
            p_in = p_parts + (i_set * n_blocks + k) * 2
            angle_sum += tl.load(p_in).to(tl.float64)
            angle_max = tl.maximum(angle_max, tl.load(p_in + 1))
        has_axis = (kept > 0) & (tl.load(p_set + 1) > NO_AXIS)
        mean, largest = axis_angles(angle_sum, angle_max, kept, has_axis)
        tl.store(p_set + 3, mean)
        tl.store(p_set + 4, largest)
    if ANGLES:
        o_bin = tl.arange(0, BLOCK_BINS)
        counts = tl.zeros((BLOCK_BINS,), tl.int64)
        first = tl.zeros((), tl.float64)
        second = tl.zeros((), tl.float64)
        least = 360.0
        largest = -1.0
        for k in range(n_tiles):
            o_tile = i_set * n_tiles + k
            first += tl.load(p_sums + o_tile * 4).to(tl.float64)
            second += tl.load(p_sums + o_tile * 4 + 1).to(tl.float64)
            least = tl.minimum(least, tl.load(p_sums + o_tile * 4 + 2))
            largest = tl.maximum(largest, tl.load(p_sums + o_tile * 4 + 3))
            counts += tl.load(p_counts + o_tile * bins + o_bin, mask=o_bin < bins, other=0).to(
                tl.int64
            )
        tl.store(p_histogram + i_set * bins + o_bin, counts, mask=o_bin < bins)
        near_mean = tl.load(p_near_mean + i_set * step_near_mean)
        store_angles(p_set + 3, tl.sum(counts, axis=0), first, second, least, largest, near_mean)
