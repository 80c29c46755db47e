"""The direction of imports, the rooms that may touch zarr, and the wheel."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FOLDERS = {"kernels": "bertgeom.kernels", "bertgeom": "bertgeom", "pipelines": "bertgeom.pipelines"}


def imported(path: Path, package: str) -> set[str]:
    """Absolute names of all modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def modules(root: Path, folder: str) -> list[tuple[Path, str]]:
    """Files of a top-level folder with the package they are in."""
    found = []
    for path in sorted((root / folder).rglob("*.py")):
        inner = path.relative_to(root / folder).parent.parts
        found.append((path, ".".join([FOLDERS[folder], *inner])))
    return found


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_kernels_know_no_model_file_or_store(root: Path) -> None:
    allowed = {"numpy", "torch", "triton", "numba", "scipy", "threadpoolctl", "llvmlite"}
    for path, package in modules(root, "kernels"):
        for name in imported(path, package):
            top = name.split(".")[0]
            if top == "bertgeom":
                assert is_in(name, "bertgeom.kernels"), f"{path}: {name}"
            else:
                assert top in allowed | set(sys.stdlib_module_names), f"{path}: {name}"


def test_kernels_import_triton_and_numba_only_where_they_are_used(root: Path) -> None:
    for path, package in modules(root, "kernels"):
        if path.name in ("__init__.py", "api.py", "_dispatch.py", "reference.py", "stations.py"):
            tops = {name.split(".")[0] for name in imported(path, package)}
            assert not tops & {"triton", "numba"}, path


def test_the_core_does_not_know_the_pipelines(root: Path) -> None:
    for path, package in modules(root, "bertgeom"):
        for name in imported(path, package):
            assert not is_in(name, "bertgeom.pipelines"), f"{path}: {name}"


def test_only_the_store_touches_zarr(root: Path) -> None:
    for folder in FOLDERS:
        for path, package in modules(root, folder):
            if path == root / "bertgeom" / "store.py":
                continue
            assert "zarr" not in {n.split(".")[0] for n in imported(path, package)}, path


def test_implementations_never_import_each_other(root: Path) -> None:
    names = {"gpu", "cpu", "reference"}
    for path, package in modules(root, "kernels"):
        if path.stem in names:
            for other in names - {path.stem}:
                found = imported(path, package)
                assert not any(n.endswith(f".{other}") for n in found), f"{path} -> {other}"


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from the files git knows."""
    work = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    done = subprocess.run(
        [*pip, "--no-deps", "-w", str(work), str(root)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = work.glob("*.whl")
    zipfile.ZipFile(built).extractall(work / "site")
    return work / "site"


def test_the_wheel_holds_one_namespace(wheel: Path) -> None:
    tops = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"bertgeom"}


def test_every_module_imports_from_the_wheel(wheel: Path, root: Path) -> None:
    expected = {
        ".".join([package, *([] if path.stem == "__init__" else [path.stem])])
        for folder in FOLDERS
        for path, package in modules(root, folder)
    }
    code = f"""
import importlib, sys
sys.path.insert(0, {str(wheel)!r})
for name in {sorted(expected)!r}:
    module = importlib.import_module(name)
    assert module.__file__.startswith({str(wheel)!r}), module.__file__
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-P", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_light() -> None:
    for package, heavy in (
        ("bertgeom", {"torch", "transformers", "numba", "triton", "xarray"}),
        ("bertgeom.kernels", {"torch", "transformers", "numba", "triton"}),
        ("bertgeom.config", {"torch", "transformers", "numba", "triton", "xarray"}),
    ):
        code = f"import sys, {package}; print(sorted({heavy!r} & set(sys.modules)))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]", package
