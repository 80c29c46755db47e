"""Cohort sums merge exactly, and contrasts follow from sums alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgeom import variables
from bertgeom.analysis.cohorts import (
    Moments,
    assign_labels,
    cohort_sums,
    merge_sums,
    read_labels,
    statistics_of,
    store_sums,
    sums_dataset,
    sums_of_dataset,
)
from bertgeom.analysis.contrasts import benjamini_hochberg, contrast, contrast_table
from bertgeom.errors import InputError, StoreError, UsageError

N = 60


def fake_store(n: int = N, seed: int = 0) -> xarray.Dataset:
    """Windows of 3 cohorts with missing values, a quarantined window and unlabelled ones."""
    rng = np.random.default_rng(seed)
    label = rng.integers(-1, 3, n).astype(np.int32)
    entropy = 1e3 + rng.standard_normal((n, 2, 3)) + label[:, None, None] * 0.5
    entropy[rng.random(entropy.shape) < 0.1] = np.nan
    flags = np.zeros(n, np.uint16)
    flags[5] = variables.flag_bit("quarantined")
    return xarray.Dataset(
        {
            "label": ("window", label),
            "flags": ("window", flags),
            "record_index": ("window", (np.arange(n) // 4).astype(np.uint32)),
            "n_tokens": ("window", np.full(n, 9, np.uint32)),
            "attention_entropy": (("window", "layer", "head"), entropy.astype(np.float32)),
            "attention_k90_min": (
                ("window", "layer", "head"),
                rng.integers(1, 50, (n, 2, 3)).astype(np.uint32),
            ),
            "gate": (("window", "layer", "head"), rng.integers(0, 9, (n, 2, 3)).astype(np.uint8)),
            "block_map": (
                ("window", "layer", "head", "query_block", "key_block"),
                rng.random((n, 2, 3, 4, 4)).astype(np.float16),
            ),
            "query_entropy": (("window", "layer", "head", "token"), np.ones((n, 2, 3, 5))),
            "cone_index": (("window", "station"), rng.random((n, 5)).astype(np.float32)),
        },
        coords={"layer": [0, 1], "head": [0, 1, 2]},
    )


def arrays_of(dataset: xarray.Dataset) -> dict[str, np.ndarray]:
    return {str(name): array.values for name, array in dataset.data_vars.items()}


def by_definition(dataset: xarray.Dataset, name: str, code: int) -> tuple[np.ndarray, ...]:
    rows = (dataset.label.values == code) & (dataset.flags.values == 0)
    x = dataset[name].values[rows].astype(np.float64)
    return np.isfinite(x).sum(0), np.nanmean(x, axis=0), np.nanvar(x, axis=0, ddof=1)


def assert_equal_sums(found: dict[str, Moments], expected: dict[str, Moments]) -> None:
    assert found.keys() == expected.keys()
    for name, moments in expected.items():
        np.testing.assert_array_equal(found[name].count, moments.count)
        np.testing.assert_allclose(found[name].mean, moments.mean, rtol=1e-12)
        np.testing.assert_allclose(found[name].m2, moments.m2, rtol=1e-9, atol=1e-12)


def test_sums_equal_their_definition() -> None:
    dataset = fake_store()
    sums = cohort_sums(arrays_of(dataset), dataset.label.values, 3)
    for name in ("attention_entropy", "attention_k90_min", "block_map", "cone_index"):
        for code in range(3):
            count, mean, variance = by_definition(dataset, name, code)
            np.testing.assert_array_equal(sums[name].count[code], count)
            np.testing.assert_allclose(sums[name].mean[code], mean, rtol=1e-12)
            np.testing.assert_allclose(sums[name].variance()[code], variance, rtol=1e-9)


def test_tracks_identities_and_codes_are_not_averaged() -> None:
    sums = cohort_sums(arrays_of(fake_store()), np.zeros(N, int), 1)
    assert set(sums) == {
        "attention_entropy",
        "attention_k90_min",
        "gate_share",
        "block_map",
        "cone_index",
    }


def test_gate_shares_count_windows_by_gate() -> None:
    dataset = fake_store()
    share = cohort_sums(arrays_of(dataset), np.zeros(N, int), 1)["gate_share"]
    good = dataset.gate.values[dataset.flags.values == 0]
    for code in range(9):
        np.testing.assert_allclose(share.mean[0, ..., code], (good == code).mean(axis=0))
    np.testing.assert_allclose(share.mean.sum(-1), 1)


@pytest.mark.parametrize("as_read", [False, True])
def test_missing_integers_are_no_values(as_read: bool) -> None:
    k90 = np.array([[3], [5], [2**32 - 1]], dtype=np.uint32)
    gate = np.array([[1], [8], [255]], dtype=np.uint8)
    arrays: dict[str, np.ndarray] = {"attention_k90_min": k90, "gate": gate}
    if as_read:
        missing = np.array([[1], [1], [np.nan]])
        arrays = {"attention_k90_min": k90 * missing, "gate": gate * missing}
    sums = cohort_sums(arrays, np.zeros(3, int), 1)
    assert sums["attention_k90_min"].count.tolist() == [[2]]
    assert sums["attention_k90_min"].mean.tolist() == [[4]]
    assert sums["gate_share"].count.tolist() == [[[2] * 9]]
    assert sums["gate_share"].mean[0, 0, [1, 8]].tolist() == [0.5, 0.5]


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, N), max_size=8), seed=st.integers(0, 5))
def test_any_partitioning_gives_the_same_sums(cuts: list[int], seed: int) -> None:
    dataset = fake_store(seed=seed)
    arrays, codes = arrays_of(dataset), dataset.label.values
    edges = [0, *sorted(cuts), N]
    parts = [
        cohort_sums({k: v[a:b] for k, v in arrays.items()}, codes[a:b], 3)
        for a, b in pairwise(edges)
    ]
    assert_equal_sums(merge_sums(parts), cohort_sums(arrays, codes, 3))


def test_large_offsets_lose_no_variance() -> None:
    rng = np.random.default_rng(1)
    x = 1e8 + rng.standard_normal(10_000)
    codes = np.zeros(1000, int)
    parts = [{"s": Moments.of(part, codes, 1)} for part in np.split(x, 10)]
    merged = merge_sums(parts)["s"]
    assert merged.variance()[0] == pytest.approx(x.var(ddof=1), rel=1e-6)


@pytest.mark.parametrize("step", [1, 7, 60, 512])
def test_a_store_read_in_steps_gives_the_same_sums(step: int) -> None:
    dataset = fake_store()
    expected = cohort_sums(arrays_of(dataset), dataset.label.values, 3)
    assert_equal_sums(store_sums(dataset, step=step), expected)


@pytest.mark.parametrize("step", [1, 3, 8, 60])
def test_records_can_be_the_units(step: int) -> None:
    dataset = fake_store()
    codes = dataset.record_index.values.astype(int) % 3 - 1
    found = store_sums(dataset, codes, 2, unit="record", step=step)["attention_entropy"]
    x = dataset.attention_entropy.values.astype(np.float64)
    x[dataset.flags.values > 0] = np.nan
    means = np.stack([np.nanmean(x[i : i + 4], axis=0) for i in range(0, N, 4)])
    for code in range(2):
        chosen = means[codes[::4] == code]
        np.testing.assert_allclose(found.mean[code], np.nanmean(chosen, axis=0), rtol=1e-12)
        np.testing.assert_allclose(
            found.variance()[code], np.nanvar(chosen, axis=0, ddof=1), rtol=1e-8
        )


def test_records_torn_apart_cannot_be_units() -> None:
    dataset = fake_store()
    dataset["record_index"] = dataset.record_index[::-1].variable
    with pytest.raises(StoreError, match="found record_index falling"):
        store_sums(dataset, unit="record")


def test_sums_survive_the_dataset() -> None:
    dataset = fake_store()
    sums = cohort_sums(arrays_of(dataset), dataset.label.values, 3)
    stored = sums_dataset(sums, ["a", "b", "c"], {"layer": [0, 1], "head": [0, 1, 2]})
    assert_equal_sums(sums_of_dataset(stored), sums)
    assert stored.attention_entropy_mean.dims == ("cohort", "layer", "head")
    assert stored.attention_entropy_mean.attrs["units"] == "nat"
    assert stored.attention_entropy_m2.attrs["units"] == "(nat)^2"
    assert stored.block_map_mean.sel(cohort="b").shape == (2, 3, 4, 4)
    assert stored.gate_label.values[-1] == "mixed"


def test_contrasts_equal_scipys_test_on_the_windows() -> None:
    dataset = fake_store()
    sums = sums_dataset(cohort_sums(arrays_of(dataset), dataset.label.values, 3), ["a", "b", "c"])
    result = contrast(sums, "a", "c")
    good = dataset.flags.values == 0
    first, second = (
        dataset.attention_entropy.values[good & (dataset.label.values == code)].astype(float)
        for code in (0, 2)
    )
    expected = scipy.stats.ttest_ind(first, second, equal_var=False, nan_policy="omit")
    np.testing.assert_allclose(result.attention_entropy_t, expected.statistic, rtol=1e-8)
    np.testing.assert_allclose(result.attention_entropy_p, expected.pvalue, rtol=1e-7)
    np.testing.assert_allclose(result.attention_entropy_df, expected.df, rtol=1e-8)
    n1, n2 = np.isfinite(first).sum(0), np.isfinite(second).sum(0)
    v1, v2 = np.nanvar(first, axis=0, ddof=1), np.nanvar(second, axis=0, ddof=1)
    pooled = np.sqrt(((n1 - 1) * v1 + (n2 - 1) * v2) / (n1 + n2 - 2))
    d = (np.nanmean(first, axis=0) - np.nanmean(second, axis=0)) / pooled
    np.testing.assert_allclose(result.attention_entropy_cohens_d, d, rtol=1e-8)
    q = scipy.stats.false_discovery_control(np.asarray(expected.pvalue).ravel())
    np.testing.assert_allclose(result.attention_entropy_q.values.ravel(), q, rtol=1e-6)


def test_one_family_of_all_tests_is_stricter() -> None:
    dataset = fake_store()
    sums = sums_dataset(cohort_sums(arrays_of(dataset), dataset.label.values, 3), ["a", "b", "c"])
    chosen = ["attention_entropy", "cone_index"]
    result = contrast(sums, "a", "c", family="all", statistics=chosen)
    p = np.concatenate([result[f"{name}_p"].values.ravel() for name in chosen])
    q = np.concatenate([result[f"{name}_q"].values.ravel() for name in chosen])
    np.testing.assert_allclose(q, scipy.stats.false_discovery_control(p))
    assert {"attention_entropy_q", "cone_index_q"} <= set(result.data_vars)
    assert "block_map_q" not in result


def test_constants_and_lone_windows_are_no_tests() -> None:
    arrays = {"cone_index": np.array([[1.0, 5], [1, 6], [1, 7], [2, np.nan]])}
    sums = sums_dataset(cohort_sums(arrays, np.array([0, 0, 1, 1]), 2), ["a", "b"])
    sums["cone_index_m2"][:, 0] = 0
    sums["cone_index_mean"][:, 0] = 1
    result = contrast(sums, "a", "b")
    assert np.isnan(result.cone_index_p).all()
    assert np.isnan(result.cone_index_q).all()


def test_q_values_leave_missing_tests_out() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.9])
    q = benjamini_hochberg(p)
    assert np.isnan(q[1])
    tested = np.isfinite(p)
    np.testing.assert_allclose(q[tested], scipy.stats.false_discovery_control(p[tested]))


def test_tables_list_the_strongest_tests_first() -> None:
    dataset = fake_store()
    sums = sums_dataset(
        cohort_sums(arrays_of(dataset), dataset.label.values, 3),
        ["a", "b", "c"],
        {"layer": [0, 1], "head": [0, 1, 2]},
    )
    rows = list(contrast_table(contrast(sums, "a", "c", statistics=["attention_entropy"])))
    assert len(rows) == 6
    q = [float(str(row["q"])) for row in rows]
    assert q == sorted(q)
    assert set(rows[0]) >= {"statistic", "layer", "head", "difference", "cohens_d", "p", "q"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "x"), r"expected cohorts out of a, b, found \['x'\]"),
        (("a", "b", "nothing"), r"expected statistics of the sums"),
    ],
)
def test_unknown_names_are_refused(arguments: tuple[str, ...], message: str) -> None:
    sums = sums_dataset(cohort_sums({"cone_index": np.ones((3, 2))}, np.zeros(3, int), 2), "ab")
    first, second, *statistics = arguments
    with pytest.raises(UsageError, match=message):
        contrast(sums, first, second, statistics=statistics or None)


def test_labels_by_id_and_by_index(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_bytes(b"record_id\tlabel\r\nr1\tdelta\r\n\r\n# x\r\nr3\talpha\r\nnot_here\tbeta\r\n")
    labels = read_labels(path)
    assert labels.names == ("alpha", "beta", "delta")
    assert assign_labels(labels, ["r1", "r2", "r3", "r1"]).tolist() == [2, -1, 0, 2]
    path.write_text("index\tlabel\n2\tx\n0\ty\n")
    assert assign_labels(read_labels(path), ["r1", "2", "r3"]).tolist() == [1, -1, 0]
    path.write_text("2\tx\n0\ty\n")
    assert assign_labels(read_labels(path), ["r1", "r2", "r3"]).tolist() == [1, -1, 0]
    assert assign_labels(read_labels(path), ["r1", "2", "r3"]).tolist() == [-1, 0, -1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r1\tx\nr2\n", "line 2: expected two tab-separated fields"),
        ("r1\tx\nr1\ty\n", "line 2: expected one label per record, found 'x' and 'y'"),
        ("# nothing\n", "expected at least one labelled record"),
    ],
)
def test_bad_label_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_labels(path)


def test_labels_of_another_database_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("r1\tx\n")
    with pytest.raises(InputError, match="none of them among 2 record ids"):
        assign_labels(read_labels(path), ["a", "b"])
    path.write_text("index\tlabel\n7\tx\n")
    with pytest.raises(InputError, match="record indices from 0 to 1, found '7'"):
        assign_labels(read_labels(path), ["a", "b"])


def test_unknown_units_and_code_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="'window' or 'record'"):
        store_sums(fake_store(), unit="base")
    with pytest.raises(UsageError, match="60 cohort codes, found 3"):
        store_sums(fake_store(), np.zeros(3, int))
    with pytest.raises(UsageError, match="codes from -1 to 1, found 2"):
        store_sums(fake_store(), n_cohorts=2)
    with pytest.raises(UsageError, match="expected statistics of the store"):
        store_sums(fake_store(), statistics=["nothing"])


def test_statistics_come_in_declared_order() -> None:
    assert statistics_of(["gate", "attention_entropy", "cls", "start", "unknown"]) == [
        "attention_entropy",
        "gate_share",
    ]


def test_no_values_have_no_mean_however_they_are_merged() -> None:
    nothing, some = Moments.none((1, 2)), Moments.of(np.array([[1.0, np.nan]]), np.zeros(1, int), 1)
    for merged in (nothing.merge(some), some.merge(nothing)):
        np.testing.assert_array_equal(merged.count, [[1, 0]])
        np.testing.assert_array_equal(merged.mean, [[1, np.nan]])
        np.testing.assert_array_equal(merged.m2, [[0, np.nan]])
    assert np.isnan(nothing.merge(nothing).mean).all()


@pytest.mark.parametrize(
    ("spread", "told"), [(0.0, False), (2e-7, False), (1e-6, False), (1e-3, True)]
)
def test_a_spread_that_is_rounding_is_no_spread(spread: float, told: bool) -> None:
    """Two cohorts of equal sequences whose statistics differ by their last bits alone."""
    random = np.random.default_rng(0)
    codes = np.repeat([0, 1], 20)
    values = (5 + codes + spread * random.standard_normal(40)).astype(np.float32)[:, None, None]
    moments = Moments.of(values, codes, 2)
    found = contrast(sums_dataset({"attention_entropy": moments}, ["a", "b"]), "a", "b")
    assert found.attention_entropy_difference == pytest.approx(-1, abs=1e-3)
    for part in ("cohens_d", "t", "df", "p", "q"):
        assert np.isfinite(found[f"attention_entropy_{part}"]).all() == told, part


@pytest.mark.parametrize(("first", "second"), [(0, 5), (1, 5), (5, 1)])
def test_cohorts_of_none_or_one_have_no_effect_size(first: int, second: int) -> None:
    random = np.random.default_rng(0)
    codes = np.repeat([0, 1], [first, second])
    moments = Moments.of(random.random((first + second, 1, 1)), codes, 2)
    found = contrast(sums_dataset({"attention_entropy": moments}, ["a", "b"]), "a", "b")
    assert np.isnan(found.attention_entropy_difference).all() == (first == 0)
    assert np.isnan(found.attention_entropy_cohens_d).all()
    assert np.isnan(found.attention_entropy_p).all()
