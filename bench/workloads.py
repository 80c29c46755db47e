"""What is timed: whole forwards of a BERT-base shape, the same work done in different ways."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import bertgeom
from bench import materialised
from bench.run import tile_unit
from bertgeom.config import MeasureSettings
from bertgeom.model.attention import record
from bertgeom.variables import n_offset_side

#: Rotating inputs, so that no repetition finds its data in the cache.
N_INPUTS = 4
#: Largest absolute error against the float64 oracle; entropies, masses, shares, cosines. Plain
#: float32 Gram matrices cost the materialised way a digit in the logit asymmetry.
BUDGET = {"everything": 1e-4, "materialised": 1e-3}
#: What is held against the oracle before anything is timed.
GATED = (
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
)


@dataclass(frozen=True)
class Workload:
    """A model and batches of token ids (B, N), special tokens at both ends."""

    model: Any
    batches: list[Tensor]
    special: Tensor
    name: str


def bert_base(
    n_tokens: int,
    batch: int = 1,
    *,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    device: str = "cpu",
    dtype: Any = None,
) -> Workload:
    """BERT-base shape with seeded random weights, wide enough that attention has structure."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        max_position_embeddings=max(512, n_tokens),
        initializer_range=0.05,
    )
    return _workload("bert-base", BertModel, config, (batch, n_tokens), device, dtype)


def esm(
    n_tokens: int,
    batch: int = 1,
    *,
    layers: int = 33,
    hidden: int = 1280,
    heads: int = 20,
    device: str = "cpu",
    dtype: Any = None,
) -> Workload:
    """Shape of the ESM-2 model with 650 million weights, seeded: rotated queries and keys."""
    from transformers import EsmConfig, EsmModel

    config = EsmConfig(
        vocab_size=30522,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        max_position_embeddings=max(1026, n_tokens + 2),
        position_embedding_type="rotary",
        token_dropout=False,
        pad_token_id=1,
        mask_token_id=32,
        initializer_range=0.05,
    )
    return _workload("esm", EsmModel, config, (batch, n_tokens), device, dtype)


def _workload(
    name: str, kind: Any, config: Any, shape: tuple[int, int], device: str, dtype: Any
) -> Workload:
    """A model without a pooling layer and batches for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config, add_pooling_layer=False).eval().to(device, dtype)
        batches = [torch.randint(1000, 30000, shape).to(device) for _ in range(N_INPUTS)]
    for ids in batches:
        ids[:, 0], ids[:, -1] = 101, 102
    special = torch.zeros(shape, dtype=torch.bool, device=device)
    special[:, [0, -1]] = True
    name = f"{name}, {config.num_hidden_layers} layers, batch {shape[0]}, {shape[1]} tokens"
    return Workload(model, batches, special, name)


def variants(work: Workload) -> dict[str, Callable[[Tensor], Any]]:
    """The ways to do the forward, by name; each takes a batch of ids.

    bare: SDPA, no statistics. attention: attention statistics of tier full, gates and all.
    everything: all that is on by default. materialised: the same list from stored maps.
    The second and third again by BLAS alone, where the CPU has a tile unit (AMX).
    """
    settings = MeasureSettings(n_offset_side=n_offset_side(work.special.shape[1]))
    ours: dict[str, Callable[[Tensor], Any]] = {
        "attention": attention(work),
        "everything": partial(_everything, work, settings),
    }
    if work.model.device.type == "cpu" and tile_unit():
        ours |= {f"{name}, BLAS": by_blas(run) for name, run in ours.items()}
    return {"bare": bare(work), **ours, "materialised": materialised_way(work)}


def bare(work: Workload) -> Callable[[Tensor], Any]:
    """SDPA, no statistics."""
    return partial(_bare, work)


def attention(work: Workload, tier: str = "full", impl: str = "auto") -> Callable[[Tensor], Any]:
    """Attention statistics of a tier, and nothing else."""
    side = n_offset_side(work.special.shape[1])
    return partial(_attention, work, MeasureSettings(tier=tier, n_offset_side=side, impl=impl))


def materialised_way(work: Workload) -> Callable[[Tensor], Any]:
    """The whole list from stored maps."""
    return partial(_materialised, work)


def without_tile_unit() -> AbstractContextManager[Any]:
    """While the block runs, all products are made without the tile unit."""
    from bertgeom.kernels._cpu import amx

    return mock.patch.object(amx, "usable", return_value=False)


def _bare(work: Workload, ids: Tensor) -> Any:
    work.model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        return work.model(input_ids=ids)


def by_blas(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same without the tile unit."""

    def alone(x: Any) -> Any:
        with without_tile_unit():
            return run(x)

    return alone


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
            impl=settings.impl,
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
    for name in GATED:
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
