"""Triton: how many of its largest weights a row needs to hold 0.9 of its mass.

A threshold t is narrowed between `high`, above which the weights do not hold the mass, and `low`,
above which they do; mass and count above both are known. Of r = 0.9 - mass(high) still wanted,
every weight between gives at most `high`, the largest give at least the mean of those between, and
each that is left out keeps at least `low`: once both bounds name one count, that is the answer,
long before the thresholds meet. `README.md` counts the steps.

The first threshold is that of a row whose logits are normally distributed and whose entropy is
this row's; the next come from the slope there, until both sides are known, and then in turn from
the middle of log t and from a straight line through both masses.

Windows up to RESIDENT_SLOTS keep the weights of a program's rows in registers, in tiles of columns
that a step adds up before it adds lanes; beyond, every step computes them again from Q and K.
"""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertgeom.kernels._triton.programs import any_length, head_of, launch, tokens_of
from bertgeom.kernels._triton.rules import ceil_div, next_power_of_two
from bertgeom.kernels.attention_stats.gpu.rows import RowValues
from bertgeom.kernels.attention_stats.gpu.tiles import (
    LN2,
    LOG2E,
    NO_ROW,
    PRECISION,
    Tiles,
    block_dim,
    compile_options,
    load_tile,
    logits,
    tile_offsets,
    widen,
)
from bertgeom.kernels.attention_stats.options import K90_MASS, Options

MASS = tl.constexpr(K90_MASS)
#: Half of them halve the distance in log t, which resolves relative differences of a millionth.
MAX_STEPS = 48
#: Where the normal distribution has 0.1 on one side, and its density there.
TAIL = tl.constexpr(1.2815516)
DENSITY = tl.constexpr(0.17549833)
RESIDENT_SLOTS = 512


@triton.jit
def _row_weights(
    b_q,
    p_k,
    o_k,
    stride_kn,
    lse,
    i_row,
    j_first,
    n,
    window,
    scale,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    i_col = j_first + tl.arange(0, COLS)
    p_tile = p_k + tl.cast(j_first, tl.int64) * stride_kn
    b_k = load_tile(p_tile, o_k, n - j_first, True, HEAD_DIM, COLS, BLOCK_DIM)
    p = tl.exp2(logits(b_q, b_k, PRECISION, WIDEN) * scale - lse[:, None])
    m = (i_col < n)[None, :]
    if WINDOW:
        m = m & (tl.abs(i_col[None, :] - i_row[:, None]) <= window)
    return tl.where(m, p, 0.0)


@any_length
def attention_k90(
    p_query,
    p_key,
    p_lse,
    p_entropy,
    p_top,
    p_count,
    p_lengths,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    n_slots,
    n_heads,
    heads_per_key,
    scale,
    window,
    max_steps,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TILES: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Rows [block ROWS, ...) of one head; p_count (B, H, N) int32, 0 in padded slots and for NaN.

    TILES: of COLS columns that hold the whole window and stay in registers; 0 where none do.
    """
    n_blocks = tl.cdiv(n_slots, ROWS)
    i_block, i_head, i_batch, i_flat = head_of(tl.program_id(0), n_heads, n_blocks)
    n = tokens_of(p_lengths, i_batch, n_slots)
    i_first = i_block * ROWS
    i_row = i_first + tl.arange(0, ROWS)
    m_row = i_row < n
    p_q = p_query + i_batch * stride_qb + i_head * stride_qh + i_first.to(tl.int64) * stride_qn
    p_k = p_key + i_batch * stride_kb + (i_head // heads_per_key) * stride_kh
    o_q = tile_offsets(stride_qn, stride_qd, ROWS, BLOCK_DIM)
    o_k = tile_offsets(stride_kn, stride_kd, COLS, BLOCK_DIM)
    b_q = load_tile(p_q, o_q, n - i_first, True, HEAD_DIM, ROWS, BLOCK_DIM)
    o_flat = i_flat * n_slots + i_row
    lse = tl.load(p_lse + o_flat, mask=m_row, other=NO_ROW)
    entropy = tl.load(p_entropy + o_flat, mask=m_row, other=0.0)
    top = tl.load(p_top + o_flat, mask=m_row, other=1.0)
    m_row = m_row & (lse == lse)

    first = 0
    last = tl.cdiv(n, COLS)
    if WINDOW:
        first = tl.maximum(i_first - window, 0) // COLS
        last = tl.minimum(last, tl.cdiv(i_first + ROWS + window, COLS))
    held = ()
    for tile in tl.static_range(TILES):
        p = _row_weights(
            b_q, p_k, o_k, stride_kn, lse, i_row, tile * COLS, n, window, scale,
            WINDOW, HEAD_DIM, COLS, BLOCK_DIM, PRECISION, WIDEN,
        )  # fmt: skip
        held += (p,)

    visible = tl.maximum(n, 1).to(tl.float32)
    # Weights below 0.047 / n hold less than 0.05 together, so the least that counts is larger.
    low = tl.zeros((ROWS,), tl.float32) + 0.047 / visible
    low_mass = tl.full((ROWS,), 1.0, tl.float32)
    # If the largest weight is enough, there is nothing to search for.
    is_open = m_row & (top < MASS)
    low_count = tl.where(is_open, visible, 1.0)
    high = top * 1.000001
    high_mass = tl.zeros((ROWS,), tl.float32)
    high_count = tl.zeros((ROWS,), tl.float32)
    most = tl.full((ROWS,), 1.0, tl.float32)
    # Weights this close count as equal: n of them shift the count by less than 0.1.
    close = tl.maximum(0.07 / visible, 3e-6)
    if WINDOW:
        visible = tl.minimum(visible, 2.0 * window + 1.0)
    # ln of the weights of such a row has this standard deviation.
    spread = tl.sqrt(tl.maximum(2.0 * (tl.log2(visible) * LN2 - entropy), 1e-6))
    slope = spread / (LN2 * DENSITY)
    threshold = tl.exp2(spread * (0.5 * spread - TAIL) / LN2) / visible
    beyond = 3.0
    step = 0
    open_rows = tl.max(is_open.to(tl.int32), 0)
    while (open_rows > 0) & (step < max_steps):
        inside = (threshold > low) & (threshold < high)
        threshold = tl.where(inside, threshold, tl.sqrt(high * low))
        if TILES > 0:
            tile_mass = tl.zeros((ROWS, COLS), tl.float32)
            tile_count = tl.zeros((ROWS, COLS), tl.float32)
            for tile in tl.static_range(TILES):
                above = tl.where(held[tile] >= threshold[:, None], 1.0, 0.0)
                tile_mass += above * held[tile]
                tile_count += above
            mass = tl.sum(tile_mass, 1)
            count = tl.sum(tile_count, 1)
        else:
            mass = tl.zeros((ROWS,), tl.float32)
            count = tl.zeros((ROWS,), tl.float32)
            for tile in range(first, last):
                p = _row_weights(
                    b_q, p_k, o_k, stride_kn, lse, i_row, tile * COLS, n, window, scale,
                    WINDOW, HEAD_DIM, COLS, BLOCK_DIM, PRECISION, WIDEN,
                )  # fmt: skip
                above = tl.where(p >= threshold[:, None], 1.0, 0.0)
                mass += tl.sum(above * p, 1)
                count += tl.sum(above, 1)
        enough = is_open & (mass >= MASS)
        low = tl.where(enough, threshold, low)
        low_mass = tl.where(enough, mass, low_mass)
        low_count = tl.where(enough, count, low_count)
        short = is_open & (mass < MASS)
        high = tl.where(short, threshold, high)
        high_mass = tl.where(short, mass, high_mass)
        high_count = tl.where(short, count, high_count)

        wanted = MASS - high_mass
        between = low_count - high_count
        apart = tl.maximum(low_mass - high_mass, 1e-20)
        share = wanted / apart
        most = tl.ceil(share * between)
        # As many are needed where one less could not hold what is wanted, or where those left out
        # would keep too much. Only a threshold that was evaluated says how much is left below it.
        by_high = (most - 1.0) * high < wanted
        by_low = (low_mass < 1.0) & ((between - most + 1.0) * low > apart - wanted)
        done = by_high | by_low | (between < 1.5) | (high - low <= high * close)
        is_open = is_open & (done == 0)
        open_rows = tl.max(is_open.to(tl.int32), 0)

        # By the slope, to the other side of the answer: some weights farther than it is off.
        off = mass - MASS
        off += tl.where(off >= 0.0, beyond, -beyond) * threshold
        rise = tl.minimum(tl.maximum(off * slope, -3.0), 3.0)
        # 0 is outside, where the middle is taken.
        narrowed = tl.where(step % 2 == 0, 0.0, high - (high - low) * share)
        both = (high_mass > 0.0) & (low_mass < 1.0)
        threshold = tl.where(both, narrowed, threshold * tl.exp2(rise))
        beyond *= 2.0
        step += 1

    count = tl.minimum(tl.maximum(high_count + most, high_count + 1.0), low_count).to(tl.int32)
    tl.store(p_count + o_flat, tl.where(m_row, count, 0), mask=i_row < n_slots)


def k90_tiles(dtype: torch.dtype, head_dim: int, n_slots: int) -> tuple[Tiles, int]:
    """The pinned configuration, and how many of its tiles hold the window: 0 where none do."""
    wide = block_dim(head_dim) > 64
    n_tiles = next_power_of_two(ceil_div(n_slots, 64))
    if dtype == torch.float32:
        # Products on the FMA units take the registers that resident weights would need.
        return Tiles(16 if wide else 32, 32, 8, 1), 0
    if n_slots <= RESIDENT_SLOTS:
        return Tiles(64, 64, 8 if n_tiles > 2 else 4, 1), n_tiles
    return Tiles(64, 64, 4, 2), 0


def k90_counts(
    query: Tensor,
    key: Tensor,
    rows: RowValues,
    lengths: Tensor,
    options: Options,
    max_steps: int = MAX_STEPS,
) -> Tensor:
    """(B, H, N) int32: k90 of every row, 0 in padded slots."""
    batch, n_heads, n_slots, head_dim = query.shape
    tiles, n_tiles = k90_tiles(query.dtype, head_dim, n_slots)
    counts = torch.empty((batch, n_heads, n_slots), dtype=torch.int32, device=query.device)
    launch(
        attention_k90, ceil_div(n_slots, tiles.rows) * n_heads * batch,
        query, key, rows.lse, rows.entropy, rows.top, counts, lengths,
        *query.stride(), *key.stride(),
        n_slots, n_heads, n_heads // key.shape[1], options.scale * LOG2E,
        -1 if options.window is None else options.window, max_steps,
        HEAD_DIM=head_dim, BLOCK_DIM=block_dim(head_dim), ROWS=tiles.rows, COLS=tiles.cols,
        TILES=n_tiles, WINDOW=options.window is not None,
        PRECISION=PRECISION, WIDEN=widen(query.dtype),
        **compile_options(tiles),
    )  # fmt: skip
    return counts
