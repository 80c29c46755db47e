"""The published procedure, written anew from its definitions: one sample and head at a time.

numpy on N x N matrices: eigenvalues of the logits, a sort of every row for k90, a 20-bin
histogram of the weights, the von Neumann entropy of the weights' spectrum, cones by hand.
"""

from __future__ import annotations

import numpy as np


def head(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> dict[str, float]:
    """Statistics of one head from q, k, v (N, d)."""
    logits = q @ k.T / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    eigenvalues = np.linalg.eigvals(logits)
    spectrum = np.linalg.svd(weights, compute_uv=False)
    p = spectrum / np.linalg.norm(spectrum)
    held = np.cumsum(np.sort(weights, -1)[:, ::-1], -1)
    count, _ = np.histogram(weights, 20)
    share = count[count > 0] / count.sum()
    return {
        "positive_eigenvalues": float((eigenvalues.real > 0).sum()),
        "von_neumann_entropy": float(-(p[p > 0] * np.log(p[p > 0])).sum()),
        "k90_median": float(np.median((held < 0.9).sum(-1) + 1)),
        "value_entropy": float(-(share * np.log(share)).sum()),
        "cone_index": cone(weights @ v),
    }


def cone(x: np.ndarray) -> float:
    """Norm of the sum of the unit vectors of x (N, D), one vector at a time."""
    total = np.zeros(x.shape[-1])
    for row in x:
        total += row / np.linalg.norm(row)
    return float(np.linalg.norm(total))
