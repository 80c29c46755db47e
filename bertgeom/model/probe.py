"""Whether a model can be observed: two short windows, with and without recording."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bertgeom.errors import BertgeomError, ModelError, UsageError
from bertgeom.kernels import ImplementationUnavailableError
from bertgeom.model.architectures import architecture_of_config, refuse_by_name
from bertgeom.model.attention import record
from bertgeom.model.discovery import check_declaration
from bertgeom.model.loading import vocabulary_size
from bertgeom.model.observed import observed

#: Tokens of the longer window; the other one is half as long.
_TOKENS = 24
#: Allowed differences, as a share of the largest number, by size of the dtype in bytes.
_TOLERANCE = {4: 1e-3, 2: 5e-2}


def probe(model: Any, *, pad_id: int, max_tokens: int, impl: str = "auto") -> None:
    """Check the declaration, and compare a recorded forward pass with the model's own attention.

    Args:
        model: a transformers encoder in eval mode, loaded with `attn_implementation="bertgeom"`.
        pad_id: token id at padding.
        max_tokens: maximum tokens of a window. impl: of the kernels.

    Raises:
        ModelError: if the architecture is not declared or cannot be observed, if a recorded
            output differs from the plain one, if a station is not a hidden state, or if an output
            is not finite.
    """
    name = type(model).__name__
    refuse_by_name(model.config)
    inputs = _windows(model, pad_id, min(_TOKENS, max_tokens))
    options = {"output_hidden_states": True, "return_dict": True}
    try:
        check_declaration(model, inputs)
        with torch.inference_mode(), record(tier="core", impl=impl) as recorder:
            found = model(**inputs, **options)
        with torch.inference_mode():
            plain = observed(model, "eager")(**inputs, **options)
        arrays = recorder.arrays()
    except ImplementationUnavailableError as error:
        raise UsageError(f"--impl {impl}: {error}") from error
    except BertgeomError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"expected {name} to take token ids and an attention mask, found: {reason}; it cannot "
            "be observed"
        ) from error
    valid = inputs["attention_mask"].bool()
    _compare_outputs(name, found[0], plain[0], valid)
    _compare_stations(
        model, arrays["stream_norm_max"], getattr(plain, "hidden_states", None), valid
    )


def _windows(model: Any, pad_id: int, n: int) -> dict[str, Tensor]:
    """Two windows of arbitrary tokens without padding ids, the second half as long as the first."""
    top, device = vocabulary_size(model), model.device
    ids = (torch.arange(2 * n).reshape(2, n) * 7919 + 11) % top
    ids[ids == pad_id] = (pad_id + 1) % top
    mask = torch.ones_like(ids)
    mask[1, max(n // 2, 1) :] = 0
    ids[mask == 0] = pad_id
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _compare_outputs(name: str, found: Tensor, plain: Tensor, valid: Tensor) -> None:
    if found.shape[:2] == valid.shape:
        found, plain = found[valid], plain[valid]
    if not bool(torch.isfinite(plain).all()):
        # Half precision may overflow: a run computes such windows again in float32.
        if plain.element_size() < 4:
            return
        raise ModelError(
            f"expected finite outputs of {name}, found NaN or infinity; the weights are damaged"
        )
    _close(found, plain, f"expected the output of {name} unchanged by recording")


def _compare_stations(model: Any, norms: Any, states: Any, valid: Tensor) -> None:
    """Check that the stations between the layers are hidden states.

    transformers normalises the last one where the architecture has a final norm.
    """
    architecture = architecture_of_config(model.config)
    n_layers = (norms.shape[1] - 1) // 2
    if states is None or len(states) != n_layers + 1:
        return
    whole = architecture is not None and not architecture.final_norm
    for i, state in enumerate(states if whole else states[:-1]):
        size = state.float().norm(dim=-1).masked_fill(~valid, 0).amax(1).cpu()
        station = torch.from_numpy(norms[:, 2 * i]).float()
        if bool(torch.isfinite(size).all()):
            _close(
                station.to(state.dtype),
                size.to(state.dtype),
                f"expected the stream between the layers of {type(model).__name__} to be hidden "
                f"state {i}",
            )


def difference(found: Tensor, plain: Tensor) -> float:
    """Largest difference of two tensors as a share of the largest number of the second one.

    Infinite where a number is none.

    Example:
        >>> import torch
        >>> from bertgeom.model.probe import difference
        >>> difference(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 4.0]))
        0.25
    """
    scale = float(plain.double().abs().max()) or 1.0
    widest = float((found.double() - plain.double()).abs().max()) / scale
    return widest if math.isfinite(widest) else math.inf


def _close(found: Tensor, plain: Tensor, expected: str) -> None:
    widest = difference(found, plain)
    if widest > _TOLERANCE[min(plain.element_size(), 4)]:
        raise ModelError(
            f"{expected}, found a difference of {widest:.1e} of the largest number; this "
            "architecture is not supported"
        )
