"""One copy for all statistics of a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from bertgeom.config import MeasureSettings
from bertgeom.model import fetch
from bertgeom.model.encoder import Encoder, TokenBatch, load_encoder
from bertgeom.model.fetch import Fetch, packed, to_device, unpacked


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> Encoder:
    return load_encoder(minilm, device="cpu")


def test_what_is_packed_comes_back_bit_by_bit() -> None:
    torch.manual_seed(0)
    values = {
        "map": torch.randn(3, 2, 5, 7).transpose(1, 3),
        "gate": torch.randint(0, 255, (3, 5), dtype=torch.uint8),
        "count": torch.randint(-9, 9, (3,), dtype=torch.int32),
        "pairs": torch.randint(0, 1 << 40, (3, 4)),
        "half": torch.randn(3, 3).half(),
        "nothing": torch.zeros(3, 0),
        "not finite": torch.tensor([torch.nan, torch.inf, -0.0]),
    }
    flat, layout = packed(values)
    assert flat.dtype == torch.uint8
    assert flat.numel() == sum(x.numel() * x.element_size() for x in values.values())
    found = unpacked(flat, layout)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(
            found[name].contiguous().view(torch.uint8), value.contiguous().view(torch.uint8)
        )


def test_on_a_cpu_nothing_is_copied() -> None:
    x = torch.arange(4.0)
    assert Fetch({"x": x}).result()["x"].data_ptr() == x.data_ptr()
    assert to_device(x, torch.device("cpu")).data_ptr() == x.data_ptr()


def a_batch() -> TokenBatch:
    rng = np.random.default_rng(0)
    lengths = np.array([9, 4, 7])
    ids = rng.integers(1000, 2000, (3, 12)).astype(np.int32)
    special = np.zeros((3, 12), bool)
    special[:, 0] = True
    return TokenBatch(ids, lengths, special)


def test_lengths_that_are_known_give_what_the_mask_gives(encoder: Encoder) -> None:
    # The encoder hands over lengths; the mask alone says the same.
    batch, settings = a_batch(), MeasureSettings(n_offset_side=10, keep=("tracks", "cls"))
    found = encoder.measure(batch, settings)
    from bertgeom.model import recorder

    looked = []
    own = recorder._valid

    def look(mask: Any, known: Any) -> Any:
        looked.append(known is not None)
        return own(mask, None)

    with mock.patch.object(recorder, "_valid", look):
        expected = encoder.measure(batch, settings)
    assert looked == [True]
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


def test_a_started_batch_is_not_changed_by_the_next(encoder: Encoder) -> None:
    batch, settings = a_batch(), MeasureSettings(n_offset_side=10)
    other = TokenBatch(batch.ids[::-1].copy(), batch.lengths[::-1].copy(), batch.special)
    first, second = encoder.start(batch, settings), encoder.start(other, settings)
    later, expected = second(), encoder.measure(batch, settings)
    for name, array in first().items():
        np.testing.assert_array_equal(array, expected[name], name)
        np.testing.assert_array_equal(later[name], array[::-1], name)


@pytest.mark.gpu
def test_the_device_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Callable[..., Any]] = []
    x = torch.randn(1 << 12, device="cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    started = fetch.Fetch({"x": x, "n": torch.arange(3, device="cuda")})
    found = started.result()
    assert not waits
    assert torch.equal(found["x"], x.cpu())
    assert found["n"].tolist() == [0, 1, 2]
