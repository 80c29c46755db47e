"""An encoder without a model: numbers that depend on a window's tokens alone.

For tests of what surrounds the model: stages, writing, resuming, faults.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertgeom.config import MeasureSettings
from bertgeom.model.encoder import TokenBatch
from bertgeom.pipelines.context import run_context
from bertgeom.pipelines.run import stages
from bertgeom.store.layout import Shape
from bertgeom.tokens.select import DnabertKmer, Tokenizer
from bertgeom.variables import Variable, flag_bit


def take_the_place_of_models(patch: pytest.MonkeyPatch, encoder: Any) -> None:
    """Whatever loads a model gets this encoder: runs, repairs, checks against the oracle."""
    for module in (stages, run_context):
        patch.setattr(module, "load_model", lambda *args, **options: encoder)


@dataclass
class FakeEncoder:
    """Attributes as those of `bertgeom.model.encoder.Encoder`.

    Attributes:
        capacity: more windows in a batch are out of memory.
        poisoned: windows with this many tokens are out of memory even alone.
        batches: sizes of the batches that were measured.
        runs_ahead: whether a batch is started before the one before it is fetched.
        events: what was started and fetched, by the number of the batch.
        late: whether memory runs out when a batch is fetched, as on a device, not at its start.
    """

    capacity: int = 10**6
    poisoned: tuple[int, ...] = ()
    fingerprint: str = "fake"
    model_id: str = "fake"
    batches: list[int] = field(default_factory=list)
    runs_ahead: bool = False
    late: bool = False
    events: list[tuple[str, int]] = field(default_factory=list)
    tokenizer: Tokenizer = field(default_factory=lambda: DnabertKmer(3, max_tokens=32))
    n_layers: int = 2
    n_heads: int = 2
    head_dim: int = 4
    hidden: int = 8
    class_names: tuple[str, ...] = ("a", "b")
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    model: Any = field(default_factory=lambda: torch.nn.Linear(2, 2))

    @property
    def max_tokens(self) -> int:
        return self.tokenizer.max_tokens

    def probe(self) -> None:
        """Every model is accepted."""

    def start(
        self, batch: TokenBatch, settings: MeasureSettings
    ) -> Callable[[], dict[str, np.ndarray]]:
        number = sum(kind == "start" for kind, _ in self.events)
        self.events.append(("start", number))
        found = None if self.late else self.measure(batch, settings)

        def fetch() -> dict[str, np.ndarray]:
            self.events.append(("fetch", number))
            return self.measure(batch, settings) if found is None else found

        return fetch

    def measure(self, batch: TokenBatch, settings: MeasureSettings) -> dict[str, np.ndarray]:
        rows = len(batch.ids)
        if rows > self.capacity:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried too much")
        if set(batch.lengths.tolist()) & set(self.poisoned):
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(rows)
        shape = Shape(
            self.n_layers,
            self.n_heads,
            self.hidden,
            self.class_names,
            batch.ids.shape[1],
            settings.tier,
            settings.keep,
            settings.angles,
            tuple(map(str, range(settings.n_groups))),
        )
        sizes = shape.sizes() | {"offset": 2 * settings.n_offset_side + 1}
        found = {
            v.name: np.stack([self._row(batch, b, v, sizes) for b in range(rows)])
            for v in shape.variables()
            if v.kind != "window"
        }
        found["flags"] = np.where(batch.lengths == 0, flag_bit("empty"), 0).astype(np.uint16)
        return found

    def _row(
        self, batch: TokenBatch, b: int, variable: Variable, sizes: dict[str, int]
    ) -> np.ndarray:
        n = int(batch.lengths[b])
        seed = zlib.crc32(variable.name.encode() + batch.ids[b, :n].tobytes())
        sizes = sizes | {"token": n}
        values = np.random.default_rng(seed).random([sizes[d] for d in variable.dims[1:]])
        if np.dtype(variable.dtype).kind in "iu":
            return (values * 200).astype(np.int32)
        if variable.dims[-1] == "token":
            width = [(0, 0)] * (values.ndim - 1) + [(0, batch.ids.shape[1] - n)]
            values = np.pad(values, width, constant_values=np.nan)
        return values.astype(np.float32)


def write_fasta(
    path: Path, lengths: tuple[int, ...] = (100, 7, 250, 31, 2, 90), seed: int = 0
) -> Path:
    """Random records r0, r1... with some N."""
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(b"ACGTN", np.uint8)
    with path.open("wb") as file:
        for i, length in enumerate(lengths):
            bases = rng.choice(letters, length, p=[0.24, 0.24, 0.24, 0.24, 0.04])
            file.write(b">r%d record %d\n" % (i, i) + bases.tobytes() + b"\n")
    return path


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store but the one with a clock in it."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "history.jsonl"
    }
