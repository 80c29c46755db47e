"""The arrays that a call and its threads work on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from bertgeom.kernels._cpu.amx import BLOCK, STEP, in_blocks
from bertgeom.kernels._cpu.runtime import check_extent, inner, jit
from bertgeom.kernels._cpu.vectors import TILE, floats_at
from bertgeom.kernels.attention_stats.cpu.products import pieces_floats
from bertgeom.kernels.attention_stats.cpu.rows import LANES, padded
from bertgeom.kernels.attention_stats.options import N_BLOCKS, N_VALUE_BINS

#: Up to here the weights of one head stay in memory for the second look, 4 n^2 bytes a thread.
RESIDENT_TOKENS = 1024
#: Weights of one block of rows of a longer head (1 MiB: half of a usual L2 cache).
_BLOCK_WEIGHTS = 1 << 18
#: Mirrored cells of a longer head are made by as many at a time (256 KiB), and for so many rows.
MIRROR_WEIGHTS, MIRROR_ROWS, MIRROR_WIDTH = 1 << 16, 256, 512
#: Side of the pairs of tiles of the second look at a flat head.
PAIRS = 256
#: Candidates for the higher value bins that a longer head may have, by token.
_CANDIDATES = 16
#: Diagonals are summed in as many arrays as a cache line holds floats, so that every row of
#: weights is added to one of them without crossing lines.
PHASES = 16


class Heads(NamedTuple):
    """Where the n x d matrices of a (B, H, N, d) float32 tensor lie: strides in elements.

    `end` is the address after the last element.
    """

    address: int
    batch: int
    head: int
    row: int
    end: int


class Settings(NamedTuple):
    """Options of a call in the form the loops use; `scale` includes 1 / ln 2, `theta` its slack."""

    scale: np.float32
    reach: int
    theta: np.float32
    near: int
    n_side: int
    full: bool
    amx: bool
    """whether to multiply on the tile unit"""
    strips: bool
    """whether to multiply long heads in strips"""


class Values(NamedTuple):
    """Results (B, H, ...), `scalars` (len(SCALARS), B, H), `cones` (2, B, H, 4), or their shapes.

    Float32, but `k90` and `gate` int32. Tracks have N = 0 and cones a last dimension of 0 if they
    are not requested.
    """

    scalars: Any
    k90: Any
    gate: Any
    gate_mass: Any
    group_mass: Any
    profile: Any
    block_map: Any
    query_entropy: Any
    received: Any
    cones: Any


@inner
def values_at(address, shapes):
    """The results, one after another from an address on."""
    scalars, address = _array_at(address, shapes.scalars)
    k90, address = _array_at(address, shapes.k90)
    gate, address = _array_at(address, shapes.gate)
    gate_mass, address = _array_at(address, shapes.gate_mass)
    group_mass, address = _array_at(address, shapes.group_mass)
    profile, address = _array_at(address, shapes.profile)
    block_map, address = _array_at(address, shapes.block_map)
    query_entropy, address = _array_at(address, shapes.query_entropy)
    received, address = _array_at(address, shapes.received)
    cones, address = _array_at(address, shapes.cones)
    return Values(
        scalars,
        k90.view(np.int32),
        gate.view(np.int32),
        gate_mass,
        group_mass,
        profile,
        block_map,
        query_entropy,
        received,
        cones,
    )


@inner
def _array_at(address, shape):
    size = 1
    for n in shape:
        size *= n
    return numba.carray(floats_at(address), shape, np.float32), address + 4 * size


class Work(NamedTuple):
    """What one thread needs for one head of n tokens, cut out of its scratch memory.

        content        (ld,)       1 for content tokens, 0 for special tokens and padding
        column, near   (ld,)       column sums of this stretch of rows: far cells, near cells
        columns, far, confident    (ld,)  column sums of all rows, as in gpu.columns.ColumnSums
        diagonals      (16, w)     diagonal j - i lies at n - 1 + j - i - s in array s, where
                                   s = (n - 1 - i) % 16; w keeps equal places of two arrays out
                                   of one set of the cache
        highs, inverses, entropies (ld,)  of every row
        far_map, block_map         (16, 16)
        k_rows         (n + 1,)    int32, rows by their k90
        codes          (ld,)       uint8
        lifted         (2 near + 1,)  near cells of a row
        near_sums      (2, 2 near + 1)  float64, of the near diagonals: all cells, content cells
        bins           (23,)       int64, the last two stay empty
        found          int64, positions of confident weights
        gram           (4, d, d)
        side_by_side   (3, m, d)  see `products`; (0, m, d) for up to RESIDENT_TOKENS; whole strips
        pieces         see `products`
        mirror         (MIRROR_WEIGHTS,)  mirrored cells; of a head in memory (0,), like candidates
        candidates     weights that may lie beyond the first value bin
        weights        the rest: all weights, n rows of padded(n), or a block of rows, and room for
                       two tiles of PAIRS rows

    ld is n rounded up to a multiple of LANES, and LANES more for a block that starts inside one.
    Float32 unless noted.
    """

    content: np.ndarray
    column: np.ndarray
    near: np.ndarray
    columns: np.ndarray
    far: np.ndarray
    confident: np.ndarray
    diagonals: np.ndarray
    highs: np.ndarray
    inverses: np.ndarray
    entropies: np.ndarray
    far_map: np.ndarray
    block_map: np.ndarray
    k_rows: np.ndarray
    codes: np.ndarray
    lifted: np.ndarray
    near_sums: np.ndarray
    bins: np.ndarray
    found: np.ndarray
    gram: np.ndarray
    side_by_side: np.ndarray
    pieces: np.ndarray
    mirror: np.ndarray
    candidates: np.ndarray
    weights: np.ndarray


@inner
def is_resident(n, reach):
    """Whether the weights of a head of n tokens stay in memory for the second look."""
    return reach >= n - 1 and n <= RESIDENT_TOKENS


@inner
def _side_by_side_floats(n, head_dim):
    """Float32 elements for queries, keys and values of a long head, in whole strips."""
    return 3 * in_blocks(n) * head_dim if n > RESIDENT_TOKENS else 0


@inner
def rows_at_once(n, reach):
    """Rows of one block: whole BLOCKs, as the tile unit writes them, or all."""
    rows = _BLOCK_WEIGHTS // padded(min(n, 2 * reach + LANES))
    return min(n, max(1, rows // BLOCK) * BLOCK)


@inner
def block_width(n, reach):
    """Largest padded width of a block; its first column is rounded down to a multiple of STEP."""
    return padded(min(n, rows_at_once(n, reach) + 2 * reach + STEP))


@inner
def scratch_floats(n, head_dim, near, theta, reach):
    """Float32 elements that `cut` takes, all pieces rounded up to LANES.

    A longer head may need less: up to RESIDENT_TOKENS all weights are kept, and the blocks of
    rows of a longer one come to more or less than _BLOCK_WEIGHTS.
    """
    ld = padded(n) + LANES
    if is_resident(n, reach):
        weights = in_blocks(n) * padded(n)
    else:
        pair = 2 * in_blocks(min(n, PAIRS)) * padded(min(n, PAIRS))
        weights = max(pair, in_blocks(rows_at_once(n, reach)) * block_width(n, reach))
        weights += MIRROR_WEIGHTS + padded(_CANDIDATES * n)
    small = 5 * padded(2 * near + 1) + 2 * padded(N_BLOCKS**2) + 2 * LANES
    found = padded(2 * most_confident(theta))
    vectors = 10 * ld + padded(n + 1) + PHASES * (2 * ld + TILE)
    pieces = padded(pieces_floats(n, head_dim)) + padded(_side_by_side_floats(n, head_dim))
    return vectors + small + found + padded(4 * head_dim**2) + pieces + weights


@jit
def most_floats(lengths, head_dim, near, theta, reach):
    """The largest `scratch_floats` of all lengths (B,) int32, 0 left out."""
    most = 0
    for n in lengths:
        if n > 0:
            most = max(most, scratch_floats(np.int64(n), head_dim, near, theta, reach))
    return most


@inner
def padded_rows(n):
    """n rounded up to a multiple of TILE."""
    return (n + TILE - 1) // TILE * TILE


@inner
def check_blocks(work, address, rows, columns, pitch):
    """Check that the whole blocks that the tile unit writes lie in the memory of the weights."""
    written = (in_blocks(rows) - 1) * pitch + in_blocks(columns)
    begin = np.int64(work.weights.ctypes.data)
    check_extent(address, written, begin, begin + 4 * work.weights.size)


@inner
def most_confident(theta):
    """Bound of the number of weights >= theta in a row; rounding may add to their sum of 1."""
    return np.int64(1.001 / theta) + 1


@inner
def cut(address, n_floats, n, d, near, theta, reach):
    """The work arrays for one head in memory for n_floats, zeroed where they are added to."""
    scratch = numba.carray(floats_at(address), (n_floats,), np.float32)
    ld = padded(n) + LANES
    at = 0
    content, at = _take(scratch, at, ld, ld)
    column, at = _take(scratch, at, ld, ld)
    near_column, at = _take(scratch, at, ld, ld)
    columns, at = _take(scratch, at, ld, ld)
    far, at = _take(scratch, at, ld, ld)
    confident, at = _take(scratch, at, ld, ld)
    highs, at = _take(scratch, at, ld, ld)
    inverses, at = _take(scratch, at, ld, ld)
    entropies, at = _take(scratch, at, ld, ld)
    codes, at = _take(scratch, at, ld, 0)
    diagonals, at = _take(scratch, at, PHASES * (2 * ld + TILE), PHASES * (2 * ld + TILE))
    far_map, at = _take(scratch, at, N_BLOCKS**2, 0)
    block_map, at = _take(scratch, at, N_BLOCKS**2, 0)
    k_rows, at = _take(scratch, at, n + 1, n + 1)
    lifted, at = _take(scratch, at, 2 * near + 1, 0)
    near_sums, at = _take(scratch, at, 4 * (2 * near + 1), 4 * (2 * near + 1))
    bins, at = _take(scratch, at, 2 * (N_VALUE_BINS + 3), 2 * (N_VALUE_BINS + 3))
    found, at = _take(scratch, at, 2 * most_confident(theta), 0)
    gram, at = _take(scratch, at, 4 * d * d, 0)
    resident = is_resident(n, reach)
    side_by_side, at = _take(scratch, at, _side_by_side_floats(n, d), 0)
    pieces, at = _take(scratch, at, pieces_floats(n, d), 0)
    mirror, at = _take(scratch, at, 0 if resident else MIRROR_WEIGHTS, 0)
    candidates, at = _take(scratch, at, 0 if resident else _CANDIDATES * n, 0)
    return Work(
        content,
        column,
        near_column,
        columns,
        far,
        confident,
        diagonals.reshape((PHASES, 2 * ld + TILE)),
        highs,
        inverses,
        entropies,
        far_map.reshape((N_BLOCKS, N_BLOCKS)),
        block_map.reshape((N_BLOCKS, N_BLOCKS)),
        k_rows.view(np.int32),
        codes.view(np.uint8)[:ld],
        lifted,
        near_sums.view(np.float64).reshape((2, 2 * near + 1)),
        bins.view(np.int64),
        found.view(np.int64),
        gram.reshape((4, d, d)),
        side_by_side.reshape((side_by_side.size // (in_blocks(n) * d), in_blocks(n), d)),
        pieces,
        mirror,
        candidates,
        scratch[at:],
    )


@inner
def _take(scratch, at, size, zeroed):
    if at + size > scratch.size:
        raise IndexError("attention_stats: scratch memory too small for a head; please report it")
    piece = scratch[at : at + size]
    piece[:zeroed] = 0
    return piece, at + padded(size)
