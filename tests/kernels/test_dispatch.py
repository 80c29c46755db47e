"""`resolve` picks what was asked for, or says why it cannot."""

from __future__ import annotations

import pytest
import torch

from bertgeom.kernels import ImplementationUnavailableError, _dispatch
from bertgeom.kernels._dispatch import resolve

CPU = torch.zeros(1)
META = torch.zeros(1, device="meta")


def test_auto_on_the_cpu_is_numba() -> None:
    assert resolve("auto", CPU, None) == "numba"


def test_what_is_asked_for_is_what_runs() -> None:
    assert resolve("reference", CPU) == "reference"
    assert resolve("numba", CPU) == "numba"


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ImplementationUnavailableError, match="TRITON_INTERPRET=1"):
        resolve("triton", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve("triton", CPU) == "triton"


def test_a_missing_package_is_an_error_and_no_silent_fallback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_dispatch, "_installed", lambda name: False)
    with pytest.raises(ImplementationUnavailableError, match="package numba is not installed"):
        resolve("auto", CPU)
    assert resolve("reference", CPU) == "reference"


def test_auto_refuses_a_device_without_an_implementation() -> None:
    with pytest.raises(ImplementationUnavailableError, match="meta tensors"):
        resolve("auto", META)


def test_auto_refuses_what_the_operation_does_not_offer() -> None:
    with pytest.raises(ImplementationUnavailableError, match="reference"):
        resolve("auto", CPU, available=("triton", "reference"))


def test_numba_refuses_other_devices() -> None:
    with pytest.raises(ImplementationUnavailableError, match="expected CPU tensors, found meta"):
        resolve("numba", META)


def test_unknown_names_are_listed_against_the_known() -> None:
    with pytest.raises(ValueError, match="'auto' or one of triton, numba, reference, found 'cuda'"):
        resolve("cuda", CPU)


def test_tensors_on_two_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="one device, found cpu, meta"):
        resolve("auto", CPU, META)
