"""The rooms of the house: the direction of imports, their size, and the wheel."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

FOLDERS = {"kernels": "bertgeom.kernels", "bertgeom": "bertgeom", "pipelines": "bertgeom.pipelines"}

#: Rooms from the ground up: an arrow goes from a room to itself or to one further up in this list.
#: What stands between brackets is one floor: its rooms do not know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("bertgeom._version", "bertgeom.urls", "bertgeom.variables", "bertgeom.data"),
    ("bertgeom.errors",),
    ("bertgeom.advisories",),
    ("bertgeom.kernels._definitions", "bertgeom.kernels.arrays"),
    ("bertgeom.kernels._valid", "bertgeom.kernels._cpu", "bertgeom.kernels._triton"),
    ("bertgeom.kernels._dispatch",),
    ("bertgeom.kernels.kmers", "bertgeom.kernels.cone_angles"),
    ("bertgeom.kernels.stations",),
    ("bertgeom.kernels.attention_stats", "bertgeom.kernels.ahead"),
    ("bertgeom.kernels",),
    ("bertgeom.config",),
    ("bertgeom.store",),
    ("bertgeom.sequences",),
    ("bertgeom.tokens",),
    ("bertgeom.model",),
    ("bertgeom.analysis",),
    ("bertgeom.formatdoc", "bertgeom.testing"),
    ("bertgeom",),
    ("bertgeom.pipelines.plan",),
    ("bertgeom.pipelines.context",),
    ("bertgeom.pipelines.partition",),
    ("bertgeom.pipelines.run",),
    ("bertgeom.pipelines.jobs",),
    ("bertgeom.pipelines.catalogue",),
    ("bertgeom.pipelines.report",),
    ("bertgeom.pipelines.casestudy",),
    ("bertgeom.pipelines.cli",),
    ("bertgeom.pipelines",),
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
#: Lines of a module and of a function, modules of a folder.
MOST_LINES, MOST_LINES_OF_FUNCTION, MOST_MODULES = 500, 80, 16
#: A longer module says why on its first lines.
REASON = "Long because"


def modules(root: Path, *folders: str) -> dict[str, Path]:
    """Every module by its absolute name; a package by the name of its folder."""
    found = {}
    for folder in folders or FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            inner = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join([FOLDERS[folder], *inner])
            found[name.removesuffix(".__init__")] = path
    return found


def imported(name: str, path: Path, known: Iterable[str] = ()) -> set[str]:
    """Absolute names of all modules that a module imports, inside functions and by strings too.

    Args:
        known: modules that an import `from package import name` may mean.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= (inner & set(known)) or {base}
    return found | named_by_strings(tree, package, set(known))


def named_by_strings(tree: ast.Module, package: str, known: set[str]) -> set[str]:
    """Modules that strings of the code name: whole, or from the package on (`_HOMES`)."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documentation
        and re.fullmatch(r"\w+(\.\w+)+", node.value)
    }
    return {name for text in strings for name in (text, f"{package}.{text}") if name in known}


def room_of(name: str) -> str:
    """The longest entry of `FLOORS` that holds a module."""
    parts = name.split(".")
    while ".".join(parts) not in HEIGHT:
        parts.pop()
    return ".".join(parts)


@pytest.fixture(scope="module")
def arrows(root: Path) -> Mapping[str, set[str]]:
    """Every module and the modules of this project that it imports."""
    known = modules(root)
    return {name: imported(name, path, known) & set(known) for name, path in known.items()}


def test_strings_that_name_modules_are_arrows(root: Path, arrows: Mapping[str, set[str]]) -> None:
    assert "bertgeom.pipelines.run.stages" in arrows["bertgeom"]
    assert "bertgeom.kernels.stations.moments" in arrows["bertgeom.kernels"]
    assert "bertgeom.pipelines.cli.whole_store" in arrows["bertgeom.pipelines.cli.main"]


def test_arrows_go_down(arrows: Mapping[str, set[str]]) -> None:
    # The package's own page names the public functions of every room, as strings.
    wrong = [
        f"{name} -> {other}"
        for name, others in arrows.items()
        if name != "bertgeom"
        for other in others - {"bertgeom", "bertgeom.kernels"}
        if HEIGHT[room_of(other)] > HEIGHT[room_of(name)]
        or (HEIGHT[room_of(other)] == HEIGHT[room_of(name)] and room_of(other) != room_of(name))
    ]
    assert wrong == []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """Private names of other rooms' modules that a module imports, or takes from a module.

    A private module or room, like `kernels._cpu`, is at home in the folder that holds it.
    """

    def home_of(module: str) -> str:
        return module if known[module].name == "__init__.py" else module.rpartition(".")[0]

    def is_foreign(module: str) -> bool:
        return module in known and home_of(module) != home_of(name)

    tree = ast.parse(path.read_text())
    found: set[str] = set()
    module_by_name: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    module_by_name[alias.asname or alias.name] = whole
                elif is_private(alias.name) and is_foreign(node.module):
                    found.add(whole)
        elif isinstance(node, ast.Import):
            module_by_name |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            module = module_by_name.get(ast.unparse(node.value), "")
            if is_foreign(module) and f"{module}.{node.attr}" not in known:
                found.add(f"{module}.{node.attr}")
    for module in imported(name, path, known) & set(known):
        parts = module.split(".")
        homes = [".".join(parts[:i]) for i, part in enumerate(parts) if is_private(part)]
        if not all(f"{name}.".startswith(f"{home}.") for home in homes):
            found.add(module)
    return found


def test_no_private_name_is_used_across_rooms(root: Path) -> None:
    known = modules(root)
    used = {name: private_names(name, path, known) for name, path in known.items()}
    assert {name: names for name, names in used.items() if names} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from bertgeom.model.loading import _read", {"bertgeom.model.loading._read"}),
        ("import bertgeom.model.loading as m; m._read()", {"bertgeom.model.loading._read"}),
        ("import bertgeom.errors; bertgeom.errors._x", {"bertgeom.errors._x"}),
        ("from bertgeom.model import loading as l\ndef f(): l._x", {"bertgeom.model.loading._x"}),
        ("from bertgeom.kernels._cpu import rows", {"bertgeom.kernels._cpu.rows"}),
        ("from bertgeom.store.files import _own", set()),
        ("from bertgeom.store import files; files._own", set()),
        ("from bertgeom.model import loading; loading.__name__", set()),
        ("self._read", set()),
    ],
)
def test_private_names_are_seen(root: Path, tmp_path: Path, line: str, found: set[str]) -> None:
    known = modules(root)
    (tmp_path / "x.py").write_text(line)
    assert private_names("bertgeom.store.storage", tmp_path / "x.py", known) == found


def test_no_module_imports_itself_in_a_circle(root: Path) -> None:
    known = modules(root)
    pages = {"bertgeom", "bertgeom.kernels", "bertgeom.pipelines"}
    below: dict[str, set[str]] = {}
    for name, path in known.items():
        if name not in pages:
            below[name] = imported(name, path, known) & set(known) - pages - {name}
    while free := [name for name, others in below.items() if not others]:
        for name in free:
            del below[name]
        for others in below.values():
            others.difference_update(free)
    assert below == {}


def test_every_room_says_what_it_is_for(root: Path) -> None:
    for path in modules(root).values():
        if path.name == "__init__.py":
            page = ast.get_docstring(ast.parse(path.read_text()))
            assert page, path
            assert len(page.splitlines()) >= 3, f"{path}: expected what for, what from, what first"


def lines_of_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Arguments, errors and an example take lines that nobody has to keep in mind."""
    if ast.get_docstring(node) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def test_rooms_modules_and_functions_are_small(root: Path) -> None:
    for folder in {path.parent for path in modules(root).values()}:
        found = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(found) <= MOST_MODULES, f"{folder}: {len(found)} modules"
    for name, path in modules(root).items():
        text = path.read_text()
        head = "\n".join(text.splitlines()[:15])
        assert len(text.splitlines()) <= MOST_LINES or REASON in head, f"{path}: too long"
        if name.startswith("bertgeom.kernels"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1 - lines_of_docstring(node)
                assert lines <= MOST_LINES_OF_FUNCTION, f"{path}: {node.name} has {lines} lines"


def test_kernels_know_no_model_file_or_store(root: Path) -> None:
    allowed = {"numpy", "torch", "triton", "numba", "scipy", "threadpoolctl", "llvmlite"}
    for name, path in modules(root, "kernels").items():
        for other in imported(name, path):
            top = other.split(".")[0]
            if top == "bertgeom":
                assert other.startswith("bertgeom.kernels"), f"{path}: {other}"
            else:
                assert top in allowed | set(sys.stdlib_module_names), f"{path}: {other}"


def test_kernels_import_triton_and_numba_only_where_they_are_used(root: Path) -> None:
    light = ("__init__.py", "api.py", "_dispatch.py", "moments.py", "options.py", "reference.py")
    for name, path in modules(root, "kernels").items():
        if path.name in light:
            tops = {other.split(".")[0] for other in imported(name, path)}
            assert not tops & {"triton", "numba"}, path


def test_only_two_modules_of_the_store_touch_zarr(root: Path) -> None:
    # Arrays and groups are one purpose, the bytes that pass below them another.
    inner = {"bertgeom.store.zarr_io", "bertgeom.store.zarr_stores"}
    for name, path in modules(root).items():
        if name not in inner:
            assert "zarr" not in {n.split(".")[0] for n in imported(name, path)}, path


def test_implementations_never_import_each_other(root: Path) -> None:
    known = modules(root, "kernels")
    for name, path in known.items():
        mine = {"gpu", "cpu", "reference"} & set(name.split("."))
        if mine:
            for other in imported(name, path, known) & set(known):
                theirs = {"gpu", "cpu", "reference"} & set(other.split("."))
                assert theirs <= mine, f"{name} -> {other}"


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


def test_the_wheel_holds_every_data_file(wheel: Path, root: Path) -> None:
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *FOLDERS]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    data = [Path(line) for line in listed.splitlines() if not line.endswith(".py")]
    assert Path("pipelines/report/templates/page.html") in data
    missing = [
        str(path)
        for path in data
        if (root / path).is_file()
        and not (wheel / FOLDERS[path.parts[0]].replace(".", "/") / Path(*path.parts[1:])).is_file()
    ]
    assert missing == []


def test_every_module_imports_from_the_wheel(wheel: Path, root: Path) -> None:
    expected = sorted(modules(root))
    code = f"""
import importlib, sys
sys.path.insert(0, {str(wheel)!r})
for name in {expected!r}:
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
