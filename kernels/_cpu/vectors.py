"""Intrinsics for loops that LLVM does not vectorise for Numba by itself, and exp2.

All of it is plain LLVM IR, correct on every CPU; the shapes suit 512-bit registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bertgeom.kernels._cpu.runtime import inner, widest

#: Cells that `count_equal`, `at_least` and `sums_above` process in one step.
STEP = 64
#: Side of the tiles of `tile_dot`.
TILE = 16

_REAL, _BYTE, _WORD, _LONG = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)


@intrinsic
def widest_vectors(typingctx: Any) -> Any:
    """`runtime.widest` for the calling function."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        widest(builder.function)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def floats_at(typingctx: Any, address: Any) -> Any:
    """Address as the pointer to float32 that `numba.carray` makes an array of.

    Such an array has no owner: slicing it counts no references, which costs more than a short
    loop. The owner must outlive it.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], _REAL.as_pointer())

    return types.CPointer(types.float32)(types.int64), codegen


def _prefetch(writing: bool) -> Any:
    @intrinsic
    def prefetch(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], _BYTE.as_pointer())
            kind = ir.FunctionType(ir.VoidType(), [pointer.type, _WORD, _WORD, _WORD])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            nearest, data = 3, 1
            builder.call(function, [pointer, _WORD(int(writing)), _WORD(nearest), _WORD(data)])
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return prefetch


#: Prefetch the cache line of an address, which may be invalid, to read or to write.
prefetch = _prefetch(writing=False)
prefetch_to_write = _prefetch(writing=True)


def _of_two(name: str) -> Any:
    @intrinsic
    def of_two(typingctx: Any, x: Any, y: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(_REAL, [_REAL, _REAL])
            function = builder.module.declare_intrinsic(f"llvm.{name}", [_REAL], kind)
            return builder.call(function, args, fastmath=("nnan", "nsz"))

        return types.float32(types.float32, types.float32), codegen

    return of_two


#: The smaller and the larger of two float32, whose reductions vectorise; undefined for NaN.
smaller = _of_two("minnum")
larger = _of_two("maxnum")


@intrinsic
def bits_of(typingctx: Any, x: Any) -> Any:
    """The bits of a float32 as an int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _WORD)

    return types.int32(types.float32), codegen


@intrinsic
def from_bits(typingctx: Any, bits: Any) -> Any:
    """The float32 whose bits are those of an int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _REAL)

    return types.float32(types.int32), codegen


# Allow contraction only: reordering would cancel the rounding to an integer.
@inner(fastmath={"contract"})
def exp2(x):
    """2 ** x for float32 x <= 0, within 1 ulp; 0 below -126.5, NaN for NaN; exp2(0) is 1.

    x = k + f with |f| <= 1/2; 2 ** f is the polynomial of least relative error, degree 6.
    """
    x = np.float32(-127) if x < np.float32(-127) else x
    # 1.5 * 2^23 + 127: the sum's last bits are k + 127, the biased exponent of 2 ** k.
    shift = np.float32(12583039)
    rounded = x + shift
    f = x - (rounded - shift)
    y = np.float32(0.00015347320004366338)
    y = y * f + np.float32(0.001340015442110598)
    y = y * f + np.float32(0.009618484415113926)
    y = y * f + np.float32(0.055503278970718384)
    y = y * f + np.float32(0.24022646248340607)
    y = y * f + np.float32(0.6931471824645996)
    y = y * f + np.float32(1)
    return y * from_bits(bits_of(rounded) << np.int32(23))


@intrinsic
def count_equal(typingctx: Any, array: Any, start: Any, value: Any) -> Any:
    """How many of array[start : start + STEP] equal value; uint8."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        loaded = _load(context, builder, signature, args[0], args[1], _BYTE, STEP)
        same = builder.icmp_unsigned("==", loaded, splat(builder, args[2], _BYTE, STEP))
        return builder.ctpop(builder.bitcast(same, ir.IntType(STEP)))

    return types.int64(array, types.int64, types.uint8), codegen


@intrinsic
def at_least(typingctx: Any, array: Any, start: Any, threshold: Any) -> Any:
    """Bit j is set where array[start + j] >= threshold, j < STEP; float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        loaded = _load(context, builder, signature, args[0], args[1], _REAL, STEP)
        limit = splat(builder, args[2], _REAL, STEP)
        return builder.bitcast(builder.fcmp_ordered(">=", loaded, limit), ir.IntType(STEP))

    return types.uint64(array, types.int64, types.float32), codegen


@intrinsic
def sums_above(typingctx: Any, array: Any, threshold: Any) -> Any:
    """Number, as a float32, and sum of what is above a threshold; float32, whole STEPs."""
    pair = types.UniTuple(types.float32, 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = ir.VectorType(_REAL, STEP)
        nothing = ir.Constant(lanes, [0.0] * STEP)
        one = ir.Constant(lanes, [1.0] * STEP)
        limit = splat(builder, args[1], _REAL, STEP)
        count, total = (cgutils.alloca_once_value(builder, nothing) for _ in range(2))
        size = context.make_array(signature.args[0])(context, builder, args[0]).nitems
        with cgutils.for_range(builder, builder.udiv(size, _LONG(STEP))) as step:
            at = builder.mul(step.index, _LONG(STEP))
            loaded = _load(context, builder, signature, args[0], at, _REAL, STEP)
            over = builder.fcmp_ordered(">", loaded, limit)
            for summed, x in ((count, one), (total, loaded)):
                before = builder.load(summed)
                builder.store(builder.select(over, builder.fadd(before, x), before), summed)
        found = [_added(builder, builder.load(x)) for x in (count, total)]
        return context.make_tuple(builder, pair, found)

    return pair(array, types.float32), codegen


@intrinsic
def lowest_bit(typingctx: Any, bits: Any) -> Any:
    """Position of the lowest set bit of a uint64 that is not 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen


@intrinsic
def tile_dot(typingctx: Any, array: Any, i: Any, j: Any, pitch: Any) -> Any:
    """sum A[i + r, j + c] A[j + c, i + r] over r, c < TILE, with A[r, c] = array[r pitch + c].

    The second tile is transposed in registers: at distance 8, 4, 2, 1 rows swap halves, quarters...
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, i, j, pitch = args

        def tile(row: Any, column: Any) -> list[Any]:
            starts = [builder.mul(builder.add(row, _LONG(r)), pitch) for r in range(TILE)]
            return [
                _load(context, builder, signature, args[0], builder.add(s, column), _REAL, TILE)
                for s in starts
            ]

        columns = transposed(builder, tile(j, i))
        partial = [ir.Constant(ir.VectorType(_REAL, TILE), None)] * 4
        for r, (x, y) in enumerate(zip(tile(i, j), columns, strict=True)):
            product = builder.fmul(x, y, flags=("contract",))
            partial[r % 4] = builder.fadd(partial[r % 4], product, flags=("contract",))
        return _added(builder, builder.fadd(builder.fadd(*partial[:2]), builder.fadd(*partial[2:])))

    return types.float32(array, types.int64, types.int64, types.int64), codegen


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    lanes = range(TILE)
    for distance in (8, 4, 2, 1):
        swapped = list(rows)
        for r in lanes:
            if r & distance == 0:
                a, b = rows[r], rows[r + distance]
                low = [TILE + c - distance if c & distance else c for c in lanes]
                high = [TILE + c if c & distance else c + distance for c in lanes]
                swapped[r] = builder.shuffle_vector(a, b, _lanes(low))
                swapped[r + distance] = builder.shuffle_vector(a, b, _lanes(high))
        rows = swapped
    return rows


def _load(
    context: Any, builder: Any, signature: Any, array: Any, start: Any, kind: Any, count: int
) -> Any:
    """The vector of `count` elements from `start` of the intrinsic's first argument."""
    data = context.make_array(signature.args[0])(context, builder, array).data
    vector = ir.VectorType(kind, count)
    pointer = builder.bitcast(builder.gep(data, [start]), vector.as_pointer())
    return builder.load(pointer, align=kind.width // 8 if isinstance(kind, ir.IntType) else 4)


def _added(builder: Any, vector: Any) -> Any:
    """The sum of a vector's elements."""
    kind = ir.FunctionType(_REAL, [_REAL, vector.type])
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    add = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(add, [_REAL(0.0), vector], fastmath=("reassoc",))


def splat(builder: Any, value: Any, kind: Any, count: int) -> Any:
    empty = ir.Constant(ir.VectorType(kind, count), ir.Undefined)
    first = builder.insert_element(empty, value, _WORD(0))
    return builder.shuffle_vector(first, empty, _lanes([0] * count))


def _lanes(indices: list[int]) -> Any:
    return ir.Constant(ir.VectorType(_WORD, len(indices)), indices)
