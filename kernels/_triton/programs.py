"""How programs are started and find their place: one device, one axis, any length.

A grid has one axis, since the others end at 65,535. Kernels are compiled once for all lengths:
numbers that follow from a length are declared `do_not_specialize`.
"""

# mypy: ignore-errors
from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl

#: Arguments whose value must not lead to a variant of its own: lengths, and counts of what fits
#: into one. Strides stay specialised, because loads need to know that rows are aligned.
ANY_LENGTH = (
    "n_slots",
    "n_heads",
    "n_padded",
    "n_blocks",
    "n_diagonals",
    "n_tiles",
    "rows_a",
    "rows_b",
    "rows",
    "tiles_b",
    "window",
    "near",
    "n_side",
    "max_steps",
    "out_width",
    "bins",
)


def any_length(kernel: Any) -> Any:
    """`triton.jit` of a kernel that is compiled once for all lengths."""
    names = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    return triton.jit(kernel, do_not_specialize=[name for name in names if name in ANY_LENGTH])


def launch(kernel: Any, n_programs: int, first: torch.Tensor, *args: Any, **settings: Any) -> None:
    """Starts programs 0 to n_programs - 1 on the device of the first argument.

    Triton launches on the current device, whatever device its arguments are on.
    """
    there = contextlib.nullcontext()
    # Where CUDA has never been used, a tensor of it has no memory: its shapes are being traced.
    if first.is_cuda and torch.cuda.is_initialized():
        there = torch.cuda.device(first.device)
    with there:
        kernel[(n_programs,)](first, *args, **settings)


@triton.jit
def tokens_of(p_lengths, i_batch, n_slots):
    """Valid tokens of a window, int32: what p_lengths (B,) says, but 0 to n_slots."""
    return tl.minimum(tl.maximum(tl.load(p_lengths + i_batch), 0), n_slots).to(tl.int32)


@triton.jit
def head_of(i_program, n_heads, n_blocks):
    """Block of a head, head, window and head counted over windows; all but the block int64.

    Programs of one head come one after the other, so that they share its rows in the cache.
    """
    # Divided in 32 bits: in 64 it takes a hundred instructions.
    i_flat = i_program // n_blocks
    i_head = (i_flat % n_heads).to(tl.int64)
    i_batch = (i_flat // n_heads).to(tl.int64)
    return i_program % n_blocks, i_head, i_batch, i_flat.to(tl.int64)
