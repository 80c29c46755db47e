"""Packages that register models are imported where a user names them, and nowhere else."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bertgeom.errors import UsageError
from bertgeom.model import packages
from bertgeom.model.packages import GROUP, import_packages

CODE = """
calls = []

def register():
    calls.append(1)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a package that nobody has imported."""
    (tmp_path / "unheard_models").mkdir()
    (tmp_path / "unheard_models" / "__init__.py").write_text(CODE)
    (tmp_path / "unheard_broken.py").write_text("raise RuntimeError('no\\nluck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "_done", set())
    for name in ("unheard_models", "unheard_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "unheard_models"


@pytest.fixture
def offered(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package offers a function and itself, as its metadata would say."""
    points = [
        EntryPoint("mine", f"{package}:register", GROUP),
        EntryPoint("plain", package, GROUP),
    ]
    monkeypatch.setattr(packages, "entry_points", lambda *, group: points if group == GROUP else [])


def test_a_package_is_imported_once(package: str) -> None:
    assert import_packages(()) == ()
    assert package not in sys.modules
    assert import_packages([package, package]) == (package,)
    assert package in sys.modules


@pytest.mark.usefixtures("offered")
def test_an_entry_point_is_loaded_and_called_where_it_is_named(package: str) -> None:
    import_packages(["plain"])
    assert sys.modules[package].calls == []
    import_packages(["mine"])
    import_packages(["mine"])
    assert sys.modules[package].calls == [1]


@pytest.mark.usefixtures("offered")
def test_a_package_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^[^\n]*No module named 'absent'[^\n]*$") as error:
        import_packages(["absent"])
    assert "install it" in str(error.value)
    assert "packages that offer models: mine, plain" in str(error.value)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unheard_broken", "found: no luck; install"),
        ("no-name", "as the name of a package, found 'no-name'"),
        ("../models", "as the name of a package"),
        ("", "as the name of a package"),
    ],
)
def test_what_cannot_be_imported_is_one_line(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]*$") as error:
        import_packages([name])
    assert words in str(error.value)
