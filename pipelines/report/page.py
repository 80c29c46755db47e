"""One self-contained HTML page: every text escaped, no script, nothing fetched.

The HTML itself is in `templates/`: `page.html` is the page, `parts.html` has a macro for every
part of it. All functions take plain text and return HTML; `Html` marks what is HTML already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertgeom.errors import ImplementationUnavailableError
from bertgeom.pipelines.report.figures import style

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()

    def __html__(self) -> str:
        """What templates ask for before they escape a value."""
        return self


@cache
def templates() -> Environment:
    """The templates of the report; values are escaped, and free of what no page may hold.

    Raises:
        ImplementationUnavailableError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImplementationUnavailableError(
            "expected jinja2 to write a report, found none; pip install 'bertgeom[report]'"
        ) from error
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def _printable(value: object) -> object:
    """A value as text without control characters; HTML as it is."""
    return value if hasattr(value, "__html__") else style.NOT_XML.sub("\ufffd", str(value))


def _part(macro: str, *arguments: object) -> Html:
    """What a macro of `parts.html` makes of its arguments."""
    parts: Any = templates().get_template("parts.html").module
    return Html(getattr(parts, macro)(*arguments))


def join(parts: Iterable[object]) -> Html:
    """Parts one after the other; text among them is escaped."""
    return _part("join", parts)


def paragraph(*parts: object, kind: str = "") -> Html:
    """A paragraph; `kind` is its class in the style sheet."""
    return _part("paragraph", join(parts), kind)


def bold(text: object) -> Html:
    """Text that stands out."""
    return _part("bold", text)


def codes(names: Iterable[str]) -> Html:
    """Names of arrays, set as code, with commas."""
    return _part("codes", names)


def bullets(items: Iterable[object]) -> Html:
    """A list."""
    return _part("bullets", items)


def tiles(entries: Iterable[tuple[str, str]]) -> Html:
    """Key figures: a large value above its name."""
    return _part("tiles", entries)


def facts(entries: Iterable[tuple[str, object]]) -> Html:
    """A two-column table of names and values."""
    return _part("facts", entries)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, text: int = 1
) -> Html:
    """A table; its first `text` columns are text, the others numbers, set to the right."""
    return _part("table", caption, columns, rows, text)


def details(summary: str, *parts: object) -> Html:
    """Something to open on demand."""
    return _part("details", summary, join(parts))


@dataclass(frozen=True)
class Image:
    """A picture as an `<img>` takes it: a data URI, and pixels of CSS."""

    source: str
    width: int
    height: int

    @classmethod
    def of(cls, picture: Figure) -> Image:
        """A figure, 96 pixels an inch."""
        size = (round(96 * inches) for inches in picture.get_size_inches())
        return cls(style.data_uri(style.svg(picture)), *size)


@dataclass
class Page:
    """A page under construction; figures are numbered as they come.

    Attributes:
        title: of the page, lead: one sentence below it.
        sections: name of the anchor, heading, content.
        n_figures: figures so far.
        caution: sentence at the head of every section that is added, if any.
    """

    title: str
    lead: str
    sections: list[tuple[str, str, Html]] = field(default_factory=list)
    n_figures: int = 0
    caution: str = ""

    def add(self, anchor: str, heading: str, *parts: object) -> None:
        """Add a section; parts that are empty are left out, and so is an empty section."""
        content = join(part for part in parts if part)
        if content:
            if self.caution:
                content = join([paragraph(self.caution, kind="warn"), content])
            self.sections.append((anchor, heading, content))

    def figure(
        self, picture: Figure, title: str, caption: str, arrays: Sequence[str], alt: str
    ) -> Html:
        """A numbered figure.

        Args:
            picture: what is shown. title: three to eight words. caption: what it means.
            arrays: names of the arrays that it comes from.
            alt: what a reader sees in it, for those who cannot.
        """
        self.n_figures += 1
        image = Image.of(picture)
        return _part("figure", self.n_figures, title, caption, arrays, alt, image)

    def render(self) -> str:
        """The whole document."""
        return templates().get_template("page.html").render(page=self)
