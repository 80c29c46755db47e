"""Kernels that a forward starts, counted without a GPU: `python -m bench.launches`.

Tensors of the device `meta` have a shape and no memory. Models and statistics run on them as they
would on a GPU; every torch operation that starts a kernel is counted, and so is every launch of a
Triton kernel, which is written down instead of run. What needs a number from the device (a
synchronisation) raises an error here.

An operation counts once, whatever it does on the device (a sort is more than one kernel); views and
allocations count nothing, and neither does what a model does before its first layer.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
#: Launches a layer with everything on may exceed those of the bare forward by this many.
GOAL = 12
#: Operations that start no kernel and are not declared as views: memory, and constants of the host.
NO_KERNEL = {
    "_reshape_alias",
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "scalar_tensor",
}


@dataclass(frozen=True)
class Shape:
    """What is counted: a batch of windows through a model of the shape of BERT-base.

    Attributes:
        batch, heads, tokens, head_dim: of the attention.
        hidden: width of the residual stream.
        dtype: of the model.
    """

    batch: int = 64
    heads: int = 12
    tokens: int = 512
    head_dim: int = 64
    hidden: int = 768
    dtype: str = "float16"


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel.

    Attributes:
        module, name: where the kernel is found.
        grid: programs along each axis.
        arguments: by name; a tensor is a dict of its dtype, shape and stride.
        options: how it is compiled: num_warps, num_stages and others.
    """

    module: str
    name: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def kernel(self) -> Any:
        """The function under `@triton.jit`."""
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def key(self) -> str:
        """Equal for launches that run the same code on the same shapes."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Operation:
    """One operation of torch: its name, bytes moved at least, multiply-adds times two."""

    name: str
    n_bytes: int
    flop: int = 0


@dataclass
class Count:
    """What one call starts."""

    operations: list[Operation] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)

    def numbers(self) -> Counter[str]:
        """How often each kernel starts, by name; Triton's begin with "triton "."""
        return Counter(
            [o.name for o in self.operations] + [f"triton {x.name}" for x in self.launches]
        )


@contextmanager
def captured(receive: Callable[..., None], *, run: bool = False) -> Iterator[None]:
    """Hands every launch of a Triton kernel to `receive(kernel, grid, args, kwargs)`.

    Args:
        run: whether the kernels run, too.
    """
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    def patched(original: Callable[..., Any]) -> Callable[..., Any]:
        def item(kernel: Any, grid: Any) -> Callable[..., Any]:
            def launch(*args: Any, **kwargs: Any) -> Any:
                receive(kernel, grid, args, kwargs)
                return original(kernel, grid)(*args, **kwargs) if run else None

            return launch

        return item

    with (
        mock.patch.object(JITFunction, "__getitem__", patched(JITFunction.__getitem__)),
        mock.patch.object(
            InterpretedFunction, "__getitem__", patched(InterpretedFunction.__getitem__)
        ),
    ):
        yield


def described(kernel: Any, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """A launch in words that can be kept."""
    import torch

    names = kernel.arg_names
    given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}

    def plain(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        dtype = str(x.dtype).removeprefix("torch.")
        return {"dtype": dtype, "shape": list(x.shape), "stride": list(x.stride())}

    grid = grid(given) if callable(grid) else grid
    return Launch(
        kernel.fn.__module__,
        kernel.fn.__name__,
        tuple(int(n) for n in grid),
        {k: plain(v) for k, v in given.items()},
        {k: v for k, v in kwargs.items() if k not in names},
    )


@contextmanager
def counting() -> Iterator[Count]:
    """Counts what the block starts; Triton kernels do not run in it."""
    import torch
    from torch import Tensor
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    found = Count()
    attention = torch.nn.functional.scaled_dot_product_attention

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            name = func._schema.name.removeprefix("aten::")
            if not func.is_view and name not in NO_KERNEL:
                flop = flop_registry.get(func.overloadpacket)
                flop = flop(*args, **(kwargs or {}), out_val=out) if flop else 0
                tensors = tensors_of((args, kwargs, out))
                found.operations.append(Operation(name, sum(map(bytes_of, tensors)), int(flop)))
            return out

    class Attention(TorchFunctionMode):
        """Torch's attention is one kernel on a GPU; on other devices it is many operations."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is not attention:
                return func(*args, **(kwargs or {}))
            query, key, value = args[:3]
            batch, heads, n, d = query.shape
            n_bytes = sum(map(bytes_of, (query, query, key, value)))
            flop = 4 * batch * heads * n * n * d
            found.operations.append(Operation("attention", n_bytes, flop))
            return torch.empty_like(query)

    def tensors_of(x: Any) -> list[Tensor]:
        if isinstance(x, Tensor):
            return [x]
        if isinstance(x, dict):
            x = list(x.values())
        return [t for y in x for t in tensors_of(y)] if isinstance(x, list | tuple) else []

    with (
        captured(lambda *launch: found.launches.append(described(*launch))),
        torch.no_grad(),
        Operations(),
        Attention(),
    ):
        yield found


def bytes_of(x: Any) -> int:
    """Bytes of a tensor's elements; a repeated axis (stride 0) is read once."""
    n = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        n *= size if stride else 1
    return n * int(x.element_size())


def heads_of(shape: Shape) -> list[Any]:
    """Query, key and value (B, H, N, d) as a model lays them out, without memory."""
    import torch

    size = (shape.batch, shape.tokens, shape.heads, shape.head_dim)
    dtype = getattr(torch, shape.dtype)
    return [torch.empty(size, dtype=dtype, device="meta").transpose(1, 2) for _ in range(3)]


def parts(shape: Shape) -> dict[str, Count]:
    """Attention statistics of one layer, and one station, each alone.

    What the second call starts: the first also makes the constants that are kept.
    """
    import torch

    from bertgeom import kernels
    from bertgeom.variables import n_offset_side

    special = torch.zeros(shape.batch, shape.tokens, dtype=torch.bool, device="meta")
    found = {}
    for tier in ("core", "full"):
        for cones in (False, True):
            heads = heads_of(shape)
            for _ in range(2):
                with counting() as count:
                    kernels.attention_stats(
                        *heads,
                        special=special,
                        tier=tier,
                        n_offset_side=n_offset_side(shape.tokens),
                        head_cones=cones,
                        impl="triton",
                    )
            found[f"attention {tier}{', head cones' if cones else ''}"] = count
    size = (shape.batch, shape.tokens, shape.hidden)
    x = torch.empty(size, dtype=getattr(torch, shape.dtype), device="meta")
    for angles in (False, True):
        for _ in range(2):
            with counting() as count:
                kernels.statistics_of_stations([x], angles=[angles], impl="triton")
        found[f"station{', angles' if angles else ''}"] = count
    return found


def forward(shape: Shape, how: str, layers: int, angles: str = "default") -> Count:
    """One forward of a model; how: "bare", or the tier of the statistics."""
    import torch
    from transformers import BertConfig, BertModel

    from bertgeom.config import MeasureSettings
    from bertgeom.model import attention
    from bertgeom.variables import n_offset_side

    config = BertConfig(
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=layers,
        max_position_embeddings=max(512, shape.tokens),
    )
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False).eval().to(getattr(torch, shape.dtype))
        ids = torch.zeros(shape.batch, shape.tokens, dtype=torch.long)
        special = torch.zeros(shape.batch, shape.tokens, dtype=torch.bool)
    model.set_attn_implementation("sdpa" if how == "bare" else attention.NAME)
    with counting() as count:
        if how == "bare":
            model(input_ids=ids)
        else:
            settings = MeasureSettings(
                tier=how,
                angles=angles,
                n_offset_side=n_offset_side(shape.tokens),
                impl="triton",
            )
            with attention.record(special_tokens_mask=special, settings=settings):
                model(input_ids=ids)
    return count


#: Whole forwards by name: statistics, and which stations have angles.
FORWARDS = {
    "bare": ("bare", "default"),
    "core": ("core", "default"),
    "full": ("full", "default"),
    "full, angles everywhere": ("full", "all"),
}


def layer_and_rest(shape: Shape, how: str, angles: str) -> tuple[Count, Count]:
    """What one more layer starts, and what starts once a forward."""
    one, two = (forward(shape, how, layers, angles) for layers in (1, 2))
    n_torch = len(two.operations) - len(one.operations)
    n_triton = len(two.launches) - len(one.launches)
    # The second layer is the last part of its forward, but for what follows the layers: nothing.
    layer = Count(two.operations[-n_torch:], two.launches[-n_triton:] if n_triton else [])
    rest = Count(
        one.operations[: len(one.operations) - n_torch],
        one.launches[: len(one.launches) - n_triton],
    )
    return layer, rest


def table(shape: Shape, layers: int = 12) -> dict[str, Any]:
    """The numbers that `python -m bench.launches --json` prints."""

    def row(count: Count) -> dict[str, Any]:
        return {
            "torch": len(count.operations),
            "triton": len(count.launches),
            "all": len(count.operations) + len(count.launches),
            "kernels": dict(count.numbers().most_common()),
        }

    found: dict[str, Any] = {"shape": asdict(shape), "parts": {}, "forward": {}}
    found["parts"] = {name: row(count) for name, count in parts(shape).items()}
    for name, how in FORWARDS.items():
        layer, rest = layer_and_rest(shape, *how)
        total = {k: row(rest)[k] + layers * row(layer)[k] for k in ("torch", "triton", "all")}
        found["forward"][name] = {"layer": row(layer), "once": row(rest), "layers": layers}
        found["forward"][name]["whole"] = total
    bare = found["forward"]["bare"]["layer"]["all"]
    for row_of in found["forward"].values():
        row_of["more_than_bare_a_layer"] = row_of["layer"]["all"] - bare
    return found


def in_interpreter(module: str, arguments: list[str]) -> str:
    """Standard output of a module that runs in Triton's interpreter, so that no GPU is asked.

    Raises:
        RuntimeError: with the end of its messages, where it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"python -m {module}: {done.stderr.strip()[-1500:]}")
    return done.stdout


def recorded(shapes: list[Shape], *, layers: bool = False) -> list[dict[str, Count]]:
    """Every launch and operation of the parts of some shapes, from a process of its own.

    Args:
        layers: whether to add "layer ..." and "once ..." of every whole forward.
    """
    words = ["--record", json.dumps([asdict(shape) for shape in shapes])]
    read = json.loads(in_interpreter("bench.launches", words + ["--with-layers"] * layers))

    def count(x: dict[str, Any]) -> Count:
        launches = [Launch(**(y | {"grid": tuple(y["grid"])})) for y in x["launches"]]
        return Count([Operation(**y) for y in x["operations"]], launches)

    return [{name: count(x) for name, x in parts.items()} for parts in read]


def record(shape: Shape, *, layers: bool) -> dict[str, Any]:
    """What `recorded` reads, of one shape."""
    found = parts(shape)
    for name, how in FORWARDS.items() if layers else ():
        found[f"layer {name}"], found[f"once {name}"] = layer_and_rest(shape, *how)
    return {name: asdict(count) for name, count in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """Prints the counts."""
    parser = argparse.ArgumentParser(prog="python -m bench.launches", description=__doc__)
    for name, default in asdict(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--record", metavar="SHAPES", help="print every launch of JSON shapes")
    parser.add_argument("--with-layers", action="store_true", help="... and of whole forwards")
    options = vars(parser.parse_args(arguments))
    as_json, shapes, layers = (options.pop(k) for k in ("json", "record", "layers"))
    with_layers = options.pop("with_layers")
    if os.environ.get("TRITON_INTERPRET") != "1":
        given = sys.argv[1:] if arguments is None else arguments
        print(in_interpreter("bench.launches", given), end="")
        return 0
    if shapes:
        found = [record(Shape(**shape), layers=with_layers) for shape in json.loads(shapes)]
        print(json.dumps(found))
        return 0
    counts = table(Shape(**options), layers)
    print(json.dumps(counts, indent=1) if as_json else text(counts))
    return 0


def text(counts: dict[str, Any]) -> str:
    """The table a person reads."""
    lines = [f"{'':32} {'torch':>6} {'triton':>7} {'all':>6}   more than bare, a layer"]
    for name, row in counts["parts"].items():
        lines.append(f"{name:32} {row['torch']:6} {row['triton']:7} {row['all']:6}")
    for name, found in counts["forward"].items():
        more = found["more_than_bare_a_layer"]
        for what in ("layer", "once", "whole"):
            row, label = found[what], f"forward {name}, {what}"
            lines.append(
                f"{label:32} {row['torch']:6} {row['triton']:7} {row['all']:6}"
                + (f"   {more}" if what == "layer" else "")
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
