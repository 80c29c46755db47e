"""Steps: what each is given, how large its work is, and where its results go."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.device.namespace import ROOT

RESULTS = "device.json"


@dataclass(frozen=True)
class Sizes:
    """Shapes of all steps.

    Attributes:
        batch, heads, tokens, head_dim, hidden: the shape that targets are stated for.
        lengths, head_dims: of the tables; batches shrink so that windows x tokens stay.
        layers: of the models in whole forwards.
        matmul, copied: side of the matrices, and bytes, that show the rates of the device.
        rounds: measured repetitions of every variant.
        calls: of one launch in a captured graph.
        genomes: of 30,000 bases, from FASTA to arrays.
    """

    batch: int = 64
    heads: int = 12
    tokens: int = 512
    head_dim: int = 64
    hidden: int = 768
    lengths: tuple[int, ...] = (128, 512, 1024, 2048)
    head_dims: tuple[int, ...] = (32, 64, 128)
    layers: int = 12
    matmul: int = 8192
    copied: int = 1 << 31
    rounds: int = 20
    calls: int = 10
    genomes: int = 600
    genome: int = 30_000

    def batch_of(self, tokens: int) -> int:
        """Windows of a length in one batch."""
        return max(1, self.batch * self.tokens // tokens)


DRY = Sizes(
    batch=1,
    heads=1,
    tokens=16,
    head_dim=16,
    hidden=16,
    lengths=(16,),
    head_dims=(16,),
    layers=1,
    matmul=64,
    copied=1 << 12,
    rounds=1,
    calls=1,
    genomes=1,
    genome=70,
)


@dataclass
class Setup:
    """Where the steps run, how large they are, and what was found so far.

    Attributes:
        device: torch's name of it.
        dry: whether the kernels are interpreted on tiny tensors of the CPU.
        out: folder of the results.
        links: folder that `bertgeom` is imported from.
        deadline: when no step may begin any more, by `time.monotonic`.
        ungated: whether times are taken although the oracle does not agree.
    """

    device: str
    dry: bool
    out: Path
    links: Path
    sizes: Sizes
    deadline: float
    ungated: bool = False
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU to time."""
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> str:
        """What models compute in."""
        return "float16" if self.cuda else "float32"

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def save(self) -> None:
        """Write what was found so far; a broken-off write leaves the former file."""
        draft = self.out / f"{RESULTS}.part"
        draft.write_text(json.dumps(self.results, indent=1) + "\n")
        draft.replace(self.out / RESULTS)

    def note(self, step: str, **found: Any) -> None:
        """Keep a part of a step's results at once."""
        self.results["steps"].setdefault(step, {}).update(found)
        self.save()

    def rows(self, step: str, **facts: Any) -> tuple[list[dict[str, Any]], bool]:
        """The rows of a step's table so far, and whether one with these facts is among them."""
        table = self.results["steps"].get(step, {}).get("table", [])
        return list(table), any(all(row[k] == x for k, x in facts.items()) for row in table)

    def require_oracle(self) -> None:
        """Nothing is timed as a ratio before the oracle has agreed.

        Raises:
            RuntimeError: if it did not, or was not asked.
        """
        agreed = self.results["steps"].get("right", {}).get("agrees")
        if not agreed and not self.ungated:
            raise RuntimeError("the oracle has not agreed (step right); --ungated times anyway")


def run(setup: Setup, steps: dict[str, Callable[[Setup], dict[str, Any]]]) -> int:
    """Runs steps in order; the number of those that failed."""
    import torch

    failed = 0
    for name, step in steps.items():
        if _done(setup.results["steps"].get(name)):
            print(f"{name}: kept from before", flush=True)
            continue
        start = time.monotonic()
        before = setup.results["steps"].pop(name, {})
        if "stopped" in before:
            # A table that time cut off goes on behind its last row.
            setup.results["steps"][name] = {"table": before["table"]}
        if setup.left() <= 0:
            setup.note(name, skipped="no time left; call again with the same folder")
            continue
        try:
            with torch.inference_mode():
                setup.note(name, **step(setup))
        except Exception as error:
            failed += 1
            setup.note(name, error=f"{type(error).__name__}: {error}"[:2000])
            traceback.print_exc(limit=8)
        setup.note(name, wall_seconds=round(time.monotonic() - start, 1))
        shown = json.dumps(setup.results["steps"][name])
        print(f"[{time.monotonic() - start:6.1f} s] {name} {shown[:1500]}", flush=True)
    return failed


def _done(found: dict[str, Any] | None) -> bool:
    if not found:
        return False
    return "wall_seconds" in found and not {"error", "skipped", "stopped"} & set(found)


def sources() -> str:
    """A digest of the kernels' sources, for machines without git."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def chosen(names: Iterable[str], steps: dict[str, Any]) -> dict[str, Any]:
    """The steps named, in their own order."""
    wanted = set(names)
    return {name: step for name, step in steps.items() if name in wanted}
