"""The recorder: statistics of the forward passes run inside `record()`.

Every attention call goes through `bertgeom.kernels.attention_stats`, which returns the same
output and the statistics, and forward hooks collect the stations of the residual stream:

    embedding --> [attention block] --> attention --> [feed-forward] --> output --> next layer
    station 0                           station 1+2l                     station 2+2l

A forward pass begins where a transformers model is called, or, if only its `forward` is (as by
`SentenceTransformer`), where a layer gets something other than the previous layer's output.
Anything unsupported raises an error before the model returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bertgeom import kernels, variables
from bertgeom.config import MeasureSettings
from bertgeom.errors import ModelError, UsageError
from bertgeom.kernels.attention_stats.bias import Bias
from bertgeom.model.architectures import Station, station_of
from bertgeom.model.fetch import Fetch
from bertgeom.model.masks import NAME, fill_padding, has_gaps
from bertgeom.store.dataset import as_dataset

#: Bytes, as float32, of stations on the CPU that are collected before they are measured: many
#: windows at once keep every thread busy. Models do not overwrite them meanwhile, because the
#: backward pass of what follows a station needs its input.
WAITING = 64 << 20
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


#: Statistics stored as integers; all others are float32.
_INTEGERS = {
    name: np.dtype(v.dtype)
    for name, v in variables.VARIABLES.items()
    if np.dtype(v.dtype if v.dtype != "string" else "O").kind in "iu"
}


@dataclass
class _Layer:
    """A layer that is being executed."""

    module: nn.Module
    station: Station
    width: int
    n_calls: int = 0
    n_read: int = 0


@dataclass
class _Forward:
    """Results of one forward pass so far; tensors stay on the model's device."""

    #: Class of the model, or of its first layer where only `forward` was called.
    name: str
    layers: list[Mapping[str, Tensor]] = field(default_factory=list)
    #: Statistics (S, B, ...) of the stations so far, some at a time.
    stations: list[dict[str, Tensor]] = field(default_factory=list)
    #: Stations still to be measured, and whether their angles are wanted.
    waiting: list[tuple[Tensor, bool]] = field(default_factory=list)
    first_tokens: list[Tensor] = field(default_factory=list)
    n_slots: int = 0
    #: (heads, hidden) of the first layer.
    shape: tuple[int, int] = (0, 0)
    #: The embedding, until the first attention call shows which tokens are valid.
    embedding: Tensor | None = None
    #: What the last layer returned.
    output: Tensor | None = None
    #: (B, N) bool, and the keyword that hands it to the kernels.
    mask: Tensor | None = None
    valid: dict[str, Tensor] = field(default_factory=dict)
    #: The layers that were entered, innermost last.
    open_layers: list[_Layer] = field(default_factory=list)


@dataclass(frozen=True)
class Started:
    """Statistics of the forward passes of a recorder, on their way to the host."""

    fetches: list[Fetch]
    n_slots: int

    def arrays(self) -> dict[str, np.ndarray]:
        """By name; windows of all forward passes along the first axis."""
        parts = [
            {name: _to_numpy(name, value) for name, value in fetch.result().items()}
            for fetch in self.fetches
        ]
        return {
            name: np.concatenate([pad_tokens(name, part[name], self.n_slots) for part in parts])
            for name in parts[0]
        }


class Recorder:
    """Collects the statistics of the forward passes run inside `record()`."""

    def __init__(
        self,
        settings: MeasureSettings,
        special: Tensor | None,
        groups: Tensor | None,
        *,
        padded_rows: bool = True,
        lengths: Tensor | None = None,
    ) -> None:
        self.settings = settings
        self._special, self._groups, self._padded_rows = special, groups, padded_rows
        #: (B,) on the model's device: the caller knows that valid tokens come first, and how many.
        self.lengths = lengths
        self._forwards: list[_Forward] = []
        #: The transformers models that were called and have not returned, innermost last.
        self._models: list[nn.Module] = []

    @property
    def n_forwards(self) -> int:
        """Number of completed forward passes."""
        return len(self._forwards) - bool(self._models)

    def arrays(self) -> dict[str, np.ndarray]:
        """The statistics by name, windows of all forward passes along the first axis.

        Names, dimensions and units are those of `bertgeom.variables`; `zero_vectors`
        (window,) counts the vectors left out of cones.

        Raises:
            ModelError: if no attention went through the recorder.
        """
        return self.start().arrays()

    def start(self, **more: Tensor) -> Started:
        """The same arrays, still to come: on a GPU nothing here waits for the forward pass.

        Args:
            more: further tensors (window, ...) to bring along, float32 then.

        Raises:
            ModelError: if no attention went through the recorder.
        """
        if not self._forwards:
            raise ModelError(
                "expected attention calls of a transformers encoder loaded with "
                f"attn_implementation='{NAME}', found none; no forward pass was completed "
                "inside record(), in the thread that called it"
            )
        for forward in self._forwards:
            self._check(forward)
        values = [self._finish(f) for f in self._forwards]
        values[-1].update(more)
        n_slots = max(f.n_slots for f in self._forwards)
        return Started([Fetch(v) for v in values], n_slots)

    def dataset(self) -> Any:
        """The statistics as an `xarray.Dataset` with units and descriptions."""
        return as_dataset(
            self.arrays(),
            n_offset_side=self.settings.n_offset_side,
            angles=self.settings.angles,
        )

    def _finish(self, forward: _Forward) -> dict[str, Tensor]:
        wanted = {v.name for v in variables.select(self.settings.tier, self.settings.keep)}
        layers = forward.layers
        out = {
            name: torch.stack([layer[name] for layer in layers], dim=1)
            for name in layers[0]
            if name in wanted
        }
        for name in max(forward.stations, key=len):
            having = [s[name] for s in forward.stations if name in s]
            out[name] = torch.cat(having).transpose(0, 1)
        out["zero_vectors"] = out["zero_vectors"].sum(1)
        if "cls" in self.settings.keep:
            out["cls"] = torch.stack(forward.first_tokens, dim=1)
        return {name: value.detach() for name, value in out.items()}

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
        """Attention output (B, H, N, d) of one call; appends its statistics."""
        forward, settings = self._receive(module, query, value), self.settings
        if forward.embedding is not None:
            forward.mask, forward.valid = mask, _valid(mask, self.lengths)
            forward.shape = (query.shape[1], forward.embedding.shape[-1])
            self._station(forward.embedding, angles=True, hidden_state=True)
            forward.embedding = None
        if window is not None and window < key.shape[2] - 1 and has_gaps(mask):
            raise ModelError(
                "expected valid tokens side by side under a sliding window, found padding "
                f"between them in {forward.name}; pad on one side"
            )
        tracks = "tracks" in settings.keep
        stats = kernels.attention_stats(
            query,
            key,
            value,
            **forward.valid,
            special=self._special,
            groups=self._groups,
            n_groups=settings.n_groups,
            scale=scale,
            window=window,
            bias=bias,
            tier=settings.tier,
            theta=settings.theta,
            near=settings.near,
            n_offset_side=settings.n_offset_side,
            rows=tracks,
            columns=tracks,
            head_cones=True,
            impl=settings.impl,
        )
        forward.layers.append(stats.values)
        if self._padded_rows and mask is not None:
            fill_padding(stats.output, query, key, value, mask, scale, window, bias)
        return stats.output

    def _receive(self, module: nn.Module, query: Tensor, value: Tensor) -> _Forward:
        """The forward pass that an attention call belongs to."""
        forward = self._forwards[-1] if self._forwards else None
        if forward is None or not forward.open_layers:
            owner = self._models[0] if self._models else module
            raise ModelError(
                f"expected attention inside a layer of a declared architecture, found "
                f"{type(module).__name__} in {type(owner).__name__}, whose layers no declaration "
                "names; declare them with bertgeom.register_architecture"
            )
        forward.open_layers[-1].n_calls += 1
        if query.dtype not in _DTYPES or value.shape[-1] != query.shape[-1]:
            raise ModelError(
                "expected queries and values of one size in float32, float16 or bfloat16, found "
                f"{query.shape[-1]} and {value.shape[-1]} in {query.dtype} in {forward.name}"
            )
        for name, given in (("special_tokens_mask", self._special), ("groups", self._groups)):
            if given is not None and tuple(given.shape) != (len(query), query.shape[2]):
                raise UsageError(
                    f"expected {name} of shape {(len(query), query.shape[2])} like the batch, "
                    f"found {tuple(given.shape)}"
                )
        return forward

    def _station(self, x: Tensor, *, angles: bool, hidden_state: bool) -> None:
        forward = self._forwards[-1]
        if "cls" in self.settings.keep and hidden_state:
            forward.first_tokens.append(_first_token(x, forward.mask))
        forward.waiting.append((x, angles))
        n_bytes = sum(4 * s.numel() for s, _ in forward.waiting)
        if x.device.type != "cpu" or n_bytes >= WAITING:
            self._measure_stations(forward)

    def _measure_stations(self, forward: _Forward) -> None:
        if forward.waiting:
            stations, angles = zip(*forward.waiting, strict=True)
            forward.waiting = []
            forward.stations.append(
                kernels.statistics_of_stations(
                    stations, **forward.valid, angles=angles, impl=self.settings.impl
                )
            )

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of every module."""
        if isinstance(module, _model_class()):
            if not self._models:
                _refuse_dropout(module)
                self._forwards.append(_Forward(type(module).__name__))
            self._models.append(module)
        elif (station := station_of(module)) is not None:
            self._enter_layer(module, station, args)
        elif (
            (layer := self._open_layer())
            and layer.station.at_input
            and layer.station.module is module
        ):
            self._read_station(layer, args[0] if args else None)

    def _enter_layer(self, module: nn.Module, station: Station, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], Tensor) or args[0].ndim != 3:
            raise ModelError(
                "expected a layer whose first argument is the residual stream (batch, tokens, "
                f"hidden), found another call of {type(module).__name__}"
            )
        x = args[0]
        if not self._models and not self._continues(x):
            self._forwards.append(_Forward(type(module).__name__))
        if not self._models:
            _refuse_dropout(module)
        forward = self._forwards[-1]
        if not forward.n_slots:
            forward.embedding, forward.n_slots = x, x.shape[1]
        forward.open_layers.append(_Layer(module, station, x.shape[-1]))

    def _continues(self, x: Tensor) -> bool:
        """Whether a layer called outside of a model continues the previous layer's output."""
        return bool(self._forwards) and (
            bool(self._forwards[-1].open_layers) or self._forwards[-1].output is x
        )

    def leave(self, module: nn.Module, output: Any) -> None:
        """Forward hook of every module; the output is None where the forward has raised."""
        if self._models and self._models[-1] is module:
            self._models.pop()
            if not self._models:
                self._end(failed=output is None)
            return
        layer = self._open_layer()
        if layer is None:
            return
        if layer.module is module:
            self._leave_layer(layer, _first(output))
        elif layer.station.module is module and not layer.station.at_input and output is not None:
            self._read_station(layer, _first(output))

    def _open_layer(self) -> _Layer | None:
        if not self._forwards or not self._forwards[-1].open_layers:
            return None
        return self._forwards[-1].open_layers[-1]

    def _read_station(self, layer: _Layer, x: Any) -> None:
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[-1] != layer.width:
            raise ModelError(
                f"expected the attention of {type(layer.module).__name__} to return the residual "
                f"stream of {layer.width} dimensions, found another result; the layers of this "
                "architecture are not recognised"
            )
        layer.n_read += 1
        self._station(x, angles=self.settings.angles == "all", hidden_state=False)

    def _leave_layer(self, layer: _Layer, output: Any) -> None:
        forward = self._forwards[-1]
        forward.open_layers.pop()
        if output is None:
            if not self._models:
                self._forwards.pop()
            return
        if layer.n_calls != 1 or layer.n_read != 1 or not isinstance(output, Tensor):
            raise ModelError(self._unseen(forward, layer))
        forward.output = output
        self._station(output, angles=True, hidden_state=True)

    def _unseen(self, forward: _Forward, layer: _Layer) -> str:
        if not layer.n_calls:
            return _no_attention(self._models[0] if self._models else layer.module)
        return (
            f"expected one attention call and one residual after it in each layer of "
            f"{forward.name}, found {layer.n_calls} and {layer.n_read} in "
            f"{type(layer.module).__name__}; the layers of this architecture are not recognised"
        )

    def _end(self, *, failed: bool) -> None:
        """Finish the forward pass when the outermost model returns."""
        forward = self._forwards[-1]
        if failed:
            self._forwards.pop()
            return
        try:
            self._check(forward)
        except ModelError:
            self._forwards.pop()
            raise

    def _check(self, forward: _Forward) -> None:
        """Reject a forward pass that is not supported, or that belongs to another model."""
        if not forward.layers:
            raise ModelError(_no_attention(forward.name))
        self._measure_stations(forward)
        forward.output = None
        n_stations = sum(len(s["zero_vectors"]) for s in forward.stations)
        if n_stations != 1 + 2 * len(forward.layers):
            raise ModelError(
                f"expected {1 + 2 * len(forward.layers)} stations of the residual stream for "
                f"{len(forward.layers)} attention calls, found {n_stations}; the layers of "
                f"{forward.name} are not recognised"
            )
        first = self._forwards[0]
        found = (len(forward.layers), *forward.shape)
        expected = (len(first.layers), *first.shape)
        if found != expected:
            raise ModelError(
                f"expected forward passes of one model in one record(), found {first.name} with "
                f"{expected[0]} layers, {expected[1]} heads, {expected[2]} dimensions, then "
                f"{forward.name} with {found[0]}, {found[1]}, {found[2]}; open a record() for each"
            )


@cache
def _model_class() -> type[nn.Module]:
    # Importing it registers the attention, which imports this module: not before it is complete.
    from transformers import PreTrainedModel

    return PreTrainedModel


def _no_attention(model: nn.Module | str) -> str:
    name = model if isinstance(model, str) else type(model).__name__
    used = getattr(getattr(model, "config", None), "_attn_implementation", NAME)
    found = f"found none in {name}"
    if used != NAME:
        return (
            f"expected attention calls of a transformers encoder loaded with "
            f"attn_implementation='{NAME}', {found}, which was loaded with {used!r}; load it "
            f"with attn_implementation='{NAME}', or use bertgeom.measure"
        )
    return (
        f"expected attention calls through transformers' AttentionInterface, {found}: this "
        "architecture does not use the interface, it cannot be observed"
    )


def _refuse_dropout(module: nn.Module) -> None:
    """Reject a model in train mode whose output is random."""
    for part in module.modules():
        if part.training and isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise UsageError(
                "expected model.eval(), found dropout in train mode; call model.eval()"
            )
    if not module.training:
        return
    for name, value in vars(getattr(module, "config", object)).items():
        if "drop" in name and isinstance(value, float) and value > 0:
            raise UsageError(
                f"expected model.eval(), found train mode with {name} {value}; call model.eval()"
            )


def _valid(mask: Tensor | None, known: Tensor | None) -> dict[str, Tensor]:
    """The mask in the kernels' fastest form: lengths if valid tokens come first.

    Args:
        known: the lengths, where the caller of `record` knows them: no look at the mask then.
    """
    if mask is None:
        return {}
    if known is not None:
        return {"lengths": known}
    lengths = mask.sum(dim=1)
    slots = torch.arange(mask.shape[1], device=mask.device)
    if torch.equal(mask, slots < lengths[:, None]):
        return {"lengths": lengths}
    return {"mask": mask}


def _first_token(x: Tensor, mask: Tensor | None) -> Tensor:
    """Vector of the first valid token, (B, D)."""
    if mask is None:
        return x[:, 0].clone()
    return x[torch.arange(len(x), device=x.device), mask.to(torch.int8).argmax(dim=1)]


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) and output else output
    return first


def _to_numpy(name: str, value: Tensor) -> np.ndarray:
    array = value.numpy()
    if name in _INTEGERS:
        return array.astype(_INTEGERS[name])
    return array.astype(np.int64) if name == "zero_vectors" else array.astype(np.float32)


def pad_tokens(name: str, array: np.ndarray, n_tokens: int) -> np.ndarray:
    """Arrays by token with NaN up to n_tokens; others as they are."""
    variable = variables.VARIABLES.get(name)
    if variable is None or variable.dims[-1] != "token" or array.shape[-1] == n_tokens:
        return array
    width = [(0, 0)] * (array.ndim - 1) + [(0, n_tokens - array.shape[-1])]
    return np.pad(array, width, constant_values=np.nan)


#: What observes the attention calls of this context: a `Recorder`, or a capture.
active: ContextVar[Any] = ContextVar("bertgeom_recorder", default=None)
