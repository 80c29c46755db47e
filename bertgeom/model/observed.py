"""A view of a model with the attention of this project; the model itself is not changed.

`observed(model)` shares every weight and buffer with the model and has modules and
configurations of its own. One model can therefore be measured from several threads, and keeps its
attention implementation, its mode and its buffers.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from bertgeom.errors import ModelError
from bertgeom.model.masks import NAME

#: Containers that every copy of a module gets for itself; what they hold is shared.
_OWN = ("_parameters", "_buffers", "_non_persistent_buffers_set")


def observed(model: Any, implementation: str = NAME) -> Any:
    """The model in eval mode with another attention implementation, sharing all tensors.

    Raises:
        ModelError: if it is not a torch module.
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected a transformers model, found {type(model).__name__}; load one with "
            "AutoModel.from_pretrained"
        )
    return _module(model, {}, implementation)


def _module(module: nn.Module, seen: dict[int, Any], implementation: str) -> Any:
    if id(module) in seen:
        return seen[id(module)]
    own = object.__new__(type(module))
    seen[id(module)] = own
    state = dict(module.__dict__)
    for name in _OWN:
        if name in state:
            state[name] = state[name].copy()
    state["_modules"] = {
        name: None if child is None else _module(child, seen, implementation)
        for name, child in module._modules.items()
    }
    for name, value in state.items():
        if isinstance(value, PreTrainedConfig):
            state[name] = _config(value, seen, implementation)
    state["training"] = False
    own.__dict__.update(state)
    return own


def _config(config: Any, seen: dict[int, Any], implementation: str) -> Any:
    if id(config) in seen:
        return seen[id(config)]
    own = object.__new__(type(config))
    seen[id(config)] = own
    for name, value in vars(config).items():
        inner = (
            _config(value, seen, implementation) if isinstance(value, PreTrainedConfig) else value
        )
        own.__dict__[name] = inner
    own.__dict__["_attn_implementation_internal"] = implementation
    return own
