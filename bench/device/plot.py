"""The results of `python -m bench.device` as a table of text, and as a plot over N and d."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.device.steps import RESULTS

#: In this order, in one colour each.
SHOWN = ("sdpa", "cudnn", "flash", "core", "full")


def main(folder: Path) -> int:
    """Prints the table and draws `device.svg`; 2 without results."""
    path = folder / RESULTS
    if not path.exists():
        print(f"{path}: expected results of python -m bench.device, found none", file=sys.stderr)
        return 2
    results = json.loads(path.read_text())
    print(text(results))
    if results["steps"].get("kernels", {}).get("table"):
        print(f"drawn: {draw(results, folder / 'device.svg')}")
    return 0


def text(results: dict[str, Any]) -> str:
    """One line a figure; ratios are medians of the ratios within rounds, with quartiles."""
    steps = results["steps"]
    about = steps.get("machine", {}).get("environment", {})
    lines = [", ".join(f"{k} {v}" for k, v in about.items())]
    lines += ["a dry run: its times mean nothing"] if results["dry"] else []
    lines += [f"{name}: {x['error']}" for name, x in steps.items() if "error" in x]
    lines += [f"{name}: {x['skipped']}" for name, x in steps.items() if "skipped" in x]
    for part, rows in steps.get("launches", {}).get("launches", {}).items():
        for name, row in rows.items():
            lines.append(f"{part:16} {row['times']} x {name:44} {_micros(row)}")
    for name, row in steps.get("launches", {}).get("whole", {}).items():
        lines.append(f"{'whole':16} {name:48} {row.get('failed') or _micros(row)}")
    for row in steps.get("kernels", {}).get("table", []):
        title = f"d {row['head_dim']}, N {row['tokens']}, B {row['batch']}"
        lines += _ratios(title, row)
    for row in steps.get("forwards", {}).get("table", []):
        for how in ("eager", "graph"):
            lines += _ratios(f"{row['name']}, {how}", row[how])
    found = steps.get("stream", {})
    if "share_of_bare_loop" in found:
        lines.append(f"FASTA to arrays: {found['share_of_bare_loop']:.3f} of the bare loop")
    return "\n".join(lines)


def _micros(row: dict[str, Any]) -> str:
    graph = row["graph_us"]
    shown = f"{graph:9.1f}" if graph is not None else f"{'-':>9}"
    return f"{shown} us in a graph, {row['eager_us']:9.1f} eager, {row['host_us']:9.1f} host"


def _ratios(title: str, entry: dict[str, Any]) -> list[str]:
    return [
        f"{title:44} {name:20} {row['seconds_median'] * 1e6:11.1f} us {row['ratio_median']:7.3f} "
        f"x {entry['base']} ({row['ratio_q25']:.3f}..{row['ratio_q75']:.3f})"
        for name, row in entry["variants"].items()
    ]


def draw(results: dict[str, Any], path: Path) -> Path:
    """One panel a head dimension: time over the fastest bare attention by window length."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    table = results["steps"]["kernels"]["table"]
    head_dims = sorted({row["head_dim"] for row in table})
    figure, axes = pyplot.subplots(
        1, len(head_dims), figsize=(4 * len(head_dims), 3.5), sharey=True, squeeze=False
    )
    for axis, head_dim in zip(axes[0], head_dims, strict=True):
        rows = sorted(
            (row for row in table if row["head_dim"] == head_dim), key=lambda row: row["tokens"]
        )
        for k, name in enumerate(SHOWN):
            having = [row for row in rows if name in row["variants"]]
            if not having:
                continue
            middle = [row["variants"][name]["ratio_median"] for row in having]
            spread = [
                [abs(row["variants"][name][q] - m) for row, m in zip(having, middle, strict=True)]
                for q in ("ratio_q25", "ratio_q75")
            ]
            x = [row["tokens"] for row in having]
            axis.errorbar(x, middle, spread, label=name, color=f"C{k}", marker="o", capsize=2)
        axis.set_xscale("log", base=2)
        axis.set_xticks([row["tokens"] for row in rows], [str(row["tokens"]) for row in rows])
        axis.set_xlabel("tokens of a window")
        axis.set_title(f"head dimension {head_dim}")
    axes[0][0].set_ylabel("time over the fastest bare attention")
    axes[0][-1].legend()
    device = results["steps"].get("machine", {}).get("environment", {}).get("device", "")
    figure.suptitle(f"{device}{' (dry run: times mean nothing)' if results['dry'] else ''}")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return path
