"""The results of a call in one piece of memory: shapes of its parts, and the values by name."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from bertgeom.kernels.attention_stats.cpu.head import FULL_SCALARS, SCALARS
from bertgeom.kernels.attention_stats.cpu.work import Values
from bertgeom.kernels.attention_stats.options import GATES, N_BLOCKS, Options


@functools.lru_cache(maxsize=64)
def shapes_of(batch: int, n_heads: int, n_slots: int, options: Options) -> tuple[Values, int]:
    """Shapes of the results, and their elements together."""
    shapes = Values(
        scalars=(len(SCALARS + FULL_SCALARS), batch, n_heads),
        k90=(2, batch, n_heads),
        gate=(batch, n_heads),
        gate_mass=(batch, n_heads, len(GATES)),
        group_mass=(batch, n_heads, options.n_groups),
        profile=(batch, n_heads, 2 * options.n_offset_side + 1),
        block_map=(batch, n_heads, N_BLOCKS, N_BLOCKS),
        query_entropy=(batch, n_heads, n_slots if options.rows else 0),
        received=(batch, n_heads, n_slots if options.columns else 0),
        cones=(2, batch, n_heads, 4 if options.cones else 0),
    )
    return shapes, sum(math.prod(shape) for shape in shapes)


def named_values(memory: Tensor, shapes: Values, options: Options) -> dict[str, Tensor]:
    """The statistics in memory (n,) float32 by name."""
    sizes = [math.prod(shape) for shape in shapes]
    pieces = memory.split(sizes)
    results = Values(*(x.view(shape) for x, shape in zip(pieces, shapes, strict=True)))
    names = SCALARS + FULL_SCALARS if options.full else SCALARS
    values = dict(zip(names, results.scalars, strict=False))
    gate = results.gate.view(torch.int32).to(torch.uint8)
    values |= {"gate_mass": results.gate_mass, "gate": gate}
    if options.n_groups:
        values["attention_group_mass"] = results.group_mass
    if options.full:
        k90_median, k90_min = results.k90.view(torch.int32)
        values |= {
            "attention_k90_median": k90_median,
            "attention_k90_min": k90_min,
            "attention_offset_profile": results.profile,
            "block_map": results.block_map,
        }
    if options.rows:
        values["query_entropy"] = results.query_entropy
    if options.columns:
        values["attention_received"] = results.received
    if options.cones:
        values["head_cone_index"], values["head_cone_mean_cosine"] = results.cones
    return values
