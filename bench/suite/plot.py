"""`make bench-plot`: draws a JSON of `pytest bench --benchmark-json FILE` over the window length.

`python -m bench.suite.plot FILE [--out FOLDER]` writes one SVG a kernel that was timed over
several N, and prints all tables. `--save` keeps what they hold in `bench/results`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.run import save
from bench.suite import table


def main(argv: list[str] | None = None) -> int:
    """Print the tables, draw the figures; 2 where the file holds none of ours."""
    parser = argparse.ArgumentParser(prog="python -m bench.suite.plot", description=__doc__)
    parser.add_argument("file", type=Path, help="made by --benchmark-json")
    parser.add_argument("--out", type=Path, help="folder of the figures; default: beside the file")
    parser.add_argument("--save", action="store_true", help="keep the rows in bench/results")
    asked = parser.parse_args(argv)
    try:
        saved = json.loads(asked.file.read_text())
        rows = rows_of(saved)
    except (OSError, ValueError, KeyError) as error:
        print(f"{asked.file}: expected a JSON of pytest-benchmark, found {error}", file=sys.stderr)
        return 2
    if not rows:
        print(f"{asked.file}: expected benchmarks of bench/suite, found none", file=sys.stderr)
        return 2
    print("\n".join(table.lines(rows)))
    if asked.save:
        info = saved["machine_info"]
        kept = {"environment": info["bertgeom"], "limits": info["limits"], "rows": rows}
        print(f"written: {save(kept, 'suite.json')}", file=sys.stderr)
    folder = asked.out or asked.file.parent
    folder.mkdir(parents=True, exist_ok=True)
    about = saved["machine_info"].get("bertgeom", {}).get("device", "")
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        mine = [row for row in rows if row["kernel"] == kernel]
        if len({row["shape"].get("N") for row in mine} - {None}) > 1:
            print(f"drawn: {draw(mine, about, folder)}")
    return 0


def rows_of(saved: dict[str, Any]) -> list[dict[str, Any]]:
    """What `conftest.timed` put into the JSON, with the spread of the plugin."""
    return [
        {**one["extra_info"], "iqr": one["stats"]["iqr"]}
        for one in saved["benchmarks"]
        if "kernel" in one["extra_info"]
    ]


def draw(rows: Sequence[dict[str, Any]], about: str, folder: Path) -> Path:
    """Median time over N on two logarithmic axes: a panel for every other size, a line a way."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    panels: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        rest = {k: v for k, v in row["shape"].items() if k != "N"}
        panels.setdefault(table.title({**row, "shape": rest}), []).append(row)
    panels = {k: v for k, v in panels.items() if len({row["shape"]["N"] for row in v}) > 1}
    ways = list(dict.fromkeys(row["way"] for row in rows))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 3.8), sharey=True, squeeze=False
    )
    for axis, (name, mine) in zip(axes[0], panels.items(), strict=True):
        for k, way in enumerate(ways):
            points = sorted((r["shape"]["N"], 1e3 * r["seconds"]) for r in mine if r["way"] == way)
            if points:
                axis.plot(*zip(*points, strict=True), label=way, color=f"C{k}", marker="o")
        lengths = sorted({row["shape"]["N"] for row in mine})
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(lengths, [str(n) for n in lengths])
        axis.set_xlabel("tokens of a window")
        axis.set_title(name)
    axes[0][0].set_ylabel("median time, ms")
    axes[0][-1].legend()
    kernel = rows[0]["kernel"]
    figure.suptitle(f"{kernel}, {about}")
    figure.tight_layout()
    path = folder / f"{''.join(c if c.isalnum() else '_' for c in kernel)}.svg"
    figure.savefig(path)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    sys.exit(main())
