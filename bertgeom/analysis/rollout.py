"""Attention rollout with residuals, of one query row, without any n x n map.

Rollout (Abnar and Zuidema 2020) multiplies the head means A_l of all layers, each mixed with
the identity for the residual connection: R = (A_L + I)/2 ... (A_1 + I)/2. One row of it, the
[CLS] row, is a chain of vector-matrix products when it is taken from the last layer down:

    v <- v (A_l + I) / 2 ,  v = e_CLS at first

and v A_l = mean_h sum_i v_i A_lh[i, :] needs the rows of A only once, each weighted by v_i.
The rows are rebuilt from Q and K, a block of one head at a time. The other order, forwards
through the model, would multiply n x n maps (n^3 a layer) to keep a single row at the end.
The cost is Q and K of all layers of the windows in memory: 2 L n D numbers, 37 MB for a
BERT-base window of 512 tokens in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertgeom.analysis.biases import add_bias
from bertgeom.errors import UsageError

if TYPE_CHECKING:
    from bertgeom.kernels.attention_stats.bias import Bias


def attention_rollout(
    layers: Sequence[tuple[Tensor, Tensor]],
    *,
    lengths: Tensor | None = None,
    scale: float | None = None,
    windows: Sequence[int | None] | None = None,
    biases: Sequence[Bias | None] | None = None,
    row: int = 0,
    residual: float = 0.5,
    block: int = 256,
) -> Tensor:
    """Rollout of one query token over all layers.

    Args:
        layers: (query (B, H, N, d), key (B, Hk, N, d)) of every layer in order of execution,
            as the model computes them. Logits and softmax in float32, or float64 where the
            inputs are; sums over rows, heads and layers in float64.
        lengths: (B,) valid tokens come first; None: all are valid.
        scale: of the logits, d^-0.5 if None.
        windows: per layer, key j is visible to query i iff |i - j| <= window; None: all keys.
        biases: per layer, what is added to the logits, as the kernels take it; None: nothing.
        row: the query token, 0 for [CLS].
        residual: weight of the identity.
        block: query rows at a time; peak extra memory is B * block * N logits.

    Returns:
        (B, N) float64, each row a distribution over input tokens; 0 in padded slots, NaN
        where the window has no token `row`.

    Raises:
        UsageError: for no layers, unequal shapes, a row that no window has, or a
            residual outside [0, 1].

    Example:
        >>> import torch
        >>> from bertgeom.analysis.rollout import attention_rollout
        >>> layers = [(torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)) for _ in range(3)]
        >>> round(attention_rollout(layers).sum().item(), 6)
        1.0
    """
    _check(layers, windows, biases, residual)
    batch, _, n, d = layers[0][0].shape
    if not 0 <= row < n:
        raise UsageError(f"expected a row below {n}, the number of tokens, found {row}")
    device = layers[0][0].device
    scale = d**-0.5 if scale is None else scale
    if lengths is None:
        lengths = torch.full((batch,), n, device=device)
    valid = torch.arange(n, device=device) < lengths.to(device)[:, None]
    v = torch.zeros(batch, n, dtype=torch.float64, device=device)
    v[:, row] = 1
    spans = [None] * len(layers) if windows is None else list(windows)
    added = [None] * len(layers) if biases is None else list(biases)
    for (query, key), window, bias in zip(
        reversed(layers), reversed(spans), reversed(added), strict=True
    ):
        passed = _propagate(v, query, key, valid, scale, window, bias, block)
        v = residual * v + (1 - residual) * passed
    return torch.where(valid[:, row, None], v, torch.nan)


def _propagate(
    v: Tensor,
    query: Tensor,
    key: Tensor,
    valid: Tensor,
    scale: float,
    window: int | None,
    bias: Bias | None,
    block: int,
) -> Tensor:
    """v A with A the mean of the heads' attention, (B, N) float64."""
    heads, n = query.shape[1:3]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    position = torch.arange(n, device=v.device)
    out = torch.zeros_like(v)
    for head in range(heads):
        k = key[:, head // (heads // key.shape[1])].to(wide)
        for start in range(0, n, block):
            here = slice(start, start + block)
            if not v[:, here].any():
                continue
            logits = scale * (query[:, head, here].to(wide) @ k.mT)
            add_bias(logits, bias, head, here)
            logits.masked_fill_(~valid[:, None, :], -torch.inf)
            if window is not None:
                logits.masked_fill_((position[here, None] - position).abs() > window, -torch.inf)
            # Rows of padded queries may see no key; their weight v_i is 0.
            weights = torch.softmax(logits, dim=-1).nan_to_num_(0.0)
            out += torch.einsum("bi,bij->bj", v[:, here], weights.double())
    return out / heads


def _check(
    layers: Sequence[tuple[Tensor, Tensor]],
    windows: Sequence[int | None] | None,
    biases: Sequence[Bias | None] | None,
    residual: float,
) -> None:
    if not layers:
        raise UsageError("expected queries and keys of at least one layer, found none")
    shape = layers[0][0].shape
    for i, (query, key) in enumerate(layers):
        fits = (
            query.ndim == key.ndim == 4
            and query.shape == shape
            and (key.shape[0], *key.shape[2:]) == (shape[0], *shape[2:])
            and shape[1] % key.shape[1] == 0
        )
        if not fits:
            raise UsageError(
                f"expected query {tuple(shape)} and key of as many tokens in layer {i}, found "
                f"{tuple(query.shape)} and {tuple(key.shape)}"
            )
    for name, given in (("windows", windows), ("biases", biases)):
        if given is not None and len(given) != len(layers):
            raise UsageError(f"expected {len(layers)} {name}, one a layer, found {len(given)}")
    if not 0 <= residual <= 1:
        raise UsageError(f"expected a residual weight between 0 and 1, found {residual}")
