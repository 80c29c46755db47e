"""Bases to token ids: validation, shapes, dispatch.

Bases are uint8 ASCII of any case; U is T. A batch is one array of bases with the starts and
stops of its rows, so that windows of a chromosome are encoded without being copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertgeom.kernels._cpu import memory
from bertgeom.kernels.arrays import (
    BoolArray,
    Int32Array,
    Int64Array,
    UInt8Array,
    UInt64Array,
)
from bertgeom.kernels.kmers.table import KmerTable, check_k


def n_kmers(n_bases: Int64Array | int, k: int, stride: int, *, pad: bool) -> Int64Array:
    """int64: whole k-mers in n bases, after padding with N to a multiple of k if `pad`."""
    n = np.asarray(n_bases, dtype=np.int64)
    if pad:
        n = -(-n // k) * k
    return np.where(n < k, 0, (n - k) // stride + 1)


def encode_kmers(
    bases: UInt8Array,
    starts: Int64Array,
    stops: Int64Array,
    table: KmerTable,
    *,
    stride: int,
    counts: Int64Array,
    ids: Int32Array,
    first: int = 0,
    impl: str = "auto",
) -> Int64Array:
    """Look up the k-mers at 0, stride, ... of every row.

    Args:
        bases: uint8 (n,) ASCII.
        starts, stops: int64 (B,), the rows of the batch in `bases`.
        table: the vocabulary.
        stride: bases from one k-mer to the next.
        counts: int64 (B,), how many k-mers of each row; bases after a stop count as N.
        ids: int32 (B, N), written from column `first` on.
        impl: "auto", "numba" or "reference".

    Returns:
        int64 (B,): how many of the written ids are the unknown id.

    Raises:
        ValueError, TypeError: for arrays of another shape or dtype.
    """
    bases, starts, stops = _check_rows(bases, starts, stops)
    counts = np.ascontiguousarray(counts, dtype=np.int64)
    if stride < 1:
        raise ValueError(f"expected a stride of at least 1, found {stride}")
    if counts.shape != starts.shape or ids.dtype != np.int32 or ids.ndim != 2:
        raise ValueError(
            f"expected counts of shape {starts.shape} and ids int32 (B, N), "
            f"found {counts.shape} and {ids.dtype} {ids.shape}"
        )
    _check_counts(counts, first)
    if ids.shape[0] != starts.size or (counts.size and first + counts.max() > ids.shape[1]):
        raise ValueError(f"expected room for every k-mer, found ids of shape {ids.shape}")
    _check_writable(ids)
    if _resolve(impl) == "reference":
        return _encode_kmers_reference(bases, starts, stops, table, stride, counts, ids, first)
    from bertgeom.kernels.kmers import cpu

    unknown = memory.zeros(starts.size, np.int64)
    written = np.ascontiguousarray(ids)
    cpu.encode_kmers(
        bases,
        starts,
        stops,
        table.k,
        stride,
        *table.lookup,
        np.int32(table.unknown),
        counts,
        first,
        written,
        unknown,
    )
    _write_back(written, ids)
    return unknown


def _encode_kmers_reference(
    bases: UInt8Array,
    starts: Int64Array,
    stops: Int64Array,
    table: KmerTable,
    stride: int,
    counts: Int64Array,
    ids: Int32Array,
    first: int,
) -> Int64Array:
    from bertgeom.kernels.kmers import reference

    unknown = np.zeros(starts.size, dtype=np.int64)
    for b, (start, stop, count) in enumerate(zip(starts, stops, counts, strict=True)):
        text = bases[start:stop].tobytes().decode("latin-1")
        text += "N" * ((count - 1) * stride + table.k - len(text))
        tokens = reference.kmer_tokens(
            text, table.vocabulary, table.k, stride, table.unknown, pad=False
        )[:count]
        ids[b, first : first + count] = [token for token, _, _ in tokens]
        unknown[b] = sum(token == table.unknown for token, _, _ in tokens)
    return unknown


@dataclass(frozen=True)
class SplitTokens:
    """What `encode_split` wrote, per row: int64 lengths and unknown tokens, bool truncated."""

    lengths: Int64Array
    n_unknown: Int64Array
    truncated: BoolArray


def encode_split(
    bases: UInt8Array,
    starts: Int64Array,
    stops: Int64Array,
    table: KmerTable,
    singles: Int32Array,
    *,
    room: int,
    ids: Int32Array,
    begins: Int32Array,
    ends: Int32Array,
    first: int = 0,
    impl: str = "auto",
) -> SplitTokens:
    """Longest-match tokens: k-mers end to end, single bases where none fits.

    Args:
        bases: uint8 (n,) ASCII.
        starts, stops: int64 (B,), the rows of the batch in `bases`.
        table: every k-mer of A, C, G, T and no other.
        singles: from `single_table`; must hold A, C, G, T.
        room: maximum tokens of a row.
        ids: int32 (B, N), written from column `first` on.
        begins, ends: int32 (B, N), first base and one past the last of every token.
        impl: "auto", "numba" or "reference".

    Raises:
        ValueError, TypeError: for arrays of another shape or dtype, or an incomplete table.
    """
    bases, starts, stops = _check_rows(bases, starts, stops)
    _check_singles(singles)
    if first < 0 or room < 0:
        raise ValueError(f"expected first and room of at least 0, found {first} and {room}")
    if not table.complete or (singles[np.frombuffer(b"ACGT", np.uint8)] < 0).any():
        raise ValueError(
            f"expected all {4**table.k} k-mers and the single bases A, C, G, T, found "
            f"{table.keys.size} k-mers"
        )
    for array in (ids, begins, ends):
        if array.dtype != np.int32 or array.ndim != 2 or array.shape[0] != starts.size:
            raise ValueError(
                f"expected int32 ({starts.size}, N), found {array.dtype} {array.shape}"
            )
        if starts.size and array.shape[1] < first + room:
            raise ValueError(f"expected {first + room} columns, found {array.shape[1]}")
        _check_writable(array)
    result = SplitTokens(
        memory.zeros(starts.size, np.int64),
        memory.zeros(starts.size, np.int64),
        memory.zeros(starts.size, np.bool_),
    )
    if _resolve(impl) == "reference":
        rows = zip(starts, stops, strict=True)
        for b, (start, stop) in enumerate(rows):
            _split_reference(
                b, bases[start:stop], table, singles, room, first, ids, begins, ends, result
            )
        return result
    from bertgeom.kernels.kmers import cpu

    dense, entries, shift, *_ = table.lookup
    singles = np.require(singles, requirements=("C", "W"))
    written = [np.ascontiguousarray(array) for array in (ids, begins, ends)]
    cpu.encode_split(
        bases,
        starts,
        stops,
        table.k,
        dense,
        entries,
        shift,
        singles,
        np.int32(table.unknown),
        room,
        first,
        *written,
        result.lengths,
        result.n_unknown,
        result.truncated,
    )
    for array, to in zip(written, (ids, begins, ends), strict=True):
        _write_back(array, to)
    return result


def _split_reference(
    b: int,
    bases: UInt8Array,
    table: KmerTable,
    singles: Int32Array,
    room: int,
    first: int,
    ids: Int32Array,
    begins: Int32Array,
    ends: Int32Array,
    result: SplitTokens,
) -> None:
    from bertgeom.kernels.kmers import reference

    letters = {chr(i): int(singles[i]) for i in range(128) if singles[i] >= 0}
    text = bases.tobytes().decode("latin-1")
    tokens = reference.split_kmer_tokens(text, table.vocabulary | letters, table.k, table.unknown)
    kept = tokens[:room]
    for t, (token, begin, end) in enumerate(kept, start=first):
        ids[b, t], begins[b, t], ends[b, t] = token, begin, end
    result.lengths[b] = len(kept)
    result.n_unknown[b] = sum(token == table.unknown for token, _, _ in kept)
    result.truncated[b] = len(tokens) > room


def encode_singles(
    bases: UInt8Array,
    starts: Int64Array,
    singles: Int32Array,
    unknown: int,
    *,
    counts: Int64Array,
    ids: Int32Array,
    first: int = 0,
    impl: str = "auto",
) -> Int64Array:
    """One token per base for the first `counts` bases of every row.

    Args:
        bases: uint8 (n,) ASCII.
        starts: int64 (B,); counts: int64 (B,).
        singles: from `single_table`.
        unknown: id of a letter without a token.
        ids: int32 (B, N), written from column `first` on.

    Returns:
        int64 (B,): how many of the written ids are the unknown id.

    Raises:
        ValueError, TypeError: for arrays of another shape or dtype.
    """
    counts = np.ascontiguousarray(counts, dtype=np.int64)
    bases, starts, _ = _check_rows(bases, starts, starts + counts)
    _check_singles(singles)
    _check_counts(counts, first)
    if ids.dtype != np.int32 or ids.ndim != 2 or ids.shape[0] != starts.size:
        raise ValueError(f"expected ids int32 ({starts.size}, N), found {ids.dtype} {ids.shape}")
    if counts.size and first + counts.max() > ids.shape[1]:
        raise ValueError(f"expected room for every base, found ids of shape {ids.shape}")
    _check_writable(ids)
    n_unknown = memory.zeros(starts.size, np.int64)
    if _resolve(impl) == "reference":
        from bertgeom.kernels.kmers import reference

        letters = {chr(i): int(singles[i]) for i in range(128) if singles[i] >= 0}
        for b, (start, count) in enumerate(zip(starts, counts, strict=True)):
            text = bases[start : start + count].tobytes().decode("latin-1")
            tokens = [token for token, _, _ in reference.single_tokens(text, letters, unknown)]
            ids[b, first : first + count] = tokens
            n_unknown[b] = tokens.count(unknown)
        return n_unknown
    from bertgeom.kernels.kmers import cpu

    singles, written = np.require(singles, requirements=("C", "W")), np.ascontiguousarray(ids)
    cpu.encode_singles(bases, starts, singles, np.int32(unknown), counts, first, written, n_unknown)
    _write_back(written, ids)
    return n_unknown


def kmer_places(
    counts: Int64Array, limits: Int64Array, k: int, stride: int, *, width: int, first: int = 0
) -> tuple[Int32Array, Int32Array]:
    """Which bases the k-mers at 0, stride, ... of every row stand for.

    Args:
        counts: int64 (B,), k-mers of every row; limits: int64 (B,), its bases.
        k, stride: bases of a k-mer, and from one to the next.
        width: columns N; first: the column of a row's first k-mer.

    Returns:
        begins, ends: int32 (B, N), at most the row's limit; -1 in columns without a k-mer.

    Raises:
        ValueError: for rows of more k-mers than there are columns.
    """
    counts = np.ascontiguousarray(counts, dtype=np.int64)
    limits = np.ascontiguousarray(limits, dtype=np.int64)
    _check_counts(counts, first)
    if limits.shape != counts.shape:
        raise ValueError(f"expected limits of shape {counts.shape}, found {limits.shape}")
    if counts.size and first + counts.max() > width:
        raise ValueError(f"expected at most {width - first} k-mers per row, found {counts.max()}")
    from bertgeom.kernels.kmers import cpu

    begins, ends = (memory.empty((counts.size, width), np.int32) for _ in range(2))
    cpu.kmer_places(counts, limits, k, stride, first, begins, ends)
    return begins, ends


def kmer_keys(bases: UInt8Array, k: int, stride: int, *, pad: bool) -> UInt64Array:
    """uint64: keys of the k-mers of one sequence at 0, stride, ..., for building vocabularies."""
    check_k(k)
    from bertgeom.kernels.kmers import cpu

    bases = check_bases(bases)
    keys = memory.empty(int(n_kmers(bases.size, k, stride, pad=pad)), np.uint64)
    cpu.kmer_keys(bases, k, stride, keys)
    return keys


def count_ambiguous(
    bases: UInt8Array,
    starts: Int64Array | None = None,
    stops: Int64Array | None = None,
    *,
    impl: str = "auto",
) -> Int64Array:
    """int64 (B,): bases of every row that are not A, C, G, T or U (any case).

    Without starts and stops the whole array is one row.
    """
    if starts is None or stops is None:
        starts, stops = np.zeros(1, dtype=np.int64), np.array([np.size(bases)])
    bases, starts, stops = _check_rows(bases, starts, stops)
    if _resolve(impl) == "reference":
        from bertgeom.kernels.kmers import reference

        text = bases.tobytes().decode("latin-1")
        rows = zip(starts, stops, strict=True)
        return np.array([reference.count_ambiguous(text[a:b]) for a, b in rows], dtype=np.int64)
    from bertgeom.kernels.kmers import cpu

    counts = memory.zeros(starts.size, np.int64)
    cpu.count_ambiguous(bases, starts, stops, counts)
    return counts


def reverse_complement(bases: UInt8Array, *, impl: str = "auto") -> UInt8Array:
    """uint8 (n,): the other strand, upper case, U as T; other bytes stay as they are."""
    bases = check_bases(bases)
    if _resolve(impl) == "reference":
        from bertgeom.kernels.kmers import reference

        text = reference.reverse_complement(bases.tobytes().decode("latin-1"))
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8)
    from bertgeom.kernels.kmers import cpu

    out = memory.empty(bases.size, np.uint8)
    cpu.reverse_complement(bases, out)
    return out


def check_bases(bases: UInt8Array) -> UInt8Array:
    """The same bases, contiguous and writeable, so that the loops are compiled once.

    Raises:
        TypeError: for anything but a one-dimensional uint8 array.
    """
    bases = np.asarray(bases)
    if bases.dtype != np.uint8 or bases.ndim != 1:
        raise TypeError(f"expected bases as uint8 (n,), found {bases.dtype} {bases.shape}")
    return np.require(bases, requirements=("C", "W"))


def _check_writable(ids: Int32Array) -> None:
    if not ids.flags.writeable:
        raise ValueError("expected an array to write to, found a read-only one; pass a copy")


def _write_back(written: Int32Array, to: Int32Array) -> None:
    """Compiled code takes only contiguous arrays: other layouts would be compiled separately."""
    if written is not to:
        to[...] = written


def _check_counts(counts: Int64Array, first: int) -> None:
    if first < 0 or (counts.size and counts.min() < 0):
        least = counts.min() if counts.size else 0
        raise ValueError(f"expected first and counts of at least 0, found {first} and {least}")


def _check_singles(singles: Int32Array) -> None:
    """Check the table: the loops may read any of its 256 entries."""
    if singles.dtype != np.int32 or singles.shape != (256,):
        raise ValueError(f"expected singles int32 (256,), found {singles.dtype} {singles.shape}")


def _check_rows(
    bases: UInt8Array, starts: Int64Array, stops: Int64Array
) -> tuple[UInt8Array, Int64Array, Int64Array]:
    bases = check_bases(bases)
    starts = np.ascontiguousarray(starts, dtype=np.int64)
    stops = np.ascontiguousarray(stops, dtype=np.int64)
    if starts.ndim != 1 or starts.shape != stops.shape:
        raise ValueError(f"expected starts and stops (B,), found {starts.shape}, {stops.shape}")
    inside = (starts >= 0) & (starts <= stops) & (stops <= bases.size)
    if not inside.all():
        b = int((~inside).argmax())
        raise ValueError(
            f"expected rows inside 0..{bases.size}, found row {b}: {starts[b]}..{stops[b]}"
        )
    return bases, starts, stops


def _resolve(impl: str) -> str:
    if impl not in ("auto", "numba", "reference"):
        raise ValueError(f"expected impl 'auto', 'numba' or 'reference', found {impl!r}")
    return "numba" if impl == "auto" else impl
