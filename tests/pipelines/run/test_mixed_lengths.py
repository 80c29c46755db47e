"""A run over windows of mixed lengths, around the lengths at which a kernel changes its way.

Heads of up to 1,024 tokens stay in memory, those of 673 to 1,152 tokens once needed more of it
than longer ones. Every row of the store is compared with eager attention and with the oracle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

import bertgeom
from bertgeom.kernels.cone_angles.reference import cone_sums, pairwise_angle_histogram
from bertgeom.kernels.stations.reference import stream_moments
from bertgeom.pipelines.run import stages
from bertgeom.testing import eager_attention_statistics, eager_forward, save_tiny_classifier

LONGEST = 1152
#: Lengths of the windows of every record. A token is a base: 3-mers at every base, and two ends.
RECORDS = {"mixed": [1152, 672], "r1": [1025], "r2": [673], "r3": [1024], "r4": [1023], "r5": [3]}


def token_ids(bases: str, words: list[str]) -> torch.Tensor:
    number = {word: i for i, word in enumerate(words)}
    kmers = [number[bases[i : i + 3]] for i in range(len(bases) - 2)]
    return torch.tensor([[number["[CLS]"], *kmers, number["[SEP]"]]])


@pytest.mark.slow
def test_windows_of_all_lengths_in_one_batch_agree_with_the_oracle(tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path / "model", max_tokens=LONGEST, n_layers=1)
    numbers = np.random.default_rng(0)
    records = {
        name: "".join(numbers.choice(list("ACGT"), sum(lengths)))
        for name, lengths in RECORDS.items()
    }
    source = tmp_path / "x.fa"
    source.write_text("".join(f">{name}\n{bases}\n" for name, bases in records.items()))
    # Room for all windows in one batch, which holds the lengths in their order.
    stages.run(source, model=folder, out=tmp_path / "x.zarr", threads=2, batch_tokens=16384)
    found = bertgeom.open(tmp_path / "x.zarr").load()
    assert found["n_tokens"].values.tolist() == [n for ns in RECORDS.values() for n in ns]
    n_side = (found.sizes["offset"] - 1) // 2
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    words = (folder / "vocab.txt").read_text().split()
    for at, n in enumerate(found["n_tokens"].values.tolist()):
        row = found.isel(window=at)
        bases = records[str(row["record_id"].values)][int(row["start"]) : int(row["stop"])]
        ids = token_ids(bases, words)
        mask = torch.ones(1, n, dtype=torch.int64)
        special = torch.zeros(1, n, dtype=torch.bool)
        special[0, [0, -1]] = True
        plain = eager_forward(model, ids, mask)
        truth = eager_attention_statistics(plain.attentions, mask, special, n_side)
        for name, expected in truth.items():
            if name in row and name != "gate":
                agrees(f"{name} of {n} tokens", row[name].values, expected[0])
        # The station between the two, after the attention, is no hidden state.
        for station, x in zip((0, 2), plain.hidden_states, strict=True):
            lengths = torch.tensor([n])
            oracle = {k: v[0] for k, v in stream_moments(x, lengths).items()}
            oracle |= {k: v[0, 0] for k, v in cone_sums(x[:, None], lengths, True).items()}
            for name, value in oracle.items():
                if name in row:
                    agrees(f"{name} of {n} tokens", row[name].values[station], value.numpy())
            angles = pairwise_angle_histogram(x, None, lengths, None, 90)
            total = row["angle_histogram"].values[station // 2]
            assert total.sum() == n * (n - 1) // 2
            assert np.abs(total - angles["angle_histogram"][0].numpy()).sum() <= 1e-4 * total.sum()
            agrees("angle_mean", row["angle_mean"].values[station // 2], angles["angle_mean"][0])


def agrees(name: str, found: Any, expected: Any) -> None:
    """Within what float32 and the digits that a store keeps allow."""
    expected = np.asarray(expected, np.float64)
    if name.startswith("attention_k90"):
        assert np.abs(found.astype(int) - expected).max() <= 1, name
        return
    # 20 sharp bins: a weight within rounding of an edge moves 1/n^2 of the count.
    budget = 2e-2 if name.startswith("attention_value_entropy") else 2e-4
    scale = np.maximum(np.abs(expected), 1)
    off = np.abs(np.asarray(found, np.float64) - expected) / scale
    assert (off <= budget).all(), (name, off.max())
    assert (np.isnan(found) == np.isnan(expected)).all(), name
