"""One partition: rows, flags, strands, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertgeom
from bertgeom.pipelines.partition.measure import ahead
from bertgeom.sequences.windows import windows_of
from bertgeom.variables import FLAGS, VARIABLES, flag_bit


def names_of(flags: int) -> set[str]:
    return {name for name in FLAGS if flags & flag_bit(name)}


def test_rows_describe_their_windows(whole: Path, fasta: Path) -> None:
    dataset = bertgeom.open(whole).load()
    expected = [
        (record, *map(int, bounds))
        for record, length in enumerate((100, 7, 250, 31, 2, 90))
        for bounds in windows_of(length, 20, 20)
    ]
    found = zip(
        dataset["record_index"].values.tolist(),
        dataset["start"].values.astype(int).tolist(),
        dataset["stop"].values.astype(int).tolist(),
        strict=True,
    )
    assert list(found) == expected
    assert dataset["record_id"].values.tolist() == [f"r{r}" for r, _, _ in expected]
    assert (dataset["strand"] == 1).all()
    assert (dataset["label"] == "").all()
    bases = {}
    for text in fasta.read_text().split(">")[1:]:
        header, sequence = text.split("\n", 1)
        bases[int(header[1])] = sequence.strip()
    windows = [bases[r][a:b] for r, a, b in expected]
    assert dataset["n_ambiguous"].values.tolist() == [w.count("N") for w in windows]
    assert dataset["n_tokens"].values.tolist() == [max(len(w) - 2, 0) + 2 for w in windows]


def test_statistics_stand_in_the_row_of_their_window(
    run: Callable[..., Any], encoder: Any, tmp_path: Path
) -> None:
    run(keep="cls,logits,tracks,block_map")
    dataset = bertgeom.open(tmp_path / "x.zarr").load()
    fasta = (tmp_path / "x.fa").read_text().split(">")[1:]
    records = [text.split("\n", 1)[1].strip() for text in fasta]
    from bertgeom.config import MeasureSettings
    from bertgeom.model.encoder import TokenBatch
    from bertgeom.variables import n_offset_side

    settings = MeasureSettings(
        keep=("block_map", "cls", "logits", "tracks"), n_offset_side=n_offset_side(20)
    )
    for row in range(0, dataset.sizes["window"], 3):
        window = dataset.isel(window=row)
        text = records[int(window["record_index"])][int(window["start"]) : int(window["stop"])]
        encoded = encoder.tokenizer.encode_batch([np.frombuffer(text.encode(), np.uint8)])
        if encoded.special.all():
            continue
        values = encoder.measure(
            TokenBatch(encoded.ids, encoded.lengths, encoded.special), settings
        )
        for name, value in values.items():
            if name == "flags":
                continue
            stored = window[name].values
            value = value[0].astype(VARIABLES[name].dtype)
            if VARIABLES[name].dims[-1] == "token":
                assert np.isnan(stored[..., value.shape[-1] :]).all()
                stored = stored[..., : value.shape[-1]]
            np.testing.assert_array_equal(stored, value, err_msg=name)
        n = encoded.ids.shape[1]
        assert window["token_start"].values[:n].tolist() == encoded.start[0].tolist()
        assert window["token_stop"].values[:n].tolist() == encoded.stop[0].tolist()
        assert (window["token_start"].values[n:] == -1).all()


def test_windows_are_flagged_with_the_reason(run: Callable[..., Any], tmp_path: Path) -> None:
    source = tmp_path / "flags.fa"
    source.write_text(f">short\n{'ACGT' * 3}\n>n\n{'N' * 20}\n>whole\n{'ACGT' * 5}\n>tiny\nA\n")
    done = run(source=source, max_unknown=0.5)
    dataset = bertgeom.open(tmp_path / "x.zarr").load()
    found = [names_of(int(flags)) for flags in dataset["flags"].values]
    assert found == [{"short"}, {"unknown"}, set(), {"short", "empty"}]
    assert done.counts == {
        "windows": 4,
        "tokens": 12 + 20 + 20 + 2,
        "content_tokens": 10 + 18 + 18,
        "unknown_tokens": 18,
        "truncated_windows": 0,
        **dict.fromkeys(FLAGS, 0),
        "short": 2,
        "unknown": 1,
        "empty": 1,
    }
    missing = dataset.isel(window=3)
    for name, variable in VARIABLES.items():
        if name in dataset and variable.kind != "window":
            assert np.isnan(missing[name].values).all(), name
    assert int(missing["n_tokens"]) == 2


def test_the_reverse_strand_is_the_reverse_complement(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    forward, backward = "ACGGGTTTACCA", "TGGTAAACCCGT"
    for name, text in (("f", forward), ("r", backward)):
        (tmp_path / f"{name}.fa").write_text(f">x\n{text}\n")
    run("both.zarr", source=tmp_path / "f.fa", strand="both", keep="tracks")
    run("plus.zarr", source=tmp_path / "r.fa", strand="+", keep="tracks")
    run("minus.zarr", source=tmp_path / "f.fa", strand="-", keep="tracks")
    both = bertgeom.open(tmp_path / "both.zarr").load()
    plus = bertgeom.open(tmp_path / "plus.zarr").load()
    minus = bertgeom.open(tmp_path / "minus.zarr").load()
    assert both["strand"].values.tolist() == [1, -1]
    np.testing.assert_array_equal(both["query_entropy"][1], plus["query_entropy"][0])
    np.testing.assert_array_equal(minus["query_entropy"][0], plus["query_entropy"][0])
    # Token 1 is the first 3-mer of the reverse strand: the last three bases of the record.
    assert int(both["token_start"][1, 1]) == len(forward) - 3
    assert int(both["token_stop"][1, 1]) == len(forward)
    assert int(both["token_start"][1, 0]) == -1


def test_a_batch_is_started_before_the_one_before_it_is_fetched(
    run: Callable[..., Any], encoder: Any, whole: Path, tmp_path: Path, fake: Any
) -> None:
    encoder.runs_ahead = True
    run()
    n = len(encoder.events) // 2
    assert n > 2
    expected = [("start", 0)]
    for k in range(1, n):
        expected += [("start", k), ("fetch", k - 1)]
    assert encoder.events == [*expected, ("fetch", n - 1)]
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(whole)


def test_memory_that_runs_out_when_a_batch_is_fetched_halves_it_too(
    run: Callable[..., Any], encoder: Any, whole: Path, tmp_path: Path, fake: Any
) -> None:
    encoder.runs_ahead, encoder.late, encoder.capacity = True, True, 1
    run()
    assert set(encoder.batches) == {1}
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(whole)


def test_a_batch_out_of_memory_is_halved_and_gives_the_same_numbers(
    run: Callable[..., Any], encoder: Any, whole: Path, tmp_path: Path, fake: Any
) -> None:
    encoder.capacity = 1
    run()
    assert set(encoder.batches) == {1}
    assert fake.contents(tmp_path / "x.zarr") == fake.contents(whole)


def test_a_window_that_never_fits_is_quarantined_and_the_run_goes_on(
    run: Callable[..., Any], encoder: Any, whole: Path, tmp_path: Path
) -> None:
    encoder.poisoned = (10,)
    done = run()
    sound = bertgeom.open(whole).load()
    other = bertgeom.open(tmp_path / "x.zarr").load()
    lost = other["n_tokens"].values == 10
    assert 0 < lost.sum() < len(lost)
    assert done.counts["quarantined"] == lost.sum()
    flagged = (other["flags"].values & flag_bit("quarantined")) != 0
    np.testing.assert_array_equal(flagged, lost)
    for name in ("attention_entropy", "attention_k90_median", "angle_histogram"):
        assert np.isnan(other[name].values[lost]).all()
        np.testing.assert_array_equal(other[name].values[~lost], sound[name].values[~lost])


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory(
    run: Callable[..., Any], encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(encoder, "measure", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run()


def test_a_thread_ahead_hands_on_items_errors_and_stops() -> None:
    assert list(ahead(range(5), 2)) == [0, 1, 2, 3, 4]

    def broken() -> Any:
        yield 1
        raise ValueError("no more")

    items = ahead(broken(), 1)
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)
    taken = []

    def endless() -> Any:
        n = 0
        while True:
            taken.append(n)
            yield n
            n += 1

    items = ahead(endless(), 2)
    assert next(items) == 0
    items.close()
    assert len(taken) <= 6
