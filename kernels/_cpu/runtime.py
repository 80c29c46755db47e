"""Compiled loops on the CPU: torch's own threads, and its BLAS from inside Numba.

Numba's threading layers start a second pool of threads next to torch's. After every torch
operation the workers of torch's OpenMP team spin for some milliseconds before they sleep, so two
pools on the same cores slow each other down. `on_torch_threads` runs compiled functions on torch's
own team instead: no second pool, no threading layer, and several Python threads may call it at
once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.callconv import excinfo_ptr_t
from numba.extending import get_cython_function_address, intrinsic

from bertgeom.kernels._cpu.disk_cache import keep_on_disk

#: Whether compiled code checks indices, and raw addresses against the memory that they may touch:
#: where NUMBA_BOUNDSCHECK=1 is set before Numba is imported. Slow; for tests.
CHECKED = bool(config.BOUNDSCHECK)

#: Sums may be reordered and products contracted; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorator of compiled functions: without the GIL, division as in numpy, cached on disk.

    Code on disk is used as long as the sources of the function's folder and of all kernels are
    the same, see `disk_cache`.
    """
    if function is None:
        return functools.partial(jit, **options)
    defaults = {"nogil": True, "error_model": "numpy", "fastmath": FASTMATH}
    dispatcher = numba.njit(**(defaults | options))(function)
    keep_on_disk(dispatcher, function)
    return dispatcher


#: Decorator of functions that compiled functions call. They are always inlined: otherwise Numba
#: keeps a copy in every module that calls them, optimised (and rounded) differently, and a process
#: that compiles would run another copy than a process that loads the code from disk.
inner = functools.partial(jit, forceinline=True)


@inner
def check_extent(address, n_floats, begin, end):
    """Raise an error unless n_floats float32 from an address on lie within [begin, end)."""
    if address < begin or address + 4 * n_floats > end:
        raise IndexError("compiled code would leave the memory it was given; please report it")


def on_torch_threads(function: Callable[..., Any], *arguments: Any) -> None:
    """Run a compiled function on every thread of torch's team, the calling thread included.

    The function takes the team first, and begins by asking whether it is to start it:

        @jit
        def _work(team, counters, *arrays):
            if started(team, (counters, arrays)):
                return
            ...

    It returns nothing and distributes the work by `claim`; results must not depend on which
    thread claims which task. What one thread raises (no memory, an index out of bounds in a
    checked run) is raised here after all have ended; threads that wait for it in `wait_for` get
    False. Only the calling thread ever holds the GIL, and every BLAS call runs on one thread.
    """
    start, limit = _address("GOMP_parallel"), _address("MKL_Set_Num_Threads_Local")
    n_threads, failures = torch.get_num_threads(), _no_failures()
    # Each thread limits MKL for itself.
    with contextlib.nullcontext() if limit else _threadpools().limit(limits=1, user_api="blas"):
        if start or n_threads == 1:
            function((start, limit, n_threads, failures), *arguments)
            return
        with ThreadPoolExecutor(n_threads) as threads:
            one = (0, limit, 1, failures)
            alone = [threads.submit(function, one, *arguments) for _ in range(n_threads)]
            for done in alone:
                done.result()


_failures = threading.local()


def _no_failures() -> int:
    """Address of the calling thread's int64 that says whether a thread of its team has failed."""
    kept = getattr(_failures, "kept", None)
    if kept is None:
        word = np.zeros(1, np.int64)
        kept = _failures.kept = (word, word.ctypes.data)
    word, address = kept
    word[0] = 0
    return int(address)


@intrinsic
def started(typingctx: Any, team: Any, arguments: Any) -> Any:
    """Whether the calling function was to start a team; if so, all have finished by now.

    `arguments` are those of the calling function but the team, which is made of the address of
    `GOMP_parallel` (0: the calling thread is all), the address of MKL's setting of the number of
    threads of the calling thread (0: there is none), the number of threads (0: none is to be
    started, this is one of them), and the address of a number that is not 0 once one has failed.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = builder.function
        widest(function)
        kinds = (team, *arguments)
        start, limit, n_threads, failures = cgutils.unpack_tuple(builder, args[0])
        # What a thread raised: its code and its exception, as Numba returns them.
        codes = cgutils.alloca_once_value(builder, _INT(0))
        raised = cgutils.alloca_once(builder, _EXCEPTION)
        builder.store(_EXCEPTION(None), raised)
        packed = cgutils.pack_struct(builder, [args[1], limit, failures, codes, raised])

        body = ir.Function(
            builder.module, _BODY, builder.module.get_unique_name(f"{function.name}_on_a_thread")
        )
        body.linkage = "internal"
        inside = ir.IRBuilder(body.append_basic_block())
        given = inside.load(inside.bitcast(body.args[0], packed.type.as_pointer()))
        values, limit, failures, codes_there, raised_there = cgutils.unpack_tuple(inside, given)
        before = _limit_blas(inside, limit, ir.Constant(_INT, 1))
        nobody = inside.insert_value(ir.Constant(args[0].type, None), failures, 3)
        status, _ = context.call_conv.call_function(
            inside, function, types.none, kinds, [nobody, *cgutils.unpack_tuple(inside, values)]
        )
        _limit_blas(inside, limit, before)
        with inside.if_then(status.is_error):
            inside.store(status.excinfoptr, raised_there)
            inside.store(status.code, codes_there)
            word = inside.inttoptr(failures, _LONG.as_pointer())
            inside.store_atomic(_LONG(1), word, "release", align=8)
        inside.ret_void()

        zero = ir.Constant(start.type, 0)
        some = builder.icmp_signed("!=", n_threads, zero)
        with builder.if_then(some):
            slot = builder.bitcast(cgutils.alloca_once_value(builder, packed), _POINTER)
            with builder.if_else(builder.icmp_unsigned("==", start, zero)) as (here, everywhere):
                with here:
                    builder.call(body, [slot])
                with everywhere:
                    kind = [_BODY.as_pointer(), _POINTER, _INT, _INT]
                    starter = ir.FunctionType(ir.VoidType(), kind).as_pointer()
                    builder.call(
                        builder.inttoptr(start, starter),
                        [body, slot, builder.trunc(n_threads, _INT), ir.Constant(_INT, 0)],
                    )
            code = builder.load(codes)
            with builder.if_then(builder.icmp_signed("!=", code, _INT(0))):
                context.call_conv.return_status_propagate(
                    builder, _Raised(code, builder.load(raised))
                )
        return some

    return types.boolean(team, arguments), codegen


_INT, _LONG, _POINTER = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
_BODY = ir.FunctionType(ir.VoidType(), [_POINTER])
_EXCEPTION = excinfo_ptr_t


class _Raised(NamedTuple):
    """What `return_status_propagate` reads of a status."""

    code: Any
    excinfoptr: Any


def _limit_blas(builder: Any, limit: Any, number: Any) -> Any:
    """Set the number of BLAS threads of this thread; returns the previous number."""
    kind = ir.FunctionType(_INT, [_INT])
    before = cgutils.alloca_once_value(builder, number)
    with builder.if_then(builder.icmp_unsigned("!=", limit, ir.Constant(limit.type, 0))):
        setter = builder.inttoptr(limit, kind.as_pointer())
        builder.store(builder.call(setter, [number]), before)
    return builder.load(before)


def widest(function: Any) -> None:
    """Let LLVM vectorise a function with 512-bit registers if the CPU has them.

    By default LLVM uses 256 bits on such CPUs, because older ones reduce their clock rate.
    """
    # llvmlite has a list of attributes that it knows, and passes on all others.
    set.add(function.attributes, '"prefer-vector-width"="512"')


@functools.cache
def _threadpools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def sgemm_address() -> int:
    """Address of a Fortran `sgemm`: torch's BLAS where it exports one, else SciPy's."""
    return _blas_address("sgemm")


def dgemm_address() -> int:
    """The same of `dgemm`."""
    return _blas_address("dgemm")


@functools.cache
def _blas_address(name: str) -> int:
    return _address(f"{name}_") or int(
        get_cython_function_address("scipy.linalg.cython_blas", name)
    )


@functools.cache
def _address(name: str) -> int:
    """Address of a function of torch's library or of those it is linked to; 0 without one."""
    function = getattr(_torch_library(), name, None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.cache
def _torch_library() -> ctypes.CDLL | None:
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            return ctypes.CDLL(str(path))
    return None


@intrinsic
def claim(typingctx: Any, counters: Any, at: Any) -> Any:
    """Atomically increment counters[at], int64; returns the previous value.

    What a thread wrote before its increment is visible to threads that increment after it.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        pointer = builder.gep(array.data, [args[1]])
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(counters, types.int64), codegen


@intrinsic
def counted(typingctx: Any, counters: Any, at: Any) -> Any:
    """counters[at], including the increments that threads have made by `claim` so far."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        pointer = builder.gep(array.data, [args[1]])
        return builder.load_atomic(pointer, "acquire", align=8)

    return types.int64(counters, types.int64), codegen


@intrinsic
def _failed(typingctx: Any, team: Any) -> Any:
    """Whether a thread of the team has raised something."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *_, failures = cgutils.unpack_tuple(builder, args[0])
        word = builder.inttoptr(failures, _LONG.as_pointer())
        found = builder.load_atomic(word, "acquire", align=8)
        return builder.icmp_signed("!=", found, _LONG(0))

    return types.boolean(team), codegen


@inner
def wait_for(team, counters, at, number):
    """Wait until counters[at] has reached a number; returns False if a thread has failed instead.

    Only for tasks that other threads have already claimed and are about to finish. On False the
    caller returns, and `on_torch_threads` raises the error.
    """
    while counted(counters, at) < number:
        if _failed(team):
            return False
    return True


def _gemm(number: Any, real: Any) -> Any:
    @intrinsic
    def gemm(
        typingctx: Any,
        address: Any,
        flip_a: Any,
        flip_b: Any,
        m: Any,
        n: Any,
        k: Any,
        alpha: Any,
        a: Any,
        lda: Any,
        b: Any,
        ldb: Any,
        c: Any,
        ldc: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address, flip_a, flip_b, m, n, k, alpha, a, lda, b, ldb, c, ldc = args
            byte, word = ir.IntType(8), ir.IntType(32)

            def stored(value: Any) -> Any:
                slot = cgutils.alloca_once(builder, value.type)
                builder.store(value, slot)
                return slot

            def size(value: Any) -> Any:
                return stored(builder.trunc(value, word))

            def letter(flip: Any) -> Any:
                flipped = builder.trunc(flip, ir.IntType(1))
                return stored(builder.select(flipped, byte(ord("T")), byte(ord("N"))))

            def numbers(value: Any) -> Any:
                return builder.inttoptr(value, real.as_pointer())

            # Column-major BLAS sees every row-major matrix transposed: C^T = op(B)^T op(A)^T.
            values = [
                *(letter(flip_b), letter(flip_a), size(n), size(m), size(k)),
                *(stored(alpha), numbers(b), size(ldb), numbers(a), size(lda)),
                *(stored(real(0.0)), numbers(c), size(ldc)),
            ]
            kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
            builder.call(builder.inttoptr(address, kind.as_pointer()), values)
            return context.get_dummy_value()

        whole = types.int64
        return types.void(*[whole] * 6, number, *[whole] * 6), codegen

    return gemm


#: (address, flip_a, flip_b, m, n, k, alpha, a, lda, b, ldb, c, ldc): row-major
#: C (m, n) = alpha op(A) op(B) with op(A) (m, k), op(B) (k, n); op transposes where flip is 1.
#: `address` is that of the BLAS function; a, b, c are addresses of float32 (dgemm: float64), and
#: lda, ldb, ldc the distances of stored rows in elements.
sgemm = _gemm(types.float32, ir.FloatType())
dgemm = _gemm(types.float64, ir.DoubleType())
