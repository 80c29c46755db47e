"""How far an implementation may be from the oracle: about as far as plain float32 arithmetic is.

The bound of a statistic is derived from the input itself, as the sum of
- twice the largest error that the oracle's formulas make when they are evaluated in float32,
- what the statistic changes by when every threshold moves by the relative error that float32
  leaves in the weights: a weight next to a threshold may fall to either side,
- a rounding band, for inputs whose float32 errors happen to cancel.
Half-precision inputs are taken as they are: rounding by the model is not the kernel's error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bertgeom.kernels.attention_stats import reference
from bertgeom.kernels.attention_stats.bias import Bias
from bertgeom.kernels.attention_stats.options import SLACK, Options

_EPSILON = 2.0**-23
#: The rounding band in units of epsilon.
_BAND = 16
_COUNTS = ("attention_k90_median", "attention_k90_min")


@dataclass(frozen=True)
class Bounds:
    """The results that an implementation may return.

    Attributes:
        output: (B, H, N, d) float64.
        output_error: largest allowed difference, rounding to the output's dtype not included.
        low, high: by name, the values' bounds in float64, NaN where a value is missing.
    """

    output: Tensor
    output_error: float
    low: dict[str, Tensor]
    high: dict[str, Tensor]


def bounds(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    special: Tensor | None,
    groups: Tensor | None,
    options: Options,
    bias: Bias | None = None,
) -> Bounds:
    """The bounds for one input; arguments as those of `reference.run`."""

    def oracle(slack: float, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
        return reference.run(
            q, k, v, lengths, special, groups, options, bias, slack=slack, dtype=dtype
        )

    output, exact = oracle(SLACK, torch.float64)
    plain_output, plain = oracle(SLACK, torch.float32)
    relative = _weight_error(query, key, lengths, options, bias)
    shifted = [oracle(SLACK + by * relative, torch.float64)[1] for by in (-2, 2)]
    low, high = {}, {}
    for name, x in exact.items():
        variants = torch.stack([x.double(), *(values[name].double() for values in shifted)])
        least, most = variants.amin(0), variants.amax(0)
        if name not in _COUNTS and name != "gate":
            error = 2 * _largest(plain[name].double() - x)
            unit = lengths.double() if name in ("attention_distance", "attention_offset") else 1.0
            band = _BAND * _EPSILON * torch.maximum(x.abs(), _over_heads(unit, x))
            least, most = least - error - band, most + error + band
        low[name], high[name] = least, most
    error = 2 * _largest(plain_output.double() - output)
    error += _BAND * _EPSILON * _largest(value.double())
    return Bounds(output, error, low, high)


def disagreements(bound: Bounds, output: Tensor, values: Mapping[str, Tensor]) -> list[str]:
    """One line for everything outside the bounds; none where an implementation agrees."""
    lines = []
    rounding = torch.finfo(output.dtype).eps * bound.output.abs()
    off = (output.double() - bound.output).abs() - rounding
    if not bool((off <= bound.output_error).all()):
        lines.append(f"output: off by {float(off.max()):.2e}, allowed {bound.output_error:.2e}")
    if set(values) != set(bound.low):
        lines.append(f"names: {sorted(set(values) ^ set(bound.low))} on one side only")
    for name in sorted(set(values) & set(bound.low)):
        if name == "gate":
            lines += _gate_disagreements(values["gate_mass"], values["gate"])
            continue
        found, low, high = values[name].double(), bound.low[name], bound.high[name]
        if found.shape != low.shape:
            lines.append(f"{name}: shape {tuple(found.shape)}, expected {tuple(low.shape)}")
        elif not bool((found.isnan() == low.isnan()).all()):
            lines.append(f"{name}: missing values in the wrong places")
        else:
            excess = torch.maximum(low - found, found - high).nan_to_num(0.0)
            if bool((excess > 0).any()):
                at = int(excess.argmax())
                where = [int(i) for i in torch.unravel_index(torch.tensor(at), found.shape)]
                lines.append(
                    f"{name}{where}: found {float(found.flatten()[at]):.9g}, expected "
                    f"{float(low.flatten()[at]):.9g} to {float(high.flatten()[at]):.9g}"
                )
    return lines


def _weight_error(
    query: Tensor, key: Tensor, lengths: Tensor, options: Options, bias: Bias | None
) -> float:
    """Largest relative error of a float32 weight that matters to a threshold."""
    repeat = query.shape[1] // key.shape[1]
    worst = _EPSILON
    for b in range(query.shape[0]):
        n = int(lengths[b])
        q, k = query[b, :, :n], key[b, :, :n].repeat_interleave(repeat, dim=0)
        exact, plain = (
            reference.attention_weights(
                q.to(dtype),
                k.to(dtype),
                options,
                None if bias is None else reference.bias_cells(bias, b, n, q.to(dtype)),
            )
            for dtype in (torch.float64, torch.float32)
        )
        worst = max(worst, _largest((plain - exact) / exact.clamp(min=1e-3)))
    return worst


def _gate_disagreements(mass: Tensor, gate: Tensor) -> list[str]:
    """The code must be that of the masses found, except where two of them are about equal."""
    expected = reference.dominant_gate(mass.double())
    sorted_mass = mass.double().sort(-1, descending=True).values
    clear = sorted_mass[..., 0] - sorted_mass[..., 1] > 1e-6
    clear &= (sorted_mass[..., 0] - 0.5).abs() > 1e-5
    wrong = (gate != expected) & (clear | mass.isnan().any(-1))
    return [f"gate: {int(wrong.sum())} codes are not those of the masses"] if wrong.any() else []


def _over_heads(unit: Tensor | float, x: Tensor) -> Tensor:
    if isinstance(unit, float):
        return torch.full_like(x, unit)
    return unit.view(-1, *([1] * (x.dim() - 1))).expand_as(x)


def _largest(x: Tensor) -> float:
    x = x[~x.isnan()].abs()
    return float(x.max()) if x.numel() else 0.0
