"""Attention along the spike, and close-ups: exact maps, and the tokens of all windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.pipelines.casestudy.genomes.domains import N_AMINO, align, reference_position
from bertgeom.store.dataset import label_codes

if TYPE_CHECKING:
    import xarray

    from bertgeom.pipelines.context.run_context import RunContext
    from bertgeom.pipelines.report.summary import Summary

#: Amino acids of a step of the profile along the spike: a token of the paper's tokenizer.
STEP = 3
_WINDOWS_AT_ONCE = 64
_MAPS = 16


def class_codes(dataset: xarray.Dataset) -> np.ndarray:
    """Classes of windows; -1 for windows without label or statistics."""
    from bertgeom.variables import LOST

    flags = np.asarray(dataset["flags"]).astype(np.int64)
    return np.where(flags & LOST, -1, label_codes(dataset))


def attention_along(
    dataset: xarray.Dataset,
    context: RunContext,
    spikes: Sequence[tuple[str, np.ndarray]],
    summary: Summary,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Attention received along the reference spike, by class and by layer; and per token.

    Returns:
        `received_class` (1 + classes, bins) with all genomes first, `received_layer` (layers,
        bins), `received_n` genomes by bin: means over genomes, heads (and layers) of the
        attention received by the tokens whose middle lies in a bin of STEP amino acids; and
        (windows, tokens) means over layers and heads.
    """
    n, n_bins = dataset.sizes["window"], -(-N_AMINO // STEP)
    record, codes = np.asarray(dataset["record_index"]).astype(np.int64), class_codes(dataset)
    classes = len(summary.cohorts)
    total, count = np.zeros((classes, n_bins)), np.zeros((classes, n_bins), np.int64)
    by_layer = np.zeros((dataset.sizes["layer"], n_bins))
    tokens = np.full((n, dataset.sizes["token"]), np.nan, np.float32)
    for first in range(0, n, _WINDOWS_AT_ONCE):
        rows = slice(first, min(first + _WINDOWS_AT_ONCE, n))
        values = np.asarray(dataset["attention_received"][rows], dtype=np.float64).mean(axis=2)
        tokens[rows] = values.mean(axis=1)
        middle = np.asarray(dataset["token_start"][rows] + dataset["token_stop"][rows]) // 2
        special = np.asarray(dataset["token_start"][rows]) < 0
        for i, window in enumerate(range(rows.start, rows.stop)):
            blocks = align(spikes[record[window]][1])
            if codes[window] < 0 or blocks is None:
                continue
            base = reference_position(blocks, np.nan_to_num(middle[i]).astype(np.int64))
            there = np.isfinite(base) & ~special[i] & np.isfinite(tokens[window])
            place_of = np.minimum(base[there].astype(np.int64) // (3 * STEP), n_bins - 1)
            layers = np.stack([_bin_means(v[there], place_of, n_bins) for v in values[i]])
            seen = np.isfinite(layers[0])
            total[codes[window], seen] += layers[:, seen].mean(axis=0)
            count[codes[window], seen] += 1
            by_layer[:, seen] += layers[:, seen]
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = total.sum(axis=0) / count.sum(axis=0)
        profiles = {
            "received_class": np.concatenate([whole[None], total / count]).astype(np.float32),
            "received_layer": (by_layer / count.sum(axis=0)).astype(np.float32),
            "received_n": count.sum(axis=0),
        }
    return profiles, tokens


def _bin_means(values: np.ndarray, place: np.ndarray, n_bins: int) -> np.ndarray:
    counts = np.bincount(place, minlength=n_bins)
    sums = np.bincount(place, values, minlength=n_bins)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def exact_maps(store: str, moved: str | None) -> dict[str, np.ndarray]:
    """Exact n x n attention of the first genome, for 16 heads spread over all, float16."""
    from bertgeom.analysis.spectra import attention_map
    from bertgeom.pipelines.catalogue.samples import sampled_windows

    sample = next(iter(sampled_windows(store, 1, model=moved)))
    calls = sample.captured.calls
    n_heads = calls[0].query.shape[1]
    n_all = len(calls) * n_heads
    chosen = np.unique(np.linspace(0, n_all - 1, min(n_all, _MAPS)).round().astype(int))
    maps, places = [], []
    for flat in chosen:
        layer, head = divmod(int(flat), n_heads)
        call = calls[layer]
        shared = head * call.key.shape[1] // n_heads
        found = attention_map(
            call.query[0, head], call.key[0, shared], call.scale, call.window, call.bias, head
        )
        maps.append(found.double().cpu().numpy().astype(np.float16))
        places.append((layer, head))
    return {
        "exact_map": np.stack(maps),
        "exact_map_head": np.array(places, dtype=np.int64),
        "exact_map_window": np.array([sample.number], dtype=np.int64),
    }


def token_ids(context: RunContext, n_windows: int, moved: str | None) -> np.ndarray:
    """Tokens of all windows, (n, N) int32; -1 beyond the last token."""
    from bertgeom.pipelines.partition.measure import encode_windows
    from bertgeom.tokens.select import load_tokenizer

    settings = context.settings
    tokenizer = load_tokenizer(
        moved or context.facts.model,
        max_tokens=settings.max_tokens,
        override=settings.tokenizer,
    )
    encoder = _OnlyTokenizer(tokenizer)
    here = context.with_encoder(encoder)  # type: ignore[arg-type]
    parts = []
    for first in range(0, n_windows, _WINDOWS_AT_ONCE):
        stop = min(first + _WINDOWS_AT_ONCE, n_windows)
        batch = encode_windows(here, here.plan.index.windows(first, stop))
        valid = np.arange(batch.ids.shape[1]) < batch.lengths[:, None]
        parts.append(np.where(valid, batch.ids, -1))
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=-1) for p in parts]
    )


@dataclass(frozen=True)
class _OnlyTokenizer:
    """What stands for an encoder where only its tokenizer is needed."""

    tokenizer: Any
