"""How Triton kernels are launched: on the device of their tensors, on one axis, in few variants.

Tensors of a device that does not exist stand for those of a GPU; a kernel that is called is noted,
with the specialisation that Triton would compile it for. Whatever waits for the device fails.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bertgeom.kernels import attention_stats, cone_sums, station_statistics

jit = pytest.importorskip("triton.runtime.jit", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

DEVICE = torch.device("cuda:1")


def variant(kernel: Any, args: tuple[Any, ...], settings: dict[str, Any]) -> tuple[Any, ...]:
    """What Triton compiles a kernel anew for: constants, types, 1, multiples of 16."""
    bound = kernel.signature.bind(
        *args, **{k: v for k, v in settings.items() if k in kernel.arg_names}
    )
    key: list[Any] = []
    for parameter in kernel.params:
        x = bound.arguments[parameter.name]
        if isinstance(x, Tensor):
            key.append(x.dtype)
        elif parameter.is_constexpr or x is None:
            key.append(x)
        elif isinstance(x, float) or parameter.do_not_specialize:
            key.append(type(x))
        else:
            key.append((x == 1, x % 16 == 0))
    return tuple(key)


class Launches:
    """Programs, devices and variants of every launch, by name of the kernel."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []
        self.names: list[str] = []
        self.devices: list[torch.device | None] = []
        self.variants: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
        self.current: torch.device | None = None

    def note(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        self.grids.append(tuple(grid))
        self.names.append(kernel.fn.__name__)
        self.devices.append(self.current)
        self.variants[kernel.fn.__name__].add(variant(kernel, args, settings))

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device
        yield
        self.current = before


def item(x: Tensor, key: Any) -> Tensor:
    """x[key], which torch without CUDA refuses for a tensor of a GPU."""
    keys = key if isinstance(key, tuple) else (key,)
    left_out = x.dim() - sum(k is not None and k is not Ellipsis for k in keys)
    dim = 0
    for k in keys:
        if isinstance(k, int):
            x = x.select(dim, k)
            continue
        if k is None:
            x = x.unsqueeze(dim)
        elif isinstance(k, slice):
            first, last, _ = k.indices(x.shape[dim])
            x = x.narrow(dim, first, max(last - first, 0))
        dim += left_out if k is Ellipsis else 1
    return x


@contextlib.contextmanager
def no_operations() -> Iterator[None]:
    """Fails where torch computes anything; views and memory start no kernel."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func._schema.name
            assert func.is_view or name.startswith(("aten::empty", "prim::")), name
            return func(*args, **(kwargs or {}))

    with Refuse():
        yield


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Every launch is noted, on tensors without memory."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    found = Launches()
    monkeypatch.setattr(jit.JITFunction, "run", lambda *args, **named: found.note(*args, **named))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", found.on)
    monkeypatch.setattr(FakeTensor, "__getitem__", item)
    with FakeTensorMode():
        yield found


def attention(batch: int, n: int, heads: int = 12, **asked: Any) -> dict[str, Tensor]:
    """Statistics of heads of 64 as a model lays them out."""
    states = [
        torch.empty(batch, n, heads, 64, dtype=torch.float16, device=DEVICE).transpose(1, 2)
        for _ in range(3)
    ]
    special = torch.empty(batch, n, dtype=torch.bool, device=DEVICE)
    lengths = torch.empty(batch, dtype=torch.int32, device=DEVICE)
    found = attention_stats(
        *states, special=special, lengths=lengths, head_cones=True, rows=True, columns=True, **asked
    )
    return dict(found.values)


def test_kernels_run_on_the_device_of_their_tensors(launches: Launches) -> None:
    attention(2, 50)
    x = torch.empty(2, 200, 768, dtype=torch.float16, device=DEVICE)
    lengths = torch.empty(2, dtype=torch.int32, device=DEVICE)
    station_statistics(x, lengths=lengths, angles=True)
    station_statistics(x, lengths=lengths, angles=False)
    assert len(launches.devices) == 7 + 3 + 3
    assert set(launches.devices) == {DEVICE}


@pytest.mark.parametrize("window", [None, 64])
def test_a_layer_of_attention_is_seven_launches(launches: Launches, window: int | None) -> None:
    attention(2, 100, window=window)
    assert sorted(launches.names) == sorted(
        "attention_" + name
        for name in ("rows", "columns", "gram", "pairs", "k90", "finish", "cones")
    )


@pytest.mark.parametrize("angles", [True, False])
def test_a_station_is_three_launches(launches: Launches, angles: bool) -> None:
    """Also of very many tiles, and with lengths, which no kernel of torch prepares."""
    for n in (3, 300, 5000):
        launches.names.clear()
        x = torch.empty(2, n, 768, dtype=torch.float16, device=DEVICE)
        lengths = torch.empty(2, dtype=torch.int64, device=DEVICE)
        with no_operations():
            station_statistics(x, lengths=lengths, angles=angles)
        last = "station_angles" if angles else "station_squares"
        assert launches.names == ["row_sums", "station_centre", last]


def test_a_mask_does_not_wait_for_the_device(launches: Launches) -> None:
    x = torch.empty(2, 12, 50, 64, dtype=torch.float16, device=DEVICE)
    mask = torch.empty(2, 50, dtype=torch.bool, device=DEVICE)
    found = attention_stats(x, x, x, mask=mask, rows=True, columns=True)
    assert found.output.shape == x.shape
    station_statistics(x.transpose(1, 2).flatten(2), mask=mask, angles=True)
    assert len(launches.names) == 6 + 3


def test_no_axis_of_a_grid_ends(launches: Launches) -> None:
    attention(9_000, 4)
    cone_sums(torch.empty(9_000, 12, 4, 64, dtype=torch.float16, device=DEVICE), axis_angles=True)
    assert all(len(grid) == 1 for grid in launches.grids)
    assert max(grid[0] for grid in launches.grids) > 65_535


@pytest.mark.parametrize("tier", ["core", "full"])
def test_all_lengths_compile_few_variants(launches: Launches, tier: str) -> None:
    lengths = [1, 2, 15, 16, 17, 63, 64, 65, *range(100, 1100, 37), 256, 512, 1024, 2048]
    for n in lengths:
        attention(3, n, tier=tier)
        x = torch.empty(3, n, 768, dtype=torch.float16, device=DEVICE)
        station_statistics(x, angles=tier == "full")
    most = {name: len(variants) for name, variants in launches.variants.items()}
    assert len(most) >= 8
    assert {name: n for name, n in most.items() if n > 12} == {}
    assert max(n for name, n in most.items() if name != "attention_k90") <= 2
