"""The loops over bases, one thread: k-mers of a sequence, other strand, ambiguous bases."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from bench.sequence import genomes
from bench.suite.cases import Case, Cost, cases
from bench.suite.conftest import Timed
from bertgeom.kernels.kmers import count_ambiguous, kmer_keys, reference, reverse_complement

WAYS = ["copy", "numba", "reference"]
FULL = [*cases(["copy", "numba"], "copy", bases=[30_000, 3_000_000])]
FULL += cases(["copy", "reference"], "copy", bases=[3_000])
TINY = cases(WAYS, "copy", bases=[300])
OURS: dict[str, Callable[[np.ndarray], Any]] = {
    "count ambiguous bases": count_ambiguous,
    "reverse complement": reverse_complement,
    "k-mers, k 6 stride 1": lambda x: kmer_keys(x, 6, 1, pad=False),
    "k-mers, k 12 stride 9": lambda x: kmer_keys(x, 12, 9, pad=True),
}
ORACLE: dict[str, Callable[[str], Any]] = {
    "count ambiguous bases": reference.count_ambiguous,
    "reverse complement": reference.reverse_complement,
    "k-mers, k 6 stride 1": lambda x: list(reference.kmers(x, 6, 1, pad=False)),
    "k-mers, k 12 stride 9": lambda x: list(reference.kmers(x, 12, 9, pad=True)),
}


def sequences(n_bases: int) -> list[np.ndarray]:
    """Four sequences with an N in 2,000 bases."""
    parts = genomes(4 * (n_bases // 30_000 + 1), unknown=0.0005)
    whole = np.concatenate(parts)
    return [whole[i * n_bases : (i + 1) * n_bases].copy() for i in range(4)]


@cache
def checked() -> bool:
    """Raises where ours differs from the oracle."""
    bases = sequences(3_000)[0]
    text = bases.tobytes().decode()
    assert count_ambiguous(bases) == reference.count_ambiguous(text)
    assert reverse_complement(bases).tobytes().decode() == reference.reverse_complement(text)
    for k, stride, pad in ((6, 1, False), (12, 9, True)):
        keys = kmer_keys(bases, k, stride, pad=pad)
        names = [one for one, _, _ in reference.kmers(text, k, stride, pad=pad)]
        assert len(keys) == len(names)
        # Equal k-mers have equal keys and others have others: the keys number the names.
        assert len(set(zip(keys.tolist(), names, strict=True))) == len(set(names))
    return True


@pytest.mark.parametrize("kernel", OURS, ids=lambda name: name.replace(" ", "_"))
def test_kmers(timed: Timed, case: Case, kernel: str) -> None:
    assert checked()
    n_bases = case["bases"]
    if case.way == "reference":
        oracle = ORACLE[kernel]
        texts = [x.tobytes().decode() for x in sequences(n_bases)]
        timed(kernel, case, Cost(n_bases, "base", bytes=n_bases), oracle, texts)
        return
    run = np.copy if case.way == "copy" else OURS[kernel]
    timed(kernel, case, Cost(n_bases, "base", bytes=n_bases), run, sequences(n_bases))
