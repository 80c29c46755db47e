"""Batches of windows to token ids, special marks, offsets and counts; one thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from bench.sequence import gate, genomes, windows
from bench.suite.cases import Case, Cost, cases
from bench.suite.conftest import Timed
from bertgeom.tokens.select import (
    DnabertKmer,
    NucleotideTransformer,
    PaperKmer,
    SingleNucleotide,
    build_vocabulary,
)


def paper() -> Any:
    """With the k-mers of the first genomes; those of the others are unknown here and there."""
    seen = windows(genomes(4), PaperKmer([]).window_bases())
    return PaperKmer(build_vocabulary(window for batch in seen for window in batch))


WAYS: dict[str, Callable[[], Any]] = {
    "k 12 stride 9": paper,
    "DNABERT k 6": lambda: DnabertKmer(6),
    "Nucleotide Transformer": NucleotideTransformer,
    "single bases": lambda: SingleNucleotide(1026),
}
FULL = cases(["copy", *WAYS], "copy", windows=[64])
TINY = cases(list(WAYS), windows=[3])


@cache
def tokenizer(way: str) -> Any:
    """A tokenizer that agrees with the oracle on the first windows."""
    made = WAYS[way]()
    gate(made, windows(genomes(2), made.window_bases())[0])
    return made


def test_tokenising(timed: Timed, case: Case) -> None:
    made = tokenizer("single bases" if case.way == "copy" else case.way)
    size = min(made.window_bases(), 20_000)
    batches = [one[: case["windows"]] for one in windows(genomes(16, seed=1), size)[:4]]
    n_bases = sum(x.size for x in batches[0])
    run = _copies if case.way == "copy" else made.encode_batch
    timed("tokenising", case, Cost(n_bases, "base", bytes=n_bases), run, batches)


def _copies(batch: list[np.ndarray]) -> Any:
    return [np.copy(x) for x in batch]
