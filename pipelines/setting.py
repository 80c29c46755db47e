"""Setting a run up: every default decided, the identity fixed, the arrays made."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom import store
from bertgeom.annotations import Annotations
from bertgeom.cohorts import assign_labels, read_labels
from bertgeom.config import Settings, check_same, fingerprint
from bertgeom.errors import InputError, ModelError, UsageError
from bertgeom.layout import Shape, row_group
from bertgeom.sequences import Sequences
from bertgeom.storage import Storage
from bertgeom.variables import DEFINITIONS_VERSION

from . import cost
from .plan import window_index
from .run_spectra import SAMPLING
from .workplace import Workplace, lasting_path, model_identity, shape_to_json

if TYPE_CHECKING:
    import xarray

    from bertgeom.encoder import Encoder


def draw_up(
    storage: Storage,
    encoder: Encoder,
    model: str,
    sequences: Sequences,
    settings: Settings,
    *,
    labels: str | Path | None = None,
    annotations: Annotations | None = None,
    elsewhere: str | None = None,
) -> tuple[Workplace, np.ndarray | None]:
    """A run on these sequences, and the label code of every record. Nothing is written.

    Args:
        elsewhere: URL of the sequence shards, None if they lie in the store.

    Raises:
        InputError: if there is nothing to measure.
    """
    resolved, shape = resolve(settings, encoder, annotations)
    codes, names = _labels(labels, sequences)
    if annotations is not None:
        annotations.require(sequences.ids())
    identity = {
        "definitions_version": DEFINITIONS_VERSION,
        "model": model_identity(encoder),
        "settings": resolved.lasting(),
        "sequences": {name: sequences.attributes[name] for name in ("n_records", "content_sha256")},
        "labels": None if codes is None else hashlib.sha256(codes.tobytes()).hexdigest(),
        "label_names": names,
        "annotations": None if annotations is None else fingerprint(annotations.settings()),
    }
    index = window_index(sequences.lengths, resolved)
    if not index.n_windows:
        raise InputError(
            "at least one window",
            f"{len(sequences.lengths)} records without one",
            remedy=f"lower --min-length ({resolved.min_length}) or check the input",
        )
    facts = {
        "fingerprint": fingerprint(identity),
        "identity": identity,
        "settings": resolved.to_json(),
        "shape": shape_to_json(shape),
        "group_windows": row_group(shape, resolved.partition_windows or 1, index.n_windows),
        "model": lasting_path(model),
        "sequences": elsewhere,
        "sampling": SAMPLING,
    }
    return Workplace(storage, facts, encoder, sequences), codes


def resolve(
    settings: Settings, encoder: Encoder, annotations: Annotations | None = None
) -> tuple[Settings, Shape]:
    """Settings with every default decided, and the sizes of the arrays.

    Raises:
        UsageError: for settings that do not go with the model.
    """
    tokenizer, device = encoder.tokenizer, encoder.device.type
    window = settings.window or tokenizer.window_bases()
    if settings.min_length > window:
        raise UsageError(
            f"expected --min-length of at most --window ({window}), found {settings.min_length}"
        )
    if "logits" in settings.keep and not encoder.class_names:
        raise UsageError(
            f"expected a model with a classification head for --keep logits, found "
            f"{type(encoder.model).__name__}"
        )
    shape = Shape(
        encoder.n_layers,
        encoder.n_heads,
        encoder.hidden,
        tuple(encoder.class_names),
        min(encoder.max_tokens, int(tokenizer.count_tokens(window))),
        settings.tier,
        settings.keep,
        settings.angles,
        () if annotations is None else annotations.names,
        settings.reduce,
    )
    facts = cost.model_cost(encoder)
    size = cost.bytes_per_window(shape)
    resolved = replace(
        settings,
        window=window,
        stride=settings.stride or window,
        max_tokens=encoder.max_tokens,
        dtype=str(encoder.dtype).removeprefix("torch."),
        device=device,
        batch_tokens=settings.batch_tokens or cost.BATCH_TOKENS[device],
        partition_windows=settings.partition_windows
        or cost.partition_windows(facts, shape.max_tokens, size),
    )
    return resolved, shape


def set_up(
    place: Workplace, codes: np.ndarray | None, annotations: Annotations | None = None
) -> None:
    """Make the arrays of a run, or check that they were made by the same run.

    Raises:
        MismatchError: names what differs from the run that the store was made by.
    """
    known = place.folder.read_run()
    if known is not None:
        check_same(place.storage.url, known["identity"], place.facts["identity"])
        return
    if codes is not None:
        place.folder.write_labels(codes)
    if annotations is not None:
        place.folder.write_annotations(annotations)
    names = store.create(place.storage, place.layout, _attributes(place), _weights(place))
    place.folder.write_run({**place.facts, "constants": names})


def _labels(
    labels: str | Path | None, sequences: Sequences
) -> tuple[np.ndarray | None, list[str] | None]:
    if labels is None:
        return None, None
    table = read_labels(labels)
    return assign_labels(table, sequences.ids()).astype("<i4"), list(table.names)


def _weights(place: Workplace) -> xarray.Dataset | None:
    """Statistics of the model's weights, None where its projections are not recognised.

    On one thread, so that the last bits are the same whatever else the run uses.
    """
    from threadpoolctl import threadpool_limits

    from bertgeom.weights import weight_statistics

    if place.encoder is None:
        return None
    try:
        with threadpool_limits(1):
            return weight_statistics(place.encoder.model)
    except ModelError:
        return None


def _attributes(place: Workplace) -> dict[str, Any]:
    """Provenance for readers: what was measured, with what, from what. No clock, no host."""
    identity, shape, model = place.facts["identity"], place.shape, place.facts["model"]
    hidden = {"dtype", "device", "tokenizer"}
    return {
        "model": {
            "id": Path(model).name if Path(model).is_dir() else model,
            "fingerprint": identity["model"]["fingerprint"],
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            "hidden": shape.hidden,
        },
        "tokenizer": identity["model"]["tokenizer"],
        "dtype": identity["model"]["dtype"],
        "device": identity["model"]["device"],
        "settings": {k: v for k, v in identity["settings"].items() if k not in hidden},
        "fingerprint": place.fingerprint,
        "sources": place.sequences.attributes["sources"],
        "sequences": identity["sequences"],
        "labels": identity["label_names"] or [],
        "n_windows": place.plan.n_windows,
    }
