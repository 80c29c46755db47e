"""Bases to token ids: validation, shapes, and the tables that the loops read.

Bases are uint8 ASCII of any case; U is T. A batch is one array of bases with the starts and
stops of its rows, so that windows of a chromosome are encoded without being copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bertgeom.kernels.kmers.alphabet import BITS, CODES, LETTERS, MAX_K, OTHER


@dataclass(frozen=True, eq=False)
class KmerTable:
    """The k-mers of a vocabulary, ready to be looked up.

    Attributes:
        k: bases of a k-mer, 1..16.
        keys: uint64 (V,), four bits a base, first base highest.
        ids: int32 (V,), the token id of every key.
        unknown: id of a k-mer that is not in the vocabulary.
    """

    k: int
    keys: np.ndarray
    ids: np.ndarray
    unknown: int

    @staticmethod
    def build(vocabulary: Mapping[str, int], k: int, unknown: int) -> KmerTable:
        """From k-mer to id; letters of any case out of the IUPAC alphabet.

        Raises:
            ValueError: for another length, a letter that is no base, a k-mer that occurs
                twice (in two cases, or with U and T), or a k-mer with the id `unknown`.
        """
        _check_k(k)
        ids = np.fromiter(vocabulary.values(), dtype=np.int32, count=len(vocabulary))
        keys = pack_kmers(vocabulary, k)
        if np.unique(keys).size != keys.size:
            order, counts = np.unique(keys, return_counts=True)
            twice = unpack_kmers(order[counts > 1][:1], k)[0]
            raise ValueError(f"expected every k-mer once, found {twice} twice")
        if (ids == unknown).any():
            raise ValueError(f"expected no k-mer with the unknown id {unknown}, found one")
        return KmerTable(k, keys, ids, unknown)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Upper-case k-mer -> id."""
        return dict(zip(unpack_kmers(self.keys, self.k), self.ids.tolist(), strict=True))

    @cached_property
    def slots(self) -> tuple[np.ndarray, np.ndarray, np.uint64]:
        """Hash table at most a quarter full: keys, values, and the shift of the hash."""
        from bertgeom.kernels.kmers import cpu

        bits = max(4, int(4 * max(self.keys.size, 1) - 1).bit_length())
        slots = np.full(1 << bits, cpu.EMPTY, dtype=np.uint64)
        values = np.full(1 << bits, self.unknown, dtype=np.int32)
        cpu.fill_slots(self.keys, self.ids, slots, values, np.uint64(64 - bits))
        return slots, values, np.uint64(64 - bits)


def pack_kmers(kmers: Iterable[str], k: int) -> np.ndarray:
    """uint64 key of every k-mer.

    Raises:
        ValueError: for a k-mer of another length or with a letter that is no base.
    """
    _check_k(k)
    kmers = list(kmers)
    wrong = next((kmer for kmer in kmers if len(kmer) != k), None)
    if wrong is not None:
        raise ValueError(f"expected k-mers of {k} bases, found {wrong!r}")
    letters = np.frombuffer("".join(kmers).encode("ascii", "replace"), dtype=np.uint8)
    codes = CODES[letters].reshape(-1, k)
    bad = (codes == OTHER).any(axis=1)
    if bad.any():
        raise ValueError(f"expected IUPAC bases, found {kmers[int(bad.argmax())]!r}")
    keys = np.zeros(len(kmers), dtype=np.uint64)
    for column in codes.T:
        keys = (keys << np.uint64(BITS)) | column
    return keys


def unpack_kmers(keys: np.ndarray, k: int) -> list[str]:
    """The upper-case k-mers of keys; a byte that is no base reads as `?`."""
    _check_k(k)
    letters = np.frombuffer((LETTERS + "?").encode(), dtype=np.uint8)
    shifts = np.arange(BITS * (k - 1), -1, -BITS, dtype=np.uint64)
    codes = (np.asarray(keys, dtype=np.uint64)[:, None] >> shifts) & np.uint64(OTHER)
    text = letters[codes].tobytes().decode("ascii")
    return [text[i : i + k] for i in range(0, len(text), k)]


def n_kmers(n_bases: np.ndarray | int, k: int, stride: int, *, pad: bool) -> np.ndarray:
    """int64: whole k-mers in n bases, after padding with N to a multiple of k if `pad`."""
    n = np.asarray(n_bases, dtype=np.int64)
    if pad:
        n = -(-n // k) * k
    return np.where(n < k, 0, (n - k) // stride + 1)


def encode_kmers(
    bases: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    table: KmerTable,
    *,
    stride: int,
    counts: np.ndarray,
    ids: np.ndarray,
    first: int = 0,
    impl: str = "auto",
) -> np.ndarray:
    """Look up the k-mers at 0, stride, ... of every row.

    Args:
        bases: uint8 (n,) ASCII.
        starts, stops: int64 (B,), the rows of the batch in `bases`.
        table: the vocabulary.
        stride: bases from one k-mer to the next.
        counts: int64 (B,), how many k-mers of each row; bases past a stop count as N.
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
    if ids.shape[0] != starts.size or (counts.size and first + counts.max() > ids.shape[1]):
        raise ValueError(f"expected room for every k-mer, found ids of shape {ids.shape}")
    if _resolve(impl) == "reference":
        return _encode_kmers_reference(bases, starts, stops, table, stride, counts, ids, first)
    from bertgeom.kernels.kmers import cpu

    unknown = np.zeros(starts.size, dtype=np.int64)
    slots, values, shift = table.slots
    cpu.hashed_kmers(
        bases,
        starts,
        stops,
        table.k,
        stride,
        slots,
        values,
        shift,
        np.int32(table.unknown),
        counts,
        first,
        ids,
        unknown,
    )
    return unknown


def _encode_kmers_reference(bases, starts, stops, table, stride, counts, ids, first):
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


def kmer_keys(bases: np.ndarray, k: int, stride: int, *, pad: bool) -> np.ndarray:
    """uint64: keys of the k-mers of one sequence at 0, stride, ..., for building vocabularies."""
    _check_k(k)
    from bertgeom.kernels.kmers import cpu

    bases = check_bases(bases)
    keys = np.empty(int(n_kmers(bases.size, k, stride, pad=pad)), dtype=np.uint64)
    cpu.kmer_keys(bases, k, stride, keys)
    return keys


def count_ambiguous(
    bases: np.ndarray,
    starts: np.ndarray | None = None,
    stops: np.ndarray | None = None,
    *,
    impl: str = "auto",
) -> np.ndarray:
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

    counts = np.zeros(starts.size, dtype=np.int64)
    cpu.count_ambiguous(bases, starts, stops, counts)
    return counts


def reverse_complement(bases: np.ndarray, *, impl: str = "auto") -> np.ndarray:
    """uint8 (n,): the other strand, upper case, U as T; bytes that are no base stay as they are."""
    bases = check_bases(bases)
    if _resolve(impl) == "reference":
        from bertgeom.kernels.kmers import reference

        text = reference.reverse_complement(bases.tobytes().decode("latin-1"))
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8)
    from bertgeom.kernels.kmers import cpu

    out = np.empty_like(bases)
    cpu.reverse_complement(bases, out)
    return out


def check_bases(bases: np.ndarray) -> np.ndarray:
    """The same bases, contiguous.

    Raises:
        TypeError: for anything but a one-dimensional uint8 array.
    """
    bases = np.asarray(bases)
    if bases.dtype != np.uint8 or bases.ndim != 1:
        raise TypeError(f"expected bases as uint8 (n,), found {bases.dtype} {bases.shape}")
    return np.ascontiguousarray(bases)


def _check_rows(bases, starts, stops):
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


def _check_k(k: int) -> None:
    if not 1 <= k <= MAX_K:
        raise ValueError(f"expected k in 1..{MAX_K}, found {k}")


def _resolve(impl: str) -> str:
    if impl not in ("auto", "numba", "reference"):
        raise ValueError(f"expected impl 'auto', 'numba' or 'reference', found {impl!r}")
    return "numba" if impl == "auto" else impl
