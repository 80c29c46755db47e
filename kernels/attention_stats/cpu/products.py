"""Logits of a head, by BLAS or by the tile unit (`_cpu.amx`)."""

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
from bertgeom.kernels._cpu.vectors import floats_at

#: Rows whose logits the unit makes at a time: they are still in the cache when they are read.
GROUP = 64


class Pieces(NamedTuple):
    """Whether the unit multiplies this head; addresses of its keys and of GROUP queries."""

    used: Any
    keys: Any
    queries: Any


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
def logits(blas, pieces, scale, d, matrices, i0, i1, c0, c1, out, pitch):
    """scale Q K^T of rows i0 to i1 and columns c0 to c1; by the unit, in whole blocks of both.

    Args:
        c0: a multiple of STEP.
        out, pitch: address of the product, and the distance of its rows in elements.
    """
    (query, query_row), (key, key_row), _, _ = matrices
    if not pieces.used:
        sgemm(
            blas, 0, 1, i1 - i0, c1 - c0, d, scale,
            query + 4 * i0 * query_row, query_row, key + 4 * c0 * key_row, key_row, out, pitch,
        )  # fmt: skip
        return
    keys = pieces.keys + c0 // SIDE * strip_bytes(d)
    for i in range(i0, i1, GROUP):
        rows = min(GROUP, i1 - i)
        split_rows(query + 4 * i * query_row, 4 * query_row, rows, d, scale, pieces.queries)
        there = out + 4 * (i - i0) * pitch
        product(pieces.queries, keys, d, rows, c1 - c0, there, 4 * pitch)


@inner
def copied(n, d, matrix, to):
    """Copy the rows of a matrix, given by address and row stride, side by side; the same of it."""
    address, row = matrix
    x = numba.carray(floats_at(address), ((n - 1) * row + d,), np.float32)
    for i in range(n):
        for c in range(d):
            to[i, c] = x[i * row + c]
    return np.int64(to.ctypes.data), np.int64(d)


@inner
def in_double(n, d, address, row):
    """A copy (n, d) in float64 of rows of float32."""
    x = numba.carray(floats_at(address), ((n - 1) * row + d,), np.float32)
    copy = np.empty((n, d))
    for i in range(n):
        for c in range(d):
            copy[i, c] = x[i * row + c]
    return copy
