"""What mypy does not see is compiled code: nothing else hides behind a relaxation."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

#: Decorators of functions that Numba compiles.
COMPILED = ("jit", "inner", "intrinsic", "_inline", "_finite")


def names_of(decorator: ast.expr) -> str:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called)


def unannotated(tree: ast.Module) -> list[str]:
    """Plain functions without a type of a parameter or of the result."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if {names_of(decorator) for decorator in node.decorator_list} & set(COMPILED):
            continue
        every = node.args
        given = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
        missing = [a.arg for a in given if a and not a.annotation and a.arg not in ("self", "cls")]
        if missing or node.returns is None:
            found.append(node.name)
    return found


def relaxed(root: Path) -> list[Path]:
    """Files of the modules that may have functions without annotations."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["mypy"]
    names = [
        name
        for override in settings["overrides"]
        if override.get("disallow_untyped_defs") is False
        for name in override["module"]
    ]
    files = []
    for name in names:
        place = name.replace("bertgeom.kernels", "kernels").replace(".", "/")
        pattern = f"{place.removesuffix('/*')}/**/*.py" if place.endswith("/*") else f"{place}.py"
        found = sorted(root.glob(pattern))
        assert found, f"{name}: expected a module of this name, found none"
        files += found
    return files


def test_only_compiled_functions_have_no_annotations(root: Path) -> None:
    files = relaxed(root)
    assert len(files) > 10
    assert {f: n for f in files if (n := unannotated(ast.parse(f.read_text())))} == {}


def test_modules_without_checks_hold_compiled_code(root: Path) -> None:
    """Triton's language has no types; a module that mypy skips uses it."""
    mark = "# mypy: " + "ignore-errors"
    skipped = [
        path
        for folder in ("bertgeom", "kernels", "pipelines", "bench", "tests")
        for path in (root / folder).rglob("*.py")
        if mark in path.read_text()
    ]
    assert skipped
    for path in skipped:
        text = path.read_text()
        assert "triton.jit" in text or "njit" in text, f"{path}: no compiled code, check its types"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("@jit\ndef f(x): ...", []),
        ("@inner(fastmath=True)\ndef f(x): ...", []),
        ("def f(x): ...", ["f"]),
        ("@cache\ndef f(x: int): ...", ["f"]),
        ("def f(x: int, *y) -> int: ...", ["f"]),
        ("class A:\n    def f(self, x: int) -> None: ...", []),
    ],
)
def test_functions_without_annotations_are_found(code: str, expected: list[str]) -> None:
    assert unannotated(ast.parse(code)) == expected
