"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import re
from typing import Any

import bertgeom

project = "bertgeom"
author = "The bertgeom developers"
copyright = author
version = release = bertgeom.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"bertgeom {release}"
templates_path: list[str] = []

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
#: Straight quotes and two hyphens are code, mostly.
smartquotes = False
#: A word in single backticks is code.
default_role = "code"
#: The prompts of a session are shown, and left out of what is copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def plain_text(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text: stars, bars and trailing underscores are no markup."""
    in_example = False
    for i, line in enumerate(lines):
        in_example = line.lstrip().startswith((">>>", "...")) or (in_example and bool(line.strip()))
        if in_example:
            continue
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
        lines[i] = "".join(parts)


def setup(app: Any) -> None:
    """Called by Sphinx: before napoleon sees a docstring, it is made plain text."""
    app.connect("autodoc-process-docstring", plain_text, priority=400)
