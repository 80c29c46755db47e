"""Triton: sums over the rows of a tensor, each in one pass over memory.

    row_sums      norms; sums of unit vectors; with MOMENTS, of rows and of powers of deviations
    merge_sums    of a set: its cone
    centre_rows   angles to the cone's axis; centred unit vectors for the products that follow

A set is one window of one head, N slots of which the first `length` are valid. Column sums are
partial sums of `BLOCK_ROWS` rows, added in order: no atomics, nothing depends on the padding.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from bertgeom.kernels import _definitions
from bertgeom.kernels._triton.programs import any_length, tokens_of

#: Rows of a program of `row_sums` and `centre_rows`.
BLOCK_ROWS = 64
#: Rows and columns of a tile of products: padded sizes are multiples of it.
TILE = 128
#: Rows whose norms, and blocks whose sums, a program reads at once.
AT_ONCE = tl.constexpr(1024)
BLOCKS_AT_ONCE = tl.constexpr(4)
#: Kernels can read only globals that are constexpr.
NARROW = tl.constexpr(_definitions.NARROW)
NO_AXIS = tl.constexpr(_definitions.NO_AXIS)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def degrees_of(versine):
    """Angle whose 1 - cos is given, in degrees: 2 asin(sqrt(v / 2)), minimax to 1.5e-8."""
    z = 0.5 * tl.minimum(versine, 2.0 - versine)
    z = tl.maximum(z, 0.0)
    p = 0.11344954362324261
    p = p * z - 0.09664462787672151
    p = p * z + 0.08000983852382511
    p = p * z + 0.015222972784506529
    p = p * z + 0.04674161551944223
    p = p * z + 0.07485973492808352
    p = p * z + 0.16667020350691558
    p = p * z + 0.999999985438151
    acute = tl.sqrt(z) * p * 114.59155902616465
    return tl.where(versine > 1.0, 180.0 - acute, acute)


@triton.jit
def inverse(x):
    """1 / x, and 0 where x is not positive."""
    return tl.where(x > 0, 1.0 / tl.where(x > 0, x, 1.0), 0.0)


@triton.jit
def load_rows(p_set, o_row, stride_n, m_x, o_dim):
    """Rows of a set, float32, zero where masked."""
    p_rows = p_set + o_row.to(tl.int64)[:, None] * stride_n + o_dim[None, :]
    return tl.load(p_rows, mask=m_x, other=0.0).to(tl.float32)


@any_length
def row_sums(
    p_x,
    p_lengths,
    p_norm,
    p_unit,
    p_rows,
    p_moments,
    heads,
    n_slots,
    n_padded,
    stride_b,
    stride_h,
    stride_n,
    WIDTH: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    MOMENTS: tl.constexpr,
):
    """Program (block, set): p_norm (S, n_padded), 0 beyond the length; p_unit and p_rows
    (S, K, WIDTH), sums over the block; p_moments (S, K, 5), its count, mean, M2, M3, M4."""
    n_blocks = n_padded // BLOCK_ROWS
    i_block = tl.program_id(0) % n_blocks
    i_set = (tl.program_id(0) // n_blocks).to(tl.int64)
    n = tokens_of(p_lengths, i_set // heads, n_slots)
    p_set = p_x + (i_set // heads) * stride_b + (i_set % heads) * stride_h
    o_dim = tl.arange(0, BLOCK_DIM)
    m_dim = o_dim < WIDTH
    units = tl.zeros((STEP, BLOCK_DIM), tl.float32)
    if MOMENTS:
        rows = tl.zeros((STEP, BLOCK_DIM), tl.float32)
        s1 = tl.zeros((STEP, BLOCK_DIM), tl.float32)
        s2 = tl.zeros((STEP, BLOCK_DIM), tl.float32)
        s3 = tl.zeros((STEP, BLOCK_DIM), tl.float32)
        s4 = tl.zeros((STEP, BLOCK_DIM), tl.float32)
        # Powers are taken about the mean of the first rows: a part of the sample, hence near its
        # mean in units of its deviation. Sums are added across lanes once, at the end.
        o_row = i_block * BLOCK_ROWS + tl.arange(0, STEP)
        m_x = (o_row < n)[:, None] & m_dim[None, :]
        x = load_rows(p_set, o_row, stride_n, m_x, o_dim)
        k = tl.minimum(tl.maximum(n - i_block * BLOCK_ROWS, 1), STEP) * WIDTH
        about = tl.sum(tl.sum(x, axis=1), axis=0) / k.to(tl.float32)
    for step in range(BLOCK_ROWS // STEP):
        o_row = i_block * BLOCK_ROWS + step * STEP + tl.arange(0, STEP)
        m_x = (o_row < n)[:, None] & m_dim[None, :]
        x = load_rows(p_set, o_row, stride_n, m_x, o_dim)
        # Scaled by the largest entry, so that no square over- or underflows.
        largest = tl.max(tl.abs(x), axis=1)
        scaled = x * inverse(largest)[:, None]
        norm = largest * tl.sqrt(tl.sum(scaled * scaled, axis=1))
        tl.store(p_norm + i_set * n_padded + o_row, norm)
        units += x * inverse(norm)[:, None]
        if MOMENTS:
            rows += x
            d = tl.where(m_x, x - about, 0.0)
            square = d * d
            s1 += d
            s2 += square
            s3 += square * d
            s4 += square * square
    o_out = (i_set * n_blocks + i_block) * WIDTH + o_dim
    tl.store(p_unit + o_out, tl.sum(units, axis=0), mask=m_dim)
    if MOMENTS:
        tl.store(p_rows + o_out, tl.sum(rows, axis=0), mask=m_dim)
        count = tl.minimum(tl.maximum(n - i_block * BLOCK_ROWS, 0), BLOCK_ROWS) * WIDTH
        store_moments(
            p_moments + (i_set * n_blocks + i_block) * 5, count.to(tl.float32), about,
            tl.sum(tl.sum(s1, axis=1), axis=0), tl.sum(tl.sum(s2, axis=1), axis=0),
            tl.sum(tl.sum(s3, axis=1), axis=0), tl.sum(tl.sum(s4, axis=1), axis=0),
        )  # fmt: skip


@triton.jit
def store_moments(p_out, count, about, s1, s2, s3, s4):
    """Stores count, mean, M2, M3, M4 from the sums of powers of deviations from a point."""
    # A few operations in float64: the point is some deviations off at most, but not a rounding.
    off = s1.to(tl.float64) / tl.maximum(count, 1.0)
    square = off * off
    m2 = s2 - count * square
    m3 = s3 - 3 * off * s2 + 2 * count * square * off
    m4 = s4 - 4 * off * s3 + 6 * square * s2 - 3 * count * square * square
    tl.store(p_out, count)
    tl.store(p_out + 1, (about + off).to(tl.float32))
    tl.store(p_out + 2, tl.maximum(m2, 0.0).to(tl.float32))
    tl.store(p_out + 3, m3.to(tl.float32))
    tl.store(p_out + 4, tl.maximum(m4, 0.0).to(tl.float32))


@triton.jit
def add_blocks(p_in, used, o_dim, WIDTH: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Sums (BLOCK_DIM,) in float64 of the first `used` rows of p_in (K, WIDTH), in order."""
    total = tl.zeros((BLOCK_DIM,), tl.float64)
    for first in range(0, used, BLOCKS_AT_ONCE):
        # Unrolled, so that the loads do not wait for each other.
        for k in tl.static_range(BLOCKS_AT_ONCE):
            wide = tl.where(first + k < used, WIDTH, 0)
            part = tl.load(p_in + (first + k) * WIDTH + o_dim, mask=o_dim < wide, other=0.0)
            total += part.to(tl.float64)
    return total


@triton.jit
def add_norms(p_norm, n):
    """Of n norms: how many are positive, how many are finite, their sum and the largest."""
    kept = 0
    finite = 0
    norm_sum = tl.zeros((), tl.float64)
    norm_max = 0.0
    for first in range(0, n, AT_ONCE):
        o_row = first + tl.arange(0, AT_ONCE)
        norm = tl.load(p_norm + o_row, mask=o_row < n, other=0.0)
        kept += tl.sum((norm > 0).to(tl.int32), axis=0)
        finite += tl.sum(((norm < INFINITY) & (o_row < n)).to(tl.int32), axis=0)
        norm_sum += tl.sum(norm.to(tl.float64), axis=0)
        norm_max = tl.maximum(norm_max, tl.max(norm, axis=0))
    return kept, finite, norm_sum, norm_max


@triton.jit
def cone_of(total, kept, some):
    """Index, resultant and mean cosine of a cone; its axis, NaN where there is none; whether it
    is narrow, the shift of its unit vectors, and an angle near the mean.

    total: (BLOCK_DIM,) float64, sum of its unit vectors. some: whether there is any, all finite."""
    index = tl.sqrt(tl.sum(total * total, axis=0))
    wide = tl.maximum(kept, 1).to(tl.float64)
    resultant = index / wide
    cosine = (index * index - wide) / tl.maximum(wide * (wide - 1), 1.0)
    has_axis = some & (resultant > NO_AXIS)
    axis = tl.where(has_axis, total / tl.where(has_axis, index, 1.0), float("nan"))
    narrow = some & (resultant > NARROW)
    shift = tl.where(narrow, total / wide, 0.0)
    near_mean = degrees_of(tl.where(some, 1.0 - cosine, 1.0).to(tl.float32))
    return index, resultant, cosine, axis.to(tl.float32), narrow, shift.to(tl.float32), near_mean


@triton.jit
def store_cone(p_out, index, resultant, cosine, kept, some):
    """Stores the first three statistics of a cone; NaN where not defined."""
    tl.store(p_out, tl.where(some, index, float("nan")).to(tl.float32))
    tl.store(p_out + 1, tl.where(some, resultant, float("nan")).to(tl.float32))
    tl.store(p_out + 2, tl.where(some & (kept > 1), cosine, float("nan")).to(tl.float32))


@any_length
def merge_sums(
    p_lengths,
    p_norm,
    p_unit,
    p_out,
    p_kept,
    p_axis,
    p_shift,
    p_facts,
    heads,
    n_padded,
    n_blocks,
    WIDTH: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    N_OUT: tl.constexpr,
):
    """Program (set,): p_out (S, N_OUT) takes the cone; p_kept (S,) the non-zero vectors, or -1
    where an entry is not finite; p_axis, p_shift (S, WIDTH); p_facts (S, 2): whether units are
    shifted, an angle near the mean."""
    i_set = tl.program_id(0).to(tl.int64)
    n = tl.load(p_lengths + i_set // heads)
    o_dim = tl.arange(0, BLOCK_DIM)
    m_dim = o_dim < WIDTH
    p_blocks = p_unit + i_set * n_blocks * WIDTH
    total = add_blocks(p_blocks, tl.cdiv(n, BLOCK_ROWS), o_dim, WIDTH, BLOCK_DIM)
    kept, finite, _, _ = add_norms(p_norm + i_set * n_padded, n)
    is_finite = finite >= n
    some = is_finite & (kept > 0)
    index, resultant, cosine, axis, narrow, shift, near_mean = cone_of(total, kept, some)
    store_cone(p_out + i_set * N_OUT, index, resultant, cosine, kept, some)
    tl.store(p_kept + i_set, tl.where(is_finite, kept, -1))
    o_out = i_set * WIDTH + o_dim
    tl.store(p_axis + o_out, axis, mask=m_dim)
    tl.store(p_shift + o_out, shift, mask=m_dim)
    tl.store(p_facts + i_set * 2, narrow.to(tl.float32))
    tl.store(p_facts + i_set * 2 + 1, near_mean)


@triton.jit
def angles_to(axis, unit, known):
    """Angles (rows,) between unit vectors and the axis, 0 where not known."""
    # From the difference: near the axis the cosine has no accurate digits left.
    apart = unit - axis[None, :]
    return tl.where(known, degrees_of(0.5 * tl.sum(apart * apart, axis=1)), 0.0)


@triton.jit
def store_rows(p_vectors, y, o_out, o_dim, m_row, WIDTH_PADDED: tl.constexpr):
    """Stores y in the type of p_vectors (., WIDTH_PADDED); squares of the rows as stored."""
    y = y.to(p_vectors.dtype.element_ty)
    p_row = p_vectors + o_out.to(tl.int64)[:, None] * WIDTH_PADDED + o_dim[None, :]
    tl.store(p_row, y, mask=(o_dim < WIDTH_PADDED)[None, :] & m_row[:, None])
    rounded = y.to(tl.float32)
    return tl.sum(rounded * rounded, axis=1)


@triton.jit
def store_units(
    p_vectors, p_alpha, p_scale, unit, shift, narrow, known, m_dim, o_out, o_dim, m_row,
    WIDTH_PADDED: tl.constexpr,
):  # fmt: skip
    """Stores y = unit - shift and the numbers that make versines of products of such rows:
    alpha_i + alpha_j - scale_i scale_j y_i y_j."""
    y = tl.where(known[:, None] & m_dim[None, :], unit - shift[None, :], 0.0)
    square = store_rows(p_vectors, y, o_out, o_dim, m_row, WIDTH_PADDED)
    tl.store(p_alpha + o_out, tl.where(narrow, 0.5 * square, 0.5))
    tl.store(p_scale + o_out, tl.where(narrow, 1.0, inverse(tl.sqrt(square))))


@any_length
def centre_rows(
    p_x,
    p_lengths,
    p_norm,
    p_axis,
    p_shift,
    p_facts,
    p_parts,
    p_vectors,
    p_alpha,
    p_scale,
    heads,
    n_padded,
    stride_b,
    stride_h,
    stride_n,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    WITH_AXIS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Program (block, set): with WITH_AXIS p_parts (S, K, 2) takes the sum and the maximum of the
    angles to the axis. With UNITS p_vectors (S, n_padded, WIDTH_PADDED), p_alpha and p_scale
    (S, n_padded) take what `store_units` says. Rows beyond the length are 0."""
    n_blocks = n_padded // BLOCK_ROWS
    i_block = tl.program_id(0) % n_blocks
    i_set = (tl.program_id(0) // n_blocks).to(tl.int64)
    n = tl.load(p_lengths + i_set // heads)
    p_set = p_x + (i_set // heads) * stride_b + (i_set % heads) * stride_h
    o_dim = tl.arange(0, BLOCK_DIM)
    m_dim = o_dim < WIDTH
    if WITH_AXIS:
        axis = tl.load(p_axis + i_set * WIDTH + o_dim, mask=m_dim, other=0.0)
    if UNITS:
        shift = tl.load(p_shift + i_set * WIDTH + o_dim, mask=m_dim, other=0.0)
        narrow = tl.load(p_facts + i_set * 2) > 0
    angle_sum, angle_max = 0.0, 0.0
    for step in range(BLOCK_ROWS // STEP):
        o_row = i_block * BLOCK_ROWS + step * STEP + tl.arange(0, STEP)
        m_x = (o_row < n)[:, None] & m_dim[None, :]
        x = load_rows(p_set, o_row, stride_n, m_x, o_dim)
        o_out = i_set * n_padded + o_row
        norm = tl.load(p_norm + o_out)
        known = norm > 0
        unit = x * inverse(norm)[:, None]
        if WITH_AXIS:
            angle = angles_to(axis, unit, known)
            angle_sum += tl.sum(angle, axis=0)
            angle_max = tl.maximum(angle_max, tl.max(angle, axis=0))
        if UNITS:
            store_units(
                p_vectors, p_alpha, p_scale, unit, shift, narrow, known, m_dim, o_out, o_dim,
                o_row < n_padded, WIDTH_PADDED,
            )  # fmt: skip
    if WITH_AXIS:
        p_out = p_parts + (i_set * n_blocks + i_block) * 2
        tl.store(p_out, angle_sum)
        tl.store(p_out + 1, angle_max)
