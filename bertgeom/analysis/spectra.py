"""Exact spectra of the attention of sampled windows, in float64.

The n x n matrices Q K^T and its symmetric part are never decomposed: their nonzero spectra
are those of d x d and 2d x 2d companions. A has no such companion; one head at a time is
built in float64 and decomposed directly (LAPACK, values only). Taking the eigenvalues of
A^T A instead would be twice as fast but blind below 1.5e-8 of the largest value, and heads
with diffuse attention have most of their spectrum there.

Definitions: `docs/statistics.md` section 4 and `docs/catalogue.md`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bertgeom import variables
from bertgeom.analysis.biases import add_bias
from bertgeom.errors import UsageError

if TYPE_CHECKING:
    import xarray

    from bertgeom.kernels.attention_stats.bias import Bias
    from bertgeom.model.capture import Capture

#: Singular values below this are counted in `spectrum_small`.
SMALL = 1e-3
#: Bins of the paper's Shannon entropy of attention weights.
SHANNON_BINS = 20
#: Dimensions whose length depends on the window's tokens.
_PADDED = ("token_component", "head_component", "symmetric_component", "output_component")


def layer_spectra(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    output: Tensor | None = None,
    head_output: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    bias: Bias | None = None,
    n_threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Spectra of all heads of one layer for one window (statistics.md, section 4).

    Args:
        query: (H, n, d), as the model computes them; valid tokens only.
        key, value: (H, n, d), or (Hk, n, d) with Hk dividing H.
        output: (n, D) residual stream after the layer; None leaves the output_* arrays out.
        head_output: (H, n, d) Z = A V of the model; computed in float64 from A and V if None.
        scale: of the logits in the softmax, d^-0.5 if None. The spectra of Q K^T have none.
        window: key j is visible to query i iff |i - j| <= window; None: all keys.
        bias: added to the logits in the softmax, as the kernels take it. The spectra of Q K^T are
            without it.
        n_threads: heads decomposed at a time, one core each; None: torch's thread count.

    Returns:
        Arrays by the names of `bertgeom.variables.SPECTRUM_VARIABLES`, head first, in float64
        (counts int64); token_component has n entries.

    Raises:
        UsageError: for shapes that do not fit.

    Example:
        >>> import torch
        >>> from bertgeom.analysis.spectra import layer_spectra
        >>> query, key, value = torch.randn(3, 2, 20, 8)
        >>> found = layer_spectra(query, key, value)
        >>> found["attention_singular_values"].shape, found["logit_singular_values"].shape
        ((2, 20), (2, 8))
    """
    _check(query, key, value, output, head_output)
    heads, _, d = query.shape
    epsilon = _model_epsilon(query.dtype)
    scale = d**-0.5 if scale is None else scale
    group = heads // key.shape[0]

    def one_head(h: int) -> dict[str, np.ndarray]:
        z = None if head_output is None else _double(head_output[h])
        q, k, v = _double(query[h]), _double(key[h // group]), _double(value[h // group])
        attention = attention_map(q, k, scale, window, bias, h)
        return _head_spectra(q, k, v, z, attention, epsilon)

    def layer_output(_: int) -> dict[str, np.ndarray]:
        x = _double(output)  # type: ignore[arg-type]
        values = singular_values(x)
        summary = _summary(values, max(x.shape), epsilon)
        names = ("spectrum_rank", "spectrum_small", "spectrum_condition", "spectral_entropy")
        return {"output_singular_values": values.numpy()} | {
            f"output_{name}": summary[name] for name in names
        }

    jobs: list[tuple[Callable[[int], dict[str, np.ndarray]], int]] = []
    if output is not None:
        jobs.append((layer_output, 0))
    jobs += [(one_head, h) for h in range(heads)]
    with _single_threaded_pool(n_threads) as pool:
        parts = list(pool.map(lambda job: job[0](job[1]), jobs))
    out = parts.pop(0) if output is not None else {}
    return out | {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def captured_spectra(captured: Capture) -> dict[str, np.ndarray]:
    """The spectra of one window, (layer, ...), from a captured forward pass of it."""
    return window_spectra(
        [
            layer_spectra(
                call.query[0],
                call.key[0],
                call.value[0],
                output=output[0],
                scale=call.scale,
                window=call.window,
                bias=call.bias,
            )
            for call, output in zip(captured.calls, captured.outputs, strict=True)
        ]
    )


def window_spectra(layers: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The spectra of one window, (layer, ...), from those of its layers."""
    return {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}


def spectra_dataset(
    samples: Sequence[dict[str, np.ndarray]], window: Sequence[int] | None = None
) -> xarray.Dataset:
    """Spectra of sampled windows as a Dataset; what a shorter window lacks is NaN.

    The longest array of a dimension sets its length, whichever array and window that is: with
    fewer tokens than the head dimension d, there are n singular values but d eigenvalues.

    Args:
        samples: results of `window_spectra`.
        window: index of each sample's window in the store; default 0, 1, ...
    """
    import xarray

    coords = {
        "window_index": (
            "sample",
            np.asarray(window if window is not None else range(len(samples))),
        ),
        "spectrum": list(variables.SPECTRA),
    }
    arrays = {}
    present = [v for v in variables.SPECTRUM_VARIABLES if v.name in samples[0]]
    widths: dict[str, int] = {}
    for v in present:
        longest = max(sample[v.name].shape[-1] for sample in samples)
        widths[v.dims[-1]] = max(widths.get(v.dims[-1], 0), longest)
    for variable in present:
        parts = [sample[variable.name] for sample in samples]
        if variable.dims[-1] in _PADDED:
            parts = [_pad(part, widths[variable.dims[-1]]) for part in parts]
        attributes = {"units": variable.unit, "description": variable.description}
        stacked = np.stack(parts).astype(variable.dtype)
        arrays[variable.name] = (variable.dims, stacked, attributes)
    return xarray.Dataset(arrays, coords=coords)


def attention_map(
    query: Tensor,
    key: Tensor,
    scale: float,
    window: int | None = None,
    bias: Bias | None = None,
    head: int = 0,
) -> Tensor:
    """A = softmax(scale Q K^T + bias) over visible keys, (n, n), in the type of `query`.

    Args:
        query, key: (n, d) of one head.
        scale, window, bias: of the layer; `head` says which of the bias it is.
    """
    logits = (query @ key.mT).mul_(scale)
    add_bias(logits, bias, head, slice(None))
    if window is not None:
        position = torch.arange(len(query), device=query.device)
        far = (position[:, None] - position[None, :]).abs() > window
        logits.masked_fill_(far, -torch.inf)
    return torch.softmax(logits, dim=-1)


def singular_values(x: Tensor) -> Tensor:
    """All singular values of x (n, m), descending, float64, accurate to n eps of the largest.

    A tall or flat matrix is first reduced to its triangular factor.
    """
    tall = x if x.shape[0] >= x.shape[1] else x.mT
    if tall.shape[0] > 1.6 * tall.shape[1]:
        tall = torch.linalg.qr(tall, mode="r").R
    values: Tensor = torch.linalg.svdvals(tall)
    return values


def symmetric_product_eigenvalues(left: Tensor, right: Tensor) -> Tensor:
    """Nonzero eigenvalues of (L R^T + R L^T) / 2 for L, R (..., n, d), ascending.

    With [L R] = O F the matrix is O (F J F^T / 2) O^T, where J swaps the two halves: a
    symmetric problem of size 2d. It has the nonzero spectrum of the companion
    [R L]^T [L R] / 2, without the accuracy that an unsymmetric solver would lose.

    Returns:
        (..., min(2d, n)); the other n - 2d eigenvalues are zero.
    """
    d = left.shape[-1]
    factor = torch.linalg.qr(torch.cat([left, right], dim=-1), mode="r").R
    half = factor[..., :d] @ factor[..., d:].mT
    values: Tensor = torch.linalg.eigvalsh((half + half.mT) / 2)
    return values


def product_singular_values(left: Tensor, right: Tensor) -> Tensor:
    """The min(n, d) singular values of L R^T that can be nonzero, for L, R (..., n, d)."""
    left_factor = torch.linalg.qr(left, mode="r").R
    right_factor = torch.linalg.qr(right, mode="r").R
    values: Tensor = torch.linalg.svdvals(left_factor @ right_factor.mT)
    return values


def numerical_rank(singular: Tensor, size: int, epsilon: float) -> Tensor:
    """numpy's rule: values above size * epsilon * the largest, size = max(rows, columns)."""
    return (singular > size * epsilon * singular.amax(-1, keepdim=True)).sum(-1)


def effective_rank(singular: Tensor) -> Tensor:
    """(sum s^2)^2 / sum s^4; 0 for a zero matrix."""
    power = singular.square()
    return ratio(power.sum(-1).square(), power.square().sum(-1))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, 0 where the denominator is 0."""
    return torch.where(denominator > 0, numerator / denominator.clamp(min=1e-300), 0.0)


def entropy(p: Tensor) -> Tensor:
    """-sum p ln p over the last dimension, in nats; p need not sum to 1."""
    return -torch.xlogy(p, p).sum(-1)


def spectral_entropy(singular: Tensor) -> Tensor:
    """Entropy of p = s^2 / sum s^2, in nats; 0 for a zero matrix."""
    power = singular.square()
    return entropy(ratio(power, power.sum(-1, keepdim=True)))


def paper_von_neumann_entropy(eigenvalues: Tensor) -> Tensor:
    """-sum p ln p with p = |lambda| / |lambda|_2, in nats.

    The normalisation is the paper's (Bonino et al. 2025): p does not sum to 1, and the value
    may exceed the logarithm of the number of eigenvalues.
    """
    size = eigenvalues.abs()
    return entropy(ratio(size, torch.linalg.vector_norm(size, dim=-1, keepdim=True)))


def paper_shannon_entropy(weights: Tensor) -> Tensor:
    """Entropy of all entries of a matrix in 20 equal bins between their extremes, in nats.

    0 where the extremes are closer than 1e-5 of the largest entry (one bin).
    """
    low, high = weights.min(), weights.max()
    if high - low <= 1e-5 * high:
        return weights.new_zeros(())
    counts = torch.histc(weights, SHANNON_BINS, min=low.item(), max=high.item())
    return entropy(counts / weights.numel())


def _head_spectra(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    z: Tensor | None,
    attention: Tensor,
    epsilon: float,
) -> dict[str, np.ndarray]:
    n, d = q.shape
    z = attention @ v if z is None else z
    spectra = {
        "attention": (singular_values(attention), n),
        "value": (singular_values(v), max(n, d)),
        "head": (singular_values(z), max(n, d)),
        "logit": (product_singular_values(q, k), n),
    }
    eigenvalues = torch.linalg.eigvals(k.mT @ q)
    eigenvalues = eigenvalues[eigenvalues.abs().argsort(descending=True, stable=True)]
    summaries = [_summary(*spectra[name], epsilon) for name in variables.SPECTRA]
    out = {f"{name}_singular_values": values.numpy() for name, (values, _) in spectra.items()}
    out |= {name: np.stack([s[name] for s in summaries]) for name in summaries[0]}
    return out | {
        "logit_eigenvalues_real": eigenvalues.real.numpy(),
        "logit_eigenvalues_imaginary": eigenvalues.imag.numpy(),
        "logit_symmetric_eigenvalues": symmetric_product_eigenvalues(q, k).numpy(),
        "paper_von_neumann_entropy": paper_von_neumann_entropy(eigenvalues).numpy(),
        "paper_shannon_entropy": paper_shannon_entropy(attention).numpy(),
    }


def _summary(singular: Tensor, size: int, epsilon: float) -> dict[str, np.ndarray]:
    return {
        "spectrum_rank": numerical_rank(singular, size, epsilon).numpy(),
        "spectrum_small": (singular < SMALL).sum(-1).numpy(),
        "spectrum_condition": (singular[..., 0] / singular[..., -1]).numpy(),
        "spectral_entropy": spectral_entropy(singular).numpy(),
    }


def _double(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)


def _model_epsilon(dtype: torch.dtype) -> float:
    """Rounding unit of the softmax that the model computes: at least single precision."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.finfo(wide).eps


def _pad(x: np.ndarray, width: int) -> np.ndarray:
    """The last dimension made `width` long by NaN."""
    if x.shape[-1] == width:
        return x
    edges = [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])]
    return np.pad(x, edges, constant_values=np.nan)


@contextmanager
def _single_threaded_pool(n_threads: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads whose torch calls use one core each.

    `torch.set_num_threads` in a worker also sets MKL's process-wide count, which is therefore
    restored from the calling thread.
    """
    before = torch.get_num_threads()
    workers = n_threads or min(before, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _check(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor | None, head_output: Tensor | None
) -> None:
    shapes = [tuple(x.shape) for x in (query, key, value)]
    fits = (
        query.ndim == key.ndim == value.ndim == 3
        and key.shape[:2] == value.shape[:2]
        and key.shape[1:] == query.shape[1:]
        and query.shape[0] % key.shape[0] == 0
        and query.shape[1] > 0
    )
    if not fits:
        raise UsageError(
            "expected query (H, n, d), key (Hk, n, d), value (Hk, n, e) of the valid tokens of "
            f"one window, Hk dividing H, found {shapes}"
        )
    if output is not None and (output.ndim != 2 or output.shape[0] != query.shape[1]):
        raise UsageError(f"expected output ({query.shape[1]}, D), found {tuple(output.shape)}")
    if head_output is not None and head_output.shape[:2] != query.shape[:2]:
        raise UsageError(
            f"expected head_output {tuple(query.shape)}, found {tuple(head_output.shape)}"
        )
