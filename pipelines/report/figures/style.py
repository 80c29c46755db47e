"""How figures look, and how they become small, self-contained pictures.

Figures are drawn with a handful of fixed *ink* colours. In the SVG these become CSS
variables with a light and a dark value, so that one picture reads well on either ground.
"""

from __future__ import annotations

import io
import re
import warnings
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from bertgeom.errors import ImplementationUnavailableError
from bertgeom.variables import GATES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

#: PreparedRun colour -> (on a light ground, on a dark ground).
_INKS = {
    "#1a2b3c": ("#1c2530", "#e6e9ee"),
    "#5c6773": ("#5c6773", "#a3adb8"),
    "#d3d8de": ("#d3d8de", "#3a424c"),
    "#004b87": ("#0067b0", "#5aa9e6"),
    "#484b50": ("#50555c", "#8d949c"),
    "#c9ccd0": ("#c9ccd0", "#5a6068"),
    "#7a1f5c": ("#882255", "#d47fb0"),
    "#32228a": ("#4b3fa8", "#9c94ea"),
}
TEXT, FAINT, GRID = tuple(_INKS)[:3]
_BLUE, _DARK_GREY, _LIGHT_GREY, _WINE, _INDIGO = tuple(_INKS)[3:]

#: Okabe and Ito's palette, told apart with any common colour vision.
COHORTS = (
    "#e69f00",
    _BLUE,
    "#009e73",
    "#d55e00",
    "#56b4e9",
    "#cc79a7",
    _WINE,
    "#999933",
    _INDIGO,
    _DARK_GREY,
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
GATE_COLOURS = dict(
    zip(
        GATES,
        (
            _DARK_GREY,
            _BLUE,
            "#56b4e9",
            "#009e73",
            "#d55e00",
            "#cc79a7",
            "#e69f00",
            _LIGHT_GREY,
        ),
        strict=True,
    )
)
SEQUENTIAL = "cividis"
DIVERGING = "PuOr_r"

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "normal",
    "axes.labelsize": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "text.color": TEXT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "bertgeom",
    "svg.image_inline": True,
    "image.composite_image": False,
    "path.simplify": True,
    "text.parse_math": False,
}
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_PLACES = re.compile(r'(?<=[ (])(?:d|x|y|width|height|transform|points)="[^"]*"')
_STYLE = re.compile(r'(?<= )style="[^"]*"')
_FAMILY = re.compile(r"'DejaVu Sans'[^;\"]*")
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def drawn(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a function that makes a figure use the settings of this module."""

    @wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> Figure:
        with settings():
            return function(*args, **options)

    return wrapped


def shown(text: object, most: int = 28) -> str:
    """A label as it can stand in a figure: one line, printable, not too long."""
    line = " ".join(NOT_XML.sub("\ufffd", str(text)).split())
    return line if len(line) <= most else f"{line[: most - 1]}\u2026"


def settings() -> Any:
    """A context in which figures are made and written; nothing global is left changed.

    Raises:
        ImplementationUnavailableError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImplementationUnavailableError(
            "expected matplotlib to draw a report, found none; pip install 'bertgeom[report]'"
        ) from error
    return matplotlib.rc_context(_SETTINGS)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches, that no global state knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panels(
    n: int, *, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of n panels in rows of `columns`, each width x height inches."""
    columns = max(1, min(n, columns))
    rows = -(-n // columns)
    figure = new_figure(width * columns, height * rows)
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in grid.flat[n:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:n])


def heat(
    figure: Figure,
    axes: Axes,
    values: np.ndarray,
    *,
    label: str,
    colours: str = SEQUENTIAL,
    limits: tuple[float, float | None] | None = None,
    norm: Any = None,
) -> Any:
    """A heat map of (rows, columns), first row on top, with its colour bar."""
    low: float | None
    high: float | None
    low, high = limits if limits else (None, None)
    if norm is None and limits is None:
        low, high = finite_range(values)
    image = axes.imshow(
        values,
        cmap=colours,
        aspect="auto",
        interpolation="none",
        norm=norm,
        vmin=None if norm else low,
        vmax=None if norm else high,
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    bar(figure, image, axes, label)
    return image


def bar(figure: Figure, image: Any, axes: Axes | Sequence[Axes], label: str) -> None:
    """A colour bar beside one panel or several."""
    slim = 0.05 if not isinstance(axes, Sequence) else 0.02
    found = figure.colorbar(image, ax=axes, fraction=slim, pad=0.02, format="{x:g}")
    found.minorticks_off()
    found.outline.set_visible(False)
    found.set_label(label)


def finite_range(values: np.ndarray) -> tuple[float, float]:
    """Least and largest finite value, a little apart; (0, 1) where there is none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def write_numbers(axes: Axes, values: np.ndarray, image: Any, form: str = "{:.2f}") -> None:
    """Print the value in every cell of a small heat map, dark on light and light on dark."""
    if values.size > 64:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            ink = "#ffffff" if dark else "#101418"
            axes.text(column, row, form.format(value), ha="center", va="center", color=ink, size=8)


def ticks(axes: Axes, which: str, names: Sequence[Any], *, most: int = 26, **options: Any) -> None:
    """Name the positions 0..n-1 of an axis; every second, third ... where they are many."""
    step = max(1, -(-len(names) // most))
    places = list(range(0, len(names), step))
    getattr(axes, f"set_{which}ticks")(places, [str(names[i]) for i in places], **options)


def svg(figure: Figure) -> str:
    """The figure as SVG text: equal figures give equal text, colours follow light and dark."""
    buffer = io.StringIO()
    with settings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=110)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = _outside_images(text)
    rules = [
        ":root{" + ";".join(f"--i{c[1:]}:{light}" for c, (light, _) in _INKS.items()) + "}",
        "@media(prefers-color-scheme:dark){:root{"
        + ";".join(f"--i{c[1:]}:{dark}" for c, (_, dark) in _INKS.items())
        + "}}",
    ]
    end = text.index(">") + 1
    return f"{text[:end]}<style>{''.join(rules)}</style>{text[end:]}"


def data_uri(picture: str) -> str:
    """An SVG text as the source of an <img>."""
    return "data:image/svg+xml;base64," + b64encode(picture.encode()).decode()


def _outside_images(text: str) -> str:
    """Shorten numbers, name one font family and mark ink colours; embedded pictures stay."""
    parts = re.split(r'(xlink:href="data:[^"]*")', text)
    for i in range(0, len(parts), 2):
        part = _PLACES.sub(lambda m: _NUMBER.sub(_short_number, m[0]), parts[i])
        part = _STYLE.sub(lambda m: _with_inks(m[0]), part)
        parts[i] = re.sub(r"\n\s*", "\n", part)
    return "".join(parts)


def _short_number(found: re.Match[str]) -> str:
    text = f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _with_inks(style: str) -> str:
    style = _FAMILY.sub("system-ui, 'DejaVu Sans', sans-serif", style)
    for colour, (light, _) in _INKS.items():
        style = style.replace(colour, f"var(--i{colour[1:]},{light})")
    return style
