"""Draws the small pictures of the documentation: `python docs/pictures.py`.

Every picture is one function that returns an SVG text. Colours are of middle brightness, so that
they can be read on white and on black. The same code gives the same bytes; a test compares them
with the files in `docs/pictures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

FOLDER = Path(__file__).with_name("pictures")
GREY, BLUE, ORANGE, GREEN = "#7d7d7d", "#3d85c8", "#dd7a33", "#2e9d6d"


def _svg(width: int, height: int, label: str, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{label}" '
        f'font-family="sans-serif" font-size="12" fill="{GREY}">\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, words: str, anchor: str = "middle", colour: str = GREY) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def _rect(x: float, y: float, w: float, h: float, colour: str, opacity: float = 1) -> str:
    shade = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{colour}"{shade}/>'


def _frame(x: float, y: float, w: float, h: float) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"'
    return f'<rect {place} fill="none" stroke="{GREY}" rx="2"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = GREY, more: str = "") -> str:
    return (
        f'<line x1="{x1:.4g}" y1="{y1:.4g}" x2="{x2:.4g}" y2="{y2:.4g}" stroke="{colour}"{more}/>'
    )


def _curve(points: Iterable[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _arrow(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    angle = math.atan2(y2 - y1, x2 - x1)
    tips = [(x2 - 7 * math.cos(angle + a), y2 - 7 * math.sin(angle + a)) for a in (0.4, -0.4)]
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(x2, y2), *tips])
    line = _line(x1, y1, x2, y2, colour, ' stroke-width="1.5"')
    return f'{line}<polygon points="{head}" fill="{colour}"/>'


def _cells(cells: Iterable[tuple[int, int]], colour: str) -> str:
    """Squares of a 16 x 16 map, (query, key)."""
    path = "".join(f"M{j} {i}h1v1h-1z" for i, j in cells)
    return f'<path d="{path}" fill="{colour}"/>'


def gates() -> str:
    """The eight pure patterns, each an attention map: a row a query, a column a key."""
    far = [(i, (7 * i + 9) % 16) for i in range(16)]
    maps: list[tuple[str, str, str]] = [
        ("closed", _rect(15, 0, 1, 16, BLUE), "to special tokens"),
        ("open", _cells(((i, i) for i in range(16)), BLUE), "to itself"),
        (
            "backward",
            _cells(((i, i - d) for d in (1, 2, 3) for i in range(d, 16)), BLUE),
            "to the tokens before",
        ),
        (
            "forward",
            _cells(((i, i + d) for d in (1, 2, 3) for i in range(16 - d)), BLUE),
            "to the tokens after",
        ),
        ("directional", _rect(6, 0, 1, 16, ORANGE), "to a hub far away"),
        ("instance", _cells(far, ORANGE), "to one far token each"),
        (
            "cluster",
            "".join(_rect(4 * b, 4 * b, 4, 4, ORANGE, 0.7) for b in range(4)),
            "within a stretch",
        ),
        ("diffuse", _rect(0, 0, 16, 16, ORANGE, 0.3), "to everything"),
    ]
    parts = []
    for place, (name, drawing, words) in enumerate(maps):
        x, y = 36 + 154 * (place % 4), 24 + 130 * (place // 4)
        parts += [
            _text(x + 40, y - 8, name),
            f'<g transform="translate({x} {y}) scale(5)">{drawing}</g>',
            _frame(x, y, 80, 80),
            _text(x + 40, y + 95, words),
        ]
    return _svg(600, 262, "Attention maps of the eight gates", parts)


def entropy() -> str:
    """Two rows of weights, largest first: one sharp, one flat, and their k90."""
    parts = []
    for x, name, rate in ((34, "a sharp row", 0.45), (334, "a flat row", 0.93)):
        raw = [rate**k for k in range(24)]
        weights = [value / sum(raw) for value in raw]
        h = -sum(w * math.log(w) for w in weights)
        held, k90 = 0.0, 0
        while held < 0.9:
            held += weights[k90]
            k90 += 1
        for k, w in enumerate(weights):
            colour = BLUE if k < k90 else GREY
            height = max(1.0, 200 * w)
            parts.append(_rect(x + 10 * k, round(140 - height, 1), 8, round(height, 1), colour))
        parts += [
            _line(x, 140, x + 240, 140),
            _line(x + 10 * k90 - 1, 22, x + 10 * k90 - 1, 140, ORANGE, ' stroke-dasharray="3 3"'),
            _text(x + 10 * k90 + 4, 32, f"k90 = {k90}", "start", ORANGE),
            _text(x + 120, 158, f"{name}: entropy {h:.1f} nat, top-1 {weights[0]:.2f}"),
        ]
    return _svg(600, 168, "Weights of two query rows, sorted, with entropy and k90", parts)


def cone() -> str:
    """A narrow and a wide cone, and the histogram of the angles of all pairs."""
    parts = []
    for x, name, spread in (
        (85, "narrow: index / n near 1", 12),
        (365, "wide: index / n well below 1", 75),
    ):
        angles = [spread * (k - 3) / 3 for k in range(7)]
        for a in angles:
            turned = math.radians(a - 90)
            parts.append(
                _arrow(x, 120, x + 88 * math.cos(turned), 120 + 88 * math.sin(turned), BLUE)
            )
        resultant = sum(math.cos(math.radians(a)) for a in angles) / len(angles)
        parts.append(_arrow(x, 120, x, 120 - 88 * resultant, ORANGE))
        parts.append(_text(x - 70, 144, name, "start"))
        left = x + 80
        pairs = [abs(a - b) for i, a in enumerate(angles) for b in angles[:i]]
        counts = [sum(15 * k <= p < 15 * k + 15 for p in pairs) for k in range(12)]
        for k, count in enumerate(counts):
            parts.append(_rect(left + 9 * k, 115 - 5 * count, 8, 5 * count, GREEN))
        parts += [
            _line(left, 115, left + 108, 115),
            _text(left, 128, "0", "start"),
            _text(left + 108, 128, "180 deg", "end"),
        ]
    return _svg(570, 150, "Cones of token vectors and histograms of their pairwise angles", parts)


def stream() -> str:
    """The residual stream with its stations, and how the length of the vectors may grow."""
    names = ["embedding", "attention_0", "output_0", "attention_1", "output_1"]
    parts = []
    for k, name in enumerate(names):
        x, height = 10 + 116 * k, 14 + 14 * k
        parts += [_frame(x, 20, 92, 26), _text(x + 46, 37, name)]
        if k:
            parts.append(_arrow(x - 24, 33, x - 2, 33, GREY))
        bell = [
            (x + 46 + 4 * t, 128 - (60 - 7 * k) * math.exp(-((t / (2.0 + 0.9 * k)) ** 2)))
            for t in [step / 2 for step in range(-22, 23)]
        ]
        parts += [
            _curve(bell, BLUE),
            _line(x, 128, x + 92, 128),
            _rect(x, 154, 12 + height, 8, ORANGE),
        ]
    parts += [
        _text(10, 62, "entries of the vectors: mean, variance, skewness, kurtosis", "start", BLUE),
        _text(10, 147, "length of the vectors: norm", "start", ORANGE),
    ]
    return _svg(580, 170, "Stations of the residual stream and the moments at each", parts)


def offsets() -> str:
    """The offset profile: mass by signed distance from query to key, in bins that double."""
    names = ["-9..16", "-5..8", "-3..4", "-2", "-1", "0", "+1", "+2", "+3..4", "+5..8", "+9..16"]
    mass = [0.02, 0.03, 0.05, 0.08, 0.34, 0.12, 0.11, 0.08, 0.07, 0.06, 0.04]
    parts = []
    for k, (name, value) in enumerate(zip(names, mass, strict=True)):
        x = 12 + 51 * k
        colour = GREY if name == "0" else BLUE if name.startswith("-") else ORANGE
        height = round(300 * value)
        parts += [_rect(x, 130 - height, 44, height, colour), _text(x + 22, 146, name)]
    parts += [
        _line(8, 130, 576, 130),
        _text(12, 20, "keys before the query", "start", BLUE),
        _text(572, 20, "keys after the query", "end", ORANGE),
    ]
    return _svg(584, 156, "Attention mass by signed offset from query to key", parts)


def spectra() -> str:
    """Singular values of two matrices, largest first: few directions, or many."""
    parts = [_line(36, 140, 560, 140), _line(36, 12, 36, 140)]
    for colour, rate, words, y in (
        (BLUE, 0.55, "few directions: low effective rank, low spectral entropy", 30),
        (ORANGE, 0.965, "many directions: high effective rank, high spectral entropy", 48),
    ):
        values = [rate**k for k in range(32)]
        points = [(44 + 16 * k, 138 - 118 * value) for k, value in enumerate(values)]
        parts += [_curve(points, colour), _text(556, y, words, "end", colour)]
    parts += [
        _text(298, 156, "singular values, largest first"),
        '<text transform="translate(22 80) rotate(-90)" text-anchor="middle">size</text>',
    ]
    return _svg(580, 164, "Singular values of two matrices", parts)


PICTURES: dict[str, Callable[[], str]] = {
    "gates": gates,
    "entropy": entropy,
    "cone": cone,
    "stream": stream,
    "offsets": offsets,
    "spectra": spectra,
}


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), "utf-8")


if __name__ == "__main__":
    main()
