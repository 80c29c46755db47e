"""Numba loops over bytes; every function releases the GIL and runs on one core.

None of them checks its arguments: `api.py` does. A k-mer of only A, C, G, T is *clean*: its
key has two bits a base, first base lowest. Clean stretches are packed a block at a time in
loops that LLVM turns into vector code:

    codes   c0 c1 c2 c3 c4 ...        one byte per base, two bits used
    pairs   c0c1 c1c2 c2c3 ...        byte i: the two bases from i on
    quads   c0c1c2c3 c1c2c3c4 ...     byte i: the four bases from i on
    key     quads[p] | quads[p + 4] << 8 | ... | quads[p + k - 4] << 2 (k - 4)

The last quad overlaps the one before where 4 does not divide k; the shared bits are equal.
The two bits are those of the ASCII letter, (byte >> 1) & 3: A 0, C 1, T and U 2, G 3.
"""

from __future__ import annotations

import numpy as np

from bertgeom.kernels._cpu.runtime import jit
from bertgeom.kernels.kmers.alphabet import CODES, COMPLEMENTS, LETTERS

_inline = jit(inline="always")

_N_CODE = np.uint64(LETTERS.index("N"))
_ONE, _TWO, _FOUR, _EIGHT = np.uint64(1), np.uint64(2), np.uint64(4), np.uint64(8)
_LOW_CODE = np.uint64(15)
_ID_BITS = np.uint64(32)
_ID_MASK = np.uint64(0xFFFF_FFFF)
#: Knuth's multiplier, 2^64 / golden ratio.
_HASH = np.uint64(0x9E37_79B9_7F4A_7C15)
#: Marks of free slots: ids are never negative, and no vocabulary has a k-mer of sixteen `OTHER`.
EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
#: Bases of a block; its scratch stays in the first-level cache.
_BLOCK = 1024
#: Four-bit code of A, C, G, T -> two bits as in ASCII.
_TWO_BITS = np.array([0, 1, 3, 2], dtype=np.uint64)


@jit
def reverse_complement(bases, out):
    last = bases.size - 1
    for i in range(bases.size):
        out[i] = COMPLEMENTS[bases[last - i]]


@_inline
def _is_clean(byte):
    letter = byte & np.uint8(0xDF)
    return (
        (letter == np.uint8(65))  # A
        | (letter == np.uint8(67))  # C
        | (letter == np.uint8(71))  # G
        | (letter == np.uint8(84))  # T
        | (letter == np.uint8(85))  # U
    )


@jit
def _count_clean(row):
    total = np.int64(0)
    whole = row.size // 128
    for block in range(whole):
        # 128 hits fit a byte, which keeps 64 lanes in a vector.
        hits = np.uint8(0)
        for i in range(128):
            hits = np.uint8(hits + np.uint8(_is_clean(row[block * 128 + i])))
        total += np.int64(hits)
    for i in range(whole * 128, row.size):
        total += np.int64(_is_clean(row[i]))
    return total


@jit
def count_ambiguous(bases, starts, stops, counts):
    for b in range(starts.size):
        row = bases[starts[b] : stops[b]]
        counts[b] = row.size - _count_clean(row)


@jit
def kmer_keys(bases, k, stride, keys):
    """Four-bit keys of the k-mers at 0, stride, ...; bases past the end count as N."""
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


@jit
def clean_keys(keys, k, clean):
    """Two-bit keys of four-bit ones without ambiguity codes."""
    for i in range(keys.size):
        packed = np.uint64(0)
        for j in range(k):
            code = (keys[i] >> np.uint64(4 * (k - 1 - j))) & _LOW_CODE
            packed |= _TWO_BITS[np.int64(code)] << np.uint64(2 * j)
        clean[i] = packed


@jit
def fill_clean(keys, ids, entries, shift):
    """Hash table of key << 32 | id; open addressing, linear probing."""
    last = entries.size - 1
    for i in range(keys.size):
        slot = np.int64((keys[i] * _HASH) >> shift)
        while entries[slot] != EMPTY:
            slot = (slot + 1) & last
        entries[slot] = (keys[i] << _ID_BITS) | np.uint64(ids[i])


@jit
def fill_ambiguous(keys, ids, slots, values, shift):
    """Hash table of four-bit keys, with their ids in a second array."""
    last = slots.size - 1
    for i in range(keys.size):
        slot = np.int64((keys[i] * _HASH) >> shift)
        while slots[slot] != EMPTY:
            slot = (slot + 1) & last
        slots[slot] = keys[i]
        values[slot] = ids[i]


@_inline
def _find_clean(key, entries, shift, unknown):
    slot = (key * _HASH) >> shift
    entry = entries[slot]
    while (entry >> _ID_BITS) != key and entry != EMPTY:
        slot = (slot + _ONE) & np.uint64(entries.size - 1)
        entry = entries[slot]
    return np.int32(entry & _ID_MASK) if entry != EMPTY else unknown


@jit
def _find_ambiguous(key, slots, values, shift, unknown):
    slot = np.int64((key * _HASH) >> shift)
    while slots[slot] != key:
        if slots[slot] == EMPTY:
            return unknown
        slot = (slot + 1) & (slots.size - 1)
    return values[slot]


@jit
def _pack_quads(row, quads):
    """Byte i of `quads`: the bases i..i+3 of a clean row, two bits each; undefined past its end."""
    n = row.size
    for i in range(n):
        quads[i] = (row[i] >> np.uint8(1)) & np.uint8(3)
    for i in range(n):
        quads[i] = quads[i] | (quads[i + 1] << np.uint8(2))
    for i in range(n):
        quads[i] = quads[i] | (quads[i + 2] << np.uint8(4))


@jit
def _join_quads(quads, k, stride, keys):
    """Keys at 0, stride, ... from four quads each, which overlap unless k is 16.

    For k < 4 the quad reaches beyond the k-mer: the mask cuts it.
    """
    mask = EMPTY >> np.uint64(64 - 2 * k)
    last = max(k - 4, 0)
    second, third = min(4, last), min(8, last)
    shift_2, shift_3, shift_4 = np.uint64(2 * second), np.uint64(2 * third), np.uint64(2 * last)
    for t in range(keys.size):
        p = np.uint64(t) * np.uint64(stride)
        key = np.uint64(quads[p])
        key |= np.uint64(quads[p + np.uint64(second)]) << shift_2
        key |= np.uint64(quads[p + np.uint64(third)]) << shift_3
        key |= np.uint64(quads[p + np.uint64(last)]) << shift_4
        keys[t] = key & mask


@jit
def _encode_clean(row, k, stride, dense, entries, shift, unknown, quads, keys, ids):
    _pack_quads(row, quads)
    _join_quads(quads, k, stride, keys)
    if dense.size:
        for t in range(ids.size):
            ids[t] = dense[keys[t]]
    else:
        # Keys first, look-ups after: so that many cache misses are under way at once.
        for t in range(ids.size):
            ids[t] = _find_clean(keys[t], entries, shift, unknown)


@jit
def _encode_any(row, k, stride, dense, entries, shift, slots, values, slot_shift, unknown, ids):
    """One k-mer after the other; bases past the end of the row are N."""
    for t in range(ids.size):
        begin = t * stride
        key, packed, worst = np.uint64(0), np.uint64(0), np.uint64(0)
        for j in range(k):
            i = begin + j
            code = np.uint64(CODES[row[i]]) if i < row.size else _N_CODE
            key = (key << _FOUR) | code
            worst = max(worst, code)
            packed |= _TWO_BITS[np.int64(code & np.uint64(3))] << np.uint64(2 * j)
        if worst >= _FOUR:
            ids[t] = _find_ambiguous(key, slots, values, slot_shift, unknown)
        elif dense.size:
            ids[t] = dense[np.int64(packed)]
        else:
            ids[t] = _find_clean(packed, entries, shift, unknown)


@jit
def encode_kmers(
    bases,
    starts,
    stops,
    k,
    stride,
    dense,
    entries,
    shift,
    slots,
    values,
    slot_shift,
    unknown,
    counts,
    first,
    ids,
    n_unknown,
):
    """Ids of `counts` k-mers per row, written from column `first` on; bases past the end are N."""
    tokens = max(1, (_BLOCK - k) // stride + 1)
    quads = np.zeros(_BLOCK + 4, dtype=np.uint8)
    keys = np.zeros(tokens, dtype=np.uint64)
    for b in range(starts.size):
        row = bases[starts[b] : stops[b]]
        for t in range(0, counts[b], tokens):
            out = ids[b, first + t : first + min(t + tokens, counts[b])]
            begin = t * stride
            end = begin + (out.size - 1) * stride + k
            part = row[begin : min(end, row.size)]
            if part.size == end - begin and _count_clean(part) == part.size:
                _encode_clean(
                    part, k, stride, dense, entries, shift, unknown, quads, keys[: out.size], out
                )
            else:
                _encode_any(
                    row[begin:],
                    k,
                    stride,
                    dense,
                    entries,
                    shift,
                    slots,
                    values,
                    slot_shift,
                    unknown,
                    out,
                )
        misses = 0
        for t in range(counts[b]):
            misses += ids[b, first + t] == unknown
        n_unknown[b] = misses


@jit
def _clean_run(row, begin):
    """One past the last base of the clean stretch that starts at `begin`."""
    end = begin
    while end + 128 <= row.size and _count_clean(row[end : end + 128]) == 128:
        end += 128
    while end < row.size and _is_clean(row[end]):
        end += 1
    return end


@jit
def _encode_run(row, begin, end, k, dense, entries, shift, unknown, quads, keys, ids):
    """k-mers end to end in a clean stretch, as many as fit; returns how many."""
    count = min((end - begin) // k, ids.size)
    for t in range(0, count, keys.size):
        size = min(keys.size, count - t)
        part = row[begin + t * k : begin + (t + size) * k]
        out = ids[t : t + size]
        _encode_clean(part, k, k, dense, entries, shift, unknown, quads, keys[:size], out)
    return count


@jit
def encode_split(
    bases,
    starts,
    stops,
    k,
    dense,
    entries,
    shift,
    singles,
    unknown,
    room,
    first,
    ids,
    begins,
    ends,
    lengths,
    n_unknown,
    truncated,
):
    """Clean stretches as k-mers end to end, their rest and all other letters one by one.

    `singles` is -1 for letters without a token; a run of them is one unknown token.
    """
    quads = np.zeros(_BLOCK + 4, dtype=np.uint8)
    keys = np.zeros(_BLOCK // k, dtype=np.uint64)
    for b in range(starts.size):
        row = bases[starts[b] : stops[b]]
        out = ids[b, first : first + room]
        p, t, misses = 0, 0, 0
        while p < row.size and t < room:
            end = _clean_run(row, p)
            count = _encode_run(
                row, p, end, k, dense, entries, shift, unknown, quads, keys, out[t:]
            )
            for i in range(count):
                begins[b, first + t + i] = p + i * k
                ends[b, first + t + i] = p + (i + 1) * k
            p += count * k
            t += count
            while p < end and t < room:
                out[t] = singles[row[p]]
                begins[b, first + t], ends[b, first + t] = p, p + 1
                p += 1
                t += 1
            while p < row.size and t < room and not _is_clean(row[p]):
                begins[b, first + t] = p
                token = singles[row[p]]
                p += 1
                if token < 0:
                    token = unknown
                    misses += 1
                    while p < row.size and not _is_clean(row[p]) and singles[row[p]] < 0:
                        p += 1
                out[t] = token
                ends[b, first + t] = p
                t += 1
        lengths[b], n_unknown[b], truncated[b] = t, misses, p < row.size


@jit
def encode_singles(bases, starts, singles, unknown, counts, first, ids, n_unknown):
    """One token per base; `singles` is -1 for letters without a token."""
    for b in range(starts.size):
        row = bases[starts[b] : starts[b] + counts[b]]
        misses = 0
        for i in range(row.size):
            token = singles[row[i]]
            misses += token < 0
            ids[b, first + i] = unknown if token < 0 else token
        n_unknown[b] = misses


@jit
def kmer_places(counts, limits, k, stride, first, begins, ends):
    """First base and one past the last of `counts` k-mers per row, limited to `limits`; else -1."""
    for b in range(counts.size):
        begins[b, :first] = -1
        ends[b, :first] = -1
        limit = np.int32(limits[b])
        for t in range(counts[b]):
            begin = np.int32(t * stride)
            begins[b, first + t] = min(begin, limit)
            ends[b, first + t] = min(np.int32(begin + np.int32(k)), limit)
        begins[b, first + counts[b] :] = -1
        ends[b, first + counts[b] :] = -1
