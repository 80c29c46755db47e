"""Attention statistics on the CPU: one head at a time per thread, its weights in the cache.

The first look at a head goes block of rows by block of rows: logits, then row by row the softmax
and everything that is summed over rows, columns or diagonals, then the block's output. Two
statistics need more: the value bins, whose edges are known only when all weights are, and the
products A_ij A_ji. Short heads still lie in memory then; of long ones the mirrored cells are made
beside the first look, and large weights are kept (`second_look`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bertgeom.kernels._cpu import amx as _amx
from bertgeom.kernels._cpu import memory as _memory
from bertgeom.kernels._cpu import strips as _strips
from bertgeom.kernels._cpu.rows import readable
from bertgeom.kernels._cpu.runtime import (
    CHECKED,
    check_extent,
    claim,
    dgemm_address,
    inner,
    jit,
    on_torch_threads,
    sgemm_address,
    started,
)
from bertgeom.kernels._cpu.vectors import exp2, prefetch, prefetch_to_write
from bertgeom.kernels.attention_stats.bias import Bias
from bertgeom.kernels.attention_stats.cpu.bias import NO_BIAS, add_cells, of_head, placed
from bertgeom.kernels.attention_stats.cpu.head import (
    ASYMMETRY,
    CONFIDENT_COUNT,
    CONFIDENT_MASS,
    PURITY,
    TOP1,
    VALUE_ENTROPY,
    column_statistics,
    end_stretch,
    gates,
    head_cone,
    is_finite,
    k90_summary,
    logit_statistics,
    offset_statistics,
    row_statistics,
    stretch_begin,
    value_entropy,
)
from bertgeom.kernels.attention_stats.cpu.products import (
    GROUP,
    logits,
    outputs,
    side_by_side,
    split_keys,
)
from bertgeom.kernels.attention_stats.cpu.results import named_values, shapes_of
from bertgeom.kernels.attention_stats.cpu.rows import (
    add_near,
    confident_cells,
    exponentials,
    extremes,
    hide,
    lift,
    padded,
    put_back,
    smallest_count,
    spread,
)
from bertgeom.kernels.attention_stats.cpu.second_look import (
    count_candidates,
    crossed_block,
    keep_candidates,
    look_at_pairs,
    look_at_weights,
    may_be_beyond,
)
from bertgeom.kernels.attention_stats.cpu.work import (
    PHASES,
    Heads,
    Settings,
    check_blocks,
    cut,
    is_resident,
    most_floats,
    rows_at_once,
    scratch_floats,
    values_at,
)
from bertgeom.kernels.attention_stats.options import (
    GATE_MIXED,
    N_BLOCKS,
    N_VALUE_BINS,
    SLACK,
    Options,
)

_LN2 = math.log(2.0)
f32 = np.float32


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    special: Tensor | None,
    groups: Tensor | None,
    options: Options,
    bias: Bias | None = None,
) -> tuple[Tensor, Callable[[], dict[str, Tensor]]]:
    """Output and statistics of a batch; arguments as checked by `api.attention_stats`.

    Results do not depend, bit for bit, on the padding, the rest of the batch and the number of
    threads. Half precision is computed in float32.

    Returns:
        output (B, H, N, d) in the query's dtype, and a function that returns the values.
    """
    batch, n_heads, n_slots, head_dim = query.shape
    q, k, v = (_readable(x) for x in (query, key, value))
    n_tokens = lengths.tolist()
    cells, _owner = NO_BIAS, None
    if bias is not None:
        cells, _owner = placed(bias, n_heads, n_slots, n_tokens, options.scale)
    padded_batch = min(n_tokens) < n_slots
    output = _memory.tensor((batch, n_slots, n_heads, head_dim), zeroed=padded_batch)
    output = output.transpose(1, 2)
    shapes, n_results = shapes_of(batch, n_heads, n_slots, options)
    results = _memory.tensor((n_results,))
    settings = _settings(n_slots, options, _amx.usable(), _strips.usable())
    n_floats = most_floats(lengths.numpy(), head_dim, settings.near, settings.theta, settings.reach)
    n_places = torch.get_num_threads()
    scratch, n_floats = _memory.scratch_address(n_places, n_floats)
    counters = _memory.zeros(2, np.int64)
    arguments = (
        counters,
        (sgemm_address(), dgemm_address()),
        settings,
        (batch, n_heads, n_heads // key.shape[1], head_dim),
        (_heads(q), _heads(k), _heads(v), _heads(output)),
        lengths.numpy(),
        _slots(special, batch, n_slots, np.uint8),
        _slots(groups, batch, n_slots, np.int32),
        cells,
        results.data_ptr(),
        shapes,
        scratch,
        n_floats,
        n_places,
    )
    on_torch_threads(_sweep, *arguments)
    if query.dtype != output.dtype:
        output = output.to(query.dtype)
    return output, functools.partial(named_values, results, shapes, options)


def _readable(x: Tensor) -> Tensor:
    """x as float32 whose rows BLAS can read; x itself if possible."""
    x = readable(x)
    apart = x.stride(-2) >= x.shape[-1] or x.shape[-2] == 1
    return x if apart else x.contiguous()


def _heads(x: Tensor) -> Heads:
    batch, head, row, _ = x.stride()
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    end = x.data_ptr() + 4 * (last + 1)
    return Heads(x.data_ptr(), batch, head, max(row, x.shape[-1]), end)


def _slots(x: Tensor | None, batch: int, n_slots: int, dtype: type) -> np.ndarray:
    return _no_slots(batch, n_slots, dtype) if x is None else x.contiguous().numpy().view(dtype)


@functools.lru_cache(maxsize=64)
def _no_slots(batch: int, n_slots: int, dtype: type) -> np.ndarray:
    return np.zeros((batch, n_slots), dtype)


@functools.lru_cache(maxsize=64)
def _settings(n_slots: int, options: Options, amx: bool, strips: bool) -> Settings:
    return Settings(
        scale=f32(options.scale / _LN2),
        reach=n_slots if options.window is None else options.window,
        theta=f32(options.theta * (1 - SLACK)),
        near=options.near,
        n_side=options.n_offset_side,
        full=options.full,
        amx=amx,
        strips=strips,
    )


@jit
def _sweep(team, counters, *arguments):
    """The loop of every thread: claim heads until none is left."""
    if started(team, (counters, arguments)):
        return
    (
        blas, settings, sizes, tensors, lengths, special, groups, cells, results, shapes, memory,
        n_floats, n_places,
    ) = arguments  # fmt: skip
    values = values_at(results, shapes)
    batch, n_heads, repeat, d = sizes
    query, key, value, output = tensors
    place = claim(counters, 1)
    if place >= n_places:
        # There are more threads than scratch memories; the others take all heads.
        return
    scratch = memory + 4 * n_floats * place
    while True:
        item = claim(counters, 0)
        if item >= batch * n_heads:
            return
        b, h = item // n_heads, item % n_heads
        n = np.int64(lengths[b])
        _leave_out(values, b, h, n)
        if n == 0:
            continue
        if CHECKED:
            for heads, one in ((query, h), (key, h // repeat), (value, h // repeat), (output, h)):
                address, row = _matrix(heads, b, one)
                check_extent(address, (n - 1) * row + d, heads.address, heads.end)
        matrices = (
            _matrix(query, b, h),
            _matrix(key, b, h // repeat),
            _matrix(value, b, h // repeat),
            _matrix(output, b, h),
        )
        bias = of_head(cells, b, h, n)
        _head(
            blas, settings, n, d, matrices, bias, special[b], groups[b], values, b, h, scratch,
            n_floats,
        )  # fmt: skip


@inner
def _leave_out(values, b, h, n):
    """Write missing values: of tracks beyond n tokens, and of everything if n is 0."""
    values.query_entropy[b, h, n:] = np.nan
    values.received[b, h, n:] = np.nan
    if n == 0:
        _leave_out_head(values, b, h)
        values.cones[:, b, h] = np.nan


@inner
def _leave_out_head(values, b, h):
    """Write missing values of everything but cones."""
    values.scalars[:, b, h] = np.nan
    values.k90[:, b, h] = 0
    values.gate[b, h] = GATE_MIXED
    values.gate_mass[b, h] = np.nan
    values.group_mass[b, h] = np.nan
    values.profile[b, h] = np.nan
    values.block_map[b, h] = np.nan
    values.query_entropy[b, h] = np.nan
    values.received[b, h] = np.nan


@inner
def _matrix(heads, b, h):
    """Address and row stride of one n x d matrix."""
    return heads.address + 4 * (b * heads.batch + h * heads.head), heads.row


@inner
def _head(blas, settings, n, d, matrices, bias, special, groups, values, b, h, scratch, n_floats):
    """All statistics of one head of n >= 1 tokens."""
    near = settings.near
    if scratch_floats(n, d, near, settings.theta, settings.reach) > n_floats:
        raise IndexError("attention_stats: scratch memory too small for a head; please report it")
    work = cut(scratch, n_floats, n, d, near, settings.theta, settings.reach)
    for j in range(n):
        work.content[j] = special[j] == 0
    out = np.zeros(values.scalars.shape[0])
    strips, matrices = side_by_side(
        settings.strips, settings.scale, n, d, matrices, work.side_by_side
    )
    # Before the logits, because this loads queries and keys into the cache.
    (query, query_row), (key, key_row), _, _ = matrices
    largest_entry = logit_statistics(
        blas, n, d, query, query_row, key, key_row, work.gram, bias, out
    )
    n_cones = values.cones.shape[3]
    for x in range(min(2, n_cones)):
        address, row = matrices[x]
        head_cone(n, d, address, row, values.cones[:, b, h, x])
    pieces = split_keys(settings.amx, largest_entry, n, d, key, key_row, work.pieces)
    looked = _first_look(blas[0], pieces, strips, settings, n, d, matrices, bias, work, out)
    for x in range(2, n_cones):
        address, row = matrices[x]
        head_cone(n, d, address, row, values.cones[:, b, h, x])
    row_statistics(n, work, out)
    column_statistics(n, work, groups, out, values.group_mass[b, h])
    offset_statistics(n, near, work, out, values.profile[b, h])
    values.gate[b, h] = gates(n, near, work, out, values.gate_mass[b, h])
    for g in range(N_BLOCKS):
        for c in range(N_BLOCKS):
            values.block_map[b, h, g, c] = work.block_map[g, c] / n
    if settings.full:
        k90_summary(n, work.k_rows, values.k90[:, b, h])
        _second_look(blas[0], pieces, strips, settings, n, d, matrices, bias, work, looked, out)
    for x in range(out.size):
        values.scalars[x, b, h] = out[x]
    for i in range(min(n, values.query_entropy.shape[2])):
        values.query_entropy[b, h, i] = work.entropies[i]
    for j in range(min(n, values.received.shape[2])):
        values.received[b, h, j] = work.columns[j]
    if not is_finite(n, d, matrices, out):
        _leave_out_head(values, b, h)


@inner
def _block(n, reach, i0, work):
    """Rows i0 to i1 and the columns c0 to c1 that they see, with the memory of their weights."""
    i1 = min(n, i0 + rows_at_once(n, reach))
    c0 = max(0, i0 - reach) // _amx.STEP * _amx.STEP
    c1 = min(n, i1 + reach)
    pitch = padded(c1 - c0)
    first = i0 * pitch if is_resident(n, reach) else 0
    weights = work.weights[first : first + (i1 - i0) * pitch].reshape((i1 - i0, pitch))
    return i1, c0, c1, weights


@inner
def _first_look(blas, pieces, strips, settings, n, d, matrices, bias, work, out):
    """The output and all sums of the first sweep.

    Returns:
        the smallest and the largest weight; sum A_ij A_ji of a longer head, and the number of its
        candidates, or -1: it needs a second look.
    """
    _, _, (value, value_row), (output, output_row) = matrices
    reach = min(settings.reach, n)
    near, theta = settings.near, settings.theta
    crossed, kept = 0.0, 0 if settings.full and not is_resident(n, reach) else -1
    smallest, largest = f32(np.inf), f32(0)
    top1 = purity = confident_mass = 0.0
    n_confident = 0
    guess, step = f32(1 / n), f32(1 / n)
    stretch, stretch_end = 0, stretch_begin(1, n)
    # Functions of a row get only the arrays that they need: passing all of them takes longer than
    # the row.
    highs, inverses, entropies = work.highs, work.inverses, work.entropies
    column, near_column, diagonals = work.column, work.near, work.diagonals
    content, confident, found = work.content, work.confident, work.found
    lifted, near_sums, candidates = work.lifted, work.near_sums, work.candidates
    summed = 0
    i0 = 0
    while i0 < n:
        i1, c0, c1, block = _block(n, reach, i0, work)
        pitch, weights = block.shape[1], np.int64(block.ctypes.data)
        group = GROUP if pieces.used else i1 - i0
        for i in range(i0, i1):
            if (i - i0) % group == 0:
                there, end = weights + 4 * (i - i0) * pitch, min(i + group, i1)
                if CHECKED:
                    check_blocks(work, there, end - i, c1 - c0, pitch)
                logits(
                    blas, pieces, strips, settings.scale, d, matrices, i, end, c0, c1, there, pitch
                )
                if bias.address != 0:
                    add_cells(bias, False, i, end, c0, c1, there, pitch)
            for line in range(0, 4 * d, 64):
                prefetch(value + 4 * i * value_row + line)
                prefetch_to_write(output + 4 * i * output_row + line)
            while i >= stretch_end:
                purity += add_near(
                    block, i0, c0, c1, summed, i, near, content, near_column, near_sums
                )
                summed = i
                end_stretch(stretch, n, work)
                stretch += 1
                stretch_end = stretch_begin(stretch + 1, n)
            row = block[i - i0]
            first, last = max(0, i - reach), min(n, i + reach + 1)
            low, high = extremes(row, first - c0, last - c0)
            hide(row, first - c0, last - c0)
            total, moment = exponentials(row, high)
            inverse = f32(1) / total
            highs[i] = high
            inverses[i] = inverse
            entropies[i] = math.log(total) - _LN2 * moment * inverse
            # Near cells outside of the block's columns are invisible: `near` may exceed `reach`.
            begin, stop = max(c0, i - near), min(c1, i + near + 1)
            start = n - 1 - i + c0
            phase = start % PHASES
            lift(row, begin - c0, stop - c0, lifted)
            purity += spread(
                row,
                inverse,
                column[c0 : c0 + pitch],
                diagonals[phase, start - phase : start - phase + pitch],
            )
            put_back(row, begin - c0, stop - c0, inverse, lifted)
            top1 += inverse
            low = exp2(low - high) * inverse
            smallest = min(smallest, low)
            largest = max(largest, inverse)
            if inverse >= theta:
                n_found = confident_cells(row, theta, found)
                n_confident += n_found
                for j in found[:n_found]:
                    confident_mass += row[j]
                    if abs(c0 + j - i) > near:
                        confident[c0 + j] += row[j] * content[c0 + j]
            if settings.full:
                k, guess, step = smallest_count(row, last - first, low, inverse, guess, step)
                work.k_rows[k] += 1
            if kept >= 0 and may_be_beyond(inverse, largest):
                kept = keep_candidates(row, largest, candidates, kept)
        purity += add_near(block, i0, c0, c1, summed, i1, near, content, near_column, near_sums)
        summed = i1
        outputs(blas, strips, n, d, matrices, i0, i1, c0, c1, weights, pitch)
        if kept >= 0:
            crossed += crossed_block(
                blas, strips, settings, d, matrices, bias, i0, i1, c0, block, work
            )
        i0 = i1
    while stretch < N_BLOCKS:
        end_stretch(stretch, n, work)
        stretch += 1
    out[TOP1] = top1 / n
    out[PURITY] = purity / n
    out[CONFIDENT_MASS] = confident_mass / n
    out[CONFIDENT_COUNT] = n_confident / n
    return smallest, largest, crossed, kept


@inner
def _second_look(blas, pieces, strips, settings, n, d, matrices, bias, work, looked, out):
    """Value entropy and asymmetry."""
    smallest, largest, crossed, kept = looked
    reach = min(settings.reach, n)
    n_hidden = 0
    for i in range(n):
        n_hidden += n - (min(n, i + reach + 1) - max(0, i - reach))
    if n_hidden > 0:
        smallest = f32(0)
        # Candidates are counted among all cells.
        work.bins[0] += n_hidden if kept < 0 else 0
    factor = f32(N_VALUE_BINS) / (largest - smallest)
    if is_resident(n, reach):
        crossed = look_at_weights(n, work, smallest, factor)
    elif kept >= 0:
        count_candidates(n, work.candidates, kept, smallest, factor, work.codes, work.bins)
    else:
        crossed = look_at_pairs(
            blas, pieces, strips, settings, n, d, matrices, bias, work, smallest, factor
        )
    out[VALUE_ENTROPY] = value_entropy(n, smallest, largest, work.bins)
    out[ASYMMETRY] = min(max(1 - crossed / (out[PURITY] * n), 0.0), 1.0)
