"""What is declared of an architecture.

A transformer layer adds the result of the attention to the residual stream, and a norm follows.
That norm is what a declaration names; where the stream is read follows from the kind of layer:

    post-norm (BERT)    x --> + attention(x) --> norm --*--> ...   the stream is what it returns
    pre-norm (ESM)      x --> + attention(norm'(x)) --*--> norm    the stream is what it receives
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from bertgeom.errors import UsageError


class Attend(Protocol):
    """The attention function that an adapter calls: (B, H, N, d) in, ((B, N, H, d), None) out."""

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]: ...


#: Replaces a method: gets the attention function, the original method, and its arguments,
#: of which the first is the module. It calls the original where the mask is not this project's.
Replacement = Callable[..., Any]


@dataclass(frozen=True)
class Station:
    """Where the stream after the attention of one layer is read.

    Attributes:
        module: the norm after the attention.
        at_input: whether the stream is the norm's input, not its output.
    """

    module: nn.Module
    at_input: bool


@dataclass(frozen=True)
class Architecture:
    """Declaration of an encoder architecture.

    Attributes:
        name: as its authors write it.
        model_types: `model_type` in config.json.
        layers: names of the classes of its layers. Subclasses count.
        norm: path, inside of a layer, of the norm that follows the attention.
        pre_norm: whether the stream is that norm's input (pre-norm), not its output (post-norm).
        final_norm: name of the norm after the last layer; "" without one.
        like: paths inside of a layer; a layer of an unknown class that has them all, and `norm`,
            is taken for one of this architecture.
        loads: class in transformers that holds the encoder alone; "" for AutoModel's.
        inner: entry of the configuration that multiplies the number of layers.
        padding: whether a window's result is the same with and without padding.
        full_up_to: tokens up to which the attention is full, from the configuration; None: all.
        adapters: methods "package.module.Class.method" that are replaced, and by what.
        note: what else a user should know.

    Example:
        >>> from bertgeom.model.architectures import Architecture
        >>> Architecture("Mine", layers=("MyLayer",), norm="norm2", pre_norm=True).station
        'input of norm2'
    """

    name: str
    layers: tuple[str, ...]
    norm: str
    pre_norm: bool
    model_types: tuple[str, ...] = ()
    final_norm: str = ""
    like: tuple[str, ...] = ()
    loads: str = ""
    inner: str = ""
    padding: bool = True
    full_up_to: Callable[[Any], int | None] | None = None
    adapters: Mapping[str, Replacement] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("layers", "model_types", "like"):
            if isinstance(getattr(self, name), str):
                raise UsageError(
                    f"expected {name} of the architecture {self.name!r} as a tuple of names, found "
                    f"the text {getattr(self, name)!r}"
                )
        if not self.name or not self.layers or not self.norm:
            raise UsageError(
                "expected an architecture with a name, the class of its layers and the norm after "
                f"the attention, found name={self.name!r}, layers={self.layers!r}, "
                f"norm={self.norm!r}"
            )

    @property
    def station(self) -> str:
        """Where the stream after the attention is read, in words."""
        return f"{'input' if self.pre_norm else 'output'} of {self.norm}"

    def find(self, layer: nn.Module) -> Station | None:
        """Where the stream is read in a layer; None if the layer has no such norm."""
        module = submodule(layer, self.norm)
        return None if module is None else Station(module, at_input=self.pre_norm)

    @property
    def like_children(self) -> frozenset[str]:
        """Names of the submodules at which the paths in `like` begin."""
        return frozenset(path.partition(".")[0] for path in self.like)

    def resembles(self, layer: nn.Module) -> bool:
        """Whether a layer of another class is built like this architecture's."""
        return (
            bool(self.like)
            and self.like_children <= layer._modules.keys()
            and all(submodule(layer, path) is not None for path in (*self.like, self.norm))
        )

    def n_layers(self, config: Any) -> int:
        """Layers that a model of this configuration runs, each with one attention call."""
        inner = int(getattr(config, self.inner, 1)) if self.inner else 1
        return int(config.num_hidden_layers) * inner


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a path with dots, None if there is none.

    Names are compared without case and underscores: LayerNorm is layer_norm in relatives.
    """
    for name in path.split("."):
        children = module._modules
        found = children.get(name)
        if found is None:
            plain = _plain(name)
            found = next((c for other, c in children.items() if _plain(other) == plain), None)
        if found is None:
            return None
        module = found
    return module


def _plain(name: str) -> str:
    return name.lower().replace("_", "")
