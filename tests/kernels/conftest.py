"""Both ways in which the CPU multiplies matrices."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest

from bertgeom.kernels import _amx


@pytest.fixture(scope="module", params=["blas", "tile unit"] if _amx.usable() else ["blas"])
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tests of a module by BLAS, and again on the tile unit if the CPU has one."""
    with mock.patch.object(_amx, "usable", return_value=request.param == "tile unit"):
        yield
