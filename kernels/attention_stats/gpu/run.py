"""Attention statistics on the GPU: the order of the launches, and what they leave behind.

`README.md` derives the passes and counts their work. Every launch reads Q and K; none leaves more
than O(N) numbers of a head behind.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bertgeom.kernels.attention_stats.finish import HeadSums, finish
from bertgeom.kernels.attention_stats.gpu.columns import column_sums
from bertgeom.kernels.attention_stats.gpu.gram import logit_sums
from bertgeom.kernels.attention_stats.gpu.k90 import k90_counts, median_and_minimum
from bertgeom.kernels.attention_stats.gpu.pairs import pair_sums
from bertgeom.kernels.attention_stats.gpu.rows import RowValues, row_values
from bertgeom.kernels.attention_stats.gpu.shipped import SHIPPED
from bertgeom.kernels.attention_stats.options import Options

__all__ = ["SHIPPED", "run"]

_MAX_HEAD_DIM = 128


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    special: Tensor | None,
    groups: Tensor | None,
    options: Options,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and statistics of a batch; arguments as checked by `api.attention_stats`.

    Returns:
        output (B, H, N, d) in the query's dtype, and the values of `_finish.finish`.

    Raises:
        ValueError: for a head dimension above 128.
    """
    if query.shape[-1] > _MAX_HEAD_DIM:
        raise ValueError(
            f"query: expected a head dimension of at most {_MAX_HEAD_DIM} for impl='triton', "
            f"found {query.shape[-1]}; use impl='reference'"
        )
    output, rows = row_values(query, key, value, lengths, options)
    sums = column_sums(query, key, rows.lse, lengths, special, options)
    received, far, confident_far = sums.columns.unbind(2)
    scalars = [rows.top.sum(-1, keepdim=True), sums.scalars, logit_sums(query, key, lengths)]
    heads = HeadSums(
        scalars=torch.cat(scalars, dim=-1),
        entropy=rows.entropy,
        columns=received,
        far=far,
        confident_far=confident_far,
        far_map=sums.far_map,
    )
    if options.full:
        heads = replace(
            heads, block_map=sums.block_map, **_full_sums(query, key, rows, lengths, options)
        )
    return output, finish(heads, lengths, special, groups, options)


def _full_sums(
    query: Tensor, key: Tensor, rows: RowValues, lengths: Tensor, options: Options
) -> dict[str, Tensor]:
    """The fields of `HeadSums` that need the weights once more."""
    low, high = _extremes(rows, lengths)
    pairs = pair_sums(query, key, rows.lse, low, high, lengths, options)
    counts = k90_counts(query, key, rows, lengths, options)
    # Cells that a sliding window hides weigh 0, the smallest: the first bin.
    bins = pairs.bins.clone()
    bins[..., 0] += lengths.long().square()[:, None] - bins.sum(-1)
    return {
        "full_scalars": torch.stack([pairs.crossed, low, high], dim=-1),
        "profile": pairs.profile,
        "value_bins": bins,
        "k90": median_and_minimum(counts, lengths),
    }


def _extremes(rows: RowValues, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight (B, H) of every head."""
    if rows.low is None:
        raise ValueError("tier full: expected the smallest weight of every row, found none")
    padded = torch.arange(rows.low.shape[-1], device=lengths.device) >= lengths[:, None]
    return rows.low.masked_fill(padded[:, None], torch.inf).amin(-1), rows.top.amax(-1)
