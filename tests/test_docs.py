"""All code in the README and the docs runs, or says on the page why it does not.

Blocks of a page of `docs/` run in order, in a folder of their own: `python` is executed, `pycon`
is a session whose output is compared, `console` are commands, `sh` is a script for a shell, `r`
runs where R is installed. A paragraph "*Not run by the tests: reason.*" above a block leaves the
block out; names and options of its commands are checked all the same.
"""

from __future__ import annotations

import doctest
import functools
import gzip
import importlib
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import bertgeom
from bertgeom.pipelines.cli.main import command_group, main
from bertgeom.pipelines.run import stages
from bertgeom.testing import save_tiny_classifier

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts),
    *sorted((ROOT / "bertgeom").glob("*.md")),
]
#: The command line, built once.
command_line = functools.cache(command_group)

#: Not of this command line: make, pip, python and the like.
_OTHERS = {"make", "pip", "python", "git", "cd", "zcat", "cat", "uv", "pytest"}


#: Pages outside of the documentation site; their blocks of Python run each on its own.
APART = [page for page in PAGES if page.parent != DOCS and DOCS not in page.parents]
SITE = [page for page in PAGES if page not in APART]


def blocks(language: str) -> list[Any]:
    found = []
    for page in APART:
        text = page.read_text("utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S):
            line = text[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{page.name}:{line}"))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names that the examples use: genomes, labels, a model, a store."""
    folder = tmp_path_factory.mktemp("docs")
    random = np.random.default_rng(0)
    text = "".join(f">r{i}\n{''.join(random.choice(list('ACGT'), 90))}\n" for i in range(4))
    (folder / "genomes.fasta").write_text(text)
    (folder / "labels.tsv").write_text("r0\ta\nr1\tb\nr2\ta\nr3\tb\n")
    save_tiny_classifier(folder / "model")
    stages.run(
        folder / "genomes.fasta",
        model=str(folder / "model"),
        out=folder / "run.zarr",
        labels=folder / "labels.tsv",
        window=50,
        keep="cls,tracks",
        impl="reference",
        threads=1,
    )
    return folder


@pytest.fixture
def names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names that the examples take for granted."""
    from transformers import AutoModel

    monkeypatch.chdir(folder)
    model = AutoModel.from_pretrained("model", attn_implementation="bertgeom").eval()
    ids = torch.randint(5, 60, (2, 12))
    mask = torch.ones_like(ids)
    query, key, value = torch.randn(3, 2, 2, 12, 8)
    return {
        "bertgeom": bertgeom,
        "AutoModel": AutoModel,
        "model": model,
        "ids": ids,
        "mask": mask,
        "name": "model",
        "batch": {"input_ids": ids, "attention_mask": mask},
        "query": query,
        "key": key,
        "value": value,
        "lengths": torch.tensor([12, 7]),
    }


@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_docs_runs(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "docs", "exec"), names)


#: Languages of blocks that run. A block without a language is a picture or a listing.
RUN = ("python", "pycon", "console", "sh", "r")
#: What stands above a block that does not run.
NOT_RUN = re.compile(r"\*Not run by the tests: [^*]+\.\*\n+\Z")


class Block(NamedTuple):
    """A fenced block of a page; `line` is that of its fence."""

    language: str
    text: str
    line: int
    runs: bool


def fenced(text: str) -> list[Block]:
    found = re.finditer(r"^(`{3,})([^\s`]*)[^\n]*\n(.*?)^\1$", text, flags=re.M | re.S)
    return [
        Block(m[2], m[3], text[: m.start()].count("\n") + 1, not NOT_RUN.search(text[: m.start()]))
        for m in found
    ]


def steps(page: Path) -> list[Block]:
    """The blocks of a page that run, in order."""
    found = fenced(page.read_text("utf-8"))
    return [block for block in found if block.language in RUN and block.runs]


def in_session(text: str, names: dict[str, Any], where: str) -> None:
    """Run a session of `>>>` lines; what it prints must be what stands there."""
    test = doctest.DocTestParser().get_doctest(text, {}, where, where, 0)
    test.globs = names
    told: list[str] = []
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.DocTestRunner(optionflags=options).run(
        test, out=told.append, clear_globs=False
    )
    assert result.attempted, f"{where}: no example"
    assert not result.failed, f"{where}:\n{''.join(told)}"


def in_a_shell(text: str, where: str) -> None:
    """Run a script as a user does: processes of its own, the first error ends it."""
    bin_folder = Path("bin").absolute()
    bin_folder.mkdir(exist_ok=True)
    program = bin_folder / "bertgeom"
    code = "import sys; from bertgeom.pipelines.cli.main import main; sys.exit(main())"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    program.chmod(0o755)
    finished(["sh", "-eu", "-c", text], where, PATH=f"{bin_folder}:{os.environ['PATH']}")


def in_r(text: str, where: str) -> None:
    """Run R where it is installed; elsewhere what the text reads is there."""
    if program := shutil.which("Rscript"):
        finished([program, "-e", text], where)
    files = re.findall(r'"([\w.-]+\.(?:gz|tsv|zarr))"', text)
    assert files, f"{where}: reads nothing"
    for file in files:
        assert Path(file).exists(), f"{where}: no {file}"
    with gzip.open(files[0], "rt") as table:
        columns = set(next(table).split())
    named = {name for m in re.finditer(r"(\w[\w.]*) ~ ([\w. +]+)", text) for name in m.groups()}
    named = {name for part in named for name in part.split(" + ")}
    assert named, f"{where}: names no column"
    assert named <= columns, f"{where}: no column {named - columns}"


def finished(command: list[str], where: str, **environment: str) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"


def commands_of(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")]


def running() -> list[Any]:
    marks = {"tutorial": [pytest.mark.slow], "paper": [pytest.mark.slow]}
    pages = [page for page in SITE if steps(page)]
    return [pytest.param(p, id=p.stem, marks=marks.get(p.stem, [])) for p in pages]


@pytest.mark.parametrize("page", running())
def test_a_page_runs_from_top_to_bottom(
    page: Path,
    folder: Path,
    names: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for language, text, line, _ in steps(page):
        where = f"{page.name}:{line}"
        if language == "python":
            exec(compile(text, where, "exec"), names)
        elif language == "pycon":
            in_session(text, names, where)
        elif language == "sh":
            in_a_shell(text, where)
        elif language == "r":
            in_r(text, where)
        else:
            for command in commands_of(text):
                if command.startswith("bertgeom "):
                    done(command, capsys)


def commands() -> list[Any]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [
            line[2:]
            for match in re.finditer(r"^```console\n(.*?)^```", text, flags=re.M | re.S)
            for line in match[1].replace("\\\n", " ").splitlines()
            if line.startswith("$ ")
        ]
        lines += [
            line
            for match in re.finditer(r"^```sh\n(.*?)^```", text, flags=re.M | re.S)
            for line in match[1].replace("\\\n", " ").splitlines()
            if line.startswith("bertgeom ")
        ]
        inline = re.findall(r"`(bertgeom [a-z]+[^`\n]*)`", text)
        found += [
            pytest.param(c, id=f"{page.name}: {c[:50]}") for c in dict.fromkeys(lines + inline)
        ]
    return found


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_docs_are_those_of_the_command_line(line: str) -> None:
    """Names of commands and options exist; words in capitals stand for the user's own."""
    words = shlex.split(line, comments=True)
    words = words[words.index("|") + 1 :] if "|" in words else words
    if words[0] in _OTHERS:
        return
    assert words[0] == "bertgeom", line
    command = command_line()
    for i, word in enumerate(words[1:]):
        children = getattr(command, "commands", None)
        if children is None or word.startswith("-"):
            break
        if word == "...":
            return
        assert word.strip(",") in children, f"{line}: no command {word!r}"
        command = children[word.strip(",")]
        rest = words[i + 2 :]
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    for word in rest:
        if word.startswith("--"):
            assert word.split("=")[0].rstrip(",") in known, f"{line}: no option {word!r}"


def leaves(command: Any) -> Iterator[Any]:
    children = getattr(command, "commands", None)
    if children is None:
        yield command
    for child in (children or {}).values():
        yield from leaves(child)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_and_targets_that_a_page_names_exist(page: Path) -> None:
    """Wherever they stand: in a table, in a sentence, in a block."""
    options = {"--help", "--debug", "--version"}
    for command in leaves(command_line()):
        options |= {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    for bench in (ROOT / "bench").rglob("*.py"):
        options |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', bench.read_text("utf-8")))
    text = page.read_text("utf-8").replace("\\\n", " ")
    # Options of other programs.
    text = re.sub(r"(^(srun|dask)|python -m pytest) [^`\n]*", "", text, flags=re.M)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= options
    made = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    named = re.findall(r"(?:^\$ |`)make ([a-z-]+)", text, flags=re.M)
    assert set(named) <= {*made}


#: Not run here: they take minutes, and tests of their own run them.
_LONG = {"bench", "casestudy", "demo"}


def of_the_readme(pattern: str) -> list[str]:
    found = re.findall(pattern, PAGES[0].read_text("utf-8"), flags=re.M)
    return [line for line in dict.fromkeys(found) if shlex.split(line)[1] not in _LONG]


def done(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(shlex.split(line, comments=True)[1:])
    assert code == 0, f"{line}: {capsys.readouterr().err}"


def test_the_first_commands_of_the_readme_run_as_they_stand(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = of_the_readme(r"^\$ (bertgeom .*)$")
    assert [shlex.split(line)[1] for line in lines] == ["run", "status", "verify"]
    (tmp_path / "genomes.fasta.gz").write_bytes(
        gzip.compress((folder / "genomes.fasta").read_bytes())
    )
    (tmp_path / "MODEL_FOLDER").symlink_to(folder / "model")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        done(line, capsys)


def test_the_commands_of_the_readmes_table_run_on_a_finished_store(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    rows = of_the_readme(r"^\| `(bertgeom [^`]*)`")
    whole = [line for line in rows if len(line.split()) > 2]
    assert {line.split()[1] for line in whole} >= {"report", "export", "cohorts", "angles"}
    shutil.copytree(folder / "run.zarr", tmp_path / "run.zarr")
    (tmp_path / "M").symlink_to(folder / "model")
    monkeypatch.chdir(tmp_path)
    for line in whole:
        done(line, capsys)
    # A name behind the first one of a cell stands for a command too.
    cells = re.findall(r"^\| `bertgeom [^|]*\|", PAGES[0].read_text("utf-8"), flags=re.M)
    names = [name for cell in cells for name in re.findall(r"`([a-z]+)`", cell)]
    assert names
    assert set(names) <= set(command_line().commands)


def documented() -> dict[str, str]:
    """Kind of every object of the reference by its full name."""
    pages = "".join(page.read_text("utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
    return {name: kind for kind, name in re.findall(r"^\.\. auto(\w+):: (\S+)$", pages, flags=re.M)}


def found(name: str) -> Any:
    home, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(home), attribute)


@pytest.mark.parametrize("name", [n for n, kind in documented().items() if kind == "function"])
def test_a_function_of_the_reference_has_an_example_that_runs(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.endswith("report"):
        pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(found(name)) or ""
    assert "\nExample:\n" in text, f"{name}: no example in its docstring"
    in_session(text, {}, name)


@pytest.mark.parametrize("name", [n for n, kind in documented().items() if kind == "function"])
def test_a_docstring_of_the_reference_names_every_argument(name: str) -> None:
    text = inspect.getdoc(found(name)) or ""
    before, _, _ = text.partition("\nExample:\n")
    named = set(re.findall(r"\w+", before))
    assert not {*inspect.signature(found(name)).parameters} - named


def test_what_the_package_exports_is_in_the_reference() -> None:
    names = documented()
    assert all(found(name).__doc__ for name in names)
    exported = {f"bertgeom.{name}" for name in bertgeom.__all__ if not name.startswith("_")}
    exported |= {f"bertgeom.kernels.{name}" for name in bertgeom.kernels.__all__}
    assert exported <= {*names}


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for page in SITE:
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{entry}.md").resolve() for entry in entries}
    assert listed == {page for page in SITE if page.name != "index.md"}


#: Texts with links and paths: the pages, what they include, and the READMEs of the kernels.
TEXTS = [
    *PAGES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "bertgeom" / "data" / "README.md",
    *sorted((ROOT / "kernels").rglob("README.md")),
]


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", TEXTS, ids=label)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```(?!\{).*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    links += re.findall(r"^```\{(?:literal)?include\} (\S+)", text, flags=re.M)
    for link in links:
        target = link.partition("#")[0]
        if target and "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{label(page)}: {link}"


@pytest.mark.parametrize("page", TEXTS, ids=label)
def test_paths_that_a_text_names_exist(page: Path) -> None:
    """Paths of the repository in backticks: from the root, or from the folder of the text."""
    rooms = ("kernels/", "bertgeom/", "pipelines/", "tests/", "bench/", "docs/", "../")
    for path in re.findall(r"`([\w./-]+)`", page.read_text("utf-8")):
        if path.startswith(rooms) and not path.startswith(("docs/_build", "bench/results/")):
            assert (ROOT / path).exists() or (page.parent / path).exists(), f"{label(page)}: {path}"
    if page.name == "README.md" and ROOT / "kernels" in page.parents:
        files = re.findall(r"`([\w./]+\.(?:py|md))`", page.read_text("utf-8"))
        for file in files:
            near = [page.parent / file, ROOT / file, *page.parent.rglob(Path(file).name)]
            assert any(path.exists() for path in near), f"{label(page)}: {file}"


@pytest.mark.parametrize("page", TEXTS, ids=label)
def test_lines_are_short(page: Path) -> None:
    """Below 120 characters; a row of a table cannot be broken."""
    lines = enumerate(page.read_text("utf-8").splitlines(), 1)
    long = [i for i, line in lines if len(line) >= 120 and not line.startswith(("|", "> |"))]
    assert not long, f"{label(page)}: lines {long}"


def test_the_pictures_are_those_of_their_script_and_small() -> None:
    script = runpy.run_path(str(DOCS / "pictures.py"))
    drawn = {f"{name}.svg": draw() for name, draw in script["PICTURES"].items()}
    kept = {path.name: path.read_text("utf-8") for path in (DOCS / "pictures").iterdir()}
    assert kept == drawn, "run: python docs/pictures.py"
    shown = "".join(page.read_text("utf-8") for page in SITE)
    for name, text in drawn.items():
        assert len(text.encode()) < 15_000
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert f"pictures/{name})" in shown, f"{name} is on no page"


@pytest.mark.parametrize("page", TEXTS, ids=label)
def test_a_block_runs_or_says_why_not(page: Path) -> None:
    """No block of code is left out without a reason that the reader sees."""
    for block in fenced(page.read_text("utf-8")):
        where = f"{label(page)}:{block.line}"
        known = not block.language or block.language.startswith("{") or block.language in RUN
        assert known, f"{where}: nothing runs {block.language!r}"
        if not block.language:
            assert block.runs, f"{where}: a listing needs no reason"
            listed = re.search(r"^(\$ |bertgeom |>>> |import )", block.text, flags=re.M)
            assert not listed, f"{where}: {listed} is code without a language"
        elif block.runs and block.language != "console" and not block.language.startswith("{"):
            assert page in SITE or block.language == "python", f"{where}: never runs"


def test_there_is_code_to_run() -> None:
    assert len(blocks("python")) >= 3
    assert len([page for page in SITE if steps(page)]) >= 10
    assert len(commands()) >= 8
