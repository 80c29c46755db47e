"""Both ways in which the CPU multiplies matrices."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest

from bertgeom.kernels import _amx


@pytest.fixture(scope="module", params=["blas", "tile unit"])
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tests of a module by BLAS, and again on the tile unit if the CPU has one."""
    unit = request.param == "tile unit"
    if unit and not _amx.usable():
        pytest.skip("no tile unit (AMX), or none to be used")
    with mock.patch.object(_amx, "usable", return_value=unit):
        yield
