"""One self-contained HTML page: every text escaped, no script, nothing fetched.

All functions take plain text and return HTML; `Html` marks what is HTML already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from bertgeom.pipelines.report.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def html(value: object) -> Html:
    """A value as HTML; escaped unless it is HTML already."""
    return (
        value if isinstance(value, Html) else Html(escape(style.NOT_XML.sub("\ufffd", str(value))))
    )


def join(parts: Iterable[object]) -> Html:
    """Parts one after the other."""
    return Html("".join(html(part) for part in parts))


def tag(name: str, *parts: object, **attributes: object) -> Html:
    """An element; `class_` is the attribute class, None leaves an attribute out."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{text}>{join(parts)}</{name}>")


def paragraph(*parts: object, class_: str | None = None) -> Html:
    """A paragraph."""
    return tag("p", *parts, class_=class_)


def codes(names: Iterable[str]) -> Html:
    """Names of arrays, set as code, with commas."""
    return Html(", ".join(tag("code", name) for name in names))


def bullets(items: Iterable[object]) -> Html:
    """A list."""
    return tag("ul", *(tag("li", item) for item in items))


def tiles(entries: Iterable[tuple[str, str]]) -> Html:
    """Key figures: a large value above its name."""
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value)) for name, value in entries),
        class_="tiles",
    )


def facts(entries: Iterable[tuple[str, object]]) -> Html:
    """A two-column table of names and values."""
    rows = (tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in entries)
    return tag("div", tag("table", tag("tbody", *rows), class_="facts"), class_="wide")


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, text: int = 1
) -> Html:
    """A table; its first `text` columns are text, the others numbers, set to the right."""
    head = tag(
        "tr",
        *(
            tag("th", name, scope="col", class_=None if i < text else "n")
            for i, name in enumerate(columns)
        ),
    )
    body = []
    for row in rows:
        cells = [tag("th", row[0], scope="row")]
        cells += [
            tag("td", value, class_=None if i < text else "n")
            for i, value in enumerate(row[1:], start=1)
        ]
        body.append(tag("tr", *cells))
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", whole, class_="wide")


def details(summary: str, *parts: object) -> Html:
    """Something to open on demand."""
    return tag("details", tag("summary", summary), *parts)


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
                content = join([paragraph(self.caution, class_="warn"), content])
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
        width = round(picture.get_figwidth() * 96)
        height = round(picture.get_figheight() * 96)
        image = Html(
            f'<img src="{style.data_uri(style.svg(picture))}" alt="{html(alt)}" '
            f'width="{width}" height="{height}">'
        )
        text = tag(
            "figcaption",
            tag("b", f"Figure {self.n_figures}. {title}."),
            " ",
            caption,
            " ",
            tag(
                "span",
                "Array: " if len(arrays) == 1 else "Arrays: ",
                codes(arrays),
                ".",
                class_="arrays",
            ),
        )
        return tag("figure", image, text, id=f"figure-{self.n_figures}")

    def render(self) -> str:
        """The whole document."""
        links = [
            tag("li", tag("a", heading, href=f"#{anchor}")) for anchor, heading, _ in self.sections
        ]
        body = [
            tag("section", tag("h2", heading), content, id=anchor)
            for anchor, heading, content in self.sections
        ]
        return _DOCUMENT.format(
            title=html(self.title),
            lead=html(self.lead),
            css=_CSS,
            nav=tag("nav", tag("ol", *links), aria_label="Contents"),
            body="\n".join(body),
        )


_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<header><h1>{title}</h1><p class="lead">{lead}</p></header>
{nav}
<main>
{body}
</main>
</body>
</html>
"""

_CSS = """
:root{color-scheme:light dark;--ground:#fff;--panel:#f6f7f9;--ink:#1c2530;--faint:#5c6773;
--line:#d9dde3;--link:#0b5cad}
@media(prefers-color-scheme:dark){:root{--ground:#14181d;--panel:#1c2229;--ink:#e6e9ee;
--faint:#a3adb8;--line:#363e48;--link:#7db8f0}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0 auto;max-width:60rem;padding:2.5rem 1.25rem 4rem;background:var(--ground);
color:var(--ink);font:1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.35rem;margin:3rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:2rem 0 .4rem}
.lead{font-size:1.1rem;color:var(--faint);margin:0 0 1.2rem;overflow-wrap:anywhere}
p,li{max-width:46rem}
a{color:var(--link)}
nav ol{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:.6rem 0;margin:0;list-style:none;
border-block:1px solid var(--line);font-size:.92rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.2rem,1fr));gap:.7rem;
margin:1.2rem 0}
.tiles div{background:var(--panel);border-radius:.5rem;padding:.7rem .9rem;display:flex;
flex-direction:column-reverse;justify-content:flex-end}
.tiles dt{color:var(--faint);font-size:.83rem;line-height:1.3}
.tiles dd{margin:0;font-size:1.4rem;font-weight:600;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere;line-height:1.25}
figure{margin:1.6rem 0 2rem;background:var(--panel);border-radius:.6rem;padding:1rem}
figure img{display:block;width:auto;max-width:100%;height:auto;margin:0 auto}
figcaption{margin-top:.8rem;font-size:.92rem;line-height:1.5;max-width:48rem}
.arrays{color:var(--faint)}
code{font:.87em ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.9rem}
caption{white-space:nowrap;text-align:left;color:var(--faint);padding:0 0 .4rem}
th,td{text-align:start;vertical-align:top;padding:.28rem .9rem .28rem 0;
border-bottom:1px solid var(--line)}
td{overflow-wrap:anywhere}
thead th{color:var(--faint);font-weight:500;white-space:nowrap}
tbody th{font-weight:500}
.facts th{color:var(--faint);white-space:nowrap}
th.n,td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
details{margin:1rem 0}
summary{cursor:pointer;color:var(--link)}
.warn{border-left:.25rem solid #d55e00;padding:.2rem 0 .2rem .8rem}
@media(max-width:40rem){body{padding:1.2rem .8rem 3rem}figure{padding:.6rem;
margin-inline:-.3rem;overflow-x:auto}figure img{max-width:none;width:40rem}
figcaption{position:sticky;left:0}.facts th{white-space:normal}}
@media print{body{max-width:none;padding:0;font-size:10pt}nav{display:none}
figure,tr{break-inside:avoid}h2,h3{break-after:avoid}details{display:block}
:root{--ground:#fff;--panel:#fff;--ink:#000;--faint:#444;--line:#ccc;--link:#000}}
"""
