"""Whether a tokenizer knows the input: a sample of windows, before anything is computed.

An unknown token tells a model nothing, and statistics of windows full of them look like any
others. A run is refused if more than half of the tokens of the sample are unknown: from there on
the typical token of the run is the unknown one. N stands for bases that nobody read, which is
no fault of the tokenizer: a sample of few windows is judged by its tokens without N alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertgeom.encoded import EncodedBatch
from bertgeom.errors import ModelError

from .compute import encode_windows, window_bases
from .workplace import Workplace

#: Largest share of unknown tokens with which a run begins.
MOST_UNKNOWN = 0.5
#: Stretches of neighbouring windows that are looked at, and windows of each.
_STRETCHES, _NEIGHBOURS = 16, 4
#: Fewer windows are judged by their tokens without N alone.
_FEW_WINDOWS = 8
#: Fewer tokens say nothing.
_FEW_TOKENS = 16
_N = np.frombuffer(b"Nn", np.uint8)


@dataclass(frozen=True)
class UnknownTokens:
    """Tokens of a sample, special ones left out.

    Attributes:
        windows: windows of the sample. tokens, unknown: of all windows.
        read_tokens, read_unknown: of the tokens without an N.
    """

    windows: int
    tokens: int
    unknown: int
    read_tokens: int
    read_unknown: int

    @property
    def too_many(self) -> bool:
        """Whether most tokens are unknown."""
        if _most(self.read_unknown, self.read_tokens):
            return True
        return self.windows >= _FEW_WINDOWS and _most(self.unknown, self.tokens)


def check_known(place: Workplace, seed: int = 0) -> None:
    """Refuse a run in which most tokens are unknown.

    Raises:
        ModelError: says how many are, and how to go on.
    """
    found = sample_unknown(place, seed)
    if not found.too_many:
        return
    share = 100 * found.unknown / found.tokens
    raise ModelError(
        f"expected most tokens to be known to {place.loaded.tokenizer.name}, found {share:.0f} % "
        f"unknown among the {found.tokens:,} tokens of {found.windows} sampled windows; choose "
        "another --model or --tokenizer, or give --allow-unknown to go on"
    )


def sample_unknown(place: Workplace, seed: int = 0) -> UnknownTokens:
    """Unknown tokens of windows at seeded places all over the database."""
    n = place.plan.n_windows
    places = np.random.default_rng(seed).permutation(-(-n // _NEIGHBOURS))[:_STRETCHES]
    sums = np.zeros(5, dtype=np.int64)
    for first in np.sort(places) * _NEIGHBOURS:
        windows = place.plan.index.windows(int(first), min(int(first) + _NEIGHBOURS, n))
        encoded = encode_windows(place, windows)
        bases = window_bases(place, windows)
        sums[0] += len(windows)
        for row in range(len(windows)):
            sums[1:] += _counts(encoded, row, bases(row), place.loaded.tokenizer.unknown_ids)
    return UnknownTokens(*sums.tolist())


def _counts(
    encoded: EncodedBatch, row: int, bases: np.ndarray, unknown_ids: tuple[int, ...]
) -> tuple[int, int, int, int]:
    one = encoded.row(row)
    content = ~one.special
    unknown = np.isin(one.ids[content], unknown_ids)
    n_before = np.concatenate([[0], np.cumsum(np.isin(bases, _N))])
    read = n_before[one.stop[content]] == n_before[one.start[content]]
    return len(unknown), int(unknown.sum()), int(read.sum()), int((unknown & read).sum())


def _most(part: int, whole: int) -> bool:
    return whole >= _FEW_TOKENS and part > MOST_UNKNOWN * whole
