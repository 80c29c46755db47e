"""Whether a tokenizer knows the input: a sample of windows, before anything is computed.

An unknown token tells a model nothing, and statistics of windows full of them look like any
others. A run is refused if more than half of the tokens of the sample are unknown: from there on
the typical token of the run is the unknown one. A handful of windows is measured all the same,
and the run says what it found: that costs seconds, and one window full of N is no reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertgeom.errors import ModelError
from bertgeom.pipelines.context.run_context import RunContext
from bertgeom.pipelines.partition.measure import encode_windows
from bertgeom.pipelines.run.shares import mostly_unknown

#: Stretches of neighbouring windows that are looked at, and windows of each.
_STRETCHES, _NEIGHBOURS = 16, 4
#: Fewer windows are always measured.
_FEW_WINDOWS = 8


@dataclass(frozen=True)
class UnknownTokens:
    """Tokens of a sample, special ones left out.

    Attributes:
        windows: windows of the sample. tokens, unknown: of all windows.
    """

    windows: int
    tokens: int
    unknown: int

    @property
    def too_many(self) -> bool:
        """Whether most tokens of more than a handful of windows are unknown."""
        return self.windows >= _FEW_WINDOWS and mostly_unknown(self.unknown, self.tokens)


def check_known(context: RunContext, seed: int = 0) -> None:
    """Refuse a run in which most tokens are unknown.

    Raises:
        ModelError: says how many are, and how to go on.
    """
    found = sample_unknown(context, seed)
    if not found.too_many:
        return
    share = 100 * found.unknown / found.tokens
    raise ModelError(
        f"expected most tokens to be known to {context.loaded.tokenizer.name}, found {share:.0f} % "
        f"unknown among the {found.tokens:,} tokens of {found.windows} sampled windows; choose "
        "another --model or --tokenizer, or give --allow-unknown to go on"
    )


def sample_unknown(context: RunContext, seed: int = 0) -> UnknownTokens:
    """Unknown tokens of windows at seeded places all over the database."""
    n = context.plan.n_windows
    places = np.random.default_rng(seed).permutation(-(-n // _NEIGHBOURS))[:_STRETCHES]
    n_windows = n_tokens = n_unknown = 0
    for first in np.sort(places) * _NEIGHBOURS:
        windows = context.plan.index.windows(int(first), min(int(first) + _NEIGHBOURS, n))
        encoded = encode_windows(context, windows)
        n_windows += len(windows)
        n_tokens += int(encoded.lengths.sum() - encoded.special.sum())
        n_unknown += int(encoded.n_unknown.sum())
    return UnknownTokens(n_windows, n_tokens, n_unknown)
