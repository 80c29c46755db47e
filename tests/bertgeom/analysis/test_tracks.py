"""Tracks against the mean over all token values of every base, by definition."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from bertgeom.analysis.tracks import chromosome_sizes, export_tracks, genome_tracks, track_columns
from bertgeom.errors import StoreError, UsageError

N_TOKENS = 12


def windows_of_record(
    record: int, length: int, size: int, stride: int, rng: np.random.Generator, k: int, hop: int
) -> list[dict[str, Any]]:
    """Windows with overlapping k-mers behind one special token, both strands."""
    rows = []
    for strand in (1, -1):
        for start in range(0, length - size + 1, stride):
            first = np.arange(0, size - k + 1, hop)
            if strand < 0:
                first = size - k - first
            token_start = np.full(N_TOKENS, -1, np.int32)
            token_stop = np.full(N_TOKENS, -1, np.int32)
            token_start[1 : 1 + len(first)] = first
            token_stop[1 : 1 + len(first)] = first + k
            values = rng.random((2, 3, N_TOKENS)).astype(np.float16)
            values[..., 1 + len(first) :] = np.nan
            rows.append(
                {
                    "record_index": record,
                    "record_id": "same" if record else "first",
                    "start": start,
                    "stop": start + size,
                    "token_start": token_start,
                    "token_stop": token_stop,
                    "attention_received": values,
                }
            )
    return rows


@pytest.fixture(scope="module")
def store() -> xarray.Dataset:
    rng = np.random.default_rng(0)
    rows = windows_of_record(0, 40, 14, 5, rng, k=4, hop=2)
    rows += windows_of_record(1, 30, 10, 15, rng, k=3, hop=3)
    rows += windows_of_record(3, 12, 12, 1, rng, k=5, hop=1)
    rows[-1]["token_start"][2] = rows[-1]["token_start"][1]
    rows[3]["attention_received"] = np.full((2, 3, N_TOKENS), np.nan, np.float16)
    dims = {
        "token_start": ("window", "token"),
        "token_stop": ("window", "token"),
        "attention_received": ("window", "layer", "head", "token"),
    }
    arrays = {
        name: (dims.get(name, ("window",)), np.array([row[name] for row in rows]))
        for name in rows[0]
    }
    return xarray.Dataset(arrays)


def by_definition(store: xarray.Dataset, record: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum (layer, head, base) and count (base,) over every base of every token."""
    sums, counts = np.zeros((2, 3, 60)), np.zeros(60, int)
    for w in np.flatnonzero(store.record_index.values == record):
        row = store.isel(window=w)
        for t in range(N_TOKENS):
            value = row.attention_received.values[..., t].astype(float)
            if row.token_start.values[t] >= 0 and np.isfinite(value).all():
                for base in range(row.token_start.values[t], row.token_stop.values[t]):
                    sums[..., base + int(row.start)] += value
                    counts[base + int(row.start)] += 1
    return sums, counts


def spread(blocks: list[Any], record: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    values, counts = np.full((columns, 60), np.nan), np.zeros(60, int)
    for block in blocks:
        if block.record_index == record:
            for a, b, n, row in zip(
                block.start, block.stop, block.coverage, block.values, strict=True
            ):
                assert (counts[a:b] == 0).all()
                values[:, a:b], counts[a:b] = row[:, None], n
    return values, counts


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize("mean", ["none", "head", "all"])
def test_bases_hold_the_mean_of_their_tokens(store: xarray.Dataset, mean: str, step: int) -> None:
    blocks = list(genome_tracks(store, "attention_received", mean=mean, step=step))
    for record in (0, 1, 3):
        sums, counts = by_definition(store, record)
        expected = np.where(counts, sums / np.maximum(counts, 1), np.nan)
        if mean == "none":
            expected = expected.reshape(6, -1)
        else:
            expected = expected.mean(axis=1 if mean == "head" else (0, 1)).reshape(-1, 60)
        values, found = spread(blocks, record, len(expected))
        np.testing.assert_array_equal(found, counts)
        np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_layers_heads_and_records_can_be_chosen(store: xarray.Dataset) -> None:
    chosen: dict[str, Any] = {"layers": [1], "heads": [2, 0], "mean": "none"}
    assert track_columns(store, [1], [2, 0], "none") == ["layer1_head2", "layer1_head0"]
    blocks = list(genome_tracks(store, "attention_received", records=[1], **chosen))
    assert {block.record_index for block in blocks} == {1}
    sums, counts = by_definition(store, 1)
    values, _ = spread(blocks, 1, 2)
    there = counts > 0
    np.testing.assert_allclose(values[0, there], sums[1, 2, there] / counts[there])
    np.testing.assert_allclose(values[1, there], sums[1, 0, there] / counts[there])


def test_memory_follows_the_overlap_not_the_record() -> None:
    rng = np.random.default_rng(1)
    rows = windows_of_record(0, 3000, 14, 7, rng, k=4, hop=2)[:400]
    dims = {"token_start": 1, "token_stop": 1, "attention_received": 3}
    names = ("layer", "head", "token")
    store = xarray.Dataset(
        {
            name: (("window", *names[3 - dims.get(name, 0) :]), np.array([r[name] for r in rows]))
            for name in rows[0]
        }
    )
    for block in genome_tracks(store, "attention_received"):
        assert block.stop[-1] - block.start[0] <= 14


def test_tables_and_bedgraphs_hold_the_same(store: xarray.Dataset, tmp_path: Path) -> None:
    (table,) = export_tracks(store, tmp_path / "t.tsv", "attention_received")
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert lines[0] == [
        *("record_index", "record_id", "start", "stop", "n_values"),
        *("attention_received_layer0", "attention_received_layer1"),
    ]
    files = export_tracks(store, tmp_path / "t.bedgraph.gz", "attention_received")
    assert [f.name for f in files] == ["t.layer0.bedgraph.gz", "t.layer1.bedgraph.gz"]
    names = {"0": "first", "1": "same", "3": "same~3"}
    for column, file in enumerate(files):
        found = [
            line.split("\t") for line in gzip.decompress(file.read_bytes()).decode().split("\n")
        ]
        expected = [[names[x[0]], x[2], x[3], x[5 + column]] for x in lines[1:]]
        assert found == [*expected, [""]]
    assert not list(tmp_path.glob("partial*"))
    (single,) = export_tracks(store, tmp_path / "x.bg", "attention_received", mean="all")
    assert single.name == "x.bg"
    assert dict(chromosome_sizes(store)) == {"first": 39, "same": 25, "same~3": 12}


def test_wrong_requests_are_refused(store: xarray.Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a track out of query_entropy"):
        next(genome_tracks(store, "gate"))
    with pytest.raises(UsageError, match="expected layers from 0 to 1"):
        track_columns(store, [2])
    with pytest.raises(UsageError, match="expected mean out of none, head, all"):
        track_columns(store, mean="layer")
    with pytest.raises(UsageError, match=r"expected a file \.tsv"):
        export_tracks(store, tmp_path / "x.bw", "attention_received")
    with pytest.raises(StoreError, match=r"query_entropy missing.*--keep tracks"):
        next(genome_tracks(store, "query_entropy"))
    torn = store.isel(window=slice(None, None, -1))
    with pytest.raises(StoreError, match="record_index falling"):
        next(genome_tracks(torn, "attention_received"))
