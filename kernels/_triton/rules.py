"""Rules that every Triton kernel of the package follows, in one place.

Configurations are pinned: a launcher picks block shapes, warps and stages from a table keyed on
dtype, head dimension and a coarse class of length, never on batch or exact length, so that equal
inputs run equal code. Everything a launcher can pick is listed in its module's
`SHIPPED: dict[str, ShippedKernel]`; `python -m bench.static` compiles that list without a GPU.

Offsets are int64: kernels cast `tl.program_id` before it is multiplied by a stride. Triton passes
an integer argument as int32 where it fits, which is safe once the other factor is int64.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

#: Triton's names of the element types that the kernels accept.
TRITON_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class ShippedKernel:
    """One configuration of one kernel that a launcher can pick.

    Attributes:
        kernel: the function under `@triton.jit`.
        signature: type of every run-time argument by name, in Triton's spelling: "*fp16",
            "*fp32", "*i64", "i32", "fp32".
        constexprs: value of every constexpr argument by name. An argument that is None at run
            time (an optional pointer) belongs here.
        num_warps: warps of a program.
        num_stages: depth of Triton's software pipeline.
        aligned: names of the arguments (pointers, strides) that are multiples of 16 at run time;
            Triton specialises on it. Every pointer that torch allocates is aligned.
        dots: whether the kernel multiplies matrices, so that sm_90 code must hold wgmma.
        mma_sync: why such a kernel uses mma.sync (or no tensor core) on sm_90; None where it
            must not.
    """

    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    aligned: tuple[str, ...] = field(default=())
    dots: bool = False
    mma_sync: str | None = None


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def next_power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least `n` and at least `least`."""
    return max(least, 1 << max(0, int(n) - 1).bit_length())


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
