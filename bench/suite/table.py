"""Measured rows as text: one table a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.suite.cases import Case


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One table a kernel; where a shape has a base, the others are stated as multiples of it."""
    found = []
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        mine = [row for row in rows if row["kernel"] == kernel]
        titles = [title(row) for row in mine]
        wide = max(map(len, [*titles, "shape"]))
        ways = max(len(row["way"]) for row in mine)
        head = f"{'shape':{wide}}  {'way':{ways}}  {'median':>10}  {'IQR':>8}  {'rounds':>6}"
        found += ["", kernel, f"{head}  {'x base':>7}  {'throughput':>16}  {'roofline':>8}"]
        for name, row in zip(titles, mine, strict=True):
            base = base_of(row, mine)
            times = f"{row['seconds'] / base:.2f}" if base else "-"
            rate = f"{scaled(row['throughput'])}{row['unit']}/s"
            roofline = f"{100 * row['roofline']:.1f} %" if row["roofline"] else "-"
            found.append(
                f"{name:{wide}}  {row['way']:{ways}}  {1e3 * row['seconds']:7.3f} ms  "
                f"{1e3 * row['iqr']:8.3f}  {row['rounds']:6}  {times:>7}  {rate:>16}  "
                f"{roofline:>8}"
            )
    return found


def title(row: dict[str, Any]) -> str:
    """The shape of a row in words."""
    return Case(row["way"], row["shape"]).title


def base_of(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    """Seconds of the base of the same shape, None where there is none."""
    alike = [r["seconds"] for r in rows if r["base"] and r["shape"] == row["shape"]]
    return alike[0] if alike else None


def scaled(value: float) -> str:
    """With the prefix of the SI that leaves one to three digits before the point."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000 or prefix == "T":
            return f"{value:.3g} {prefix}"
        value /= 1000
    raise AssertionError("the last prefix returns")
