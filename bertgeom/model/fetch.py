"""From the device to the host: all statistics of a forward pass in one copy that nobody waits for.

    tensors on the device --> one packed tensor --> pinned memory --> arrays by name
         (forward pass)          (its stream)       (copy stream)    (when asked for)

The copy runs on a stream of its own, so that the next batch is launched before the results of this
one have arrived. On a CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where a tensor lies in the packed bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        n = self.dtype.itemsize
        for size in self.shape:
            n *= size
        return n


def packed(values: Mapping[str, Tensor]) -> tuple[Tensor, list[Layout]]:
    """All values in one tensor of bytes on their device, the widest dtypes first.

    Example:
        >>> import torch
        >>> from bertgeom.model.fetch import packed, unpacked
        >>> flat, layout = packed({"a": torch.ones(2, dtype=torch.uint8), "b": torch.arange(3)})
        >>> flat.shape, unpacked(flat, layout)["b"]
        (torch.Size([26]), tensor([0, 1, 2]))
    """
    order = sorted(values, key=lambda name: -values[name].dtype.itemsize)
    layout = [Layout(name, values[name].dtype, tuple(values[name].shape)) for name in order]
    parts = [values[name].contiguous().reshape(-1).view(torch.uint8) for name in order]
    return torch.cat(parts), layout


def unpacked(flat: Tensor, layout: list[Layout]) -> dict[str, Tensor]:
    """The values again; views of the bytes."""
    found, first = {}, 0
    for one in layout:
        last = first + one.n_bytes
        found[one.name] = flat[first:last].view(one.dtype).reshape(one.shape)
        first = last
    return found


class Fetch:
    """Values on their way to the host."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        """Starts the copy.

        Args:
            values: tensors of one device, computed or to be computed on its current stream.
        """
        self._values: dict[str, Tensor] | None = dict(values)
        self._event: Any = None
        if not any(x.is_cuda for x in self._values.values()):
            return
        flat, self._layout = packed(self._values)
        self._values = None
        self._host = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=True)
        with torch.cuda.device(flat.device):
            copies = _copy_stream(flat.device.index)
            copies.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(copies):
                self._host.copy_(flat, non_blocking=True)
                self._event = copies.record_event()
            # The allocator must not give these bytes away before the copy has read them.
            flat.record_stream(copies)

    def result(self) -> dict[str, Tensor]:
        """The values on the host, as soon as they are there."""
        if self._values is None:
            self._event.synchronize()
            self._values = unpacked(self._host, self._layout)
        return self._values


@cache
def _copy_stream(device: int) -> Any:
    return torch.cuda.Stream(device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; through pinned memory, which lets the host go on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
