"""Which implementation of an operation runs: explicit, and never a silent fallback."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Implementations of every operation, in order of preference.
IMPLEMENTATIONS = ("triton", "numba", "reference")
_REMEDY = {
    "triton": "pip install triton (Linux), or use impl='auto'",
    "numba": "pip install numba, or use impl='reference'",
}


class ImplementationUnavailableError(RuntimeError):
    """A requested implementation cannot run here; the message says what is missing."""


def interpreting() -> bool:
    """Whether Triton kernels are interpreted on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def resolve(
    impl: str,
    *tensors: torch.Tensor | None,
    available: Sequence[str] = IMPLEMENTATIONS,
) -> str:
    """Name of the implementation that will run.

    `auto` means `triton` for CUDA tensors and `numba` for CPU tensors. If that one is missing,
    there is no fallback: the caller must choose another one.

    Args:
        impl: "auto", or one of `available`.
        tensors: the operation's tensors, None for those left out; all on one device.
        available: what the operation offers.

    Raises:
        ValueError: for an unknown `impl`, or tensors on different devices.
        ImplementationUnavailableError: where the implementation cannot run.
    """
    if impl != "auto" and impl not in available:
        raise ValueError(f"impl: expected 'auto' or one of {', '.join(available)}, found {impl!r}")
    device = _common_device(tensors)
    name = impl if impl != "auto" else _default(device, available)
    _check_runs(name, device)
    return name


def _common_device(tensors: Sequence[torch.Tensor | None]) -> torch.device:
    import torch

    devices = [t.device for t in tensors if t is not None]
    if not devices:
        return torch.device("cpu")
    if devices.count(devices[0]) < len(devices):
        found = ", ".join(sorted({str(device) for device in devices}))
        raise ValueError(f"expected all tensors on one device, found {found}; move them with .to()")
    return devices[0]


def _default(device: torch.device, available: Sequence[str]) -> str:
    name = {"cuda": "triton", "cpu": "numba"}.get(device.type)
    if name is None or name not in available:
        raise ImplementationUnavailableError(
            f"impl='auto': nothing runs on {device.type} tensors; move them to the CPU or to CUDA, "
            "or use impl='reference'"
        )
    return name


@functools.cache
def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _check_runs(name: str, device: torch.device) -> None:
    if name == "reference":
        return
    if not _installed(name):
        raise ImplementationUnavailableError(
            f"impl={name!r}: the package {name} is not installed; {_REMEDY[name]}"
        )
    if name == "triton" and device.type != "cuda" and not interpreting():
        raise ImplementationUnavailableError(
            f"impl='triton': expected CUDA tensors, found {device.type}; "
            "set TRITON_INTERPRET=1 before importing triton to interpret the kernels on the CPU"
        )
    if name == "numba" and device.type != "cpu":
        raise ImplementationUnavailableError(
            f"impl='numba': expected CPU tensors, found {device.type}; use impl='auto'"
        )
