"""Products of a head: by BLAS, on the tile unit (`_cpu.amx`), of a long head in `_cpu.strips`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from bertgeom.kernels._cpu.amx import (
    COMPILES,
    LARGEST,
    SIDE,
    STEP,
    piece_floats,
    product,
    split_rows,
    split_transposed,
    strip_bytes,
)
from bertgeom.kernels._cpu.runtime import inner, sgemm
from bertgeom.kernels._cpu.strips import WIDTH, deep_product, strips_of_rows, transposed_strips
from bertgeom.kernels._cpu.strips import product as strips_product
from bertgeom.kernels._cpu.vectors import floats_at

#: Rows whose logits the unit makes at a time: they are still in the cache when they are read.
GROUP = 64


class Pieces(NamedTuple):
    """Whether the unit multiplies this head; addresses of its keys and of GROUP queries."""

    used: Any
    keys: Any
    queries: Any


class Strips(NamedTuple):
    """Whether a head is multiplied in strips; addresses of its keys, queries and values."""

    used: Any
    keys: Any
    queries: Any
    values: Any


@inner
def pieces_floats(n, d):
    """Float32 elements for the pieces of a head; none for a CPU without the unit."""
    return piece_floats(n, d) + piece_floats(GROUP, d) if COMPILES and d % STEP == 0 else 0


@inner
def split_keys(use, largest, n, d, key, key_row, memory):
    """Pieces of the keys, if the unit can be used and `use` says so.

    Args:
        largest: bound of the size of every query and key.
        memory: (pieces_floats(n, d),) float32.
    """
    keys = np.int64(memory.ctypes.data)
    used = use and d % STEP == 0 and largest < LARGEST
    if used:
        split_transposed(key, 4 * key_row, n, d, keys)
    return Pieces(used, keys, keys + 4 * piece_floats(n, d))


@inner
def side_by_side(use, scale, n, d, matrices, memory):
    """Queries, keys and values of a long head without what lies between their rows.

    Every block of rows reads all keys and values. In the output of a layer each is on a page of its
    own, and there are more of them than a CPU has translations of addresses at hand.

    Args:
        use: whether strips can be used.
        memory: (3, rows, d) float32, rows a whole number of strips; (0, ...): the head is short.

    Returns:
        strips, and the matrices, which are copies if strips are not used.
    """
    query, key, value, output = matrices
    used = use and d % WIDTH == 0 and len(memory) > 0
    if used:
        at = np.int64(memory.ctypes.data)
        strips = Strips(used, at, at + 4 * memory[0].size, at + 8 * memory[0].size)
        transposed_strips(key[0], key[1], n, d, scale, strips.keys)
        transposed_strips(query[0], query[1], n, d, scale, strips.queries)
        strips_of_rows(value[0], value[1], n, d, strips.values)
        return strips, matrices
    if len(memory) > 0:
        query = _copied(n, d, query, memory[0])
        key = _copied(n, d, key, memory[1])
        value = _copied(n, d, value, memory[2])
    nowhere = np.int64(0)
    return Strips(used, nowhere, nowhere, nowhere), (query, key, value, output)


@inner
def _copied(n, d, matrix, to):
    """Copy the rows of a matrix, given by address and row stride, side by side; the same of it."""
    address, row = matrix
    x = numba.carray(floats_at(address), ((n - 1) * row + d,), np.float32)
    for i in range(n):
        for c in range(d):
            to[i, c] = x[i * row + c]
    return np.int64(to.ctypes.data), np.int64(d)


@inner
def logits(blas, pieces, strips, scale, d, matrices, i0, i1, c0, c1, out, pitch):
    """scale Q K^T of rows i0 to i1 and columns c0 to c1; but for BLAS in whole blocks of both.

    Args:
        c0: a multiple of STEP, as of the width of a strip.
        out, pitch: address of the product, and the distance of its rows in elements.
    """
    (query, query_row), (key, key_row), _, _ = matrices
    if not pieces.used:
        _scaled(
            blas, query + 4 * i0 * query_row, query_row, key, key_row, strips.used, strips.keys,
            scale, d, i1 - i0, c0, c1, out, pitch,
        )  # fmt: skip
        return
    keys = pieces.keys + c0 // SIDE * strip_bytes(d)
    for i in range(i0, i1, GROUP):
        rows = min(GROUP, i1 - i)
        split_rows(query + 4 * i * query_row, 4 * query_row, rows, d, scale, pieces.queries)
        there = out + 4 * (i - i0) * pitch
        product(pieces.queries, keys, d, rows, c1 - c0, there, 4 * pitch)


@inner
def mirrored_logits(blas, strips, scale, d, matrices, i0, i1, c0, c1, out, pitch):
    """scale K Q^T, the logits of the mirrored cells; as `logits`, without the unit."""
    (query, query_row), (key, key_row), _, _ = matrices
    _scaled(
        blas, key + 4 * i0 * key_row, key_row, query, query_row, strips.used, strips.queries,
        scale, d, i1 - i0, c0, c1, out, pitch,
    )  # fmt: skip


@inner
def _scaled(
    blas, left, left_row, right, right_row, used, strips, scale, d, rows, c0, c1, out, pitch
):
    """Products of rows with rows c0 to c1 of the right matrix, in strips if they are used."""
    if used:
        strips_product(left, left_row, strips + 4 * c0 * d, d, rows, c1 - c0, out, pitch)
    else:
        sgemm(
            blas, 0, 1, rows, c1 - c0, d, scale, left, left_row, right + 4 * c0 * right_row,
            right_row, out, pitch,
        )  # fmt: skip


@inner
def outputs(blas, strips, n, d, matrices, i0, i1, c0, c1, weights, pitch):
    """Rows i0 to i1 of the output from their weights in columns c0 to c1."""
    _, _, (value, value_row), (output, output_row) = matrices
    out = output + 4 * i0 * output_row
    if strips.used:
        deep_product(weights, pitch, strips.values, n, c0, c1, i1 - i0, d, out, output_row)
    else:
        sgemm(
            blas, 0, 0, i1 - i0, d, c1 - c0, np.float32(1),
            weights, pitch, value + 4 * c0 * value_row, value_row, out, output_row,
        )  # fmt: skip


@inner
def in_double(n, d, address, row):
    """A copy (n, d) in float64 of rows of float32."""
    x = numba.carray(floats_at(address), ((n - 1) * row + d,), np.float32)
    copy = np.empty((n, d))
    for i in range(n):
        for c in range(d):
            copy[i, c] = x[i * row + c]
    return copy
