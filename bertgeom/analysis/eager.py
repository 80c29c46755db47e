"""A model as it is measured against its own eager attention in float64.

Every window runs alone through the exact model, and in one padded batch through the measured one:
what differs is rounding, unless something is wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bertgeom.analysis.spectra import attention_map
from bertgeom.model.architectures import architecture_of_config
from bertgeom.model.attention import record
from bertgeom.model.capture import capture_window
from bertgeom.model.observed import observed
from bertgeom.model.probe import difference

if TYPE_CHECKING:
    from bertgeom.model.encoder import Encoder


@dataclass(frozen=True)
class EagerDifferences:
    """Largest differences over some windows.

    Attributes:
        output: of the model's output, a share of the largest number.
        hidden_states: of all of them, each a share of its largest number; None where the model
            returns none.
        stations: of the largest norm of every hidden state, as recorded; None likewise.
        attention: of single weights; None where the model returns no maps.
    """

    output: float
    hidden_states: float | None
    stations: float | None
    attention: float | None


def compare_with_eager(encoder: Encoder, windows: Sequence[np.ndarray]) -> EagerDifferences:
    """Compare outputs, hidden states, stations and attention maps.

    The maps of all heads of one window are in memory: 8 H L n^2 bytes for n tokens.

    Args:
        encoder: from `bertgeom.load_encoder`.
        windows: token ids (n,) of each window, special ones included.

    Raises:
        ModelError: if the model cannot be observed.

    Example:
        >>> import bertgeom
        >>> import numpy as np
        >>> from bertgeom.analysis.eager import compare_with_eager
        >>> encoder = bertgeom.load_encoder("model", device="cpu")
        >>> found = compare_with_eager(encoder, [np.arange(5, 15)])
        >>> found.output < 1e-4 and found.attention < 1e-4
        True
    """
    exact = observed(copy.deepcopy(encoder.model).double(), "eager")
    measured, norms = _measured(encoder, windows)
    architecture = architecture_of_config(exact.config)
    found: list[dict[str, float]] = []
    for b, ids in enumerate(windows):
        inputs = _inputs(encoder, [ids])
        with torch.inference_mode():
            plain = exact(
                **inputs, output_hidden_states=True, output_attentions=True, return_dict=True
            )
        here = {"output": _row_difference(measured[0], plain[0], b)}
        states, own = (
            getattr(plain, "hidden_states", None),
            getattr(measured, "hidden_states", None),
        )
        if states is not None and own is not None:
            pairs = zip(own, states, strict=True)
            here["hidden_states"] = max(_row_difference(x, y, b) for x, y in pairs)
            # transformers normalises the last one where the architecture has a final norm.
            whole = architecture is not None and not architecture.final_norm
            here["stations"] = _station_difference(norms[b], states if whole else states[:-1])
        maps = getattr(plain, "attentions", None)
        if maps and all(a is not None for a in maps):
            here["attention"] = _map_difference(encoder, ids, maps)
        found.append(here)

    def widest(name: str) -> float | None:
        return max(h[name] for h in found) if all(name in h for h in found) else None

    return EagerDifferences(
        max(h["output"] for h in found),
        widest("hidden_states"),
        widest("stations"),
        widest("attention"),
    )


def _inputs(encoder: Encoder, windows: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Windows as one batch, padded on the right."""
    longest = max(len(ids) for ids in windows)
    ids = np.full((len(windows), longest), encoder.tokenizer.pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for b, window in enumerate(windows):
        ids[b, : len(window)], mask[b, : len(window)] = window, 1
    return {
        "input_ids": torch.from_numpy(ids).to(encoder.device),
        "attention_mask": torch.from_numpy(mask).to(encoder.device),
    }


def _measured(encoder: Encoder, windows: Sequence[np.ndarray]) -> tuple[Any, np.ndarray]:
    """The output of a recorded forward pass, and the largest norm of every station."""
    with (
        torch.inference_mode(),
        record(tier="core", impl=encoder.attention_impl, padded_rows=True) as recorder,
    ):
        output = encoder.model(
            **_inputs(encoder, windows), output_hidden_states=True, return_dict=True
        )
    return output, recorder.arrays()["stream_norm_max"]


def _row_difference(found: Tensor, plain: Tensor, b: int) -> float:
    """Of one window: of its tokens, or of its one row of numbers."""
    row = found[b]
    if plain.ndim == 3 and row.ndim == 2:
        row = row[: plain.shape[1]]
    return difference(row, plain[0])


def _station_difference(norms: np.ndarray, states: Sequence[Tensor]) -> float:
    plain = torch.stack([state[0].norm(dim=-1).amax() for state in states]).cpu()
    found = torch.from_numpy(norms[: 2 * len(states) : 2].astype(np.float64))
    return float(((found - plain).abs() / plain.clamp(min=1e-300)).nan_to_num(torch.inf).max())


def _map_difference(encoder: Encoder, ids: np.ndarray, maps: Sequence[Tensor]) -> float:
    """Of the weights that follow from the captured queries, keys and biases."""
    largest = 0.0
    for call, exact in zip(capture_window(encoder, ids).calls, maps, strict=True):
        group = call.query.shape[1] // call.key.shape[1]
        for head in range(call.query.shape[1]):
            query, key = call.query[0, head].double(), call.key[0, head // group].double()
            found = attention_map(query, key, call.scale, call.window, call.bias, head)
            gap = (found - exact[0, head].double()).abs().nan_to_num(torch.inf).max()
            largest = max(largest, float(gap))
    return largest
