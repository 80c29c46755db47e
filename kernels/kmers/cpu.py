"""Numba loops over bytes; every function releases the GIL and runs on one core.

None of them checks its arguments: `api.py` does.
"""

from __future__ import annotations

import numba
import numpy as np

from bertgeom.kernels.kmers.alphabet import CODES, COMPLEMENTS, LETTERS

_jit = numba.njit(nogil=True, cache=True)

_N_CODE = np.uint64(LETTERS.index("N"))
_FOUR = np.uint64(4)
#: Knuth's multiplier, 2^64 / golden ratio.
_HASH = np.uint64(0x9E37_79B9_7F4A_7C15)
#: Sixteen times OTHER, which no vocabulary holds.
EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


@_jit
def reverse_complement(bases, out):
    last = bases.size - 1
    for i in range(bases.size):
        out[i] = COMPLEMENTS[bases[last - i]]


@_jit
def count_ambiguous(bases, starts, stops, counts):
    for b in range(starts.size):
        clean = 0
        for i in range(starts[b], stops[b]):
            letter = bases[i] & np.uint8(0xDF)
            clean += (
                (letter == np.uint8(65))  # A
                | (letter == np.uint8(67))  # C
                | (letter == np.uint8(71))  # G
                | (letter == np.uint8(84))  # T
                | (letter == np.uint8(85))  # U
            )
        counts[b] = stops[b] - starts[b] - clean


@_jit
def kmer_keys(bases, k, stride, keys):
    """Keys of the k-mers at 0, stride, ...; bases past the end count as N."""
    mask = EMPTY >> np.uint64(64 - 4 * k)
    key = np.uint64(0)
    done = 0
    for t in range(keys.size):
        begin = t * stride
        for i in range(max(done, begin), begin + k):
            code = np.uint64(CODES[bases[i]]) if i < bases.size else _N_CODE
            key = (key << _FOUR) | code
        done = begin + k
        keys[t] = key & mask


@_jit
def fill_slots(keys, ids, slots, values, shift):
    """Open addressing with linear probing. Returns -1, or the index of a repeated key."""
    last = slots.size - 1
    for i in range(keys.size):
        slot = np.int64((keys[i] * _HASH) >> shift)
        while slots[slot] != EMPTY:
            if slots[slot] == keys[i]:
                return i
            slot = (slot + 1) & last
        slots[slot] = keys[i]
        values[slot] = ids[i]
    return -1


@_jit
def _look_up(key, slots, values, shift, unknown):
    slot = np.int64((key * _HASH) >> shift)
    while True:
        found = slots[slot]
        if found == key:
            return values[slot]
        if found == EMPTY:
            return unknown
        slot = (slot + 1) & (slots.size - 1)


@_jit
def hashed_kmers(
    bases, starts, stops, k, stride, slots, values, shift, unknown, counts, first, ids, n_unknown
):
    """Ids of `counts` k-mers a row, written from column `first` on; bases past the end are N."""
    mask = EMPTY >> np.uint64(64 - 4 * k)
    for b in range(starts.size):
        key = np.uint64(0)
        done = starts[b]
        misses = 0
        for t in range(counts[b]):
            begin = starts[b] + t * stride
            for i in range(max(done, begin), begin + k):
                code = np.uint64(CODES[bases[i]]) if i < stops[b] else _N_CODE
                key = (key << _FOUR) | code
            done = begin + k
            token = _look_up(key & mask, slots, values, shift, unknown)
            ids[b, first + t] = token
            misses += token == unknown
        n_unknown[b] = misses
