"""A run in its stages: repeatable, resumable, and faithful to what it was started with."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertgeom
from bertgeom.errors import InputError, MismatchError, PlanError, StoreError, UsageError
from bertgeom.pipelines.context import events
from bertgeom.pipelines.context.folder import RunFolder
from bertgeom.pipelines.context.run_context import RunContext
from bertgeom.pipelines.partition.write import rounded, run_partition
from bertgeom.pipelines.run import prepare, stages
from bertgeom.pipelines.run.executors import InProcess
from bertgeom.store.dataset import attribute
from bertgeom.store.storage import Storage

Run = Callable[..., stages.Status]


def test_equal_runs_give_equal_bytes(run: Run, fake: Any, whole: Path, tmp_path: Path) -> None:
    run()
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(whole)


def test_no_clock_host_or_place_is_in_the_store(fake: Any, whole: Path) -> None:
    import socket
    import time

    for key, data in fake.contents(whole).items():
        if key == "run/run.json":
            continue
        for word in (socket.gethostname().encode() + b'"', str(whole.parent).encode()):
            assert word not in data, (key, word)
        assert time.strftime("%Y-%m-%d").encode() not in data


def test_a_finished_run_is_left_alone(
    run: Run, encoder: Any, fake: Any, whole: Path, copied: Path
) -> None:
    assert run().complete
    assert encoder.batches == []
    assert fake.contents(copied) == fake.contents(whole)


class Stop(Exception):
    """Raised by a subscriber to stop a run."""


def stop_after(partitions: int) -> events.Subscriber:
    left = [partitions]

    def subscriber(event: events.Event) -> None:
        if isinstance(event, events.PartitionDone):
            left[0] -= 1
            if not left[0]:
                raise Stop

    return subscriber


@pytest.mark.parametrize("group", [1, 2])
def test_a_stopped_run_goes_on_where_it_was(
    group: int, run: Run, encoder: Any, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "row_group", lambda shape, size, n: size * group)
    run("whole.zarr")
    whole = sum(encoder.batches)
    encoder.batches.clear()
    with pytest.raises(Stop):
        run(subscribers=[stop_after(3)])
    state = stages.status(str(tmp_path / "x.zarr"))
    assert not state.complete
    assert 3 <= state.partitions_done < state.partitions
    assert state.missing[0] == state.partitions_done
    done_before = sum(encoder.batches)
    encoder.batches.clear()
    started: list[events.Started] = []
    run(subscribers=[lambda e: started.append(e) if isinstance(e, events.Started) else None])
    assert started[0].done == state.windows_done > 0
    assert sum(encoder.batches) <= whole - state.windows_done + 4
    assert done_before < whole
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(tmp_path / "whole.zarr")


def test_a_damaged_spool_is_measured_again(
    run: Run, fake: Any, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        run(subscribers=[stop_after(3)])
    spool = next((tmp_path / "x.zarr" / "run" / "partitions").iterdir())
    data = bytearray(spool.read_bytes())
    data[-1] ^= 1
    spool.write_bytes(bytes(data))
    told: list[events.Event] = []
    run(subscribers=[told.append])
    assert any(isinstance(e, events.Damaged) and "damaged" in e.what for e in told)
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(whole)


def test_finalise_names_what_is_missing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(subscribers=[stop_after(2)])
    with pytest.raises(StoreError, match=r"expected all 7 partitions, found \d missing, the first"):
        stages.finalise(str(tmp_path / "x.zarr"))


def test_partitions_can_be_run_one_by_one_in_any_order_and_twice(
    run: Run, encoder: Any, fake: Any, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        run(subscribers=[stop_after(1)])
    url = str(tmp_path / "x.zarr")
    facts = RunFolder(Storage(url)).read_run()
    assert facts is not None
    context = RunContext(Storage(url), facts, encoder)
    for partition in (6, 3, 3, 0, 1, 2, 5, 4, 6):
        run_partition(context, partition)
    assert stages.finalise(url).complete
    assert stages.finalise(url).complete
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"window": 30}, "settings.window: 20 in the store, 30 now"),
        ({"stride": 10}, "settings.stride: 20 in the store, 10 now"),
        ({"tier": "core"}, 'settings.tier: "full" in the store, "core" now'),
        ({"keep": "cls"}, r'settings.keep: \[\] in the store, \["cls"\] now'),
        ({"strand": "both"}, "settings.strand"),
        ({"theta": 0.4}, "settings.theta: 0.3 in the store, 0.4 now"),
        ({"batch_tokens": 64}, "settings.batch_tokens"),
        ({"bitround": 7}, "settings.bitround: null in the store, 7 now"),
    ],
)
def test_another_setting_on_a_store_is_refused_by_name(
    change: dict[str, Any], named: str, run: Run, fake: Any, whole: Path, copied: Path
) -> None:
    with pytest.raises(MismatchError, match=named):
        run(**change)
    assert fake.contents(copied) == fake.contents(whole)


def test_another_model_input_or_label_on_a_store_is_refused_by_name(
    run: Run, encoder: Any, fake: Any, fasta: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text("r0\tx\nr2\ty\n")
    run(labels=labels)
    labels.write_text("r0\tx\nr2\tx\n")
    with pytest.raises(MismatchError, match=r"label_names: .*labels: "):
        run(labels=labels)
    labels.write_text("r0\tx\nr2\ty\n")
    encoder.fingerprint = "another"
    with pytest.raises(MismatchError, match=r'model\.fingerprint: "fake" in the store, "ano'):
        run(labels=labels)
    encoder.fingerprint = "fake"
    fake.write_fasta(fasta, seed=1)
    with pytest.raises(MismatchError, match=r"source 0\.sha256"):
        run(labels=labels)


def test_an_equal_file_of_another_name_is_the_same_input(
    run: Run, fasta: Path, copied: Path, tmp_path: Path
) -> None:
    assert run(source=fasta.rename(tmp_path / "moved.fa")).complete


def test_labels_come_with_their_names(run: Run, tmp_path: Path) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text("record_id\tclass\nr2\tbeta\nr0\talpha\n")
    run(labels=labels)
    dataset = bertgeom.open(tmp_path / "x.zarr")
    assert attribute(dataset, "labels") == ["alpha", "beta"]
    found = set(zip(dataset["record_id"].values, dataset["label"].values, strict=True))
    assert found == {("r0", "alpha"), ("r2", "beta"), *((f"r{i}", "") for i in (1, 3, 4, 5))}
    codes = set(zip(dataset["label"].values, dataset["label_code"].values, strict=True))
    assert codes == {("alpha", 0), ("beta", 1), ("", -1)}


def test_shards_of_their_own_serve_several_runs(
    run: Run, fasta: Path, whole: Path, tmp_path: Path, fake: Any
) -> None:
    shards = tmp_path / "db"
    stages.ingest(fasta, shards)
    before = fake.contents(shards)
    stages.ingest(fasta, shards)
    run("option.zarr", sequences=shards)
    run("source.zarr", source=shards)
    assert fake.contents(shards) == before
    inside = bertgeom.open(whole).load()
    for name in ("option.zarr", "source.zarr"):
        assert not (tmp_path / name / "sequences").exists()
        other = bertgeom.open(tmp_path / name).load()
        for array in inside.variables:
            np.testing.assert_array_equal(inside[array].values, other[array].values)
    with pytest.raises(MismatchError, match="sha256"):
        stages.ingest(fake.write_fasta(tmp_path / "y.fa", seed=5), shards)
    with pytest.raises(UsageError, match="either sources or --sequences"):
        stages.run(fasta, model="fake", out=tmp_path / "no.zarr", sequences=shards)


def test_a_run_works_on_an_object_store(
    whole: Path, tmp_path: Path, encoder: Any, fasta: Path
) -> None:
    url = f"memory://{tmp_path.name}/x.zarr"
    done = stages.run(fasta, model="fake", out=url, window=20, partition_windows=4, threads=1)
    assert done.complete
    local, remote = bertgeom.open(whole).load(), bertgeom.open(url).load()
    for name in local.variables:
        np.testing.assert_array_equal(local[name].values, remote[name].values)


def test_an_object_store_that_fails_now_and_then_is_asked_again(
    run: Run, tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    from bertgeom.store import storage

    monkeypatch.setattr(storage, "_FIRST_PAUSE", 0.0)
    original, calls = MemoryFileSystem.pipe_file, [0]

    def flaky(self: Any, path: str, value: bytes, **options: Any) -> None:
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise OSError(errno.ECONNRESET, "connection reset")
        original(self, path, value, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", flaky)
    url = f"memory://{tmp_path.name}/flaky.zarr"
    assert stages.run(fasta, model="fake", out=url, window=20, tier="core", threads=1).complete
    assert calls[0] > 3


@pytest.mark.parametrize("attempt", [3, 40, 150])
def test_a_full_disk_is_one_line_and_the_run_can_go_on(
    attempt: int,
    run: Run,
    fake: Any,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from zarr.storage import _local

    original, calls = _local._put, [0]

    def full(*args: Any, **options: Any) -> int:
        calls[0] += 1
        if calls[0] > attempt:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_local, "_put", full)
        with pytest.raises(StoreError, match="No space left on device; free some space") as caught:
            run()
    assert "\n" not in str(caught.value)
    run()
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(whole)


def test_a_read_only_place_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Storage, "write", refuse)
    with pytest.raises(StoreError, match="Read-only file system; make the folder writable"):
        run()


def test_two_runs_on_one_store_are_refused(run: Run, tmp_path: Path) -> None:
    def second(event: events.Event) -> None:
        if isinstance(event, events.Started):
            with pytest.raises(StoreError, match="found another one at work"):
                run()

    run(subscribers=[second])


def test_a_folder_with_other_things_is_not_written_to(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="expected a new folder or a store"):
        run()
    assert [p.name for p in (tmp_path / "x.zarr").iterdir()] == ["thesis.txt"]


def test_a_plan_beyond_the_memory_is_refused_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"at most 1.4 GB.*the largest piece is writing with"):
        run(memory="1.4GB")
    assert not (tmp_path / "x.zarr").exists()


def test_input_without_a_window_is_refused_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "empty.fa"
    source.write_text(">a\n>b\n")
    with pytest.raises(InputError, match="expected at least one window, found 2 records without"):
        run(source=source)
    assert not (tmp_path / "x.zarr").exists()


def test_an_unusable_setting_is_refused_before_anything_is_written(
    run: Run, encoder: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--min-length of at most --window"):
        run(min_length=21)
    encoder.class_names = ()
    with pytest.raises(UsageError, match="classification head"):
        run(keep="logits")
    with pytest.raises(UsageError, match="--workers of at least 1"):
        run(workers=0)
    assert not (tmp_path / "x.zarr").exists()


def test_empty_records_keep_their_row_in_the_record_table(run: Run, tmp_path: Path) -> None:
    import xarray

    source = tmp_path / "some.fa"
    source.write_text(">a\nACGTACGT\n>nothing\n>b\nACGT\n")
    run(source=source)
    table = xarray.open_zarr(tmp_path / "x.zarr", group="sequences")
    assert table["id"].values.tolist() == ["a", "nothing", "b"]
    assert table["record_flags"].values.tolist() == [0, 1, 0]
    assert bertgeom.open(tmp_path / "x.zarr")["record_index"].values.tolist() == [0, 2]


def test_the_history_tells_when_and_where(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(subscribers=[stop_after(2)])
    run()
    lines = (tmp_path / "x.zarr" / "run" / "history.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert [t["event"] for t in told].count("Started") == 2
    assert told[-1]["event"] == "Finished"
    assert all(t["time"].endswith("Z") and t["host"] for t in told)
    done = {t["partition"] for t in told if t["event"] == "PartitionDone"}
    assert done <= set(range(7))
    assert 6 in done


def test_rounding_keeps_the_asked_bits() -> None:
    rng = np.random.default_rng(0)
    for dtype, integer, mantissa in ((np.float32, np.uint32, 23), (np.float16, np.uint16, 10)):
        values = np.concatenate(
            [rng.normal(size=1000), [0.0, np.nan, np.inf, -np.inf, 1.0]]
        ).astype(dtype)
        for bits in (1, 5, 9):
            found = rounded(values, bits)
            finite = np.isfinite(values)
            assert (np.isnan(found) == np.isnan(values)).all()
            assert (found[np.isinf(values)] == values[np.isinf(values)]).all()
            dropped = found[finite].view(integer) & integer((1 << (mantissa - bits)) - 1)
            assert not dropped.any()
            error = np.abs(found[finite].astype(float) - values[finite])
            assert (error <= np.abs(values[finite]) * 2.0 ** -(bits + 1)).all()
        assert rounded(values, 23) is values


def test_rounded_stores_are_within_the_bits(run: Run, whole: Path, tmp_path: Path) -> None:
    run("rounded.zarr", bitround=6)
    exact = bertgeom.open(whole).load()
    other = bertgeom.open(tmp_path / "rounded.zarr").load()
    a, b = exact["attention_entropy"].values, other["attention_entropy"].values
    there = ~np.isnan(a)
    assert (np.abs(a - b)[there] <= np.abs(a)[there] * 2.0**-7).all()
    assert (a != b)[there].any()
    np.testing.assert_array_equal(exact["angle_histogram"], other["angle_histogram"])


def test_choosing_in_process_needs_no_cluster(run: Run, encoder: Any) -> None:
    from bertgeom.pipelines.run.executors import choose

    no_facts: Any = None
    context = RunContext(Storage("nowhere"), no_facts, encoder)
    assert isinstance(choose(context, 1, 2, None), InProcess)
    assert choose(context, 1, None, None).threads >= 1
