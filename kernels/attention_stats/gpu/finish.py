"""Triton: the named statistics of a head from its raw sums, one program a head.

Everything that follows from what the other launches leave behind is done here, in one launch: sums
over blocks of keys and over block diagonals, gates, traces of the logits, the median of k90. All
results of a head lie side by side in one packed tensor, integers as integers in the same words, so
that names are views and nothing has to be converted.

A head whose queries or keys are not finite has NaN in every statistic, 0 in every count, and no
dominant gate. `attention_rows` leaves NaN in the entropy of such a row. Sums keep it, but
tl.maximum, tl.minimum and comparisons do not: `bad`, 0 or NaN, is added to every result.
"""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertgeom.kernels._triton.programs import any_length, head_of, launch, tokens_of
from bertgeom.kernels.attention_stats.gpu.columns import N_SCALARS, SUMS, ColumnSums
from bertgeom.kernels.attention_stats.gpu.gram import traces
from bertgeom.kernels.attention_stats.gpu.pairs import PROFILE, VALUE_SLOTS, PairSums
from bertgeom.kernels.attention_stats.gpu.rows import RowValues
from bertgeom.kernels.attention_stats.gpu.tiles import LN2, Tiles, block_dim, compile_options
from bertgeom.kernels.attention_stats.options import (
    FLAT,
    GATE_MIXED,
    GATES,
    HUB_MASS,
    N_BLOCKS,
    N_VALUE_BINS,
    ONE_BLOCK,
    SLACK,
    Options,
)

#: The first numbers of a head in the packed tensor, in order; gate and k90 are int32.
CORE = (
    "attention_entropy",
    "attention_entropy_std",
    "attention_top1",
    *("attention_" + name for name in ("purity", *SUMS[1:6])),
    "attention_confident_mass",
    "attention_confident_count",
    "attention_special",
    "attention_received_entropy",
    "attention_received_max",
    "logit_asymmetry",
    "logit_effective_rank",
    "gate",
)
FULL = (
    "attention_k90_median",
    "attention_k90_min",
    "attention_value_entropy",
    "attention_asymmetry",
)
#: Behind them, by tier core: masses of the gates, masses of the groups, cones; by tier full: the
#: block map and the offset profile.
AT_GATES = tl.constexpr(24)
AT_GROUPS = tl.constexpr(32)
AT_CONES = tl.constexpr(48)
AT_MAP = tl.constexpr(56)
AT_PROFILE = tl.constexpr(56 + N_BLOCKS**2)

MAPS = tl.constexpr(N_BLOCKS)
SCALARS = tl.constexpr(N_SCALARS)
SLOTS = tl.constexpr(VALUE_SLOTS.value)
VALUE_BINS = tl.constexpr(N_VALUE_BINS)
HUB = tl.constexpr(HUB_MASS)
LOWER = tl.constexpr(1 - SLACK)
FLAT_SHARE = tl.constexpr(FLAT)
ONE = tl.constexpr(ONE_BLOCK)
MIXED = tl.constexpr(GATE_MIXED)
MOST = tl.constexpr(2**31 - 1)
#: Rows of a head that a program reads at once; of those with groups.
AT_ONCE = tl.constexpr(512)
GROUP_ROWS = tl.constexpr(64)


def packed_width(n_side: int, full: bool) -> int:
    """Numbers of a head in the packed tensor."""
    return AT_PROFILE.value + 2 * n_side + 1 if full else AT_MAP.value


@triton.jit
def _xlogx(x):
    # x = 0 gives 0: log2 of 1 there.
    return x * tl.log2(tl.where(x > 0, x, 1.0)) * LN2


@triton.jit
def _better(best, code, mass, this):
    higher = mass > best
    return tl.where(higher, mass, best), tl.where(higher, this, code)


@triton.jit
def _structure(best, p, r, c, shift: tl.constexpr):
    """max(best, m) for the partition of the stretches into 16 >> shift segments."""
    g = tl.arange(0, MAPS) >> shift
    same = g[:, None] == g[None, :]
    chance = tl.sum(tl.sum(tl.where(same, r[:, None] * c[None, :], 0.0), 1), 0)
    inside = tl.sum(tl.sum(tl.where(same, p, 0.0), 1), 0)
    left = 1.0 - chance
    m = (inside - chance) / tl.where(left > ONE, left, 1.0)
    return tl.where((left > ONE) & (m > best), m, best)


@triton.jit
def _block_structure(far_map):
    """max(0, m) of the gate `cluster` for a map (16, 16) of far mass; 0 without far mass."""
    mass = tl.sum(tl.sum(far_map, 1), 0)
    p = far_map / tl.where(mass > 0, mass, 1.0)
    r = tl.sum(p, 1)
    c = tl.sum(p, 0)
    best = _structure(0.0, p, r, c, 0)
    best = _structure(best, p, r, c, 1)
    best = _structure(best, p, r, c, 2)
    best = _structure(best, p, r, c, 3)
    return tl.where(mass > 0, best, 0.0)


@triton.jit
def _median(p_k90, n, least, utmost):
    """Lower median of n numbers from least to utmost: the least with (n + 1) // 2 at or below it.

    Found by counting, so that nothing is sorted."""
    o = tl.arange(0, AT_ONCE)
    wanted = (n + 1) // 2
    while least < utmost:
        middle = (least + utmost) // 2
        count = tl.zeros((AT_ONCE,), tl.int32)
        for i in range(0, n, AT_ONCE):
            k90 = tl.load(p_k90 + i + o, mask=i + o < n, other=MOST)
            count += tl.where(k90 <= middle, 1, 0)
        enough = tl.sum(count, 0) >= wanted
        utmost = tl.where(enough, middle, utmost)
        least = tl.where(enough, least, middle + 1)
    return utmost


@triton.jit
def _store_group_mass(p_out, p_share, p_groups, n_tokens, bad):
    """Shares (16,) of the columns of every group; p_share: sums of columns."""
    o_group = tl.arange(0, 16)
    found = tl.zeros((16,), tl.float32)
    for i in range(0, n_tokens, GROUP_ROWS):
        at = i + tl.arange(0, GROUP_ROWS)
        m = at < n_tokens
        column = tl.load(p_share + at, mask=m, other=0.0)
        bits = tl.load(p_groups + at, mask=m, other=0)
        member = (bits[:, None] >> o_group[None, :]) & 1
        found += tl.sum(tl.where(member != 0, column[:, None], 0.0), 0)
    tl.store(p_out + o_group, found / tl.maximum(n_tokens, 1).to(tl.float32) + bad)


@triton.jit
def _store_track(p_out, p_in, n_tokens, n_slots, bad):
    """A vector of a head's rows, NaN beyond its tokens."""
    for i in range(0, n_slots, AT_ONCE):
        at = i + tl.arange(0, AT_ONCE)
        x = tl.load(p_in + at, mask=at < n_tokens, other=float("nan"))
        tl.store(p_out + at, x + bad, mask=at < n_slots)


@triton.jit
def _store_full(
    p_o, p_i, p_profile, p_crossed, p_bins, p_k90, i_flat, n_slots, n_tokens, n_diagonals,
    n_side, low, high, fewest, utmost, square, block_map, bad,
):  # fmt: skip
    """The statistics of tier full."""
    n = tl.maximum(n_tokens, 1).to(tl.float32)
    o_bin = tl.arange(0, SLOTS)
    o_side = tl.arange(0, PROFILE)
    bins = tl.zeros((SLOTS,), tl.int64)
    profile = tl.zeros((PROFILE,), tl.float32)
    crossed = 0.0
    for d in range(n_diagonals):
        part = i_flat * n_diagonals + d
        bins += tl.load(p_bins + part * SLOTS + o_bin).to(tl.int64)
        profile += tl.load(p_profile + part * PROFILE + o_side)
        crossed += tl.load(p_crossed + part)
    # The largest weights are on the last edge. What is hidden weighs 0, the smallest: of all cells
    # of the window, the first bin has what the others have not.
    bins += tl.where(o_bin == VALUE_BINS - 1, tl.sum(tl.where(o_bin == VALUE_BINS, bins, 0), 0), 0)
    bins = tl.where(o_bin < VALUE_BINS, bins, 0)
    wide = n_tokens.to(tl.int64)
    bins += tl.where(o_bin == 0, wide * wide - tl.sum(bins, 0), 0)
    share = bins.to(tl.float32) / (n * n)
    value = -tl.sum(tl.where(o_bin < VALUE_BINS, _xlogx(share), 0.0), 0)
    flat = high - low <= FLAT_SHARE * high
    unequal = 1.0 - crossed / tl.where(square > 0, square, 1.0)
    unequal = tl.minimum(tl.maximum(unequal, 0.0), 1.0)
    known = bad == 0.0
    least = tl.where(known, fewest, 0)
    median = _median(p_k90 + i_flat * n_slots, n_tokens, least, tl.where(known, utmost, 0))
    tl.store(p_i + 17, median)
    tl.store(p_i + 18, least)
    tl.store(p_o + 19, tl.where(flat, 0.0, value) + bad)
    tl.store(p_o + 20, unequal + bad)
    o_map = tl.arange(0, MAPS)[:, None] * MAPS + tl.arange(0, MAPS)[None, :]
    tl.store(p_o + AT_MAP + o_map, block_map / n + bad)
    tl.store(p_o + AT_PROFILE + o_side, profile / n + bad, mask=o_side < 2 * n_side + 1)


@any_length
def attention_finish(
    p_out,
    p_counts,
    p_lengths,
    p_special,
    p_groups,
    p_entropy,
    p_top,
    p_low,
    p_columns,
    p_scalars,
    p_far_map,
    p_block_map,
    p_gram,
    p_crossed,
    p_profile,
    p_bins,
    p_k90,
    p_query_entropy,
    p_received,
    n_slots,
    n_heads,
    n_blocks,
    n_diagonals,
    n_side,
    out_width,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    STEP: tl.constexpr,
    FULL: tl.constexpr,
):
    """One head of one window. p_out (B, H, out_width) as above, p_counts the same memory as int32.

    p_special (B, N) bytes, p_groups (B, N) int32, p_query_entropy and p_received (B, H, N): None
    where there are none or none are wanted. The rest is as the other launches leave it.
    """
    _, _, i_batch, i_flat = head_of(tl.program_id(0), n_heads, 1)
    n_tokens = tokens_of(p_lengths, i_batch, n_slots)
    n = tl.maximum(n_tokens, 1).to(tl.float32)
    o = tl.arange(0, AT_ONCE)
    p_o = p_out + i_flat * out_width
    p_i = p_counts + i_flat * out_width
    p_row = i_flat * n_slots
    p_col = p_columns + i_flat * 3 * n_slots
    hub = tl.minimum(n / 2, HUB) * LOWER

    entropy = tl.zeros((AT_ONCE,), tl.float32)
    top = tl.zeros((AT_ONCE,), tl.float32)
    disorder = tl.zeros((AT_ONCE,), tl.float32)
    most = tl.zeros((AT_ONCE,), tl.float32)
    total = tl.zeros((AT_ONCE,), tl.float32)
    closed = tl.zeros((AT_ONCE,), tl.float32)
    directional = tl.zeros((AT_ONCE,), tl.float32)
    instance = tl.zeros((AT_ONCE,), tl.float32)
    rest = tl.zeros((AT_ONCE,), tl.float32)
    high = tl.zeros((AT_ONCE,), tl.float32)
    low = tl.full((AT_ONCE,), 1.0, tl.float32)
    fewest = tl.full((AT_ONCE,), MOST, tl.int32)
    utmost = tl.zeros((AT_ONCE,), tl.int32)
    for i in range(0, n_tokens, AT_ONCE):
        at = i + o
        m = at < n_tokens
        entropy += tl.load(p_entropy + p_row + at, mask=m, other=0.0)
        largest = tl.load(p_top + p_row + at, mask=m, other=0.0)
        top += largest
        column = tl.load(p_col + at, mask=m, other=0.0)
        far = tl.load(p_col + n_slots + at, mask=m, other=0.0)
        sure = tl.load(p_col + 2 * n_slots + at, mask=m, other=0.0)
        total += column
        share = column / n
        disorder -= _xlogx(share)
        most = tl.maximum(most, share)
        is_hub = column >= hub
        directional += tl.where(is_hub, far, 0.0)
        instance += tl.where(is_hub, 0.0, sure)
        rest += tl.where(is_hub, 0.0, far - sure)
        if p_special is not None:
            special = tl.load(p_special + i_batch * n_slots + at, mask=m, other=0)
            closed += tl.where(special != 0, share, 0.0)
        if FULL:
            high = tl.maximum(high, largest)
            low = tl.minimum(low, tl.load(p_low + p_row + at, mask=m, other=1.0))
            fewest = tl.minimum(fewest, tl.load(p_k90 + p_row + at, mask=m, other=MOST))
            utmost = tl.maximum(utmost, tl.load(p_k90 + p_row + at, mask=m, other=0))
    bad = 0.0 * (tl.sum(total, 0) + tl.sum(entropy, 0))
    bad = tl.where(n_tokens > 0, bad, float("nan"))
    mean = tl.sum(entropy, 0) / n
    spread = tl.zeros((AT_ONCE,), tl.float32)
    for i in range(0, n_tokens, AT_ONCE):
        m = i + o < n_tokens
        off = tl.load(p_entropy + p_row + i + o, mask=m, other=0.0) - mean
        spread += tl.where(m, off * off, 0.0)

    o_sum = tl.arange(0, 16)
    sums = tl.zeros((16,), tl.float32)
    o_map = tl.arange(0, MAPS)[:, None] * MAPS + tl.arange(0, MAPS)[None, :]
    far_map = tl.zeros((MAPS, MAPS), tl.float32)
    block_map = tl.zeros((MAPS, MAPS), tl.float32)
    for b in range(n_blocks):
        part = i_flat * n_blocks + b
        sums += tl.load(p_scalars + part * SCALARS + o_sum, mask=o_sum < SCALARS, other=0.0)
        far_map += tl.load(p_far_map + part * MAPS * MAPS + o_map)
        if FULL:
            block_map += tl.load(p_block_map + part * MAPS * MAPS + o_map)
    square = tl.sum(tl.where(o_sum == 0, sums, 0.0), 0)
    sums = sums / n
    near_self = tl.sum(tl.where(o_sum == 6, sums, 0.0), 0)
    near_forward = tl.sum(tl.where(o_sum == 7, sums, 0.0), 0)
    near_backward = tl.sum(tl.where(o_sum == 8, sums, 0.0), 0)

    shut = tl.sum(closed, 0)
    toward = tl.sum(directional, 0) / n
    single = tl.sum(instance, 0) / n
    left = tl.sum(rest, 0) / n
    cluster = left * _block_structure(far_map)
    diffuse = left - cluster
    peak, code = _better(shut, 0, near_self, 1)
    peak, code = _better(peak, code, near_backward, 2)
    peak, code = _better(peak, code, near_forward, 3)
    peak, code = _better(peak, code, toward, 4)
    peak, code = _better(peak, code, single, 5)
    peak, code = _better(peak, code, cluster, 6)
    peak, code = _better(peak, code, diffuse, 7)
    tl.store(p_o + AT_GATES, shut + bad)
    tl.store(p_o + AT_GATES + 1, near_self + bad)
    tl.store(p_o + AT_GATES + 2, near_backward + bad)
    tl.store(p_o + AT_GATES + 3, near_forward + bad)
    tl.store(p_o + AT_GATES + 4, toward + bad)
    tl.store(p_o + AT_GATES + 5, single + bad)
    tl.store(p_o + AT_GATES + 6, cluster + bad)
    tl.store(p_o + AT_GATES + 7, diffuse + bad)

    norm, norm_square, quartic = traces(
        p_gram + i_flat * 3 * HEAD_DIM * HEAD_DIM, HEAD_DIM, BLOCK_DIM, STEP
    )
    # Q K^T of zeros: 0. NaN differs from 0.
    some = norm != 0.0
    safe = tl.where(some, norm, 1.0)
    skew = tl.minimum(tl.maximum(0.5 * (norm - norm_square) / safe, 0.0), 1.0) + 0.0 * norm
    rank = norm * norm / tl.where(some, quartic, 1.0)
    tl.store(p_o, mean + bad)
    tl.store(p_o + 1, tl.sqrt(tl.sum(spread, 0) / n) + bad)
    tl.store(p_o + 2, tl.sum(top, 0) / n + bad)
    # Purity, distance, offset, self, forward, backward; confident mass and count.
    place = tl.where(o_sum < 6, o_sum + 3, o_sum)
    tl.store(p_o + place, sums + bad, mask=(o_sum < 6) | (o_sum == 9) | (o_sum == 10))
    tl.store(p_o + 11, shut + bad)
    tl.store(p_o + 12, tl.sum(disorder, 0) + bad)
    tl.store(p_o + 13, tl.max(most, 0) + bad)
    tl.store(p_o + 14, tl.where(some, skew, 0.0) + bad)
    tl.store(p_o + 15, tl.where(some, rank, 0.0) + bad)
    tl.store(p_i + 16, tl.where((peak >= 0.5 * LOWER) & (bad == 0.0), code, MIXED))

    if p_groups is not None:
        p_group = p_groups + i_batch * n_slots
        _store_group_mass(p_o + AT_GROUPS, p_col, p_group, n_tokens, bad)
    if p_query_entropy is not None:
        _store_track(p_query_entropy + p_row, p_entropy + p_row, n_tokens, n_slots, bad)
    if p_received is not None:
        _store_track(p_received + p_row, p_col, n_tokens, n_slots, bad)
    if FULL:
        _store_full(
            p_o, p_i, p_profile, p_crossed, p_bins, p_k90, i_flat, n_slots, n_tokens,
            n_diagonals, n_side, tl.min(low, 0), tl.max(high, 0), tl.min(fewest, 0),
            tl.max(utmost, 0), square, block_map, bad,
        )  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """The results of `attention_finish`.

    Attributes:
        packed: (B, H, width) float32.
        query_entropy, received: (B, H, N) float32, None unless asked for.
    """

    packed: Tensor
    query_entropy: Tensor | None
    received: Tensor | None


def finish_tiles(head_dim: int) -> Tiles:
    """The pinned configuration: `rows` of the d x d products at once."""
    width = block_dim(head_dim)
    return Tiles(16, width, 4 if width < 64 else 8, 2)


def finish(
    rows: RowValues,
    columns: ColumnSums,
    gram: Tensor,
    pairs: PairSums | None,
    k90: Tensor | None,
    lengths: Tensor,
    special: Tensor | None,
    groups: Tensor | None,
    options: Options,
) -> Finished:
    """The statistics of every head but its cones, whose places stay unwritten.

    Args:
        rows, columns, gram, pairs, k90: the results of the other launches, the last two None in
            tier core.
        lengths: (B,) valid tokens, any integers.
        special: (B, N) a byte each, contiguous; None for none.
        groups: (B, N) int32 bit masks, contiguous; None for none.
        options: the call's options.
    """
    batch, n_heads, n_slots = rows.entropy.shape
    head_dim, device = gram.shape[-1], gram.device
    tiles = finish_tiles(head_dim)
    width = packed_width(options.n_offset_side, options.full)
    tracks = [
        torch.empty(rows.entropy.shape, dtype=torch.float32, device=device) if wanted else None
        for wanted in (options.rows, options.columns)
    ]
    packed = torch.empty((batch, n_heads, width), dtype=torch.float32, device=device)
    launch(
        attention_finish, batch * n_heads,
        packed, packed.view(torch.int32), lengths, special, groups if options.n_groups else None,
        rows.entropy, rows.top, rows.low, columns.columns, columns.scalars, columns.far_map,
        columns.block_map, gram, pairs and pairs.crossed, pairs and pairs.profile,
        pairs and pairs.bins, k90, *tracks,
        n_slots, n_heads, columns.scalars.shape[2], pairs.crossed.shape[2] if pairs else 0,
        options.n_offset_side, width,
        HEAD_DIM=head_dim, BLOCK_DIM=block_dim(head_dim), STEP=tiles.rows,
        FULL=options.full,
        **compile_options(tiles),
    )  # fmt: skip
    return Finished(packed, *tracks)


def named(found: Finished, options: Options) -> dict[str, Tensor]:
    """Every value of `api.attention_stats` by name: views, so that nothing runs on the device."""
    packed, counts = found.packed, found.packed.view(torch.int32)
    names = CORE + FULL if options.full else CORE
    values = {name: packed[..., i] for i, name in enumerate(names)}
    # The lowest of the four bytes of an integer comes first.
    values["gate"] = packed.view(torch.uint8)[..., 4 * CORE.index("gate")]
    values["gate_mass"] = packed[..., AT_GATES.value :][..., : len(GATES)]
    if options.n_groups:
        values["attention_group_mass"] = packed[..., AT_GROUPS.value :][..., : options.n_groups]
    if options.full:
        for name in ("attention_k90_median", "attention_k90_min"):
            values[name] = counts[..., names.index(name)]
        maps = packed[..., AT_MAP.value : AT_PROFILE.value]
        values["block_map"] = maps.unflatten(-1, (N_BLOCKS, N_BLOCKS))
        values["attention_offset_profile"] = packed[..., AT_PROFILE.value :]
    if options.rows:
        values["query_entropy"] = found.query_entropy
    if options.columns:
        values["attention_received"] = found.received
    if options.cones:
        cones = packed[..., AT_CONES.value : AT_MAP.value]
        values["head_cone_index"], values["head_cone_mean_cosine"] = cones[..., :4], cones[..., 4:]
    return values
