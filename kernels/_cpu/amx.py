"""Products of float32 matrices on the tile unit that some x86 CPUs have (Intel AMX).

The unit multiplies tiles of bfloat16, 16 x 32 by 32 x 16, and adds the products up in float32, at
sixteen times the rate of float32 vectors. A float32 number, of 24 bits, is the sum of three
bfloat16 numbers, of 8 bits each, without a rounding:

    x = h + m + l        h = x rounded        m = x - h rounded        l = x - h - m
                         |m| <= 2^-8 |x|      |l| <= 2^-16 |x|

Of the nine products of x = h + m + l and x' = h' + m' + l' six are taken, h h', h m', m h', m m',
h l' and l h'. The three left out come to 2^-23 |x x'| at most, two roundings of a float32
product, and are of either sign. So a product of matrices is as accurate as one of float32
numbers; in tests its errors are smaller. At best it takes three eighths of the time.

The unit takes subnormal numbers for 0. It is for numbers below `LARGEST`, whose products cannot
overflow: infinity and NaN have no pieces.

The pieces of a matrix lie in memory as the unit loads them, in lines of 64 bytes:

    left   row by row. Of every 32 columns, a step, there are the lines of h, of m and of l. Rows
           are a line longer than that: 16 of them, a tile, would share few sets of the cache.
    right  in strips of 16 columns. Of every 32 rows, a step, there are the tiles of h, of m and
           of l; line r of a tile holds rows 2 r and 2 r + 1, entry by entry in turn.

Matrices are given by the address of their first element and the distance of their rows, in bytes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from bertgeom.kernels._cpu.runtime import inner
from bertgeom.kernels._cpu.vectors import splat, transposed

#: Rows and columns of what one call of `_block_product` writes: two tiles by two.
BLOCK = 32
#: Numbers of a row, or of a column, in a tile.
STEP = 32
#: Rows of a tile, and columns of a strip of the right factor.
SIDE = 16
_LINE = 2 * STEP
_TILE_BYTES = SIDE * _LINE
_PIECES = 3
#: Bytes of one step of a strip.
_STEP_BYTES = _PIECES * _TILE_BYTES
#: All numbers must be smaller than this.
LARGEST = np.float32(2.0**60)

_WORD, _LONG, _SHORT, _BYTE = (ir.IntType(bits) for bits in (32, 64, 16, 8))
_LANES = ir.VectorType(_WORD, SIDE)
_FLOATS = ir.VectorType(ir.FloatType(), SIDE)
_HALVES = ir.VectorType(_SHORT, STEP)

#: Decided by the CPU that LLVM compiles for, like the compiled functions on disk.
COMPILES = (
    (config.CPU_NAME or config.CPU_FEATURES) is None
    and platform.machine() in ("x86_64", "AMD64")
    and {"amx-tile", "amx-bf16", "avx512bw"}
    <= {name for name, there in llvmlite.binding.get_host_cpu_features().items() if there}
)


@functools.cache
def usable() -> bool:
    """Whether this process may use the unit; BERTGEOM_AMX=0 in the environment disables it."""
    if not COMPILES or platform.system() != "Linux" or os.environ.get("BERTGEOM_AMX") == "0":
        return False
    # Linux saves the tiles of a thread only for processes that have requested it.
    arch_prctl, request_permission, tile_data = map(ctypes.c_long, (158, 0x1023, 18))
    refused: int = ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data)
    return refused == 0


@inner
def row_bytes(width):
    """Distance of the rows of a left factor in pieces; width % STEP == 0."""
    return (width // STEP * _PIECES + 1) * _LINE


@inner
def strip_bytes(depth):
    """Distance of the strips of a right factor in pieces; depth % STEP == 0."""
    return depth // STEP * _STEP_BYTES


@inner
def in_blocks(n):
    """n rounded up to a multiple of BLOCK."""
    return (n + BLOCK - 1) // BLOCK * BLOCK


@inner
def piece_floats(n, width):
    """Float32 elements for the pieces of n rows of a left factor, or of a right one transposed."""
    return in_blocks(n) * row_bytes(width) // 4


@inner
def split_rows(source, pitch, n, width, scale, left):
    """A matrix n x width, times `scale`, as the left factor; up to a block the last row again.

    Args:
        source, pitch: the matrix; width % STEP == 0.
        scale: float32.
        left: address for piece_floats(n, width), on a cache line.
    """
    for i in range(in_blocks(n)):
        row, line = source + min(i, n - 1) * pitch, left + i * row_bytes(width)
        split_row(row, width // STEP, scale, line)


@inner
def split_transposed(source, pitch, n, width, right):
    """The transpose of a matrix n x width as the right factor; else as `split_rows`."""
    strip = strip_bytes(width)
    for j in range(0, in_blocks(n), SIDE):
        rows, first = max(1, min(SIDE, n - j)), source + min(j, n - 1) * pitch
        for k in range(width // STEP):
            tiles = right + j // SIDE * strip + k * _STEP_BYTES
            _transposed_tiles(first + k * 4 * STEP, pitch, rows, tiles)


@inner
def turn_rows(left, n, width, right):
    """The right factor that is the transpose of n rows of a left one, up to a whole block."""
    row, strip = row_bytes(width), strip_bytes(width)
    for j in range(0, in_blocks(n), SIDE):
        for k in range(width // STEP):
            lines = left + j * row + k * _PIECES * _LINE
            _turned_tiles(lines, row, right + j // SIDE * strip + k * _STEP_BYTES)


@inner
def product(left, right, depth, rows, columns, out, pitch):
    """Product of two matrices in pieces, in whole blocks of both sides.

    Args:
        left, right: addresses of the pieces.
        depth: columns of the left one, rows of the right one.
        rows, columns: of the product; it is written up to multiples of BLOCK.
        out, pitch: address of the product, and the distance of its rows, in bytes.
    """
    row, strip = row_bytes(depth), strip_bytes(depth)
    _configure()
    for i in range(0, rows, BLOCK):
        for j in range(0, columns, BLOCK):
            _block_product(
                left + i * row,
                row,
                right + j // SIDE * strip,
                strip,
                depth // STEP,
                out + i * pitch + 4 * j,
                pitch,
            )
    _release()


def _emitting(codegen: Any) -> Any:
    """Code of an intrinsic without a result; none at all for CPUs that could not run it."""

    def guarded(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if COMPILES:
            codegen(builder, *args)
        return context.get_dummy_value()

    return guarded


@intrinsic
def split_row(typingctx: Any, source: Any, steps: Any, scale: Any, line: Any) -> Any:
    """One row of a left factor, of 32 `steps` numbers, times `scale`; from address to address."""

    @_emitting
    def codegen(builder: Any, source: Any, steps: Any, scale: Any, line: Any) -> None:
        factor = splat(builder, scale, ir.FloatType(), SIDE)
        with cgutils.for_range(builder, steps) as step:
            start = builder.add(source, builder.mul(step.index, _LONG(4 * STEP)))
            halves = [builder.fmul(x, factor) for x in _halves(builder, start)]
            to = builder.add(line, builder.mul(step.index, _LONG(_PIECES * _LINE)))
            for at, piece in enumerate(_lines(builder, *halves)):
                _store(builder, piece, to, at * _LINE)

    return types.void(types.int64, types.int64, types.float32, types.int64), codegen


@intrinsic
def _transposed_tiles(typingctx: Any, source: Any, pitch: Any, n: Any, tiles: Any) -> Any:
    """One step of a strip: 32 columns of n rows, the last of them repeated up to 16, transposed."""

    @_emitting
    def codegen(builder: Any, source: Any, pitch: Any, n: Any, tiles: Any) -> None:
        rows = [_row(builder, source, pitch, n, row) for row in range(SIDE)]
        lines = [_lines(builder, *_halves(builder, row)) for row in rows]
        for at in range(_PIECES):
            for k, line in enumerate(_turned(builder, [line[at] for line in lines])):
                _store(builder, line, tiles, at * _TILE_BYTES + k * _LINE)

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _turned_tiles(typingctx: Any, lines: Any, pitch: Any, tiles: Any) -> Any:
    """One step of a strip from 16 rows in pieces."""

    @_emitting
    def codegen(builder: Any, lines: Any, pitch: Any, tiles: Any) -> None:
        rows = [builder.add(lines, builder.mul(pitch, _LONG(row))) for row in range(SIDE)]
        for at in range(_PIECES):
            piece = [_load(builder, row, at * _LINE, _HALVES) for row in rows]
            for k, line in enumerate(_turned(builder, piece)):
                _store(builder, line, tiles, at * _TILE_BYTES + k * _LINE)

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def _configure(typingctx: Any) -> Any:
    """All eight tiles of this thread have 16 rows of 64 bytes."""

    @_emitting
    def codegen(builder: Any) -> None:
        layout = bytearray(64)
        layout[0] = 1
        layout[16:32] = _LINE.to_bytes(2, "little") * 8
        layout[48:56] = bytes([SIDE]) * 8
        constant = cgutils.global_constant(
            builder, "tile_layout", cgutils.make_bytearray(bytes(layout))
        )
        _call(builder, "ldtilecfg", constant)

    return types.void(), codegen


@intrinsic
def _release(typingctx: Any) -> Any:
    """Release the tiles of this thread."""
    return types.void(), _emitting(lambda builder: _call(builder, "tilerelease"))


@intrinsic
def _block_product(
    typingctx: Any,
    left: Any,
    left_pitch: Any,
    right: Any,
    right_pitch: Any,
    steps: Any,
    out: Any,
    pitch: Any,
) -> Any:
    """One block of `product`: 32 rows of the left factor by two strips of the right one."""

    @_emitting
    def codegen(builder: Any, *operands: Any) -> None:
        left, left_pitch, right, right_pitch, steps, out, pitch = operands
        sums, lefts, rights = (0, 1, 2, 3), (4, 5), (6, 7)

        def place(tile: int) -> Any:
            row = builder.add(out, builder.mul(pitch, _LONG(tile // 2 * SIDE)))
            return _pointer(builder, builder.add(row, _LONG(tile % 2 * 4 * SIDE)))

        for tile in sums:
            _call(builder, "tilezero", tile)

        def load(tile: int, address: Any, offset: int, pitch: Any) -> None:
            there = _pointer(builder, builder.add(address, _LONG(offset)))
            _call(builder, "tileloadd64", tile, there, pitch)

        below = builder.add(left, builder.mul(left_pitch, _LONG(SIDE)))
        beside = builder.add(right, right_pitch)
        with cgutils.for_range(builder, steps) as step:
            along = builder.mul(step.index, _LONG(_PIECES * _LINE))
            down = builder.mul(step.index, _LONG(_STEP_BYTES))
            # In this order seven loads of two tiles do for six products of four.
            had: tuple[int | None, int | None] = (None, None)
            for a, b in ((0, 2), (0, 0), (0, 1), (1, 1), (1, 0), (2, 0)):
                if a != had[0]:
                    for tile, strip in zip(lefts, (left, below), strict=True):
                        load(tile, builder.add(strip, along), a * _LINE, left_pitch)
                if b != had[1]:
                    for tile, strip in zip(rights, (right, beside), strict=True):
                        load(tile, builder.add(strip, down), b * _TILE_BYTES, _LONG(_LINE))
                had = a, b
                for tile in sums:
                    _call(builder, "tdpbf16ps", tile, lefts[tile // 2], rights[tile % 2])
        for tile in sums:
            _call(builder, "tilestored64", tile, place(tile), pitch)

    return types.void(*[types.int64] * 7), codegen


def _call(builder: Any, name: str, *operands: Any) -> None:
    """An instruction of the unit; numbers among the operands are those of tiles."""
    values = [_BYTE(x) if isinstance(x, int) else x for x in operands]
    kind = ir.FunctionType(ir.VoidType(), [x.type for x in values])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}")
    builder.call(function, values)


def _pieces(builder: Any, x: Any) -> list[Any]:
    """h, m and l of 16 numbers, in the upper halves of 16 words, lower halves open."""
    half, upper = (ir.Constant(_LANES, [bits] * SIDE) for bits in (0x8000, 0xFFFF0000))
    words = []
    for _ in range(_PIECES - 1):
        word = builder.add(builder.bitcast(x, _LANES), half)
        words.append(word)
        x = builder.fsub(x, builder.bitcast(builder.and_(word, upper), _FLOATS))
    return [*words, builder.bitcast(x, _LANES)]


def _lines(builder: Any, first: Any, second: Any) -> list[Any]:
    """Lines of a tile of 32 numbers, one for every piece."""
    order = [2 * c + 1 for c in range(STEP)]
    both = zip(_pieces(builder, first), _pieces(builder, second), strict=True)
    return [_shuffled(builder, a, b, order) for a, b in both]


def _shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    halves = [builder.bitcast(x, _HALVES) for x in (a, b)]
    return builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(_WORD, STEP), order))


def _turned(builder: Any, lines: list[Any]) -> list[Any]:
    """Lines of a tile with rows and columns exchanged; two numbers stay together."""
    rows = [builder.bitcast(line, _FLOATS) for line in lines]
    return [builder.bitcast(x, _HALVES) for x in transposed(builder, rows)]


def _row(builder: Any, source: Any, pitch: Any, n: Any, row: int) -> Any:
    """Address of a row, or of the last of n."""
    there = builder.icmp_signed("<", _LONG(row), n)
    at = builder.select(there, _LONG(row), builder.sub(n, _LONG(1)))
    return builder.add(source, builder.mul(pitch, at))


def _halves(builder: Any, address: Any) -> list[Any]:
    """32 numbers from an address on, by 16."""
    return [_load(builder, address, 4 * SIDE * half, _FLOATS) for half in range(2)]


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _BYTE.as_pointer())


def _load(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    there = builder.inttoptr(builder.add(address, _LONG(offset)), kind.as_pointer())
    return builder.load(there, align=4)


def _store(builder: Any, value: Any, address: Any, offset: int) -> None:
    there = builder.inttoptr(builder.add(address, _LONG(offset)), value.type.as_pointer())
    builder.store(value, there, align=4)
