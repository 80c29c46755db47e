"""Pairs of processes that make one new store at the same moment; what came of it, as JSON.

A script of its own: it forks, which must happen before zarr, torch or Numba start threads.

    python races.py FOLDER N SEED     N races of `ingest` and N of `run`
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import fake_encoder as fakes

from bertgeom.errors import BertgeomError
from bertgeom.pipelines.run import stages


def start(kind: str, source: Path, out: Path, wait: float, barrier: Any, told: Any) -> None:
    barrier.wait()
    time.sleep(wait)
    try:
        if kind == "ingest":
            stages.ingest(source, out)
        else:
            mock.patch.object(stages, "load_model", return_value=fakes.FakeEncoder()).start()
            options: dict[str, Any] = {
                "window": 30,
                "partition_windows": 4,
                "tier": "core",
                "threads": 1,
            }
            stages.run(source, model="fake", out=out, **options)
        told.put("")
    except BertgeomError as error:
        told.put(str(error))
    except BaseException as error:
        told.put(f"{type(error).__name__}: {error}")


def main(folder: Path, n: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    whole = {"a": fakes.write_fasta(folder / "a.fa", (90, 7, 60)), "b": folder / "b.fa"}
    fakes.write_fasta(whole["b"], (40, 100), seed=1)
    (folder / "bad.fa").write_bytes(b">a\nACGT\n\x00\n")
    context = multiprocessing.get_context("fork")
    found = []
    for i in range(2 * n):
        kind, out = ("ingest", "run")[i % 2], folder / f"{i}.zarr"
        sources = [whole["a"], rng.choice([whole["a"], whole["b"], folder / "bad.fa"])]
        barrier, told = context.Barrier(2), context.Queue()
        waits = (rng.choice([0, 0.01]), rng.choice([0, 0.02]))
        pair = [
            context.Process(target=start, args=(kind, source, out, wait, barrier, told))
            for source, wait in zip(sources, waits, strict=True)
        ]
        for process in pair:
            process.start()
        messages = sorted(told.get(timeout=120) for _ in pair)
        for process in pair:
            process.join()
        shards = out if kind == "ingest" else out / "sequences"
        records = None
        if (shards / "zarr.json").exists():
            facts = json.loads((shards / "zarr.json").read_text())
            lengths = json.loads((shards / "length" / "zarr.json").read_text())["shape"]
            records = [facts["attributes"]["n_records"], lengths[0]]
        left = sorted(p.name for p in out.iterdir()) if out.exists() else []
        found.append({"kind": kind, "messages": messages, "records": records, "left": left})
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
