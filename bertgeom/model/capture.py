"""Queries, keys, values and layer outputs of a forward pass, as the model computes them.

The kernels reduce them on the fly; `spectra`, `rollout` and `annotations` need them complete,
for a few windows. Nothing is recomputed from the weights: biases, rotary positions, scale,
sliding windows and what is added to the logits are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bertgeom.errors import ModelError
from bertgeom.kernels.attention_stats.bias import Bias
from bertgeom.model.architectures import station_of
from bertgeom.model.masks import plain_attention
from bertgeom.model.recorder import active

if TYPE_CHECKING:
    from bertgeom.model.encoder import Encoder


@dataclass(frozen=True)
class AttentionCall:
    """One attention call.

    Attributes:
        query: (B, H, N, d); key, value: (B, Hk, N, d).
        scale: of the logits. window: key j is visible to query i iff |i - j| <= window.
        bias: added to the logits; None: nothing.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    window: int | None
    bias: Bias | None = None


@dataclass
class Capture:
    """Captured from a forward pass: one attention call and one output (B, N, D) per layer."""

    calls: list[AttentionCall] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        window: int | None,
        bias: Bias | None = None,
    ) -> Tensor:
        """The attention function's view of a recorder; the output is torch's."""
        self.calls.append(AttentionCall(query, key, value, scale, window, bias))
        return plain_attention(query, key, value, valid=mask, scale=scale, window=window, bias=bias)


@contextmanager
def capture(model: nn.Module) -> Iterator[Capture]:
    """Keep queries, keys, values and layer outputs of the forward passes in the block.

    The model must have been loaded with `attn_implementation="bertgeom"`. No gradients.
    """
    captured = Capture()

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if active.get() is captured:
            captured.outputs.append(output[0] if isinstance(output, tuple) else output)

    layers = [module for module in model.modules() if station_of(module) is not None]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    token = active.set(captured)
    try:
        with torch.no_grad():
            yield captured
    finally:
        active.reset(token)
        for handle in handles:
            handle.remove()


def capture_window(encoder: Encoder, ids: np.ndarray) -> Capture:
    """Run one window of n tokens, alone and without padding.

    Args:
        encoder: from `bertgeom.load_encoder`.
        ids: (n,) token ids.

    Returns:
        Capture with B = 1 and N = n.

    Raises:
        ModelError: if the model's attention or layers are not recognised.
    """
    tokens = torch.from_numpy(ids.astype(np.int64))[None].to(encoder.device)
    with capture(encoder.model) as captured:
        encoder.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    if not captured.calls or len(captured.calls) != len(captured.outputs):
        raise ModelError(
            f"expected one attention call and one output per layer, found {len(captured.calls)} "
            f"and {len(captured.outputs)}; the layers of {type(encoder.model).__name__} are not "
            "recognised"
        )
    return captured
