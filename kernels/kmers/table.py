"""Vocabularies as lookup tables for the compiled loops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bertgeom.kernels._cpu import memory
from bertgeom.kernels.arrays import BoolArray, Int32Array, UInt64Array
from bertgeom.kernels.kmers.alphabet import BITS, CODES, LETTERS, MAX_K, OTHER

#: Longest k whose clean k-mers are looked up directly: 4^8 ids are 256 KiB.
DENSE_MAX_K = 8


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
    keys: UInt64Array
    ids: Int32Array
    unknown: int

    @staticmethod
    def build(vocabulary: Mapping[str, int], k: int, unknown: int) -> KmerTable:
        """From k-mer to id; letters of any case out of the IUPAC alphabet.

        Raises:
            ValueError: for another length, a letter that is no base, a k-mer that occurs
                twice (in two cases, or with U and T), or a k-mer with the id `unknown`.
        """
        check_k(k)
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
    def complete(self) -> bool:
        """Whether it holds every k-mer of A, C, G, T and no other."""
        return self.keys.size == 4**self.k and not _ambiguous(self.keys).any()

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Upper-case k-mer -> id."""
        return dict(zip(unpack_kmers(self.keys, self.k), self.ids.tolist(), strict=True))

    @cached_property
    def lookup(
        self,
    ) -> tuple[Int32Array, UInt64Array, np.uint64, UInt64Array, Int32Array, np.uint64]:
        """What the loops read: a direct table for short clean k-mers, else a hash table;
        and a hash table for k-mers with ambiguity codes."""
        from bertgeom.kernels.kmers import cpu

        ambiguous = _ambiguous(self.keys)
        clean = memory.empty(int((~ambiguous).sum()), np.uint64)
        cpu.clean_keys(self.keys[~ambiguous], self.k, clean)
        dense = memory.zeros(0, np.int32)
        entries, shift = _empty_slots(0)
        if self.k <= DENSE_MAX_K:
            dense = memory.full(4**self.k, self.unknown, np.int32)
            dense[clean] = self.ids[~ambiguous]
        else:
            entries, shift = _empty_slots(clean.size)
            cpu.fill_clean(clean, self.ids[~ambiguous], entries, shift)
        slots, slot_shift = _empty_slots(int(ambiguous.sum()))
        values = memory.full(slots.size, self.unknown, np.int32)
        cpu.fill_ambiguous(self.keys[ambiguous], self.ids[ambiguous], slots, values, slot_shift)
        return dense, entries, shift, slots, values, slot_shift


def _ambiguous(keys: UInt64Array) -> BoolArray:
    """bool: keys with a base other than A, C, G, T, whose code has one of its two high bits."""
    found: BoolArray = (keys & np.uint64(0xCCCC_CCCC_CCCC_CCCC)) != 0
    return found


def _empty_slots(n: int) -> tuple[UInt64Array, np.uint64]:
    """Room for n entries at a load of at most a third, and the shift that hashes into it."""
    bits = max(2, (3 * n).bit_length())
    return memory.full(1 << bits, 0xFFFF_FFFF_FFFF_FFFF, np.uint64), np.uint64(64 - bits)


def pack_kmers(kmers: Iterable[str], k: int) -> UInt64Array:
    """uint64 key of every k-mer.

    Raises:
        ValueError: for a k-mer of another length or with a letter that is no base.
    """
    check_k(k)
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


def unpack_kmers(keys: UInt64Array, k: int) -> list[str]:
    """The upper-case k-mers of keys; a byte that is not a base becomes `?`."""
    check_k(k)
    letters = np.frombuffer((LETTERS + "?").encode(), dtype=np.uint8)
    shifts = np.arange(BITS * (k - 1), -1, -BITS, dtype=np.uint64)
    codes = (np.asarray(keys, dtype=np.uint64)[:, None] >> shifts) & np.uint64(OTHER)
    text = letters[codes].tobytes().decode("ascii")
    return [text[i : i + k] for i in range(0, len(text), k)]


def single_table(vocabulary: Mapping[str, int]) -> Int32Array:
    """int32 (256,): byte -> token id of single letters, case folded; -1 without a token.

    U has the id of T unless it has its own, and vice versa.
    """
    table = np.full(256, -1, dtype=np.int32)
    folded = {letter.upper(): i for letter, i in vocabulary.items() if len(letter) == 1}
    if "T" in folded:
        folded.setdefault("U", folded["T"])
    elif "U" in folded:
        folded["T"] = folded["U"]
    for letter, i in folded.items():
        table[[ord(letter), ord(letter.lower())]] = i
    return table


def check_k(k: int) -> None:
    """Raise ValueError unless a k-mer of k bases fits a key."""
    if not 1 <= k <= MAX_K:
        raise ValueError(f"expected k in 1..{MAX_K}, found {k}")
