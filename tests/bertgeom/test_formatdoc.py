"""FORMAT.md says what the code does."""

from __future__ import annotations

import re

import pytest

from bertgeom import formatdoc
from bertgeom.model.architectures import ARCHITECTURES
from bertgeom.store.layout import Layout, Shape
from bertgeom.store.root_file import FORMAT_VERSION
from bertgeom.variables import FLAGS, KEEP, VARIABLES

TEXT = formatdoc.PATH.read_text("utf-8")


def test_the_tables_are_those_of_the_declarations() -> None:
    assert formatdoc.with_tables(TEXT) == TEXT, "run: python -m bertgeom.formatdoc"


def test_the_page_of_architectures_is_that_of_the_declarations() -> None:
    text = formatdoc.ARCHITECTURES_PATH.read_text("utf-8")
    again = formatdoc.with_tables(text, formatdoc.ARCHITECTURE_TABLES)
    assert again == text, "run: python -m bertgeom.formatdoc"
    assert all(f"| {a.name} |" in text for a in ARCHITECTURES)


def test_every_array_flag_and_coordinate_is_described() -> None:
    shape = Shape(1, 1, 1, ("c",), 8, keep=KEEP, group_names=("g",))
    names = [*VARIABLES, *(c.name for c in Layout(shape, 1, 1).coordinates)]
    for name in names:
        assert f"| `{name}` |" in TEXT
    for name, meaning in FLAGS.items():
        assert f"| {name} | {meaning} |" in TEXT


def test_the_version_is_that_of_the_code() -> None:
    found = re.search(r"format version (\d+)", TEXT)
    assert found
    assert found[1] == FORMAT_VERSION.split(".")[0]


def test_missing_marks_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected one <!-- begin arrays -->"):
        formatdoc.with_tables("no marks")
