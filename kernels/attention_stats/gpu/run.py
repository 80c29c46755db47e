"""Attention statistics on the GPU: the order of the launches, and their results.

`README.md` derives the passes and counts their work. Every launch reads Q and K; none writes more
than O(N) numbers per head, and nothing but these launches runs on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from bertgeom.kernels.attention_stats.gpu.columns import column_sums
from bertgeom.kernels.attention_stats.gpu.cones import store_cones
from bertgeom.kernels.attention_stats.gpu.finish import finish, named
from bertgeom.kernels.attention_stats.gpu.gram import gram_matrices
from bertgeom.kernels.attention_stats.gpu.k90 import k90_counts
from bertgeom.kernels.attention_stats.gpu.pairs import pair_sums
from bertgeom.kernels.attention_stats.gpu.rows import row_values
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
) -> tuple[Tensor, Callable[[], dict[str, Tensor]]]:
    """Output and statistics of a batch; arguments as checked by `api.attention_stats`.

    Returns:
        output (B, H, N, d) in the query's dtype, and a function that returns the values.

    Raises:
        ValueError: for a head dimension above 128.
    """
    if query.shape[-1] > _MAX_HEAD_DIM:
        raise ValueError(
            f"query: expected a head dimension of at most {_MAX_HEAD_DIM} for impl='triton', "
            f"found {query.shape[-1]}; use impl='reference'"
        )
    special = None if special is None else special.contiguous().view(torch.uint8)
    groups = None if groups is None else groups.contiguous()
    output, rows = row_values(query, key, value, lengths, options)
    columns = column_sums(query, key, rows.lse, lengths, special, options)
    gram = gram_matrices(query, key, lengths)
    pairs = pair_sums(query, key, rows, lengths, options) if options.full else None
    k90 = k90_counts(query, key, rows, lengths, options) if options.full else None
    found = finish(rows, columns, gram, pairs, k90, lengths, special, groups, options)
    if options.cones:
        store_cones(query, key, value, output, found.packed, lengths)
    return output, functools.partial(named, found, options)
