"""Bases to ids: Numba against plain Python, on every kind of letter."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgeom.kernels.kmers import (
    KmerTable,
    count_ambiguous,
    encode_kmers,
    encode_singles,
    encode_split,
    kmer_keys,
    n_kmers,
    pack_kmers,
    reference,
    reverse_complement,
    single_table,
    unpack_kmers,
)

UNKNOWN = 1
ANY_LETTER = "ACGTUacgtuNnRYSWKMBDHVrykX-*"
sequences = st.one_of(
    st.text("ACGT", max_size=400),
    st.text("ACGTacgtuUN", max_size=200),
    st.text(ANY_LETTER, max_size=100),
    # Clean stretches longer than a vector, with few other letters between.
    st.lists(st.tuples(st.text("ACGT", max_size=300), st.text("NR-", max_size=2)), max_size=5).map(
        lambda parts: "".join(clean + odd for clean, odd in parts)
    ),
)


def as_bases(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def joined(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    stops = np.cumsum([len(t) for t in texts], dtype=np.int64)
    return as_bases("".join(texts)), np.concatenate([[0], stops])[:-1].astype(np.int64), stops


def vocabulary_of(texts: list[str], k: int, stride: int) -> dict[str, int]:
    """Every other k-mer that occurs, so that there are hits and misses."""
    found = {kmer for t in texts for kmer, _, _ in reference.kmers(t, k, stride, pad=True)}
    kept = sorted(kmer for kmer in found if set(kmer) <= set("ACGTNRYSWKMBDHV"))
    return {kmer: 5 + i for i, kmer in enumerate(kept[::2])}


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(sequences, min_size=1, max_size=4),
    k=st.integers(1, 16),
    stride=st.integers(1, 20),
    pad=st.booleans(),
)
def test_kmers_agree_with_the_oracle(texts: list[str], k: int, stride: int, pad: bool) -> None:
    bases, starts, stops = joined(texts)
    vocabulary = vocabulary_of(texts, k, stride)
    table = KmerTable.build(vocabulary, k, UNKNOWN)
    counts = n_kmers(stops - starts, k, stride, pad=pad)
    ids = np.full((len(texts), int(counts.max()) + 2), -7, dtype=np.int32)
    misses = encode_kmers(
        bases, starts, stops, table, stride=stride, counts=counts, ids=ids, first=1
    )
    for b, text in enumerate(texts):
        tokens = reference.kmer_tokens(text, vocabulary, k, stride, UNKNOWN, pad=pad)
        expected = [token for token, _, _ in tokens]
        assert counts[b] == len(tokens)
        assert ids[b].tolist() == [-7, *expected, *[-7] * (ids.shape[1] - 1 - len(tokens))]
        assert misses[b] == expected.count(UNKNOWN)


@pytest.mark.parametrize(("k", "stride"), [(12, 9), (6, 1), (6, 6), (3, 1), (16, 16), (9, 2000)])
def test_rows_longer_than_a_block_agree_with_the_oracle(k: int, stride: int) -> None:
    random = np.random.default_rng(k)
    clean = random.choice(as_bases("ACGT"), 9_000)
    mixed = clean.copy()
    mixed[random.integers(0, 9_000, 12)] = ord("N")
    texts = [clean.tobytes().decode(), mixed.tobytes().decode()]
    bases, starts, stops = joined(texts)
    table = KmerTable.build(vocabulary_of(texts, k, stride), k, UNKNOWN)
    counts = n_kmers(stops - starts, k, stride, pad=True)
    ids = {
        impl: np.zeros((2, int(counts.max())), dtype=np.int32) for impl in ("numba", "reference")
    }
    misses = {
        impl: encode_kmers(
            bases, starts, stops, table, stride=stride, counts=counts, ids=out, impl=impl
        )
        for impl, out in ids.items()
    }
    assert (ids["numba"] == ids["reference"]).all()
    assert (misses["numba"] == misses["reference"]).all()
    assert 0 < misses["numba"].sum() < counts.sum()


def full_table(k: int) -> KmerTable:
    kmers = ["".join(letters) for letters in itertools.product("ATCG", repeat=k)]
    return KmerTable.build({kmer: 10 + i for i, kmer in enumerate(kmers)}, k, UNKNOWN)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(sequences, min_size=1, max_size=4),
    k=st.sampled_from([2, 3, 6]),
    room=st.one_of(st.just(500), st.integers(0, 30)),
)
def test_split_kmers_agree_with_the_oracle(texts: list[str], k: int, room: int) -> None:
    table = full_table(k)
    letters = {"A": 2, "C": 3, "G": 4, "T": 5, "N": 6}
    bases, starts, stops = joined(texts)
    found = []
    for impl in ("numba", "reference"):
        arrays = [np.full((len(texts), room + 1), -7, dtype=np.int32) for _ in range(3)]
        ids, begins, ends = arrays
        tokens = encode_split(
            bases,
            starts,
            stops,
            table,
            single_table(letters),
            room=room,
            ids=ids,
            begins=begins,
            ends=ends,
            first=1,
            impl=impl,
        )
        found.append([*arrays, tokens.lengths, tokens.n_unknown, tokens.truncated])
    for ours, theirs in zip(*found, strict=True):
        assert (ours == theirs).all()


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(sequences, min_size=1, max_size=4))
def test_single_bases_agree_with_the_oracle(texts: list[str]) -> None:
    singles = single_table({"A": 7, "C": 8, "G": 9, "T": 10, "N": 11})
    bases, starts, stops = joined(texts)
    counts = stops - starts
    found = []
    for impl in ("numba", "reference"):
        ids = np.full((len(texts), int(counts.max()) + 1), -7, dtype=np.int32)
        misses = encode_singles(
            bases, starts, singles, 6, counts=counts, ids=ids, first=1, impl=impl
        )
        found.append((ids.tolist(), misses.tolist()))
    assert found[0] == found[1]


def test_u_is_t_unless_it_has_an_id_of_its_own() -> None:
    assert single_table({"T": 3})[ord("u")] == 3
    assert single_table({"T": 3, "U": 4})[ord("u")] == 4


@settings(deadline=None)
@given(text=sequences)
def test_counts_and_strands_agree_with_the_oracle(text: str) -> None:
    bases = as_bases(text)
    assert count_ambiguous(bases).tolist() == [reference.count_ambiguous(text)]
    assert (count_ambiguous(bases) == count_ambiguous(bases, impl="reference")).all()
    assert reverse_complement(bases).tobytes().decode() == reference.reverse_complement(text)
    assert (reverse_complement(bases) == reverse_complement(bases, impl="reference")).all()


@settings(deadline=None)
@given(text=st.text("ACGTNRYSWKMBDHV-", max_size=300))
def test_the_strand_of_the_other_strand_is_the_first(text: str) -> None:
    assert reverse_complement(reverse_complement(as_bases(text))).tobytes() == text.encode()


def test_rows_of_ambiguous_counts_are_apart() -> None:
    bases = as_bases("ACGTNNAC-TN")
    starts, stops = np.array([0, 4, 6, 11]), np.array([4, 6, 11, 11])
    assert count_ambiguous(bases, starts, stops).tolist() == [0, 2, 2, 0]


@settings(deadline=None)
@given(kmers=st.lists(st.text("ACGTNRYSWKMBDHV", min_size=7, max_size=7), max_size=20))
def test_keys_hold_their_kmers(kmers: list[str]) -> None:
    assert unpack_kmers(pack_kmers(kmers, 7), 7) == kmers


@settings(deadline=None)
@given(text=sequences, k=st.integers(1, 16), stride=st.integers(1, 20))
def test_keys_of_a_sequence_are_those_of_its_kmers(text: str, k: int, stride: int) -> None:
    expected = [kmer for kmer, _, _ in reference.kmers(text, k, stride, pad=True)]
    plain = ["".join(c if c in "ACGTNRYSWKMBDHV" else "?" for c in kmer) for kmer in expected]
    assert unpack_kmers(kmer_keys(as_bases(text), k, stride, pad=True), k) == plain


def test_a_full_hash_key_is_no_empty_slot() -> None:
    table = KmerTable.build({"G" * 16: 2, "A" * 16: 3, "C" * 16: 4, "V" * 16: 5}, 16, UNKNOWN)
    bases, starts, stops = joined(["G" * 16, "A" * 16, "C" * 16, "T" * 16, "V" * 16, "-" * 16])
    ids = np.zeros((6, 1), dtype=np.int32)
    encode_kmers(bases, starts, stops, table, stride=1, counts=np.ones(6, dtype=np.int64), ids=ids)
    assert ids.ravel().tolist() == [2, 3, 4, UNKNOWN, 5, UNKNOWN]


@pytest.mark.parametrize(
    ("vocabulary", "k", "message"),
    [
        ({"ACG": 2}, 4, "expected k-mers of 4 bases, found 'ACG'"),
        ({"AC!T": 2}, 4, "expected IUPAC bases, found 'AC!T'"),
        ({"ACéT": 2}, 4, "expected IUPAC bases, found 'ACéT'"),
        ({"ACGT": 2, "acgt": 3}, 4, "expected every k-mer once, found ACGT twice"),
        ({"ACGT": 2, "ACGU": 3}, 4, "expected every k-mer once"),
        ({"ACGT": UNKNOWN}, 4, "no k-mer with the unknown id"),
        ({}, 17, "expected k in 1..16, found 17"),
    ],
)
def test_vocabularies_that_cannot_be_meant(
    vocabulary: dict[str, int], k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KmerTable.build(vocabulary, k, UNKNOWN)


def test_arguments_that_cannot_be_meant() -> None:
    table = full_table(2)
    bases, starts, stops = joined(["ACGT"])
    good: dict[str, Any] = {
        "stride": 1,
        "counts": np.array([3]),
        "ids": np.zeros((1, 3), dtype=np.int32),
    }
    for wrong, message in (
        ({"stride": 0}, "stride of at least 1"),
        ({"ids": np.zeros((1, 3))}, "ids int32"),
        ({"ids": np.zeros((1, 2), dtype=np.int32)}, "room for every k-mer"),
        ({"counts": np.array([1, 1])}, "counts of shape"),
        ({"impl": "triton"}, "expected impl 'auto', 'numba' or 'reference'"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_kmers(bases, starts, stops, table, **{**good, **wrong})
    with pytest.raises(ValueError, match=r"inside 0\.\.4, found row 0: 0\.\.5"):
        encode_kmers(bases, starts, stops + 1, table, **good)
    with pytest.raises(TypeError, match="uint8"):
        encode_kmers(bases.astype(np.int64), starts, stops, table, **good)
    with pytest.raises(ValueError, match="all 16 k-mers"):
        encode_split(
            bases,
            starts,
            stops,
            KmerTable.build({"AC": 2}, 2, UNKNOWN),
            single_table({"A": 3, "C": 4, "G": 5, "T": 6}),
            room=1,
            ids=np.zeros((1, 1), dtype=np.int32),
            begins=np.zeros((1, 1), dtype=np.int32),
            ends=np.zeros((1, 1), dtype=np.int32),
        )


def test_other_threads_run_while_bases_are_counted() -> None:
    """The loops release the GIL: Python code goes on meanwhile."""
    bases = np.full(1 << 27, ord("A"), dtype=np.uint8)
    count_ambiguous(bases[:10])
    started, steps, done = threading.Event(), 0, threading.Event()

    def count() -> None:
        started.set()
        count_ambiguous(bases)
        done.set()

    worker = threading.Thread(target=count)
    worker.start()
    started.wait()
    while not done.is_set():
        steps += 1
    worker.join()
    assert steps > 10
