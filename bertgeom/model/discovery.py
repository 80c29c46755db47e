"""Check the declaration of an architecture on a dummy batch, or find out what it would be.

Both rest on two facts that hold in every layer, whatever it is called. With an attention that
returns zeros, the norm after the attention receives the layer's input plus one vector, the same
for all tokens (the bias of the output projection). If that norm returns zeros too, so that
the feed-forward network adds one vector to all tokens, the layer returns

    what the norm received, plus one vector      pre-norm: the stream passes the norm by
    one vector                                   post-norm: the stream goes through the norm
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bertgeom.errors import ModelError
from bertgeom.model.architectures import Architecture, architecture_of
from bertgeom.model.recorder import active

#: Allowed differences, as a share of the largest number, by size of the dtype in bytes.
_TOLERANCE = {8: 1e-4, 4: 1e-3, 2: 5e-2}


@dataclass
class _Silence:
    """In place of a recorder: attention returns zeros, and who called it is noted."""

    open_modules: list[nn.Module] = field(default_factory=list)
    #: For each attention call the modules it happened in, outermost first.
    calls: list[tuple[nn.Module, ...]] = field(default_factory=list)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        self.calls.append((*self.open_modules,))
        return query.new_zeros(*query.shape[:-1], value.shape[-1])


@dataclass
class _Seen:
    """What one layer and a norm in it received and returned; None: the norm was not called."""

    x: Tensor
    received: Tensor | None = None
    n_calls: int = 0
    output: Tensor | None = None


@contextmanager
def _silent() -> Iterator[_Silence]:
    silence = _Silence()
    token = active.set(silence)
    try:
        with torch.no_grad():
            yield silence
    finally:
        active.reset(token)


def check_declaration(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Check on a batch that the stream is where the declaration of the layers says.

    Args:
        model: a transformers encoder in eval mode, loaded with `attn_implementation="bertgeom"`.
        inputs: what it is called with; the attention mask, if there is one, hides padding.

    Raises:
        ModelError: if the layers belong to no declaration, with the one that would do; or if a
            norm is not where, or not of the kind that, the declaration says.
    """
    layers = [(m, a) for m in model.modules() if (a := architecture_of(m)) is not None]
    if not layers:
        found = propose(model, inputs)
        if found is not None:
            raise ModelError(_undeclared(model, found))
        return
    name, architecture = type(model).__name__, layers[0][1]
    if not architecture.padding:
        raise ModelError(
            f"expected an architecture whose windows may be padded, found {name}: "
            f"{architecture.note}; measure windows of one length with bertgeom.measure"
        )
    norms = [(layer, a.find(layer)) for layer, a in layers]
    seen = _silent_forward(model, inputs, {m: s.module for m, s in norms if s is not None})
    valid = _valid(inputs)
    for layer, declared in layers:
        # What is not finite is judged by its output: half precision may overflow.
        if layer not in seen or not _is_finite(seen[layer], valid):
            continue
        if _kind(seen[layer], valid) is not declared.pre_norm:
            raise ModelError(
                f"expected the stream after the attention of {type(layer).__name__} to be the "
                f"{declared.station}, as the architecture {declared.name} declares, found that it "
                f"is not; {name} is of another architecture"
            )


def propose(model: nn.Module, inputs: Mapping[str, Tensor]) -> Architecture | None:
    """The declaration that fits the first layer of a model, None if none does.

    Args: as for `check_declaration`.
    """
    calls = _attention_calls(model, inputs)
    if not calls:
        return None
    valid = _valid(inputs)
    stacked = {m for group in model.modules() if isinstance(group, nn.ModuleList) for m in group}
    for layer in calls[0]:
        if layer not in stacked or sum(layer in call for call in calls) != 1:
            continue
        for path, norm in layer.named_modules():
            if norm._modules or "norm" not in type(norm).__name__.lower():
                continue
            seen = _silent_forward(model, inputs, {layer: norm}).get(layer)
            pre_norm = None if seen is None else _kind(seen, valid)
            if pre_norm is not None:
                return Architecture(
                    name=type(model).__name__,
                    layers=(type(layer).__name__,),
                    norm=path,
                    pre_norm=pre_norm,
                )
    return None


def _undeclared(model: nn.Module, found: Architecture) -> str:
    return (
        f"expected an architecture that is declared, found {type(model).__name__}, whose layers "
        f"{found.layers[0]} no declaration names; two windows say that "
        f"bertgeom.register_architecture(Architecture({found.name!r}, layers={found.layers!r}, "
        f"norm={found.norm!r}, pre_norm={found.pre_norm})) would do"
    )


def _attention_calls(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[tuple[nn.Module, ...]]:
    """For each attention call of a forward pass, the modules it happened in."""
    with _silent() as silence:

        def enter(module: nn.Module, *_: Any) -> None:
            silence.open_modules.append(module)

        def leave(module: nn.Module, *_: Any) -> None:
            silence.open_modules.pop()

        handles: list[Any] = []
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, always_call=True))
        _run(model, inputs, handles)
    return silence.calls


def _silent_forward(
    model: nn.Module, inputs: Mapping[str, Tensor], norms: Mapping[nn.Module, nn.Module]
) -> dict[nn.Module, _Seen]:
    """What each of these layers and its norm saw, without attention and with norms that are zero.

    Every layer returns its input, so that the next one sees the embeddings again.
    """
    seen: dict[nn.Module, _Seen] = {}
    handles: list[Any] = []
    for layer, norm in norms.items():
        handles += _watch(layer, norm, seen)
    with _silent() as silence:
        _run(model, inputs, handles)
    # Without a call the attention does not use the interface: the recorder says so.
    return seen if silence.calls else {}


def _watch(layer: nn.Module, norm: nn.Module, seen: dict[nn.Module, _Seen]) -> list[Any]:
    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(x, Tensor) and x.ndim == 3:
            seen[layer] = _Seen(x)

    def receive(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        here = seen.get(layer)
        if here is None or here.output is not None or not args:
            return None
        here.received, here.n_calls = args[0], here.n_calls + 1
        return torch.zeros_like(output)

    def leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        here = seen.get(layer)
        if here is None:
            return None
        here.output = output[0] if isinstance(output, tuple) else output
        return (here.x, *output[1:]) if isinstance(output, tuple) else here.x

    return [
        layer.register_forward_pre_hook(enter, with_kwargs=True),
        norm.register_forward_hook(receive),
        layer.register_forward_hook(leave),
    ]


def _run(model: Callable[..., Any], inputs: Mapping[str, Tensor], handles: list[Any]) -> None:
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()


def _valid(inputs: Mapping[str, Tensor]) -> Tensor:
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]).bool() if mask is None else mask.bool()


def _kind(seen: _Seen, valid: Tensor) -> bool | None:
    """True: pre-norm, False: post-norm, None: the norm does not follow the attention."""
    x, received, output = seen.x, seen.received, seen.output
    if seen.n_calls != 1 or received is None or not isinstance(output, Tensor):
        return None
    if not x.shape == received.shape == output.shape or _one_vector(x, x, valid):
        return None
    if not _one_vector(received - x, x, valid):
        return None
    if _one_vector(output, x, valid):
        return False
    return True if _one_vector(output - received, x, valid) else None


def _is_finite(seen: _Seen, valid: Tensor) -> bool:
    vectors = (seen.x, seen.received, seen.output)
    return all(
        bool(torch.isfinite(v[valid]).all())
        for v in vectors
        if isinstance(v, Tensor) and v.shape[:2] == valid.shape
    )


def _one_vector(difference: Tensor, x: Tensor, valid: Tensor) -> bool:
    """Whether all valid tokens have the same vector, by the rounding of numbers as large as x."""
    rows = difference[valid].float()
    scale = max(float(x[valid].float().abs().max()), float(rows.abs().max()))
    spread = float((rows - rows[:1]).abs().max())
    return spread <= _TOLERANCE[min(x.element_size(), 8)] * scale
