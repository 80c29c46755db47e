"""Known bugs of earlier versions that may affect the numbers in a store.

Pure functions of a store's attributes; `verify` prints their messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

#: Up to here version 0.1.0 kept all weights of a head in memory.
_RESIDENT = 1024


def advisories(attributes: Mapping[str, Any], n_tokens: np.ndarray) -> list[str]:
    """Known bugs of the version that wrote a store, if they may affect its numbers.

    Args:
        attributes: of the store's root group.
        n_tokens: (window,) integers, tokens of every window.

    Returns:
        one line per bug, with the remedy.
    """
    found = [_scratch_too_small(attributes, np.asarray(n_tokens))]
    return [line for line in found if line]


def _scratch_too_small(attributes: Mapping[str, Any], n_tokens: np.ndarray) -> str | None:
    """0.1.0 on the CPU sized scratch memory by the longest window; a shorter one may need more.

    Which windows shared a batch is not recorded, so a window counts if any longer one needs less.
    """
    settings = attributes.get("settings") or {}
    by_numba = attributes.get("device") == "cpu" and settings.get("impl") in ("auto", "numba", None)
    if not str(attributes.get("bertgeom_version", "")).startswith("0.1.") or not by_numba:
        return None
    model = attributes["model"]
    head_dim = int(model["hidden"]) // int(model["n_heads"])
    lengths, counts = np.unique(n_tokens[n_tokens > 0], return_counts=True)
    needs = np.array([_floats_of_0_1_0(int(n), head_dim) for n in lengths])
    if len(needs) < 2:
        return None
    least_of_longer = np.append(np.minimum.accumulate(needs[::-1])[::-1][1:], needs[-1])
    touched = needs > least_of_longer
    if not touched.any():
        return None
    short, long = lengths[touched][0], lengths[touched][-1]
    return (
        f"bertgeom {attributes['bertgeom_version']} wrote this store on the CPU, and the attention "
        f"statistics and later layers of {int(counts[touched].sum())} windows of {short} to {long} "
        "tokens may be wrong where a longer window was in their batch; measure again with this "
        "version into a new store"
    )


def _floats_of_0_1_0(n: int, head_dim: int) -> int:
    """Float32 elements that 0.1.0 needed for a head of n tokens, without what all lengths need."""
    width = _up(n, 64)
    if n <= _RESIDENT:
        weights = _up(n, 32) * width
    else:
        rows = min(n, max(1, (1 << 18) // width // 32) * 32)
        weights = 2 * _up(rows, 32) * width
    pieces = 0
    if head_dim % 32 == 0:
        pieces = _up(_up(n, 32) * (head_dim // 32 * 3 + 1) * 16, 64)
    vectors = 10 * (width + 64) + _up(n + 1, 64) + 16 * (2 * (width + 64) + 16)
    return vectors + pieces + weights


def _up(n: int, step: int) -> int:
    """n rounded up to a multiple of `step`."""
    return -(-n // step) * step
