"""A measured partition into the store: rounding, compressing, checksums, files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bertgeom
from bench import sequence
from bench.suite.cases import Case, Cost, cases
from bench.suite.conftest import Timed
from bertgeom.data import demo_model
from bertgeom.pipelines.context.run_context import RunContext, context_with_model
from bertgeom.pipelines.partition.measure import measure_partitions
from bertgeom.pipelines.partition.write import write_partition

WAYS = ["plain files", "write"]
FULL = cases(WAYS, "plain files", windows=[64, 512])
TINY = cases(WAYS, "plain files", windows=[2])
Results = Mapping[str, np.ndarray]


@pytest.fixture
def partition(case: Case, tmp_path: Path) -> tuple[RunContext, Results]:
    """A run of the shipped model that consists of one partition, and the results of it."""
    genomes, n = tmp_path / "genomes.fa", case["windows"]
    # Short records, a window each: measuring them is not what is timed.
    pieces = [x[:600] for x in sequence.genomes(n)]
    genomes.write_text("".join(f">r{i}\n{x.tobytes().decode()}\n" for i, x in enumerate(pieces)))
    out = tmp_path / "store.zarr"
    # The shipped model knows spikes; what its tokens are changes nothing here.
    bertgeom.run(genomes, model=demo_model(), out=out, partition_windows=n, allow_unknown=True)
    context = context_with_model(str(out), str(demo_model()), torch.get_num_threads())
    ((_, results),) = measure_partitions(context, [0])
    return context, results


def test_writing(
    timed: Timed, case: Case, partition: tuple[RunContext, Results], tmp_path: Path
) -> None:
    context, results = partition
    n_bytes = sum(x.nbytes for x in results.values())

    def plain(found: Results) -> None:
        for name, values in found.items():
            np.save(tmp_path / f"{name.replace('/', '_')}.npy", values)

    def write(found: Results) -> Any:
        return write_partition(context, 0, found, time.monotonic())

    run = plain if case.way == "plain files" else write
    cost = Cost(n_bytes, "byte", bytes=2 * n_bytes)
    timed("writing a partition", case, cost, run, [results])
    if case.way == "write":
        store = bertgeom.open(tmp_path / "store.zarr")
        assert store.sizes["window"] == case["windows"]
        assert np.array_equal(store["n_tokens"], results["n_tokens"])
