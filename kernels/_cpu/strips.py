"""Products of float32 matrices on vectors of 512 bits, without copies of what is multiplied.

BLAS copies both factors of every product into an order of its own. Where a few rows at a time meet
thousands of columns, that takes a third as long as the product. Here the right factor is put in
order once, for all products that it is part of:

    strips of 32 columns, one after the other; in a strip 32 numbers of every row, side by side

Eight rows of the left factor meet a strip at a time, in sixteen vectors of sums: a row of the strip
is loaded, a number of each of the eight rows is multiplied with it. The left factor stays as it is.
Columns of the product are written in whole strips, rows one by one. Every number of the product is
one sum in the order of the depth, whatever lies beside it.

Matrices are given by address and by the distance of their rows in elements.
"""

from __future__ import annotations

import platform
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from bertgeom.kernels._cpu.runtime import inner, widest
from bertgeom.kernels._cpu.vectors import floats_at, splat

#: Columns of a strip.
WIDTH = 32
#: Rows of the left factor at a time.
_ROWS = 8
_LANES = 16
#: Depth of a long product that is summed up at a time: a strip of it, 16 KiB, stays in the cache.
_DEPTH = 128

_REAL, _LONG = ir.FloatType(), ir.IntType(64)
_FLOATS = ir.VectorType(_REAL, _LANES)

#: Decided by the CPU that LLVM compiles for, like the compiled functions on disk.
COMPILES = (
    (config.CPU_NAME or config.CPU_FEATURES) is None
    and platform.machine() in ("x86_64", "AMD64")
    and bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
)


def usable() -> bool:
    """Whether products are made this way: other CPUs have too few registers for the sums."""
    return COMPILES


@inner
def strip_floats(n_columns, depth):
    """Float32 elements of a right factor."""
    return (n_columns + WIDTH - 1) // WIDTH * WIDTH * depth


@inner
def transposed_strips(source, row, n, depth, scale, right):
    """The transpose of a matrix n x depth, times `scale`, as a right factor; 0 beyond column n."""
    x = numba.carray(floats_at(source), ((n - 1) * row + depth,), np.float32)
    strips = numba.carray(floats_at(right), (strip_floats(n, depth),), np.float32)
    for j in range(0, n, WIDTH):
        width = min(WIDTH, n - j)
        for k in range(depth):
            line = strips[j * depth + k * WIDTH : j * depth + (k + 1) * WIDTH]
            for c in range(width):
                line[c] = x[(j + c) * row + k] * scale
            line[width:] = 0


@inner
def strips_of_rows(source, row, n, n_columns, right):
    """A matrix n x n_columns as a right factor; n_columns % WIDTH == 0."""
    x = numba.carray(floats_at(source), ((n - 1) * row + n_columns,), np.float32)
    strips = numba.carray(floats_at(right), (n * n_columns,), np.float32)
    for c in range(0, n_columns, WIDTH):
        for i in range(n):
            to = strips[c * n + i * WIDTH : c * n + (i + 1) * WIDTH]
            for k in range(WIDTH):
                to[k] = x[i * row + c + k]


@inner
def product(left, left_row, right, depth, rows, columns, out, out_row):
    """rows x columns of a product; columns are written up to a multiple of WIDTH."""
    for j in range(0, columns, WIDTH):
        for i in range(0, rows, _ROWS):
            _block_product(
                left + 4 * i * left_row,
                4 * left_row,
                right + 4 * j * depth,
                depth,
                rows - i,
                out + 4 * (i * out_row + j),
                4 * out_row,
                False,
            )


@inner
def deep_product(left, left_row, right, depth, first, last, rows, columns, out, out_row):
    """The same over rows first to last of a right factor of `depth` rows; columns % WIDTH == 0.

    Args:
        left: address of the column that meets row `first`.
    """
    k = first
    while k < last:
        some = min(_DEPTH, last - k)
        for j in range(0, columns, WIDTH):
            for i in range(0, rows, _ROWS):
                _block_product(
                    left + 4 * (i * left_row + k - first),
                    4 * left_row,
                    right + 4 * (j * depth + k * WIDTH),
                    some,
                    rows - i,
                    out + 4 * (i * out_row + j),
                    4 * out_row,
                    k > first,
                )
        k += some


@intrinsic
def _block_product(
    typingctx: Any,
    left: Any,
    left_row: Any,
    right: Any,
    depth: Any,
    n: Any,
    out: Any,
    out_row: Any,
    add: Any,
) -> Any:
    """Up to eight rows of `product`, of the n that are left, and one strip; added to `out` or not.

    Distances of rows are in bytes. The last row stands in for those beyond it.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not COMPILES:
            return context.get_dummy_value()
        left, left_row, right, depth, n, out, out_row, add = args
        widest(builder.function)
        vectors = range(WIDTH // _LANES)
        sums = []
        lefts, outs = [], []
        last = builder.sub(n, _LONG(1))
        for row in range(_ROWS):
            there = builder.icmp_signed("<", _LONG(row), n)
            at = builder.select(there, _LONG(row), last)
            lefts.append(builder.add(left, builder.mul(left_row, at)))
            outs.append(builder.add(out, builder.mul(out_row, at)))
            sums.append([cgutils.alloca_once(builder, _FLOATS) for _ in vectors])
        with builder.if_else(add) as (more, first):
            with more:
                for row in range(_ROWS):
                    for v in vectors:
                        builder.store(_load(builder, outs[row], _vector(v)), sums[row][v])
            with first:
                for row in range(_ROWS):
                    for v in vectors:
                        builder.store(ir.Constant(_FLOATS, None), sums[row][v])
        with cgutils.for_range(builder, depth) as step:
            line = builder.add(right, builder.mul(step.index, _LONG(4 * WIDTH)))
            strip = [_load(builder, line, _vector(v)) for v in vectors]
            along = builder.mul(step.index, _LONG(4))
            for row in range(_ROWS):
                at = builder.inttoptr(builder.add(lefts[row], along), _REAL.as_pointer())
                factor = splat(builder, builder.load(at, align=4), _REAL, _LANES)
                for v in vectors:
                    more_of_it = builder.fmul(factor, strip[v], flags=("contract",))
                    before = builder.load(sums[row][v])
                    after = builder.fadd(before, more_of_it, flags=("contract",))
                    builder.store(after, sums[row][v])
        for row in range(_ROWS):
            for v in vectors:
                to = builder.add(outs[row], _LONG(_vector(v)))
                pointer = builder.inttoptr(to, _FLOATS.as_pointer())
                builder.store(builder.load(sums[row][v]), pointer, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, types.boolean), codegen


def _vector(v: int) -> int:
    """Bytes before vector v of a line."""
    return 4 * _LANES * v


def _load(builder: Any, address: Any, offset: int) -> Any:
    there = builder.inttoptr(builder.add(address, _LONG(offset)), _FLOATS.as_pointer())
    return builder.load(there, align=4)
