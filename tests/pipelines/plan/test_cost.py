"""What a run costs on paper, and that it costs no more in fact."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bertgeom.errors import PlanError, UsageError
from bertgeom.pipelines.plan import cost
from bertgeom.pipelines.plan.cost import Memory, ModelCost, check_memory, human, parse_bytes
from bertgeom.pipelines.run.estimate import preview
from bertgeom.store.layout import Layout, Shape
from bertgeom.store.storage import Storage

BERT = ModelCost(12, 12, 768, 85_000_000, 3072, 440_000_000, 4, "cpu")
SHAPE = Shape(12, 12, 768, (), 512)


def projected(model: ModelCost = BERT, shape: Shape = SHAPE, **changes: int) -> Memory:
    options = {
        "batch_tokens": 4096,
        "partition_windows": 16,
        "window": 4500,
        "n_windows": 10**6,
        "threads": 2,
    }
    return cost.memory(model, shape, **{**options, **changes})


def test_arithmetic_is_that_of_the_linear_layers_and_the_attention() -> None:
    n = 512
    flop = cost.window_flop(BERT, n)
    linear, attention = 2 * 85e6 * n, 4 * n * n * 768 * 12
    assert linear + attention < flop < 1.1 * (linear + attention)


def test_a_partition_is_seconds_of_work_on_its_device() -> None:
    size = cost.bytes_per_window(SHAPE)
    on_cpu = cost.partition_windows(BERT, 512, size)
    on_gpu = cost.partition_windows(replace(BERT, device="cuda"), 512, size)
    assert on_cpu & (on_cpu - 1) == 0
    assert on_gpu & (on_gpu - 1) == 0
    assert 8 <= on_cpu <= 32
    assert 2048 <= on_gpu <= 16384
    tracks = Shape(12, 12, 768, (), 131072, keep=("tracks",))
    assert cost.partition_windows(BERT, 131072, cost.bytes_per_window(tracks)) == 1


@pytest.mark.parametrize(
    ("piece", "change"),
    [
        ("activations", {"batch_tokens": 2**17, "partition_windows": 256}),
        ("results", {"partition_windows": 2**17}),
        ("sequences", {"window": 10**9}),
    ],
)
def test_a_plan_over_budget_is_refused_by_its_largest_piece(
    piece: str, change: dict[str, Any]
) -> None:
    check_memory(projected(), 8 * 10**9, 1)
    with pytest.raises(PlanError, match=rf"at most 8.0 GB.*the largest piece is {piece} with"):
        check_memory(projected(**change), 8 * 10**9, 1)


def test_every_piece_has_a_remedy_and_workers_count() -> None:
    assert set(cost._REMEDY) == set(vars(projected())) - {"runtime"}
    check_memory(projected(), projected().total, 1)
    with pytest.raises(PlanError, match="use fewer --workers or raise --memory"):
        check_memory(projected(), 2 * projected().runtime, 2)
    with pytest.raises(PlanError, match="Python and its libraries alone"):
        check_memory(projected(), 10**8, 1)


def test_a_store_beyond_the_disk_is_refused_by_its_largest_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(SHAPE, 10**6, 4096)
    monkeypatch.setattr(
        cost.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 0, 10**9)
    )
    storage = Storage(str(tmp_path / "new" / "x.zarr"))
    cost.check_disk(layout, storage, 10_000)
    cost.check_disk(layout, Storage("memory://x.zarr"), 10**6)
    with pytest.raises(
        PlanError, match=r"found 1.0 GB; the largest array is attention_offset_prof"
    ):
        cost.check_disk(layout, storage, 10**6)


def test_the_budget_is_that_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(cost, "_CONTAINER_LIMIT", limit)
    machine = cost.budget_bytes(None)
    limit.write_text("max\n")
    assert cost.budget_bytes(None) == machine
    limit.write_text("1000\n")
    assert cost.budget_bytes(None) == 1000
    assert cost.budget_bytes("2GB") == 2 * 10**9
    assert cost.budget_bytes(5) == 5


def test_memory_grows_with_the_batch_and_not_with_the_number_of_windows() -> None:
    assert projected(batch_tokens=8192).activations == 2 * projected().activations
    assert projected(n_windows=10**9).total == projected().total


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("500 MB", 5 * 10**8), ("4GiB", 2**32), ("1e9", 10**9), ("2k", 2000)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "GB", "1.2.3GB", "0"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected --memory as a size like 8GB"):
        parse_bytes(text)


def test_bytes_for_people() -> None:
    assert [human(x) for x in (12, 1500, 2.5e9, 7e13)] == [
        "12 bytes",
        "1.5 kB",
        "2.5 GB",
        "70.0 TB",
    ]


def test_a_preview_counts_what_the_run_does(
    tiny_model: Path, fake: ModuleType, tmp_path: Path
) -> None:
    source = fake.write_fasta(tmp_path / "x.fa")
    found = preview(source, model=tiny_model, window=20, strand="both", measure=False)
    assert (found.records, found.bases) == (6, 480)
    per_record = [5, 1, 13, 2, 1, 5]
    assert found.windows == 2 * sum(per_record)
    lengths = [20] * 5 + [7] + [20] * 12 + [10, 20, 11, 2] + [20] * 4 + [10]
    assert found.tokens == 2 * sum(max(n - 2, 0) + 2 for n in lengths)
    assert found.exact_tokens
    assert found.store_bytes == found.bytes_per_window * found.windows
    assert found.windows_per_second is None
    with pytest.raises(PlanError, match=r"at most 1\.0 GB"):
        preview(source, model=tiny_model, window=20, memory="1GB", measure=False)


_MEASURE = """
import json, sys
from pathlib import Path
from bertgeom.pipelines.run import stages
from bertgeom.pipelines.context.run_context import open_context, load_model, RunContext
source, model, out = sys.argv[1:4]
stages.run(source, model=model, out=out, threads=1, batch_tokens=16384, keep="tracks,block_map")
# Of this program alone: `ru_maxrss` keeps the peak of the process that started it.
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
context = open_context(out)
context = RunContext(context.storage, context.facts, load_model(model, context.settings))
print(json.dumps([peak, stages.project(context, 1).total, vars(stages.project(context, 1))]))
"""


@pytest.mark.slow
def test_a_run_stays_within_its_projected_memory(fake: ModuleType, tmp_path: Path) -> None:
    from bertgeom.testing import save_tiny_classifier

    model = save_tiny_classifier(
        tmp_path / "model", max_tokens=512, n_layers=2, n_heads=4, hidden=256
    )
    source = fake.write_fasta(tmp_path / "x.fa", (16_000,) * 2)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(source), str(model), str(tmp_path / "x.zarr")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    peak, total, pieces = json.loads(done.stdout.splitlines()[-1])
    assert peak <= total, pieces
    assert total <= 3 * peak, pieces
