"""Attention that reports on itself: registration with transformers, and the recorder.

`register` makes `attn_implementation="bertgeom"` known to transformers. Outside of
`record()` such a model runs torch's scaled dot product attention. Inside, every attention
call goes through `bertgeom.kernels.attention_stats`, which returns the same output and the
statistics, and forward hooks collect the stations of the residual stream:

    embedding --> [attention block] --> attention --> [feed-forward] --> output --> next layer
    station 0                           station 1+2l                     station 2+2l
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import flash_attention_mask

from bertgeom import kernels, variables
from bertgeom.dataset import as_dataset
from bertgeom.errors import ModelError, UsageError
from bertgeom.kernels.attention_stats._options import fault as option_fault

NAME = "bertgeom"

#: Statistics that integers hold; all others are float32.
_INTEGERS = {
    name: np.dtype(v.dtype)
    for name, v in variables.VARIABLES.items()
    if np.dtype(v.dtype if v.dtype != "string" else "O").kind in "iu"
}


@dataclass(frozen=True)
class MeasureSettings:
    """What to measure in a forward pass.

    Attributes:
        tier: "core" or "full", see `bertgeom.variables`.
        keep: names of opt-in arrays: "block_map", "cls", "logits", "tracks".
        angles: "default" takes pairwise angles at the embedding and layer outputs, "all" at
            every station.
        theta: weights of at least this size are confident.
        near: half width, in tokens, of the band around the diagonal that counts as near.
        n_offset_side: one-sided bins of the offset profile; the last one is open.
        n_groups: number of token groups in use, at most 16.
        impl: kernel implementation: "auto", "triton", "numba" or "reference".
    """

    tier: str = "full"
    keep: tuple[str, ...] = ()
    angles: str = "default"
    theta: float = 0.3
    near: int = 4
    n_offset_side: int = 10
    n_groups: int = 0
    impl: str = "auto"

    def __post_init__(self) -> None:
        try:
            list(variables.select(self.tier, self.keep))
        except ValueError as error:
            raise UsageError(str(error)) from None
        if self.angles not in ("default", "all"):
            raise UsageError(f"expected angles 'default' or 'all', found {self.angles!r}")
        for name in ("tier", "theta", "near", "n_offset_side", "n_groups", "impl"):
            wrong = option_fault(name, getattr(self, name))
            if wrong:
                raise UsageError(f"{name}: {wrong}")


#: Bytes, as float32, of stations on the CPU that wait for others: many windows at once keep every
#: thread busy. Nothing changes them meanwhile: what follows a station needs it unchanged for its
#: gradient, so a model that can be trained writes its results elsewhere.
_WAITING = 64 << 20


@dataclass
class _Forward:
    """What one forward pass has shown so far; tensors stay on the model's device."""

    layers: list[Mapping[str, Tensor]] = field(default_factory=list)
    #: Statistics (S, B, ...) of the stations so far, some at a time.
    stations: list[dict[str, Tensor]] = field(default_factory=list)
    #: Those that wait, and whether their angles are wanted.
    waiting: list[tuple[Tensor, bool]] = field(default_factory=list)
    first_tokens: list[Tensor] = field(default_factory=list)
    n_slots: int = 0
    #: The embedding, until the first attention call tells which tokens are valid.
    embedding: Tensor | None = None
    #: (B, N) bool, and the keyword that hands it to the kernels.
    mask: Tensor | None = None
    valid: dict[str, Tensor] = field(default_factory=dict)
    #: The layer modules that were entered, innermost last.
    open_layers: list[nn.Module] = field(default_factory=list)


class Recorder:
    """Collects the statistics of the forward passes run inside `record()`."""

    def __init__(
        self,
        settings: MeasureSettings,
        special: Tensor | None,
        groups: Tensor | None,
    ) -> None:
        self.settings = settings
        self._special, self._groups = special, groups
        self._forwards: list[_Forward] = []
        self._depth = 0

    @property
    def n_forwards(self) -> int:
        """Number of completed forward passes."""
        return len(self._forwards) - bool(self._depth)

    def arrays(self) -> dict[str, np.ndarray]:
        """The statistics by name, windows of all forward passes along the first axis.

        Names, dimensions and units are those of `bertgeom.variables`; `zero_vectors`
        (window,) counts the vectors left out of cones.

        Raises:
            ModelError: if no attention went through the recorder.
        """
        if not any(f.layers for f in self._forwards):
            raise ModelError(
                "expected attention calls of a transformers encoder loaded with "
                f"attn_implementation='{NAME}', found none; this architecture does not use "
                "transformers' AttentionInterface, or no forward pass was run inside record()"
            )
        parts = [self._finish(f) for f in self._forwards if f.layers]
        tokens = max(f.n_slots for f in self._forwards)
        return {
            name: np.concatenate([_pad_tokens(name, part[name], tokens) for part in parts])
            for name in parts[0]
        }

    def dataset(self) -> Any:
        """The statistics as an `xarray.Dataset` with units and descriptions."""
        return as_dataset(
            self.arrays(),
            n_offset_side=self.settings.n_offset_side,
            angles=self.settings.angles,
        )

    def _finish(self, forward: _Forward) -> dict[str, np.ndarray]:
        n_stations = sum(len(s["zero_vectors"]) for s in forward.stations)
        if n_stations != 1 + 2 * len(forward.layers):
            raise ModelError(
                f"expected {1 + 2 * len(forward.layers)} stations of the residual stream for "
                f"{len(forward.layers)} attention calls, found {n_stations}; "
                "the layers of this architecture are not recognised"
            )
        wanted = {v.name for v in variables.select(self.settings.tier, self.settings.keep)}
        layers = forward.layers
        out = {
            name: torch.stack([layer[name] for layer in layers], dim=1)
            for name in layers[0]
            if name in wanted
        }
        for name in max(forward.stations, key=len):
            having = [s[name] for s in forward.stations if name in s]
            out[name] = torch.cat(having).transpose(0, 1)
        out["zero_vectors"] = out["zero_vectors"].sum(1)
        if "cls" in self.settings.keep:
            out["cls"] = torch.stack(forward.first_tokens, dim=1)
        return {name: _to_numpy(name, value) for name, value in out.items()}

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Attention output (B, H, N, d) of one call; appends its statistics."""
        if not self._depth:
            raise ModelError("expected attention inside a transformers model, found a bare module")
        forward, settings = self._forwards[-1], self.settings
        if forward.embedding is not None:
            forward.mask, forward.valid = mask, _valid(mask)
            self._station(forward.embedding, angles=True, hidden_state=True)
            forward.embedding = None
        tracks = "tracks" in settings.keep
        stats = kernels.attention_stats(
            query,
            key,
            value,
            **forward.valid,
            special=self._special,
            groups=self._groups,
            n_groups=settings.n_groups,
            scale=scale,
            window=window,
            tier=settings.tier,
            theta=settings.theta,
            near=settings.near,
            n_offset_side=settings.n_offset_side,
            rows=tracks,
            columns=tracks,
            head_cones=True,
            impl=settings.impl,
        )
        forward.layers.append(stats.values)
        return stats.output

    def _station(self, x: Tensor, *, angles: bool, hidden_state: bool) -> None:
        forward = self._forwards[-1]
        if "cls" in self.settings.keep and hidden_state:
            forward.first_tokens.append(_first_token(x, forward.mask))
        forward.waiting.append((x, angles))
        n_bytes = sum(4 * s.numel() for s, _ in forward.waiting)
        if x.device.type != "cpu" or n_bytes >= _WAITING:
            self._measure_stations()

    def _measure_stations(self) -> None:
        forward = self._forwards[-1]
        if forward.waiting:
            stations, angles = zip(*forward.waiting, strict=True)
            forward.waiting = []
            forward.stations.append(
                kernels.statistics_of_stations(
                    stations, **forward.valid, angles=angles, impl=self.settings.impl
                )
            )

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of every module."""
        if isinstance(module, PreTrainedModel):
            if self._depth == 0:
                self._forwards.append(_Forward())
            self._depth += 1
        elif self._depth and _is_layer(module):
            forward = self._forwards[-1]
            forward.open_layers.append(module)
            if not forward.n_slots:
                forward.embedding = args[0]
                forward.n_slots = args[0].shape[1]
        elif self._depth and _inside_layer(self._forwards[-1], module, "mlp_norm"):
            # ModernBERT: what enters the second norm is the residual after the attention block.
            self._station(args[0], angles=self.settings.angles == "all", hidden_state=False)

    def _leave(self, module: nn.Module, output: Any) -> None:
        """Forward hook of every module."""
        if isinstance(module, PreTrainedModel):
            self._depth -= 1
            if self._depth == 0:
                self._measure_stations()
            return
        if not self._depth:
            return
        forward = self._forwards[-1]
        if forward.open_layers and forward.open_layers[-1] is module:
            forward.open_layers.pop()
            self._station(_first(output), angles=True, hidden_state=True)
        elif _inside_layer(forward, module, "attention_block"):
            self._station(_first(output), angles=self.settings.angles == "all", hidden_state=False)


def _is_layer(module: nn.Module) -> bool:
    """Whether the module is an encoder layer: it has its attention block as a direct child."""
    children = module._modules
    return isinstance(children.get("attention", children.get("attn")), nn.Module)


def _inside_layer(forward: _Forward, module: nn.Module, role: str) -> bool:
    """Whether the module plays `role` in the innermost open layer.

    The residual after the attention block is the input of `mlp_norm` (ModernBERT), the output
    of `sa_layer_norm` (DistilBERT), or the output of `attention` (BERT and its relatives).
    """
    if not forward.open_layers:
        return False
    children = forward.open_layers[-1]._modules
    if role == "mlp_norm":
        return children.get("mlp_norm") is module
    if "mlp_norm" in children:
        return False
    return children.get("sa_layer_norm", children.get("attention")) is module


def _valid(mask: Tensor | None) -> dict[str, Tensor]:
    """The mask as the kernels like it best: lengths where valid tokens come first."""
    if mask is None:
        return {}
    lengths = mask.sum(dim=1)
    slots = torch.arange(mask.shape[1], device=mask.device)
    if torch.equal(mask, slots < lengths[:, None]):
        return {"lengths": lengths}
    return {"mask": mask}


def _first_token(x: Tensor, mask: Tensor | None) -> Tensor:
    """Vector of the first valid token, (B, D)."""
    if mask is None:
        return x[:, 0].clone()
    return x[torch.arange(len(x), device=x.device), mask.to(torch.int8).argmax(dim=1)]


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _expand(x: Tensor, like: Tensor) -> Tensor:
    """Key or value heads repeated for grouped-query attention."""
    repeat = like.shape[1] // x.shape[1]
    return x if repeat == 1 else x.repeat_interleave(repeat, dim=1)


def _to_numpy(name: str, value: Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy()
    if name in _INTEGERS:
        return array.astype(_INTEGERS[name])
    return array.astype(np.int64) if name == "zero_vectors" else array.astype(np.float32)


def _pad_tokens(name: str, array: np.ndarray, n_tokens: int) -> np.ndarray:
    variable = variables.VARIABLES.get(name)
    if variable is None or variable.dims[-1] != "token" or array.shape[-1] == n_tokens:
        return array
    width = [(0, 0)] * (array.ndim - 1) + [(0, n_tokens - array.shape[-1])]
    return np.pad(array, width, constant_values=np.nan)


_active: ContextVar[Recorder | None] = ContextVar("bertgeom_recorder", default=None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: (B, H, N, d) in, ((B, N, H, d), None) out.

    The mask is the one of `flash_attention_2`: None or (B, N) with True at valid tokens.
    As there, `sliding_window` w means |i - j| < w.
    """
    window = None if sliding_window is None else int(sliding_window) - 1
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ModelError(
            f"expected an attention mask of shape (batch, tokens), found one with "
            f"{attention_mask.ndim} dimensions; pass the tokenizer's 2-D mask"
        )
    if getattr(module, "is_causal", False) or key.shape[2] != query.shape[2]:
        raise ModelError("expected bidirectional self-attention, found causal or cross attention")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = None if attention_mask is None else attention_mask.bool()
    recorder = _active.get()
    if recorder is None:
        output = _plain(query, key, value, mask, scale, window, dropout)
    else:
        if dropout:
            raise UsageError("expected model.eval(), found attention dropout; call model.eval()")
        output = recorder._attend(query, key, value, mask, scale, window)
    return output.transpose(1, 2), None


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    window: int | None,
    dropout: float,
) -> Tensor:
    """Attention without statistics."""
    allowed = None if mask is None else mask[:, None, None, :]
    if window is not None:
        position = torch.arange(query.shape[2], device=query.device)
        near = (position[:, None] - position[None, :]).abs() <= window
        allowed = near if allowed is None else near & allowed
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        _expand(key, query),
        _expand(value, query),
        attn_mask=allowed,
        dropout_p=dropout,
        scale=scale,
    )


def register() -> None:
    """Make `attn_implementation="bertgeom"` known to transformers; harmless when repeated."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, flash_attention_mask)


@contextmanager
def record(
    *,
    special_tokens_mask: Tensor | None = None,
    groups: Tensor | None = None,
    settings: MeasureSettings | None = None,
    **overrides: Any,
) -> Iterator[Recorder]:
    """Record the statistics of the forward passes in the block; outputs stay unchanged.

    The model must have been loaded with `attn_implementation="bertgeom"`. The block runs
    under `torch.no_grad()`: the statistics have no backward pass.

    Args:
        special_tokens_mask: (B, N), 1 at special tokens; None: no token is special.
        groups: (B, N) int32 bit mask of token groups.
        settings: what to measure; `overrides` are fields of `MeasureSettings`.

    Yields:
        Recorder: `.dataset()` and `.arrays()` after the forward pass.

    Raises:
        ModelError: for causal, cross or differently masked attention.
    """
    if settings is not None and overrides:
        raise UsageError("expected either settings or single options, found both")
    settings = settings or MeasureSettings(**overrides)
    recorder = Recorder(
        settings,
        None if special_tokens_mask is None else special_tokens_mask.bool(),
        groups,
    )

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        if _active.get() is recorder:
            recorder._enter(module, args)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if _active.get() is recorder:
            recorder._leave(module, output)

    token = _active.set(recorder)
    handles = [
        torch_module.register_module_forward_pre_hook(enter),
        torch_module.register_module_forward_hook(leave),
    ]
    try:
        with torch.no_grad():
            yield recorder
    finally:
        for handle in handles:
            handle.remove()
        _active.reset(token)


register()
