"""Statistics of the projection weights of a head, which depend on no input.

Everything is float64 and goes through d x d companions of the D x D form W = W_q^T W_k
(rank d), with the thin factorisations W_q^T = O_q R_q and W_k^T = O_k R_k:

    singular values of W      those of R_q R_k^T                     d x d
    eigenvalues of W          those of W_k W_q^T (and D - d zeros)   d x d
    row i, column j norm      column norms of R_k W_q and R_q W_k    d x D
    symmetric part of W       R [0 I; I 0] R^T / 2, [W_q^T W_k^T] = O R    2d x 2d

Definitions: `docs/statistics.md` section 5 and `docs/catalogue.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bertgeom import variables
from bertgeom.analysis.spectra import (
    effective_rank,
    numerical_rank,
    ratio,
    symmetric_product_eigenvalues,
)
from bertgeom.errors import ModelError

if TYPE_CHECKING:
    import xarray

#: Rows and columns of W are outliers beyond this many standard deviations of their norms.
OUTLIER_STD = 2.0

_SEPARATE = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
)
_FUSED = "Wqkv"
_NOT_SELF = ("crossattention", "cross_attn", "encoder_attn", "decoder.")
_N_HEADS = ("num_attention_heads", "n_heads", "num_heads")


@dataclass(frozen=True)
class HeadProjections:
    """The projections of one layer, per head: q = W_q x + b_q for an input x (D,).

    Attributes:
        name: path of the attention module in the model.
        query, key, value: (H, d, D) float64; grouped key and value heads are repeated.
        query_bias, key_bias, value_bias: (H, d) float64, zero where the layer has none.
    """

    name: str
    query: Tensor
    key: Tensor
    value: Tensor
    query_bias: Tensor
    key_bias: Tensor
    value_bias: Tensor


def head_projections(model: nn.Module) -> list[HeadProjections]:
    """The query, key and value projections of every attention call, in order of execution.

    Reads `nn.Linear` weights in their shape (out, in). Layers that share their weights
    (ALBERT) give the same object several times. All architectures of the table, and models that
    name their projections alike.

    Args:
        model: a transformers encoder, with or without a head.

    Raises:
        ModelError: if no self-attention with known projections is found, or if a projection
            is not an `nn.Linear` of floating-point weights.

    Example:
        >>> from bertgeom.analysis.weights import head_projections
        >>> from bertgeom.testing import tiny_model
        >>> [tuple(layer.query.shape) for layer in head_projections(tiny_model("bert"))]
        [(2, 16, 32), (2, 16, 32)]
    """
    found = [_read(name, module, model) for name, module in _attention_modules(model)]
    if not found:
        raise ModelError(
            "expected self-attention modules with the projections "
            f"{', '.join('/'.join(n) for n in _SEPARATE)} or {_FUSED}, found none in "
            f"{type(model).__name__}"
        )
    return [found[i] for i in _execution_order(model, len(found))]


def weight_statistics(model: nn.Module) -> xarray.Dataset:
    """Statistics of the weights of every layer and head (statistics.md, section 5).

    Args:
        model: a transformers encoder; its weights may be in any floating-point type.

    Returns:
        Dataset with the arrays of `bertgeom.variables.WEIGHT_VARIABLES`, float64 and int32,
        with dimensions layer, head, component (d) and projection (query, key, value).

    Raises:
        ModelError: see `head_projections`.

    Example:
        >>> from bertgeom.analysis.weights import weight_statistics
        >>> from bertgeom.testing import tiny_model
        >>> weight_statistics(tiny_model("bert")).weight_symmetry.dims
        ('layer', 'head')
    """
    import xarray

    layers = head_projections(model)
    by_layer = {id(layer): layer_weight_statistics(layer) for layer in layers}
    arrays = {
        variable.name: np.stack([by_layer[id(layer)][variable.name] for layer in layers])
        for variable in variables.WEIGHT_VARIABLES
    }
    return xarray.Dataset(
        {
            v.name: (
                v.dims,
                arrays[v.name].astype(v.dtype),
                {"units": v.unit, "description": v.description, "source": v.source},
            )
            for v in variables.WEIGHT_VARIABLES
        },
        coords={
            "layer": np.arange(len(layers)),
            "head": np.arange(layers[0].query.shape[0]),
            "projection": ["query", "key", "value"],
        },
    )


def layer_weight_statistics(layer: HeadProjections) -> dict[str, np.ndarray]:
    """Statistics of one layer by name, head first; see `weight_statistics`."""
    query, key = layer.query, layer.key
    hidden = query.shape[-1]
    query_basis, query_factor = torch.linalg.qr(query.mT)
    key_basis, key_factor = torch.linalg.qr(key.mT)
    companion = key @ query.mT
    singular = torch.linalg.svdvals(query_factor @ key_factor.mT)
    squared_norm = singular.square().sum(-1)
    trace_of_square = (companion @ companion).diagonal(dim1=-2, dim2=-1).sum(-1)
    out = {
        "weight_symmetry": ratio(trace_of_square, squared_norm),
        "weight_subspace_cosines": _principal_cosines(
            (query_basis, query_factor), (key_basis, key_factor), hidden
        ),
        "weight_symmetric_positive_share": _positive_share(
            symmetric_product_eigenvalues(query.mT, key.mT)
        ),
        "weight_singular_values": singular,
        "weight_rank": _rank(singular, hidden),
        "weight_effective_rank": effective_rank(singular),
    }
    out |= _directionality(
        rows=torch.linalg.vector_norm(key_factor @ query, dim=-2),
        columns=torch.linalg.vector_norm(query_factor @ key, dim=-2),
    )
    out |= _eigenvalue_signs(torch.linalg.eigvals(companion), hidden)
    out |= _projection_statistics(layer)
    return {name: value.numpy() for name, value in out.items()}


def _attention_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if any(part in f"{name}." for part in _NOT_SELF):
            continue
        children = module._modules
        if _FUSED in children or any(all(n in children for n in names) for names in _SEPARATE):
            yield name, module


def _execution_order(model: nn.Module, n_modules: int) -> list[int]:
    """Index of the module of every attention call; ALBERT runs its groups repeatedly."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", "") != "albert":
        return list(range(n_modules))
    groups, inner = config.num_hidden_groups, config.inner_group_num
    per_group = config.num_hidden_layers / groups
    return [
        int(layer / per_group) * inner + i
        for layer in range(config.num_hidden_layers)
        for i in range(inner)
    ]


def _read(name: str, module: nn.Module, model: nn.Module) -> HeadProjections:
    heads = _count_heads(module, model, name)
    if _FUSED in module._modules:
        weight, bias = _linear(module, _FUSED, name)
        weights, biases = list(weight.chunk(3)), list(bias.chunk(3))
    else:
        names = next(n for n in _SEPARATE if all(x in module._modules for x in n))
        pairs = [_linear(module, n, name) for n in names]
        weights, biases = [w for w, _ in pairs], [b for _, b in pairs]
    d = weights[0].shape[0] // heads
    if any(w.shape[0] % d for w in weights):
        raise ModelError(
            f"expected projections of a multiple of {d} rows in {name}, found "
            f"{[tuple(w.shape) for w in weights]}"
        )
    split = [_repeat(w.reshape(-1, d, w.shape[1]), heads) for w in weights]
    split += [_repeat(b.reshape(-1, d), heads) for b in biases]
    return HeadProjections(name, *split)


def _count_heads(module: nn.Module, model: nn.Module, name: str) -> int:
    for owner in (module, getattr(model, "config", None)):
        for attribute in _N_HEADS:
            value = getattr(owner, attribute, None)
            if isinstance(value, int):
                return value
    raise ModelError(f"expected {name} or the model's config to tell the number of heads")


def _linear(module: nn.Module, child: str, name: str) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) in float64."""
    linear = getattr(module, child)
    weight = getattr(linear, "weight", None)
    if not isinstance(linear, nn.Linear) or weight is None or not weight.is_floating_point():
        raise ModelError(
            f"expected a floating-point nn.Linear at {name}.{child}, found "
            f"{type(linear).__name__}; load the model without quantisation"
        )
    weight = weight.detach().to("cpu", torch.float64)
    if linear.bias is None:
        return weight, weight.new_zeros(weight.shape[0])
    return weight, linear.bias.detach().to("cpu", torch.float64)


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[0] == heads else x.repeat_interleave(heads // x.shape[0], dim=0)


def _principal_cosines(
    query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor], hidden: int
) -> Tensor:
    """Cosines of the principal angles between the row spaces of W_q and W_k, descending.

    Both (basis, factor) pairs come from thin QR. Directions beyond the numerical rank are
    left out; the cosines that then do not exist are NaN.
    """
    heads, d = query[0].shape[0], query[0].shape[-1]
    cosines = query[0].new_full((heads, d), float("nan"))
    for head in range(heads):
        left, right = (_orthonormal(q[head], r[head], hidden) for q, r in (query, key))
        if left.shape[1] and right.shape[1]:
            values = torch.linalg.svdvals(left.mT @ right).clamp(max=1.0)
            cosines[head, : len(values)] = values
    return cosines


def _orthonormal(basis: Tensor, factor: Tensor, hidden: int) -> Tensor:
    """Orthonormal basis (D, rank) of the range of basis @ factor."""
    left: Tensor
    left, singular, _ = torch.linalg.svd(factor)
    return (basis @ left).narrow(1, 0, int(_rank(singular, hidden)))


def _directionality(rows: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """Column against row dominance of outlier norms, in [-1, 1]; 0 without outliers."""
    out: dict[str, Tensor] = {}
    totals = {}
    for side, norms in (("rows", rows), ("columns", columns)):
        std = norms.std(dim=-1, correction=0, keepdim=True)
        threshold = norms.mean(dim=-1, keepdim=True) + OUTLIER_STD * std
        outlier = norms > threshold
        totals[side] = (
            torch.where(outlier, norms, 0.0).sum(-1),
            torch.where(outlier, norms - threshold, 0.0).sum(-1),
        )
    for i, name in enumerate(("weight_directionality", "weight_directionality_excess")):
        column, row = totals["columns"][i], totals["rows"][i]
        out[name] = ratio(column - row, column + row)
    return out


def _eigenvalue_signs(eigenvalues: Tensor, hidden: int) -> dict[str, Tensor]:
    size = eigenvalues.abs()
    tolerance = hidden * torch.finfo(torch.float64).eps * size.amax(-1, keepdim=True)
    return {
        "weight_eigen_positive": (eigenvalues.real > tolerance).sum(-1),
        "weight_eigen_negative": (eigenvalues.real < -tolerance).sum(-1),
        "weight_eigen_complex": (eigenvalues.imag.abs() > tolerance).sum(-1),
    }


def _projection_statistics(layer: HeadProjections) -> dict[str, Tensor]:
    weights = torch.stack([layer.query, layer.key, layer.value], dim=1)
    biases = torch.stack([layer.query_bias, layer.key_bias, layer.value_bias], dim=1)
    singular = torch.linalg.svdvals(weights)
    return {
        "projection_singular_values": singular,
        "projection_rank": _rank(singular, weights.shape[-1]),
        "projection_effective_rank": effective_rank(singular),
        "projection_bias_norm": torch.linalg.vector_norm(biases, dim=-1),
    }


def _rank(singular: Tensor, size: int) -> Tensor:
    return numerical_rank(singular, size, torch.finfo(torch.float64).eps)


def _positive_share(eigenvalues: Tensor) -> Tensor:
    return ratio(eigenvalues.clamp(min=0).sum(-1), eigenvalues.abs().sum(-1))
