"""Statistics of one head from its sums: O(n + 16 * 16) work after the rows are done."""

from __future__ import annotations

import math

import numba
import numpy as np

from bertgeom.kernels._cpu.cones import cone_of
from bertgeom.kernels._cpu.rows import ROWS, unit_rows
from bertgeom.kernels._cpu.runtime import dgemm, inner, sgemm
from bertgeom.kernels._cpu.vectors import floats_at, widest_vectors
from bertgeom.kernels.attention_stats.cpu.bias import biased_products
from bertgeom.kernels.attention_stats.cpu.products import in_double
from bertgeom.kernels.attention_stats.cpu.work import PHASES
from bertgeom.kernels.attention_stats.options import (
    FLAT,
    GATE_MIXED,
    HUB_MASS,
    N_BLOCKS,
    N_VALUE_BINS,
    ONE_BLOCK,
    SLACK,
)

#: Names of the (B, H) float statistics, in the order of `Values.scalars`.
SCALARS = (
    "attention_entropy",
    "attention_entropy_std",
    "attention_top1",
    "attention_purity",
    "attention_distance",
    "attention_offset",
    "attention_self",
    "attention_forward",
    "attention_backward",
    "attention_special",
    "attention_confident_mass",
    "attention_confident_count",
    "attention_received_entropy",
    "attention_received_max",
    "logit_asymmetry",
    "logit_effective_rank",
)
#: Additional names of tier full.
FULL_SCALARS = ("attention_value_entropy", "attention_asymmetry")
(
    _ENTROPY,
    _ENTROPY_STD,
    TOP1,
    PURITY,
    _DISTANCE,
    _OFFSET,
    _SELF,
    _FORWARD,
    _BACKWARD,
    _SPECIAL,
    CONFIDENT_MASS,
    CONFIDENT_COUNT,
    _RECEIVED_ENTROPY,
    _RECEIVED_MAX,
    _LOGIT_ASYMMETRY,
    _LOGIT_RANK,
    VALUE_ENTROPY,
    ASYMMETRY,
) = range(len(SCALARS) + len(FULL_SCALARS))

#: |S|^2 / (|Q|^2 |K|^2) below which float32 products lose more than 1e-4 of |S|^2.
_ORTHOGONAL = 5e-4
#: Squares from here on down lose digits in float32.
_TINY = 1e-30

_CLOSED, _OPEN, _BACK, _FORTH, _DIRECTIONAL, _INSTANCE, _CLUSTER, _DIFFUSE = range(GATE_MIXED)


@inner
def stretch_begin(g, n):
    """First token of stretch g of n tokens: the least t with t * N_BLOCKS // n >= g."""
    return (g * n + N_BLOCKS - 1) // N_BLOCKS


@inner
def end_stretch(g, n, work):
    """Add the column sums of one stretch of rows to the maps and to the totals."""
    column, near = work.column, work.near
    _add_columns(column, near, work.content, work.columns, work.far)
    for h in range(N_BLOCKS):
        begin, end = stretch_begin(h, n), stretch_begin(h + 1, n)
        work.block_map[g, h] = _sum(column, begin, end)
        work.far_map[g, h] = _sum(near, begin, end)
    column[:] = 0
    near[:] = 0


@inner
def _sum(x, begin, end):
    total = np.float32(0)
    for j in range(begin, end):
        total += x[j]
    return total


@inner
def _add_columns(column, near, content, columns, far):
    """Add to the totals; leaves all cells' sums in `column`, and far content cells' in `near`."""
    widest_vectors()
    for j in range(column.size):
        x = column[j]
        column[j] = x + near[j]
        columns[j] += x + near[j]
        near[j] = x * content[j]
        far[j] += x * content[j]


@inner
def row_statistics(n, work, out):
    """Mean and standard deviation of the rows' entropies."""
    mean = 0.0
    for i in range(n):
        mean += work.entropies[i]
    mean /= n
    variance = 0.0
    for i in range(n):
        variance += (work.entropies[i] - mean) ** 2
    out[_ENTROPY] = mean
    out[_ENTROPY_STD] = math.sqrt(variance / n)


@inner
def column_statistics(n, work, groups, out, group_mass):
    """Attention received, and the mass on special tokens and on the groups."""
    special = entropy = largest = total = 0.0
    group_mass[:] = 0
    for j in range(n):
        share = work.columns[j] / n
        total += share
        largest = max(largest, share)
        special += share * (1 - work.content[j])
        if share > 0:
            entropy -= share * math.log(share)
        for g in range(group_mass.size):
            if (groups[j] >> g) & 1:
                group_mass[g] += share
    # max() ignores NaN; adding 0 * total propagates it.
    out[_RECEIVED_ENTROPY] = entropy + 0 * total
    out[_RECEIVED_MAX] = largest + 0 * total
    out[_SPECIAL] = special


@inner
def offset_statistics(n, near, work, out, profile):
    """Sums along diagonals: distance, direction, and the profile by signed offset."""
    diagonal = _one_diagonal(n, near, work)
    n_side = (profile.size - 1) // 2
    profile[:] = 0
    distance = moved = forward = backward = ahead = behind = 0.0
    side, last = 1, 1
    for o in range(1, n):
        x = np.float64(diagonal[n - 1 + o])
        y = np.float64(diagonal[n - 1 - o])
        forward += x
        backward += y
        distance += (x + y) * o
        moved += (x - y) * o
        ahead += x
        behind += y
        if (o == last and side < n_side) or o == n - 1:
            profile[n_side + side] = ahead / n
            profile[n_side - side] = behind / n
            ahead = behind = 0.0
            side += 1
            last *= 2
    itself = diagonal[n - 1] / n
    profile[n_side] = itself
    out[_DISTANCE] = distance / n
    out[_OFFSET] = moved / n
    out[_SELF] = itself
    out[_FORWARD] = forward / n
    out[_BACKWARD] = backward / n


@inner
def _one_diagonal(n, near, work):
    """Add all phases to the first: the sum over offset o lies at n - 1 + o."""
    total = work.diagonals[0]
    for phase in range(1, PHASES):
        one = work.diagonals[phase]
        for x in range(one.size - phase):
            total[x + phase] += one[x]
    for o in range(max(-near, 1 - n), min(near, n - 1) + 1):
        total[n - 1 + o] += work.near_sums[0, near + o]
    return total


@inner
def gates(n, near, work, out, mass):
    """Write the gate spectrum (8,); returns the code of the dominant gate."""
    hub = min(HUB_MASS, n / 2) * (1 - SLACK)
    directional = instance = rest = 0.0
    for j in range(n):
        if work.columns[j] >= hub:
            directional += work.far[j]
        else:
            instance += work.confident[j]
            rest += work.far[j] - work.confident[j]
    mass[_CLOSED] = out[_SPECIAL]
    near_content = work.near_sums[1]
    mass[_OPEN] = near_content[near] / n
    mass[_BACK] = near_content[:near].sum() / n
    mass[_FORTH] = near_content[near + 1 :].sum() / n
    mass[_DIRECTIONAL] = directional / n
    mass[_INSTANCE] = instance / n
    cluster = rest * block_structure(work.far_map)
    mass[_CLUSTER] = cluster / n
    mass[_DIFFUSE] = (rest - cluster) / n
    code = 0
    for gate in range(1, GATE_MIXED):
        if mass[gate] > mass[code]:
            code = gate
    return code if mass[code] >= 0.5 * (1 - SLACK) else GATE_MIXED


@inner
def block_structure(far_map):
    """max(0, m) of the gate `cluster` for the 16 x 16 map of far mass; 0 without far mass."""
    total = 0.0
    for g in range(N_BLOCKS):
        for h in range(N_BLOCKS):
            total += far_map[g, h]
    best = 0.0
    if not total > 0:
        return best
    # Segments of 1, 2, 4 and 8 stretches.
    size = 1
    while size < N_BLOCKS:
        inside = chance = 0.0
        for first in range(0, N_BLOCKS, size):
            asked = given = 0.0
            for g in range(first, first + size):
                for h in range(N_BLOCKS):
                    asked += far_map[g, h]
                    given += far_map[h, g]
                for h in range(first, first + size):
                    inside += far_map[g, h]
            chance += (asked / total) * (given / total)
        if 1 - chance > ONE_BLOCK:
            best = max(best, (inside / total - chance) / (1 - chance))
        size *= 2
    return best


@inner
def value_entropy(n, smallest, largest, bins):
    """Entropy of the weights by value bin; the last bin is closed on both sides."""
    if largest - smallest <= FLAT * largest:
        return 0.0
    bins[N_VALUE_BINS - 1] += bins[N_VALUE_BINS]
    entropy = 0.0
    for b in range(N_VALUE_BINS):
        if bins[b] > 0:
            share = bins[b] / (n * n)
            entropy -= share * math.log(share)
    return entropy


@inner
def k90_summary(n, k_rows, out):
    """Lower median and minimum of the rows' k90 from the numbers of rows by k90."""
    seen = 0
    for k in range(n + 1):
        if k_rows[k] > 0:
            if seen == 0:
                out[1] = k
            if seen < (n + 1) // 2:
                out[0] = k
            seen += k_rows[k]


@inner
def head_cone(n, d, address, row, out):
    """Cone index and mean cosine of the rows of an n x d matrix, block by block as `cone_sums`."""
    flat = numba.carray(floats_at(address), ((n - 1) * row + d,), np.float32)
    total, norm, part = np.zeros(d), np.empty(ROWS), np.empty(d, np.float32)
    kept = 0
    for i in range(0, n, ROWS):
        rows = min(ROWS, n - i)
        part[:] = 0
        unit_rows(flat, i * row, row, 0, rows, norm, part)
        for k in range(d):
            total[k] += part[k]
        for x in norm[:rows]:
            if not np.isfinite(x):
                kept = -n
            kept += x > 0
    square = 0.0
    for x in total:
        square += x * x
    out[0], _, out[1] = cone_of(square, kept)


@inner
def is_finite(n, d, matrices, out):
    """Whether queries and keys, the first two matrices, are finite. They need not be read if the
    rank of their product is, in out: a number that is not finite makes it NaN."""
    if np.isfinite(out[_LOGIT_RANK]):
        return True
    for x in range(2):
        address, row = matrices[x]
        flat = numba.carray(floats_at(address), ((n - 1) * row + d,), np.float32)
        for i in range(n):
            for k in range(d):
                if not np.isfinite(flat[i * row + k]):
                    return False
    return True


@inner
def logit_statistics(blas, n, d, query, query_row, key, key_row, gram, bias, out):
    """Asymmetry and effective rank of S = Q K^T, from S if n < d, else from d x d products.

    Args:
        blas: addresses of sgemm and dgemm.
        query, key: addresses; query_row, key_row: distances of their rows.
        gram: (4, d, d) float32 to work in.
        bias: of the head, see `bias.HeadCells`; with one, S = scale Q K^T + B.

    Returns:
        a bound of the size of all entries of queries and keys, infinite or NaN if there is none.
    """
    largest = np.inf
    if bias.address != 0:
        q, k = in_double(n, d, query, query_row), in_double(n, d, key, key_row)
        norm, square, quartic, total = biased_products(blas[1], bias, q, k)
        if n >= d:
            largest = math.sqrt(total)
    elif n < d:
        norm, square, quartic = _of_scores(blas[0], n, d, query, query_row, key, key_row, gram)
    else:
        norm, square, quartic, total = _of_products(
            blas[0], n, d, query, query_row, key, key_row, gram
        )
        largest = math.sqrt(total)
    if bias.address == 0 and not norm >= _ORTHOGONAL:
        q, k = in_double(n, d, query, query_row), in_double(n, d, key, key_row)
        norm, square, quartic = _of_double_products(blas[1], q, k)
    out[_LOGIT_ASYMMETRY] = 0.0
    out[_LOGIT_RANK] = 0.0
    if norm != 0:
        out[_LOGIT_ASYMMETRY] = min(max(0.5 * (norm - square) / norm, 0.0), 1.0)
        out[_LOGIT_RANK] = norm * norm / quartic
    return largest


@inner
def _of_scores(blas, n, d, query, query_row, key, key_row, gram):
    """|S|^2, tr(S^2) and tr((S S')^2) of the n x n matrix S scaled to |S| = 1; 0 if S is tiny."""
    flat = gram.reshape(gram.size)
    s = flat[: n * n].reshape((n, n))
    product = flat[n * n : 2 * n * n].reshape((n, n))
    one = np.float32(1)
    sgemm(blas, 0, 1, n, n, d, one, query, query_row, key, key_row, s.ctypes.data, n)
    norm = square = quartic = 0.0
    for i in range(n):
        for j in range(n):
            norm += np.float64(s[i, j]) * np.float64(s[i, j])
            square += np.float64(s[i, j]) * np.float64(s[j, i])
    if not norm > _TINY:
        return 0.0, 0.0, 0.0
    unit = 1 / math.sqrt(norm)
    for i in range(n):
        for j in range(n):
            s[i, j] *= unit
    sgemm(blas, 0, 1, n, n, n, one, s.ctypes.data, n, s.ctypes.data, n, product.ctypes.data, n)
    for i in range(n):
        for j in range(n):
            quartic += np.float64(product[i, j]) * np.float64(product[i, j])
    return 1.0, square / norm, quartic


@inner
def _of_products(blas, n, d, query, query_row, key, key_row, gram):
    """The same from Q'Q, K'K and K'Q: tr(Q'Q K'K), tr((K'Q)^2), tr((Q'Q K'K)^2); |Q|^2 + |K|^2.

    All but the last are scaled to |Q| = |K| = 1. Where the first comes out small, because queries
    and keys are nearly orthogonal, it has lost its digits to rounding of the products.
    """
    qq, kk, kq, product = gram[0], gram[1], gram[2], gram[3]
    one = np.float32(1)
    sgemm(blas, 1, 0, d, d, n, one, query, query_row, query, query_row, qq.ctypes.data, d)
    sgemm(blas, 1, 0, d, d, n, one, key, key_row, key, key_row, kk.ctypes.data, d)
    sgemm(blas, 1, 0, d, d, n, one, key, key_row, query, query_row, kq.ctypes.data, d)
    q_trace, k_trace = _trace(qq), _trace(kk)
    if not (q_trace > _TINY and k_trace > _TINY):
        return 0.0, 0.0, 0.0, q_trace + k_trace
    # Before the product: BLAS multiplies by alpha only after it, when it is out of range.
    qq *= np.float32(1 / q_trace)
    sgemm(blas, 0, 0, d, d, d, one, qq.ctypes.data, d, kk.ctypes.data, d, product.ctypes.data, d)
    norm, square, quartic = _traces(product, kq, 1 / q_trace, 1 / k_trace)
    return norm, square, quartic, q_trace + k_trace


@inner
def _trace(x):
    total = 0.0
    for c in range(len(x)):
        total += x[c, c]
    return total


@inner
def _traces(product, kq, q_unit, k_unit):
    """Of `product`, which is Q'Q K'K q_unit, and of kq, all times the powers of the units due."""
    norm = square = quartic = 0.0
    for r in range(len(product)):
        norm += product[r, r]
        for c in range(len(product)):
            square += np.float64(kq[r, c]) * np.float64(kq[c, r])
            quartic += np.float64(product[r, c]) * np.float64(product[c, r])
    return norm * k_unit, square * q_unit * k_unit, quartic * k_unit * k_unit


@inner
def _of_double_products(blas, q, k):
    """`_of_products` of float64 copies of the queries and keys (n, d)."""
    n, d = q.shape
    products = np.empty((4, d, d))
    qq, kk, kq, product = products[0], products[1], products[2], products[3]
    for a, b, c in ((q, q, qq), (k, k, kk), (k, q, kq)):
        dgemm(blas, 1, 0, d, d, n, 1.0, a.ctypes.data, d, b.ctypes.data, d, c.ctypes.data, d)
    q_trace, k_trace = _trace(qq), _trace(kk)
    if q_trace * k_trace == 0:
        return 0.0, 0.0, 0.0
    qq /= q_trace
    dgemm(blas, 0, 0, d, d, d, 1.0, qq.ctypes.data, d, kk.ctypes.data, d, product.ctypes.data, d)
    return _traces(product, kq, 1 / q_trace, 1 / k_trace)
