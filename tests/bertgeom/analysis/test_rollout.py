"""Rollout of one row against the product of all maps, by definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from bertgeom.analysis.rollout import attention_rollout
from bertgeom.analysis.weights import head_projections
from bertgeom.errors import UsageError


def product_of_maps(maps: list[torch.Tensor], residual: float = 0.5) -> torch.Tensor:
    """R = (A_L + I)/2 ... (A_1 + I)/2 from head means (n, n)."""
    out = torch.eye(len(maps[0]), dtype=torch.float64)
    for a in maps:
        out = ((1 - residual) * a.double() + residual * torch.eye(len(a))) @ out
    return out


def random_layers(
    n: int, heads: int = 4, key_heads: int = 2, batch: int = 1, seed: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            2 * torch.randn(batch, heads, n, 8, generator=generator).double(),
            torch.randn(batch, key_heads, n, 8, generator=generator).double(),
        )
        for _ in range(3)
    ]


def map_of(q: torch.Tensor, k: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Head mean (n, n) for q (H, n, d) and k (Hk, n, d)."""
    k = k.repeat_interleave(len(q) // len(k), dim=0)
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if window is not None:
        position = torch.arange(q.shape[1])
        logits[:, (position[:, None] - position).abs() > window] = -torch.inf
    return torch.softmax(logits, -1).mean(0)


def test_a_trained_model_gives_the_product_of_its_maps(minilm: Path) -> None:
    model = AutoModel.from_pretrained(minilm, attn_implementation="eager").double()
    ids = torch.randint(1000, 20000, (1, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(input_ids=ids, output_attentions=True, output_hidden_states=True)
    layers = []
    for x, projection in zip(out.hidden_states, head_projections(model), strict=False):
        query = x[:, None] @ projection.query.mT + projection.query_bias[:, None]
        key = x[:, None] @ projection.key.mT + projection.key_bias[:, None]
        layers.append((query, key))
    expected = product_of_maps([a[0].mean(0) for a in out.attentions])
    found = attention_rollout(layers, block=10)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(
        attention_rollout(layers, row=7)[0], expected[7], rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("block", [1, 5, 64])
def test_blocks_grouped_heads_and_windows_change_nothing(block: int) -> None:
    layers = random_layers(20)
    windows = [None, 3, 5]
    maps = [map_of(q[0], k[0], w) for (q, k), w in zip(layers, windows, strict=True)]
    found = attention_rollout(layers, windows=windows, residual=0.25, block=block)
    torch.testing.assert_close(found[0], product_of_maps(maps, 0.25)[0])
    torch.testing.assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_padding_and_neighbours_change_nothing() -> None:
    layers = random_layers(16, batch=3)
    lengths = torch.tensor([16, 9, 0])
    found = attention_rollout(layers, lengths=lengths, windows=[2, None, None])
    alone = [(q[1:2, :, :9], k[1:2, :, :9]) for q, k in layers]
    torch.testing.assert_close(
        found[1, :9], attention_rollout(alone, windows=[2, None, None])[0], rtol=1e-12, atol=0
    )
    assert (found[1, 9:] == 0).all()
    assert torch.isnan(found[2]).all()


def test_single_precision_stays_close() -> None:
    layers = random_layers(20)
    single = [(q.float(), k.float()) for q, k in layers]
    torch.testing.assert_close(
        attention_rollout(single), attention_rollout(layers), rtol=1e-5, atol=1e-7
    )


def test_the_identity_alone_stays_at_the_row() -> None:
    assert attention_rollout(random_layers(5), residual=1.0, row=2)[0].tolist() == [0, 0, 1, 0, 0]


def test_inputs_that_do_not_fit_are_refused() -> None:
    layers = random_layers(5)
    with pytest.raises(UsageError, match="at least one layer"):
        attention_rollout([])
    with pytest.raises(UsageError, match="in layer 1"):
        attention_rollout([layers[0], (layers[1][0][:, :, :4], layers[1][1])])
    with pytest.raises(UsageError, match="3 windows, one a layer, found 1"):
        attention_rollout(layers, windows=[4])
    with pytest.raises(UsageError, match="residual weight between 0 and 1"):
        attention_rollout(layers, residual=2)
