"""The whole forward in its variants: bare, with attention statistics, with everything, stored."""

from __future__ import annotations

from functools import cache

from bench import workloads
from bench.suite.cases import Case, Cost, cases, device
from bench.suite.conftest import Timed

WAYS = ["bare", "attention", "everything", "materialised"]
FULL = cases(WAYS, "bare", B=[1], N=[128, 426, 512, 1024], layers=[2])
FULL += cases(WAYS[:3], "bare", B=[1], N=[2048], layers=[2])
FULL += cases(WAYS, "bare", B=[8], N=[426], layers=[2])
TINY = cases(WAYS, "bare", B=[1], N=[24], layers=[1])


@cache
def work(tokens: int, batch: int, layers: int) -> workloads.Workload:
    """BERT-base shape; raises where ours leaves the bounds of the oracle (on short windows)."""
    made = workloads.bert_base(tokens, batch, layers=layers, device=device())
    if tokens <= 512:
        workloads.gate(made)
    return made


def test_forward(timed: Timed, case: Case) -> None:
    made = work(case["N"], case["B"], case["layers"])
    n_tokens = case["B"] * case["N"]
    hidden = made.model.config.hidden_size
    # Projections and feed-forward: 12 D^2 weights a layer; logits and outputs: 2 N D a token.
    flop = 2.0 * n_tokens * case["layers"] * (12 * hidden**2 + 2 * case["N"] * hidden)
    run = workloads.variants(made)[case.way]
    cost = Cost(
        n_tokens, "token", flop, bytes=4.0 * sum(p.numel() for p in made.model.parameters())
    )
    timed("a whole forward", case, cost, run, made.batches)
