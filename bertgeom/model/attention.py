"""The attention implementation "bertgeom": registration with transformers, and `record`.

`register` makes `attn_implementation="bertgeom"` known to transformers. Outside of `record()`
such a model runs torch's scaled dot product attention; inside, see `bertgeom.model.recorder`. The
output is that of the model's eager attention in both cases: an unsupported
argument that would change it raises an error with its name.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.utils import logging

from bertgeom.config import MeasureSettings
from bertgeom.errors import ModelError, UsageError
from bertgeom.kernels.attention_stats.bias import Bias, bias_matrix
from bertgeom.model.architectures import architecture_of_config
from bertgeom.model.architectures.adapters import install
from bertgeom.model.biases import added, bias_of_call, by_offset, split_mask
from bertgeom.model.masks import (
    NAME,
    AttentionMask,
    attention_mask,
    has_gaps,
    hidden_tokens,
    plain_attention,
)
from bertgeom.model.recorder import Recorder, active

__all__ = ["NAME", "Recorder", "record", "register"]

_logger = logging.get_logger(__name__)

#: Arguments that architectures pass and that change no output of an attention call: what the model
#: should return, and positions, which are already part of queries and keys.
_HARMLESS = {
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "use_cache",
    "cache_position",
    "position_ids",
    "position_embeddings",
    "num_items_in_batch",
    "deterministic",
}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    position_bias: Bias | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: (B, H, N, d) in, ((B, N, H, d), None) out.

    What is added to the logits may be handed over as `position_bias`, a tensor (1 or B, 1 or H, N,
    N) or one of the kernels' biases, or be declared as the module's attribute `bertgeom_bias`.
    """
    _refuse_unknown(module, kwargs)
    if key.shape[2] != query.shape[2]:
        raise ModelError(
            f"expected bidirectional self-attention, found cross attention in {_name(module)}"
        )
    valid, window = _visible(module, query, attention_mask, sliding_window, is_causal)
    bias = bias_of_call(module, position_bias)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    recorder = active.get()
    if recorder is None:
        output = plain_attention(
            query,
            key,
            value,
            valid=valid,
            scale=scale,
            window=window,
            dropout=dropout,
            bias=bias,
        )
    else:
        if dropout:
            raise UsageError("expected model.eval(), found attention dropout; call model.eval()")
        if valid is not None and valid.ndim == 4:
            valid, own = _parts(module, valid, query)
            bias = added(bias, own, query.shape[2])
        if bias is not None:
            # The kernels count valid tokens; the offset of slots is that of the model.
            gaps = has_gaps(valid)
            bias = bias_matrix(bias, query.shape[2]) if gaps else by_offset(bias, query.shape[1])
        output = recorder.attend(module, query, key, value, valid, scale, window, bias)
    return output.transpose(1, 2).contiguous(), None


def _refuse_unknown(module: nn.Module, kwargs: dict[str, Any]) -> None:
    if kwargs.get("output_attentions"):
        _logger.warning_once(
            f"`{NAME}` attention does not support `output_attentions=True`. "
            "Set the attention to `eager` to get the maps."
        )
    for name, value in kwargs.items():
        nothing = value is None or (isinstance(value, bool | int | float) and not value)
        if name not in _HARMLESS and not nothing:
            raise ModelError(
                f"expected attention that depends on queries, keys, values, padding and a sliding "
                f"window, found the argument {name!r} in {_name(module)}, which may change it; "
                "load the model with attn_implementation='eager', it cannot be observed"
            )


def _visible(
    module: nn.Module,
    query: Tensor,
    mask: Tensor | None,
    sliding_window: int | None,
    is_causal: bool | None,
) -> tuple[Tensor | None, int | None]:
    """Visible keys: (B, N) valid tokens or a ready-made 4-D mask, and the window's half width."""
    if is_causal or (is_causal is None and getattr(module, "is_causal", False)):
        raise ModelError(
            f"expected bidirectional self-attention, found causal attention in {_name(module)}"
        )
    if isinstance(mask, AttentionMask):
        # Eager attention uses the mask only: if an argument disagrees, the mask counts.
        return mask.valid(), mask.window
    if sliding_window is not None and int(sliding_window) < query.shape[2]:
        raise ModelError(
            f"expected the sliding window of {_name(module)} in a mask made by transformers' "
            "create_bidirectional_sliding_window_mask, found the argument sliding_window alone"
        )
    if mask is not None and mask.ndim != 4:
        raise ModelError(
            f"expected an attention mask made by transformers' create_bidirectional_mask, found "
            f"one with {mask.ndim} dimensions in {_name(module)}"
        )
    return mask, None


def _parts(module: nn.Module, mask: Tensor, query: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Valid tokens (B, N) and the bias of a ready-made mask, each None if there is none."""
    valid, bias = hidden_tokens(mask, query.shape[2]), None
    if valid is None:
        parts = split_mask(mask)
        if parts is None:
            raise ModelError(
                f"expected an attention mask that hides padding, or adds a bias, found one of "
                f"shape {tuple(mask.shape)} in {_name(module)}, and what it hides differs between "
                "queries; pass the tokenizer's 2-D mask"
            )
        valid, bias = parts
    return None if bool(valid.all()) else valid.expand(len(query), -1), bias


def _name(module: nn.Module) -> str:
    config = getattr(module, "config", None)
    kind = getattr(config, "model_type", "")
    return f"{type(module).__name__} of {kind!r}" if kind else type(module).__name__


def _mask(*args: Any, config: Any = None, **kwargs: Any) -> AttentionMask:
    """The mask of a forward pass; before the first one, attention of its own kind is adapted."""
    architecture = architecture_of_config(config)
    if architecture is not None:
        install(architecture.adapters, attend)
    recorder = active.get()
    padded = True if isinstance(recorder, Recorder) and recorder.lengths is not None else None
    return attention_mask(*args, config=config, padded=padded, **kwargs)


def register() -> None:
    """Make `attn_implementation="bertgeom"` known to transformers; may be called repeatedly."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def record(
    *,
    special_tokens_mask: Tensor | None = None,
    groups: Tensor | None = None,
    settings: MeasureSettings | None = None,
    padded_rows: bool = True,
    lengths: Tensor | None = None,
    **overrides: Any,
) -> Iterator[Recorder]:
    """Record the statistics of the forward passes in the block; outputs stay unchanged.

    The model must have been loaded with `attn_implementation="bertgeom"`. The block runs
    under `torch.no_grad()`: the statistics have no backward pass. It records the forward
    passes of its own thread only; several threads may record at once, even with one model.

    Args:
        special_tokens_mask: (B, N), 1 at special tokens; None: no token is special.
        groups: (B, N) int32 bit mask of token groups.
        settings: what to measure; `overrides` are fields of `MeasureSettings`.
        padded_rows: whether outputs at padding are computed as in the plain model; False is
            faster and leaves them arbitrary.
        lengths: (B,) integers on the model's device, for one forward pass whose mask hides all but
            the first lengths[b] tokens of every window: taken as said, so that nobody waits for
            the device to look at the mask. None: the mask is looked at.

    Yields:
        Recorder: `.dataset()` and `.arrays()` after the forward pass.

    Raises:
        ModelError: at the first forward pass, for causal, cross or differently masked attention,
            for unknown layers, and for forward passes of different models.
        UsageError: for a model in train mode with dropout.

    Example:
        >>> import torch
        >>> import bertgeom
        >>> from transformers import AutoModel
        >>> model = AutoModel.from_pretrained("model", attn_implementation="bertgeom").eval()
        >>> with bertgeom.record() as recorder:
        ...     output = model(input_ids=torch.randint(5, 60, (2, 12)))
        >>> dict(recorder.dataset().gate_mass.sizes)
        {'window': 2, 'layer': 2, 'head': 2, 'gate': 8}
    """
    if settings is not None and overrides:
        raise UsageError("expected either settings or single options, found both")
    settings = settings or MeasureSettings(**overrides)
    recorder = Recorder(
        settings,
        None if special_tokens_mask is None else special_tokens_mask.bool(),
        groups,
        padded_rows=padded_rows,
        lengths=lengths,
    )
    token = active.set(recorder)
    _hooks.acquire()
    try:
        with torch.no_grad():
            yield recorder
    finally:
        _hooks.release()
        active.reset(token)


class _Hooks:
    """Hooks of every module, in place while any thread records; each serves its own recorder."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._handles: list[Any] = []

    def acquire(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._handles = [
                    torch_module.register_module_forward_pre_hook(_enter),
                    torch_module.register_module_forward_hook(_leave, always_call=True),
                ]

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                for handle in self._handles:
                    handle.remove()


_hooks = _Hooks()


def _enter(module: nn.Module, args: tuple[Any, ...]) -> None:
    recorder = active.get()
    if isinstance(recorder, Recorder):
        recorder.enter(module, args)


def _leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    recorder = active.get()
    if isinstance(recorder, Recorder):
        recorder.leave(module, output)


register()
