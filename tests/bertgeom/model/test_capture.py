"""What a capture holds is what the model computed."""

from __future__ import annotations

import pytest
import torch

from bertgeom.analysis.rollout import attention_rollout
from bertgeom.model.capture import capture
from bertgeom.testing import TINY_MODELS, eager_forward, tiny_model

N = 20


@pytest.mark.parametrize("kind", TINY_MODELS)
def test_captured_queries_and_keys_give_the_models_attention(kind: str) -> None:
    model = tiny_model(kind, n_layers=3).double()
    ids = torch.randint(5, 60, (1, N), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    expected = eager_forward(model, ids, mask)
    model.set_attn_implementation("bertgeom")
    with capture(model) as captured:
        model(input_ids=ids, attention_mask=mask)

    assert len(captured.calls) == len(captured.outputs) == 3
    position = torch.arange(N)
    maps = []
    for call, a in zip(captured.calls, expected.attentions, strict=True):
        logits = call.scale * call.query @ call.key.mT
        if call.window is not None:
            far = (position[:, None] - position).abs() > call.window
            logits = logits.masked_fill(far, -torch.inf)
        found = torch.softmax(logits, -1)
        # Some architectures take their eager softmax in float32.
        torch.testing.assert_close(found, a.double(), rtol=2e-6, atol=2e-7)
        maps.append(found[0].mean(0))
    for found, state in zip(captured.outputs[:2], expected.hidden_states[1:3], strict=True):
        torch.testing.assert_close(found, state, rtol=1e-5, atol=1e-5)

    product = torch.eye(N, dtype=torch.float64)
    for a in maps:
        product = (a + torch.eye(N)) / 2 @ product
    rollout = attention_rollout(
        [(call.query, call.key) for call in captured.calls],
        scale=captured.calls[0].scale,
        windows=[call.window for call in captured.calls],
    )
    torch.testing.assert_close(rollout[0], product[0], rtol=1e-6, atol=1e-9)


def test_nothing_is_kept_outside_of_the_block() -> None:
    model = tiny_model("bert")
    model.set_attn_implementation("bertgeom")
    ids = torch.arange(5, 15)[None]
    with capture(model) as captured:
        model(input_ids=ids)
    model(input_ids=ids)
    assert len(captured.calls) == len(captured.outputs) == 2
    assert not captured.outputs[0].requires_grad
