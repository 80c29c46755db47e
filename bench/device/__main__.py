"""`python -m bench.device --out FOLDER`: smoke, correctness, ratios; saved after every step.

Step by step: what machine it is; the kernels compiled ahead; whether results are right (errors
against the oracle, whole numbers, equal bits twice); microseconds of every launch in a graph,
eager and on the host; the tests of the kernels; the tables over lengths and head dimensions;
whole forwards with their memory; computed floors beside measured times; FASTA to arrays.

`--dry-run` runs every step at toy sizes in Triton's interpreter on a CPU: its times mean nothing.
`--plot` draws the tables of a folder that has results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.device import namespace
from bench.device.steps import DRY, RESULTS, Setup, Sizes, chosen, run

NAMES = (
    "machine",
    "compile_first",
    "right",
    "launches",
    "tests",
    "compile_tables",
    "kernels",
    "angles",
    "forwards",
    "stream",
    "roofline",
)


def steps() -> dict[str, Callable[[Setup], dict[str, Any]]]:
    """All steps in their order. Imported late: the package must be found first."""
    from bench.device import correctness, forwards, kernels, smoke, stream, warm

    todo = (
        smoke.machine,
        warm.first,
        smoke.right,
        smoke.launches,
        correctness.gpu_tests,
        warm.rest,
        kernels.ratios,
        kernels.angles,
        forwards.ratios,
        stream.end_to_end,
        kernels.roofline,
    )
    return dict(zip(NAMES, todo, strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Runs the steps; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.device", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("device-results"))
    parser.add_argument("--steps", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="no step begins after these")
    parser.add_argument("--again", action="store_true", help="forget what the folder holds")
    parser.add_argument("--ungated", action="store_true", help="time what the oracle rejects, too")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, interpreted on a CPU")
    parser.add_argument("--plot", action="store_true", help="draw the results of the folder")
    options = parser.parse_args(arguments)
    if options.plot:
        from bench.device import plot

        return plot.main(options.out)
    if options.dry_run:
        # Triton reads it when it is imported.
        os.environ["TRITON_INTERPRET"] = "1"
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        namespace.use(Path(folder))
        return _run(options, Path(folder))


def _run(options: argparse.Namespace, links: Path) -> int:
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device; --dry-run runs every step on the CPU", file=sys.stderr)
        return 2
    if not options.dry_run:
        torch.cuda.set_device(options.device)
    setup = Setup(
        device="cpu" if options.dry_run else options.device,
        dry=options.dry_run,
        out=options.out.resolve(),
        links=links,
        sizes=DRY if options.dry_run else Sizes(),
        deadline=time.monotonic() + 60 * options.minutes,
        ungated=options.ungated,
        results=_former(options),
    )
    failed = run(setup, chosen(options.steps, steps()))
    from bench.device import plot

    print(plot.text(setup.results))
    return int(failed > 0)


def _former(options: argparse.Namespace) -> dict[str, Any]:
    """The results to go on from."""
    path = options.out / RESULTS
    if path.exists() and not options.again:
        found: dict[str, Any] = json.loads(path.read_text())
        if found["dry"] == options.dry_run:
            return found
    return {"schema": 1, "dry": options.dry_run, "steps": {}}


if __name__ == "__main__":
    sys.exit(main())
