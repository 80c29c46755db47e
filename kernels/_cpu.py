"""Compiled loops on the CPU: torch's own threads, and its BLAS from inside Numba.

Numba's threading layers start a pool beside torch's. After every torch operation the workers of
torch's OpenMP team spin for some milliseconds before they sleep, so two pools on the same cores
slow each other down. `on_torch_threads` runs compiled functions on torch's own team instead: no
second pool, no threading layer, and several Python threads may call it at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.extending import get_cython_function_address, intrinsic

#: Sums may be reordered and products contracted; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

_TEAM_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorator of compiled functions: without the GIL, division as in numpy, cached on disk.

    Code on disk is used as long as the sources of the function's folder and of this one are the
    same: Numba's own rule looks at one file, and misses a change in what the function calls.
    """
    if function is None:
        return functools.partial(jit, **options)
    defaults = {"nogil": True, "error_model": "numpy", "fastmath": FASTMATH}
    dispatcher = numba.njit(**(defaults | options))(function)
    dispatcher._cache = _FolderCache(function)
    return dispatcher


#: Decorator of those that compiled functions call. They leave no copy of their own: Numba keeps
#: one in every module that calls a function, rounded as that module was optimised, and a process
#: that compiles would run another one than a process that finds the code on disk.
inner = functools.partial(jit, forceinline=True)


class _FolderCache(FunctionCache):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=_source_stamp(Path(function.__code__.co_filename).parent),
        )


@functools.cache
def _source_stamp(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted({*folder.glob("*.py"), *Path(__file__).parent.glob("*.py")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def on_torch_threads(body: Callable[[], Any]) -> None:
    """Calls `body()` once on every thread of torch's team, the calling thread included.

    The body spends its time in functions made with `jit`, which run without the GIL, and shares
    the work out through `claim`; results must not depend on who claims what. Compile what it
    calls beforehand. BLAS calls inside the body run on their own thread alone.

    Raises:
        BaseException: the first that a body raised, once all are done.
    """
    failures: list[BaseException] = []

    def guarded(_: object = None) -> None:
        try:
            with _mkl_on_one_thread():
                body()
        except BaseException as failure:  # must not unwind through foreign frames
            failures.append(failure)

    with _openblas_on_one_thread():
        _start_team(guarded, torch.get_num_threads())
    if failures:
        raise failures[0]


def _start_team(body: Callable[[], None], n_threads: int) -> None:
    start = _symbol("GOMP_parallel")
    if n_threads == 1:
        body()
    elif start is not None:
        start(_TEAM_BODY(body), None, ctypes.c_uint(n_threads), ctypes.c_uint(0))
    else:
        with ThreadPoolExecutor(n_threads - 1) as others:
            for _ in range(n_threads - 1):
                others.submit(body)
            body()


@contextlib.contextmanager
def _mkl_on_one_thread() -> Iterator[None]:
    limit = _symbol("MKL_Set_Num_Threads_Local")
    before = limit(1) if limit is not None else None
    try:
        yield
    finally:
        if limit is not None:
            limit(before)


def _openblas_on_one_thread() -> contextlib.AbstractContextManager[Any]:
    if _symbol("MKL_Set_Num_Threads_Local") is not None:
        return contextlib.nullcontext()
    return _threadpools().limit(limits=1, user_api="blas")


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
    function = _symbol(f"{name}_")
    if function is not None:
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return int(get_cython_function_address("scipy.linalg.cython_blas", name))


@functools.cache
def _symbol(name: str) -> Any:
    """A function of torch's library or of the libraries it is linked to; None without one."""
    return getattr(_torch_library(), name, None)


@functools.cache
def _torch_library() -> ctypes.CDLL | None:
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            return ctypes.CDLL(str(path))
    return None


@intrinsic
def claim(typingctx: Any, counters: Any, at: Any) -> Any:
    """counters[at]++ as one indivisible step; returns the value before. int64 array.

    What a thread wrote before it counted is seen by the threads that count after it.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        pointer = builder.gep(array.data, [args[1]])
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(counters, types.int64), codegen


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
