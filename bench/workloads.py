"""What is timed: whole forwards of a BERT-base shape, the same work done in different ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import bertgeom
from bench import materialised
from bertgeom.config import MeasureSettings
from bertgeom.kernels._cpu import amx
from bertgeom.model.attention import record
from bertgeom.variables import n_offset_side

#: Rotating inputs, so that no repetition finds its data in the cache.
N_INPUTS = 4
#: Largest absolute error against the float64 oracle; entropies, masses, shares, cosines. Plain
#: float32 Gram matrices cost the materialised way a digit in the logit asymmetry.
BUDGET = {"everything": 1e-4, "materialised": 1e-3}


@dataclass(frozen=True)
class Workload:
    """A model and batches of token ids (B, N), special tokens at both ends."""

    model: Any
    batches: list[Tensor]
    special: Tensor
    name: str


def bert_base(
    n_tokens: int, batch: int = 1, *, layers: int = 12, device: str = "cpu", dtype: Any = None
) -> Workload:
    """BERT-base shape with seeded random weights, wide enough that attention has structure."""
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(num_hidden_layers=layers, initializer_range=0.05)
        model = BertModel(config, add_pooling_layer=False).eval().to(device, dtype)
        batches = [
            torch.randint(1000, 30000, (batch, n_tokens)).to(device) for _ in range(N_INPUTS)
        ]
    for ids in batches:
        ids[:, 0], ids[:, -1] = 101, 102
    special = torch.zeros(batch, n_tokens, dtype=torch.bool, device=device)
    special[:, [0, -1]] = True
    name = f"bert-base, {layers} layers, batch {batch}, {n_tokens} tokens"
    return Workload(model, batches, special, name)


def variants(work: Workload) -> dict[str, Callable[[Tensor], Any]]:
    """The ways to do the forward, by name; each takes a batch of ids.

    bare: SDPA, no statistics. attention: attention statistics of tier full, gates and all.
    everything: all that is on by default. materialised: the same list from stored maps.
    The second and third again by BLAS alone, where the CPU has a tile unit (AMX).
    """
    settings = MeasureSettings(n_offset_side=n_offset_side(work.special.shape[1]))
    ours = {
        "attention": partial(_attention, work, settings),
        "everything": partial(_everything, work, settings),
    }
    if work.model.device.type == "cpu" and amx.usable():
        ours |= {f"{name}, BLAS": partial(_by_blas, run) for name, run in ours.items()}
    return {"bare": partial(_bare, work), **ours, "materialised": partial(_materialised, work)}


def _bare(work: Workload, ids: Tensor) -> Any:
    work.model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        return work.model(input_ids=ids)


def _by_blas(run: Callable[[Tensor], Any], ids: Tensor) -> Any:
    with mock.patch.object(amx, "usable", return_value=False):
        return run(ids)


def _attention(work: Workload, settings: MeasureSettings, ids: Tensor) -> list[Any]:
    """Attention statistics alone, through the kernel and a minimal attention function."""
    from transformers import AttentionInterface

    from bertgeom.kernels import attention_stats

    found = []

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any) -> Any:
        stats = attention_stats(
            q,
            k,
            v,
            special=work.special,
            scale=options["scaling"],
            tier=settings.tier,
            n_offset_side=settings.n_offset_side,
        )
        found.append(stats.values)
        return stats.output.transpose(1, 2), None

    AttentionInterface.register("bench_attention", attend)
    work.model.set_attn_implementation("bench_attention")
    with torch.inference_mode():
        work.model(input_ids=ids)
    return [dict(values) for values in found]


def _everything(work: Workload, settings: MeasureSettings, ids: Tensor) -> Any:
    work.model.set_attn_implementation("bertgeom")
    with (
        torch.inference_mode(),
        record(special_tokens_mask=work.special, settings=settings) as recorder,
    ):
        work.model(input_ids=ids)
    return recorder.arrays()


def _materialised(work: Workload, ids: Tensor) -> Any:
    work.model.set_attn_implementation("eager")
    with torch.inference_mode():
        return materialised.forward(work.model, ids, work.special)


def gate(work: Workload) -> dict[str, float]:
    """Largest error of `everything` and of `materialised` against the float64 oracle.

    Raises:
        RuntimeError: if either exceeds the budget: then nothing may be timed.
    """
    ids = work.batches[0][:1]
    one = Workload(work.model, [ids], work.special[:1], work.name)
    truth = bertgeom.measure(
        work.model, input_ids=ids, special_tokens_mask=one.special, impl="reference"
    )
    todo = variants(one)
    ours, theirs = todo["everything"](ids), todo["materialised"](ids)
    worst = {"everything": 0.0, "materialised": 0.0}
    for name in (
        "attention_entropy",
        "attention_purity",
        "attention_special",
        "attention_received_entropy",
        "attention_asymmetry",
        "attention_offset_profile",
        "gate_mass",
        "logit_asymmetry",
        "cone_mean_cosine",
        "head_cone_mean_cosine",
    ):
        expected = truth[name].values
        for way, found in (("everything", ours), ("materialised", theirs)):
            error = float(np.abs(np.asarray(found[name], dtype=np.float64) - expected).max())
            worst[way] = max(worst[way], error)
            if not error <= BUDGET[way]:
                raise RuntimeError(
                    f"expected {way} within {BUDGET[way]} of the oracle, found {name} off by "
                    f"{error:.2e}"
                )
    return worst
