"""From FASTA to arrays on the host, beside the bare model over batches that are ready."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import workloads
from bench.device import timing
from bench.device.forwards import everything
from bench.device.steps import Setup
from bench.workloads import Workload


def end_to_end(setup: Setup) -> dict[str, Any]:
    """Windows a second: bare over ready batches; with everything from a file of genomes.

    Reading, tokens and statistics follow each other on one thread here, so that the rate is what
    a run reaches at least; `bertgeom run` reads ahead.
    """
    from bertgeom.tokens.bases import SingleNucleotide

    setup.require_oracle()
    sizes = setup.sizes
    n = sizes.tokens
    tokenizer = SingleNucleotide(n)
    batch = sizes.batch_of(n)
    options = {"hidden": sizes.hidden, "heads": sizes.heads} if setup.dry else {}
    work = workloads.bert_base(
        n,
        batch,
        layers=sizes.layers,
        device=setup.device,
        dtype=getattr(torch, setup.dtype),
        **options,
    )
    fasta = setup.links / "genomes.fa"
    write_genomes(fasta, sizes.genomes, sizes.genome)
    ready = list(batches(fasta, tokenizer, batch, setup))
    n_windows = sum(len(ids) for ids in ready)
    bare = workloads.bare(work)

    def bare_loop() -> None:
        for ids in ready:
            bare(ids)

    def ours() -> None:
        for ids in batches(fasta, tokenizer, batch, setup):
            everything(_cut(work, len(ids)), "full", "triton", ids)

    def feed() -> None:
        for _ in batches(fasta, tokenizer, batch, setup):
            pass

    seconds: dict[str, list[float]] = {"bare loop": [], "from FASTA": [], "feed alone": []}
    for i in range(3 if not setup.dry else 1):
        for name, run in zip(seconds, (bare_loop, ours, feed), strict=True):
            timing.wait(setup)
            start = time.perf_counter()
            run()
            timing.wait(setup)
            # The first round warms up.
            if i or setup.dry:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: n_windows / float(np.median(x)) for name, x in seconds.items()}
    share = np.median([b / o for b, o in zip(*list(seconds.values())[:2], strict=True)])
    return {"windows": n_windows, "windows_per_s": rates, "share_of_bare_loop": float(share)}


def _cut(work: Workload, n: int) -> Workload:
    return Workload(work.model, work.batches, work.special[:n], work.name)


def write_genomes(path: Any, n: int, size: int) -> None:
    """Relatives of one genome, in lines of 80 bases."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    first = rng.choice(letters, size)
    with path.open("wb") as stream:
        for i in range(n):
            one = first.copy()
            at = rng.integers(0, size, max(1, size // 1000))
            one[at] = rng.choice(letters, at.size)
            stream.write(b">genome%d\n" % i)
            stream.write(np.insert(one, np.arange(80, size, 80), ord("\n")).tobytes() + b"\n")


def batches(path: Any, tokenizer: Any, batch: int, setup: Setup) -> Iterator[Tensor]:
    """Ids (B, N) on the device, of whole windows only; records do not share a window."""
    from bertgeom.sequences.fasta import read_records

    size = tokenizer.window_bases()
    waiting: list[np.ndarray] = []
    for record in read_records(path):
        bases = record.bases
        waiting += [bases[i : i + size] for i in range(0, len(bases) - size + 1, size)]
        while len(waiting) >= batch:
            yield _ids(tokenizer, waiting[:batch], setup)
            del waiting[:batch]
    if waiting:
        yield _ids(tokenizer, waiting, setup)


def _ids(tokenizer: Any, windows: list[np.ndarray], setup: Setup) -> Tensor:
    found = tokenizer.encode_batch(windows)
    ids = torch.from_numpy(np.ascontiguousarray(found.ids, dtype=np.int64))
    if setup.cuda:
        ids = ids.pin_memory()
    return ids.to(setup.device, non_blocking=True)
