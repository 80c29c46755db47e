"""What the axes of the arrays count: gates, offsets, blocks, angles, bits of `flags`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

GATES = (
    "closed",
    "open",
    "backward",
    "forward",
    "directional",
    "instance",
    "cluster",
    "diffuse",
)
#: Code of `gate` where no gate holds half of the mass.
GATE_MIXED = len(GATES)
HEAD_STATIONS = ("query", "key", "value", "head")
N_BLOCKS = 16
N_ANGLES = 90
MAX_GROUPS = 16

#: Bits of `flags`, in order: name and meaning.
FLAGS = {
    "unknown": "more unknown tokens than --max-unknown",
    "short": "shorter than the window: the only window of a short record",
    "empty": "no token of the record is left; statistics are missing",
    "zero_vector": "a zero vector was met and left out of a cone",
    "recomputed": "not finite in half precision; computed again in a wider type",
    "quarantined": "could not be computed (out of memory or not finite); statistics are missing",
}


def flag_bit(name: str) -> int:
    """The bit of `flags` called `name`."""
    return 1 << tuple(FLAGS).index(name)


#: Bits of `flags` of which either says that a window has no statistics.
LOST = flag_bit("empty") | flag_bit("quarantined")


def offset_edges(n_side: int) -> np.ndarray:
    """Smallest |j - i| of the bins 1..n_side of one side: 1, 2, 3, 5, 9, 17, ... (int64)."""
    import numpy as np

    return np.array([1, *(2**m + 1 for m in range(n_side - 1))], dtype=np.int64)


def n_offset_side(max_tokens: int) -> int:
    """How many one-sided offset bins keep every offset of `max_tokens` tokens in its own bin."""
    # The bits of m - 1 are the logarithm of m, rounded up.
    return max(1, (max(max_tokens - 1, 1) - 1).bit_length() + 1)


def offset_labels(n_side: int) -> list[str]:
    """Names of the 2 n_side + 1 signed bins, from the farthest backward to the farthest forward."""
    low = offset_edges(n_side)
    names = []
    for i, start in enumerate(low):
        stop = low[i + 1] - 1 if i + 1 < n_side else 2**i if i else 1
        names.append(str(start) if start == stop else f"{start}..{stop}")
    return [f"-{x}" for x in reversed(names)] + ["0"] + [f"+{x}" for x in names]
