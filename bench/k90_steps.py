"""Steps of the k90 search, counted without a GPU: `TRITON_INTERPRET=1 python -m bench.k90_steps`.

A program searches its rows until all are done. Its steps are counted by allowing it one more at a
time, until its counts are those of a search without a limit.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from torch import Tensor

HEAD_DIM = 64


def heads(tokens: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Queries and keys (1, 1, N, 64) float16 by what their rows of logits look like."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for spread in (0.3, 0.5, 1.0, 2.0, 4.0):
        q, k = torch.randn(2, 1, 1, tokens, HEAD_DIM, generator=random) * spread**0.5
        found[f"normal, {spread:g} nat"] = q, k
    q, k = torch.randn(2, 1, 1, tokens, HEAD_DIM, generator=random) * 0.5**0.5
    # A direction that the first key alone has, as much of it as half of the mass takes.
    q[..., 0], k[..., 0] = 8.0, 0.0
    k[..., 0, 0] = torch.log(torch.tensor(float(tokens)))
    found["half on one token"] = q, k
    return {name: (q.half(), k.half()) for name, (q, k) in found.items()}


def steps(query: Tensor, key: Tensor) -> list[int]:
    """Steps of every program."""
    from bertgeom.kernels.attention_stats.gpu import k90
    from bertgeom.kernels.attention_stats.gpu import rows as _gpu_rows
    from bertgeom.kernels.attention_stats.options import Options

    options = Options(HEAD_DIM**-0.5, None, True, 0.3, 4, 18, 0, False, False)
    lengths = torch.tensor([query.shape[2]], dtype=torch.int32)
    _, rows = _gpu_rows.row_values(query, key, key, lengths, options)
    tiles, _ = k90.k90_tiles(query.dtype, HEAD_DIM, query.shape[2])

    def counts(most: int) -> tuple[Tensor, ...]:
        found = k90.k90_counts(query, key, rows, lengths, options, max_steps=most)
        return found.flatten().split(tiles.rows)

    final = counts(k90.MAX_STEPS)
    needed = [1] * len(final)
    # Upwards, and on for a while: counts may be right by accident before the search is over.
    for most in range(1, k90.MAX_STEPS):
        different = [not torch.equal(*pair) for pair in zip(counts(most), final, strict=True)]
        needed = [most + 1 if d else n for d, n in zip(different, needed, strict=True)]
        if most >= 2 * max(needed):
            break
    return needed


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.k90_steps", description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args(argv)
    for name, (query, key) in heads(options.tokens, 0).items():
        found = steps(query, key)
        print(
            f"{options.tokens} tokens, {name:18s} mean {statistics.mean(found):4.1f}  "
            f"most {max(found)}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
