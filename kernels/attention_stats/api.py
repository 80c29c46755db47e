"""`attention_stats`: checks, shapes, and the choice of an implementation."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertgeom.kernels._dispatch import ImplementationUnavailableError, resolve
from bertgeom.kernels._valid import DTYPES, reordered, valid_first
from bertgeom.kernels.attention_stats.bias import Bias, checked_bias, tensor_of
from bertgeom.kernels.attention_stats.options import Options, fault

_MODULES = {"triton": "gpu.run", "numba": "cpu.run", "reference": "reference"}
_TRACKS = ("query_entropy", "attention_received")


class NamedWhenRead(Mapping[str, Tensor]):
    """Statistics by name, float32 unless integers.

    The statistics are computed already, but the dictionary is built on first access: between the
    layers of a model the interpreter's memory is not in the cache, and Python is ten times slower.
    """

    def __init__(self, name: Callable[[], dict[str, Tensor]]) -> None:
        self._name = name

    @functools.cached_property
    def _named(self) -> dict[str, Tensor]:
        return self._name()

    def __getitem__(self, name: str) -> Tensor:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)


@dataclass(frozen=True)
class AttentionStats:
    """The result of one attention call.

    Attributes:
        output: (B, H, N, d) in the query's dtype, softmax(scale Q K^T + B) V; zero in padded slots.
            Laid out so that `output.transpose(1, 2)` is contiguous.
        values: statistics by name, as declared in `docs/statistics.md` section 1: (B, H) float32
            unless another shape is given in `attention_stats`.
    """

    output: Tensor
    values: Mapping[str, Tensor]


def attention_stats(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    special: Tensor | None = None,
    groups: Tensor | None = None,
    n_groups: int = 0,
    scale: float | None = None,
    window: int | None = None,
    bias: Bias | None = None,
    tier: str = "full",
    theta: float = 0.3,
    near: int = 4,
    n_offset_side: int = 18,
    rows: bool = False,
    columns: bool = False,
    head_cones: bool = False,
    impl: str = "auto",
) -> AttentionStats:
    """Attention and the statistics of its weights, without the matrix of weights.

    Args:
        query: (B, H, N, d) float32, float16 or bfloat16, any strides, as the model computed it.
        key, value: (B, Hk, N, d) like the query; Hk divides H, head h reads h // (H / Hk).
        lengths: (B,) integer; the first lengths[b] slots of window b are valid. On CUDA the
            numbers are clamped to [0, N], not checked, which would wait for the device.
        mask: (B, N) bool, or 0 and 1: the valid slots, in any place; an alternative to `lengths`.
            Positions count valid tokens only. On CUDA rows are copied, valid ones first, without
            a look at the mask: give `lengths` where valid slots come first anyway.
        special: (B, N) bool, special tokens; None: no token is special.
        groups: (B, N) int32, bit g set where a token belongs to group g.
        n_groups: number of groups, 0 to 16.
        scale: factor of Q K^T inside the softmax, d ** -0.5 by default.
        window: key j is visible to query i iff |i - j| <= window; None: every key is.
        bias: added to scale Q K^T: `AlibiBias`, `RelativeBias`, or a tensor (1 or B, 1 or H, N, N)
            of any floating dtype that is finite wherever query and key are valid (hidden keys
            belong in `mask` or `window`). The first two count valid tokens, and need no N x N
            numbers; of a tensor, row i and column j are slots. Not on a GPU yet.
        tier: "core" or "full".
        theta: weights of at least theta, in (0, 1], are confident.
        near: |i - j| <= near tokens is near, for the gates; 0 to 64.
        n_offset_side: one-sided bins of the offset profile; farther offsets fall into the last.
        rows, columns: whether to return the vectors of every query and of every key.
        head_cones: whether to return `cone_sums` of each head's queries, keys, values and outputs;
            on a CPU they are summed while they are in the cache.
        impl: "auto", "triton", "numba" or "reference".

    Returns:
        output and values. Tier core: attention_entropy, attention_entropy_std, attention_top1,
        attention_purity, attention_distance, attention_offset, attention_self, attention_forward,
        attention_backward, attention_special, attention_confident_mass,
        attention_confident_count, attention_received_entropy, attention_received_max,
        logit_asymmetry, logit_effective_rank; gate_mass (B, H, 8), gate uint8;
        attention_group_mass (B, H, n_groups) if n_groups. Tier full adds attention_k90_median and
        attention_k90_min int32, attention_value_entropy, attention_asymmetry,
        attention_offset_profile (B, H, 2 n_offset_side + 1), block_map (B, H, 16, 16).
        With `rows` query_entropy, with `columns` attention_received (the sum over queries), both
        (B, H, N) and NaN in padded slots. With `head_cones` head_cone_index and
        head_cone_mean_cosine, (B, H, 4) in that order. A window without tokens gives NaN, 0 for
        counts.

    Raises:
        TypeError: for a tensor of another dtype.
        ValueError: for wrong shapes or settings, or tensors that require a gradient.
        ImplementationUnavailableError: where `impl` cannot run.

    Example:
        >>> import torch
        >>> from bertgeom.kernels import attention_stats
        >>> query, key, value = torch.randn(3, 2, 4, 50, 32)  # 2 windows, 4 heads, 50 tokens
        >>> stats = attention_stats(query, key, value, lengths=torch.tensor([50, 20]))
        >>> stats.output.shape, stats.values["attention_entropy"].shape
        (torch.Size([2, 4, 50, 32]), torch.Size([2, 4]))
        >>> bool(stats.values["gate_mass"].sum(-1).allclose(torch.ones(2, 4)))
        True
    """
    _check_tensors(query, key, value)
    name = resolve(impl, query, key, value, lengths, mask, special, groups, tensor_of(bias))
    batch, n_heads, n_slots, head_dim = query.shape
    options = checked_options(
        scale=head_dim**-0.5 if scale is None else float(scale),
        window=window,
        tier=tier,
        theta=theta,
        near=near,
        n_offset_side=n_offset_side,
        n_groups=n_groups,
        rows=rows,
        columns=columns,
        cones=head_cones,
    )
    special = _slots("special", special, batch, n_slots, torch.bool)
    groups = _slots("groups", groups, batch, n_slots, torch.int32)
    if n_groups and groups is None:
        raise ValueError(f"n_groups={n_groups}: expected groups (B, N) int32, found None")
    if lengths is not None and mask is not None:
        raise ValueError("expected lengths or mask, found both; leave one out")
    if bias is not None:
        bias = checked_bias(bias, batch, n_heads, n_slots)
        if name == "triton":
            raise ImplementationUnavailableError(
                "impl='triton': expected no bias, found one, which the GPU kernels do not add yet; "
                "move the tensors to the CPU"
            )
    run = _runner(name)
    slots = None
    mask = _slots("mask", mask, batch, n_slots, torch.bool)
    if mask is not None:
        lengths, slots = valid_first(mask)
    lengths = _lengths(lengths, batch, n_slots, query.device)
    if slots is not None:
        query, key, value = (reordered(x, slots) for x in (query, key, value))
        special = None if special is None else special.gather(1, slots)
        groups = None if groups is None else groups.gather(1, slots)
        bias = _reordered_bias(bias, slots)
    biased = () if bias is None else (bias,)
    output, values = run(query, key, value, lengths, special, groups, options, *biased)
    if callable(values) and slots is None:
        return AttentionStats(output, NamedWhenRead(values))
    values = values() if callable(values) else values
    if head_cones and name == "reference":
        values |= _head_cones((query, key, value, output), lengths)
    if slots is not None:
        output, values = _put_back(output, values, slots)
    return AttentionStats(output, {k: _single(v) for k, v in values.items()})


@functools.cache
def _runner(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{_MODULES[name]}").run


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dtype not in DTYPES:
            raise TypeError(f"{name}: expected float32, float16 or bfloat16, found {x.dtype}")
        if x.dtype != query.dtype:
            raise TypeError(f"{name}: expected the query's dtype {query.dtype}, found {x.dtype}")
        if x.dim() != 4:
            raise ValueError(f"{name}: expected (B, H, N, d), found shape {tuple(x.shape)}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: expected a tensor without gradient; there is no backward pass here, "
                "run under torch.inference_mode() or torch.no_grad()"
            )
    batch, n_heads, n_slots, head_dim = query.shape
    if 0 in query.shape:
        raise ValueError(f"query: expected no empty dimension, found shape {tuple(query.shape)}")
    n_key_heads = key.shape[1]
    if key.shape != (batch, n_key_heads, n_slots, head_dim) or key.shape != value.shape:
        raise ValueError(
            f"expected key and value ({batch}, Hk, {n_slots}, {head_dim}) like the query, "
            f"found {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if n_key_heads == 0 or n_heads % n_key_heads:
        raise ValueError(
            f"key: expected a number of heads that divides {n_heads}, found {n_key_heads}"
        )


@functools.lru_cache(maxsize=64)
def checked_options(
    *,
    scale: float,
    window: int | None,
    tier: str,
    theta: float,
    near: int,
    n_offset_side: int,
    n_groups: int,
    rows: bool,
    columns: bool,
    cones: bool = False,
) -> Options:
    """The options of a call.

    Raises:
        ValueError: for a value out of its range.
    """
    for name, value in (
        ("scale", scale),
        ("window", window),
        ("tier", tier),
        ("theta", theta),
        ("near", near),
        ("n_offset_side", n_offset_side),
        ("n_groups", n_groups),
    ):
        wrong = fault(name, value)
        if wrong:
            raise ValueError(f"{name}: {wrong}")
    return Options(
        scale=scale,
        window=window,
        full=tier == "full",
        theta=float(theta),
        near=near,
        n_offset_side=n_offset_side,
        n_groups=n_groups,
        rows=rows,
        columns=columns,
        cones=cones,
    )


def _slots(
    name: str, x: Tensor | None, batch: int, n_slots: int, dtype: torch.dtype
) -> Tensor | None:
    if x is None:
        return None
    if x.shape != (batch, n_slots):
        raise ValueError(f"{name}: expected shape ({batch}, {n_slots}), found {tuple(x.shape)}")
    if x.is_floating_point() or x.is_complex():
        raise TypeError(f"{name}: expected {dtype} or another integer type, found {x.dtype}")
    return x if x.dtype == dtype else x.to(dtype)


def _reordered_bias(bias: Bias | None, slots: Tensor) -> Bias | None:
    """The bias of the slots (B, N) in their order; one by offset counts valid tokens anyway."""
    if not isinstance(bias, Tensor):
        return bias
    batch, n = slots.shape
    rows = slots[:, None, :, None].expand(-1, bias.shape[1], -1, n)
    columns = slots[:, None, None, :].expand_as(rows)
    return bias.expand(batch, -1, -1, -1).gather(2, rows).gather(3, columns)


@functools.lru_cache(maxsize=16)
def _all_slots(batch: int, n_slots: int, device: torch.device) -> Tensor:
    return torch.full((batch,), n_slots, dtype=torch.int32, device=device)


def _lengths(lengths: Tensor | None, batch: int, n_slots: int, device: torch.device) -> Tensor:
    """(B,) int32 on the device, within [0, N]."""
    if lengths is None:
        return _all_slots(batch, n_slots, device)
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(
            f"lengths: expected {batch} integers, found shape {tuple(lengths.shape)} "
            f"of {lengths.dtype}"
        )
    if lengths.device.type != "cpu":
        return lengths.clamp(0, n_slots).to(torch.int32)
    found = lengths.tolist()
    if min(found) < 0 or max(found) > n_slots:
        raise ValueError(f"lengths: expected 0 to {n_slots} tokens, found {found}")
    # Contiguous, like all arrays of compiled code: other layouts would be compiled separately.
    return lengths.to(torch.int32).contiguous()


def _head_cones(heads: tuple[Tensor, ...], lengths: Tensor) -> dict[str, Tensor]:
    """(B, H, 4) by name, from the oracle of the cone kernel."""
    cones = importlib.import_module("bertgeom.kernels.cone_angles.reference")
    found = [cones.cone_sums(x, lengths.to(torch.int64), False) for x in heads]
    repeat = [heads[0].shape[1] // x.shape[1] for x in heads]
    return {
        f"head_{key}": torch.stack(
            [x[key].repeat_interleave(r, dim=1) for x, r in zip(found, repeat, strict=True)], dim=-1
        )
        for key in ("cone_index", "cone_mean_cosine")
    }


def _put_back(
    output: Tensor, values: dict[str, Tensor], slots: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    index = slots[:, None, :, None].expand_as(output)
    scattered = torch.empty_like(output).scatter_(2, index, output)
    for name in _TRACKS:
        if name in values:
            track = values[name]
            index = slots[:, None].expand_as(track)
            values[name] = torch.empty_like(track).scatter_(2, index, track)
    return scattered, values


def _single(x: Tensor) -> Tensor:
    return x.to(torch.float32) if x.dtype == torch.float64 else x
