"""Sampled windows of a store, run through the model once more: what needs Q, K and V whole.

Spectra, rollout and attention on annotated regions. The windows are a stratified sample of those
with statistics (`sampling`): the same store and number give the same windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.analysis.annotations import (
    Annotations,
    record_intervals,
    region_attention,
    token_share,
)
from bertgeom.analysis.region_placement import place_regions
from bertgeom.analysis.rollout import attention_rollout
from bertgeom.analysis.spectra import captured_spectra, spectra_dataset
from bertgeom.errors import StoreError, UsageError
from bertgeom.kernels.arrays import Int64Array
from bertgeom.pipelines.context.run_context import RunContext, open_context, reopened
from bertgeom.pipelines.partition.measure import encode_windows
from bertgeom.pipelines.partition.sampled_spectra import with_statistics
from bertgeom.pipelines.plan.sampling import stratified
from bertgeom.store import zarr_io
from bertgeom.store.dataset import flagged

if TYPE_CHECKING:
    import xarray

    from bertgeom.model.capture import Capture

_REGION = {
    "mass": "mean over rows of the attention mass on the region",
    "relative_mass": "mass over the region's share of tokens: 1 where attention ignores it",
    "confident_mass": "mean over rows of the mass on the region in weights of at least theta",
    "confident_count": "mean over rows of the weights of at least theta on the region",
    "confident_share": "share of the head's confident mass that lies on the region",
}


@dataclass(frozen=True)
class Sample:
    """A window, measured again.

    Attributes:
        number: of the window in the store. record, record_id, start, stop, strand: where it is.
        token_start, token_stop: (n,) bases of its tokens in the record, -1 for special ones.
        captured: queries, keys, values, layer outputs.
    """

    number: int
    record: int
    record_id: str
    start: int
    stop: int
    strand: int
    token_start: np.ndarray
    token_stop: np.ndarray
    captured: Capture


def sampled_windows(
    path: str | Path, n: int, *, model: str | None = None, exclude_flags: Iterable[str] = ()
) -> Iterator[Sample]:
    """Run `n` windows of a store through its model, one at a time.

    Args:
        path: a store with its sequences. n: windows, at most. model: where it is now.
        exclude_flags: windows with one of these flags are not drawn, see
            `bertgeom.store.dataset.excluded`.

    Raises:
        StoreError: if no window has statistics.
        MismatchError: if the model is not the one the store was made with.
    """
    from bertgeom.model.capture import capture_window

    context = open_context(str(path))
    numbers = sample_numbers(context, n, exclude_flags)
    if not len(numbers):
        without = " that are not excluded" if exclude_flags else ""
        raise StoreError(f"{path}: expected windows with statistics{without}, found none")
    context = reopened(context, model, elsewhere=True)
    ids = context.sequences.ids()
    for number in numbers.tolist():
        window = context.plan.index.windows(number, number + 1)
        encoded = encode_windows(context, window).row(0)
        record, strand = int(window.record[0]), int(window.strand[0])
        start, stop = int(window.start[0]), int(window.stop[0])
        bases = record_intervals(encoded.start, encoded.stop, start, stop, strand)
        captured = capture_window(context.loaded, encoded.ids)
        yield Sample(number, record, ids[record], start, stop, strand, *bases, captured)


def store_spectra(
    path: str | Path,
    n: int = 8,
    *,
    model: str | None = None,
    exclude_flags: Iterable[str] = (),
) -> xarray.Dataset:
    """Spectra of `n` windows (`bertgeom.analysis.spectra`), with their place in the database.

    Args:
        path: a store with its sequences. n: windows, at most.
        model: where the model is now; default: where the run found it.
        exclude_flags: names of flags; windows that have one are left out.

    Raises:
        StoreError: without windows that have statistics.
        MismatchError: if the model is not the one that the store was made with.

    Example:
        >>> from bertgeom.pipelines.catalogue.samples import store_spectra
        >>> store_spectra("run.zarr", 2).spectral_entropy.dims
        ('sample', 'layer', 'head', 'spectrum')
    """
    samples, places = [], []
    for sample in sampled_windows(path, n, model=model, exclude_flags=exclude_flags):
        samples.append(captured_spectra(sample.captured))
        places.append(_place(sample))
    return _with_places(spectra_dataset(samples, [p["window_index"] for p in places]), places)


def store_rollout(
    path: str | Path,
    n: int = 8,
    *,
    model: str | None = None,
    row: int = 0,
    exclude_flags: Iterable[str] = (),
) -> xarray.Dataset:
    """Rollout of one token (`bertgeom.analysis.rollout`) of `n` windows, with tokens' bases.

    Args:
        path: a store with its sequences. n: windows, at most.
        model: where the model is now; default: where the run found it.
        exclude_flags: names of flags; windows that have one are left out.
        row: the query whose rollout it is; 0 is the first token.

    Returns:
        `rollout`, `token_start`, `token_stop` (sample, token); NaN and -1 beyond the tokens.

    Raises:
        UsageError: if no sampled window has a token `row`.
        StoreError: without windows that have statistics.
        MismatchError: if the model is not the one that the store was made with.

    Example:
        >>> from bertgeom.pipelines.catalogue.samples import store_rollout
        >>> store_rollout("run.zarr", 2).rollout.sum("token").round(6).values.tolist()
        [1.0, 1.0]
    """
    import xarray

    rows, places = [], []
    for sample in sampled_windows(path, n, model=model, exclude_flags=exclude_flags):
        calls = sample.captured.calls
        values = np.full(len(sample.token_start), np.nan)
        if row < len(values):
            rolled = attention_rollout(
                [(call.query, call.key) for call in calls],
                scale=calls[0].scale,
                windows=[call.window for call in calls],
                biases=[call.bias for call in calls],
                row=row,
            )
            values = rolled[0].cpu().numpy()
        rows.append((values, sample.token_start, sample.token_stop))
        places.append(_place(sample))
    if not any(row < len(values) for values, _, _ in rows):
        longest = max(len(values) for values, _, _ in rows)
        raise UsageError(
            f"expected --row below {longest}, the tokens of the longest sampled window, found {row}"
        )
    width = max(len(values) for values, _, _ in rows)
    texts = (
        ("rollout", np.nan, "1", f"share of token {row}'s output by input token"),
        ("token_start", -1, "base", "first base of the token in its record; -1: none"),
        ("token_stop", -1, "base", "one past the last base of the token in its record"),
    )
    arrays = {
        name: (
            ("sample", "token"),
            np.stack([_pad(r[i], width, fill) for r in rows]),
            {"units": unit, "description": text},
        )
        for i, (name, fill, unit, text) in enumerate(texts)
    }
    return _with_places(xarray.Dataset(arrays), places)


def store_regions(
    path: str | Path,
    annotations: Annotations,
    n: int = 64,
    *,
    model: str | None = None,
    theta: float = 0.3,
    exclude_flags: Iterable[str] = (),
) -> xarray.Dataset:
    """Attention on annotated regions of `n` windows, by layer, head and region.

    Args:
        path: a store with its sequences. n: windows, at most.
        model: where the model is now; default: where the run found it.
        exclude_flags: names of flags; windows that have one are left out.
        annotations: regions. theta: weights of at least this are confident.

    Returns:
        `region_mass`, `region_relative_mass`, `region_confident_mass`,
        `region_confident_count`, `region_confident_share` (sample, layer, head, group), and
        `token_share` (sample, group).

    Raises:
        InputError: if no record has regions.
        StoreError, MismatchError: as `store_spectra`.

    Example:
        >>> from pathlib import Path
        >>> from bertgeom.analysis.annotations import read_annotations
        >>> from bertgeom.pipelines.catalogue.samples import store_regions
        >>> written = Path("exon.bed").write_text("r0\\t0\\t30\\texon\\n")
        >>> store_regions("run.zarr", read_annotations("exon.bed"), 2).region_mass.dims
        ('sample', 'layer', 'head', 'group')
    """
    import torch
    import xarray

    sequences = open_context(str(path)).sequences
    annotations, _ = place_regions(annotations, sequences.ids(), sequences.lengths)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _REGION}
    shares, places = [], []
    for sample in sampled_windows(path, n, model=model, exclude_flags=exclude_flags):
        groups = annotations.groups(sample.record_id, sample.token_start, sample.token_stop)
        shares.append(token_share(groups, annotations.n_groups))
        layers = [
            region_attention(
                call.query[0],
                call.key[0],
                torch.from_numpy(groups),
                annotations.n_groups,
                scale=call.scale,
                window=call.window,
                bias=call.bias,
                theta=theta,
            )
            for call in sample.captured.calls
        ]
        for name, values in parts.items():
            values.append(torch.stack([layer[name] for layer in layers]).cpu().numpy())
        places.append(_place(sample))
    arrays: dict[str, Any] = {
        f"region_{name}": (
            ("sample", "layer", "head", "group"),
            np.stack(values),
            {"units": "1", "description": _REGION[name]},
        )
        for name, values in parts.items()
    }
    text = "share of the window's tokens in the region"
    arrays["token_share"] = (("sample", "group"), np.stack(shares), {"description": text})
    dataset = xarray.Dataset(
        arrays, coords={"group": list(annotations.names)}, attrs={"theta": theta}
    )
    return _with_places(dataset, places)


def sample_numbers(context: RunContext, n: int, exclude_flags: Iterable[str] = ()) -> Int64Array:
    """Numbers of at most n windows with statistics, in order."""
    arrays = zarr_io.Arrays(context.storage, read_only=True)
    numbers, records = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for group in sorted(context.folder.written_groups()):
        rows = context.plan.group(group)
        flags, cut = arrays.read("flags", *rows), arrays.read("truncated", *rows)
        there = with_statistics(flags)
        there = there[~flagged(flags, cut, exclude_flags)[there]]
        numbers.append(rows[0] + there)
        records.append(arrays.read("record_index", *rows)[there].astype(np.int64))
    return np.concatenate(numbers)[stratified(np.concatenate(records), n)]


def _place(sample: Sample) -> dict[str, Any]:
    return {
        "window_index": sample.number,
        "record_index": sample.record,
        "record_id": sample.record_id,
        "start": sample.start,
        "stop": sample.stop,
        "strand": sample.strand,
    }


def _with_places(dataset: xarray.Dataset, places: list[dict[str, Any]]) -> xarray.Dataset:
    return dataset.assign_coords(
        {name: ("sample", [place[name] for place in places]) for name in places[0]}
    )


def _pad(x: np.ndarray, width: int, fill: float) -> np.ndarray:
    return np.pad(x, (0, width - len(x)), constant_values=fill)
