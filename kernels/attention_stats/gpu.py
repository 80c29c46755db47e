"""Attention statistics on the GPU: the order of the launches, and what they leave behind.

`GPU.md` derives the passes and counts their work. Every launch reads Q and K; none leaves more
than O(N) numbers of a head behind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._finish import HeadSums, finish
from ._gpu_columns import column_sums
from ._gpu_gram import logit_sums
from ._gpu_k90 import k90_counts, median_and_minimum
from ._gpu_pairs import pair_sums
from ._gpu_rows import RowSums, row_sums
from ._options import Options

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
    special = None if special is None else special.contiguous()
    output, rows = row_sums(query, key, value, lengths, special, options)
    columns = rows.columns
    if columns is None:
        columns = column_sums(query, key, rows.lse, lengths, special, options)
    # Column sums of blocks behind the last token stay as they were allocated: zero.
    received, far, confident_far = columns.unbind(2)
    sums = HeadSums(
        scalars=torch.cat([rows.scalars, logit_sums(query, key, lengths)], dim=-1),
        entropy=rows.entropy,
        columns=received,
        far=far,
        confident_far=confident_far,
        far_map=rows.far_map,
        **(_full_sums(query, key, rows, lengths, options) if options.full else {}),
    )
    return output, finish(sums, lengths, special, groups, options)


def _full_sums(
    query: Tensor, key: Tensor, rows: RowSums, lengths: Tensor, options: Options
) -> dict[str, Tensor]:
    """The fields of `HeadSums` that tier full adds."""
    low, high = _extremes(rows, lengths)
    pairs = pair_sums(query, key, rows.lse, low, high, lengths, options)
    counts = k90_counts(query, key, rows.lse, lengths, options)
    bins = pairs.bins
    # Cells that a sliding window hides weigh 0, the smallest: bin 0.
    hidden = (lengths.long().square())[:, None] - bins.sum(-1)
    bins[..., 0] += hidden
    assert rows.block_map is not None  # noqa: S101
    return {
        "full_scalars": torch.stack([pairs.crossed, low, high], dim=-1),
        "profile": pairs.profile,
        "block_map": rows.block_map,
        "value_bins": bins,
        "k90": median_and_minimum(counts, lengths),
    }


def _extremes(rows: RowSums, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight (B, H) of every head."""
    low, top = rows.low, rows.top
    if low is None or top is None:
        raise ValueError("tier full: expected the extremes of every row, found none")
    padded = torch.arange(low.shape[-1], device=low.device) >= lengths[:, None]
    return low.masked_fill(padded[:, None], torch.inf).amin(-1), top.amax(-1)
