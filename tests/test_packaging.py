"""What packagers take: the recipe, the source distribution, the citation."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

#: Names that differ between PyPI and conda.
CONDA = {"torch": "pytorch"}


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def without_extras(requirement: str) -> str:
    """`dask[distributed]>=1; marker` -> `dask>=1`."""
    return re.sub(r"\[.*?\]", "", requirement.split(";")[0]).strip()


def test_the_recipe_has_the_dependencies_of_the_project(
    root: Path, project: dict[str, Any]
) -> None:
    text = (root / "packaging" / "conda" / "meta.yaml").read_text()
    run = text.split("  run:\n")[1].split("\ntest:")[0]
    found = {re.sub(r"\s", "", line.strip("- ")) for line in run.splitlines() if "- " in line}
    expected = set()
    for requirement in map(without_extras, project["dependencies"]):
        parts = re.fullmatch(r"([\w-]+)(.*)", requirement)
        assert parts, requirement
        name, limit = parts.groups()
        expected.add(CONDA.get(name, name) + limit)
    # Conda knows no extras: Dask's scheduler is a package of its own.
    dask = next(x for x in expected if x.startswith("dask"))
    expected |= {dask.replace("dask", "distributed"), f"python{project['requires-python']}"}
    assert found == expected


def test_the_recipe_starts_the_same_program(root: Path, project: dict[str, Any]) -> None:
    text = (root / "packaging" / "conda" / "meta.yaml").read_text()
    assert f"bertgeom = {project['scripts']['bertgeom']}" in text


def test_the_source_distribution_holds_what_a_packager_tests_with(
    root: Path, tmp_path: Path
) -> None:
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    # A copy of the files git knows: building leaves its traces in the folder.
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True
    ).stdout.split("\n")
    copy = tmp_path / "checkout"
    for name in filter(None, files):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((root / name).read_bytes())
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(tmp_path)],
        cwd=copy,
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    wanted = {"CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "README.md"}
    wanted |= {"constraints.txt", "Makefile", "docs/statistics.md", "tests/conftest.py"}
    wanted |= {"bertgeom/data/model/model.safetensors", "kernels/attention_stats/README.md"}
    wanted |= {"packaging/conda/meta.yaml", "bench/run.py"}
    wanted |= {f"pipelines/report/templates/{name}" for name in ("page.html", "page.css")}
    assert wanted - inside == set()
    tests = {str(p.relative_to(root)) for p in (root / "tests").rglob("*.py")}
    assert tests - inside == set()


def test_the_citation_is_valid_yaml(root: Path) -> None:
    found = yaml.safe_load((root / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "references"} <= set(found)


def test_workflows_and_templates_are_valid_yaml(root: Path) -> None:
    files = [*(root / ".github").rglob("*.yml"), root / ".pre-commit-config.yaml"]
    assert len(files) >= 5
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
