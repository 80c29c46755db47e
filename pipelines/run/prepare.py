"""Setting a run up: every default decided, the identity fixed, the arrays made."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from bertgeom.analysis.annotations import Annotations, read_annotations
from bertgeom.analysis.labels import LabelledRecords, label_records, read_labels
from bertgeom.analysis.region_placement import AnnotationSummary, place_regions
from bertgeom.config import ResolvedSettings, Settings, check_same, fingerprint
from bertgeom.errors import DamagedError, InputError, ModelError, StoreError, UsageError
from bertgeom.pipelines.context.events import Cutting, Event
from bertgeom.pipelines.context.facts import CutWindows, Identity, RunFacts, SequencesIdentity
from bertgeom.pipelines.context.folder import (
    ANNOTATIONS,
    INPUT,
    LABELS,
    WINDOWS,
    RunFolder,
    annotations_bytes,
    input_bytes,
    labels_bytes,
)
from bertgeom.pipelines.context.input_summary import InputSummary
from bertgeom.pipelines.context.run_context import (
    RunContext,
    absolute_path,
    model_identity,
)
from bertgeom.pipelines.partition.sampled_spectra import SAMPLING
from bertgeom.pipelines.plan import cost
from bertgeom.pipelines.plan.partitions import Index, window_index
from bertgeom.pipelines.plan.token_windows import (
    TokenWindows,
    by_tokens,
    cut_windows,
    record_pieces,
)
from bertgeom.pipelines.run.unknown import check_known
from bertgeom.sequences.shards import Sequences
from bertgeom.store import root_file, zarr_io
from bertgeom.store.layout import Shape, row_group
from bertgeom.store.manifest import FOLDER, Entry, entry_of
from bertgeom.store.storage import Storage
from bertgeom.variables import DEFINITIONS_VERSION

if TYPE_CHECKING:
    import xarray

    from bertgeom.model.encoder import Encoder


@dataclass(frozen=True)
class PreparedRun:
    """A run that was set up, before anything of it is written.

    Attributes:
        context: the run. codes: (records,) label codes, None without labels.
        annotations: on the records of the database. summary: what was given and left out.
    """

    context: RunContext
    codes: np.ndarray | None
    annotations: Annotations | None
    summary: InputSummary


def read_groups(path: str | Path | None, settings: Settings) -> Annotations | None:
    """The regions of a file, grouped as the settings say; None without a file.

    Raises:
        UsageError: for groups by type of nothing, or of BED. InputError: for a malformed file.
    """
    if path is not None:
        return read_annotations(path, group_by=settings.group_by)
    if settings.group_by != "name":
        raise UsageError(
            f"expected --annotations (GFF3 or GTF) with --group-by {settings.group_by}, found none"
        )
    return None


def prepare_run(
    storage: Storage,
    encoder: Encoder,
    model: str,
    sequences: Sequences,
    settings: Settings,
    *,
    labels: str | Path | None = None,
    annotations: Annotations | None = None,
    elsewhere: str | None = None,
    send: Callable[[Event], None] = lambda event: None,
) -> PreparedRun:
    """A run on these sequences, and what it was given. Nothing is written.

    Args:
        elsewhere: URL of the sequence shards, None if they lie in the store.
        send: takes the events of cutting windows by tokens.

    Raises:
        InputError: if there is nothing to measure.
        ModelError: if most tokens are unknown, unless that is allowed.
        MismatchError: names what differs from the run that the store was made by.
    """
    try:
        known = RunFolder(storage).read_run()
    except DamagedError:
        known = None
    if known is not None and known.identity.windows is None:
        settings = _by_bases(settings, encoder)
    resolved, shape = resolve(settings, encoder, annotations)
    labelled = _labels(labels, sequences)
    codes = None if labelled is None else labelled.codes.astype("<i4")
    names = None if labelled is None else tuple(labelled.names)
    annotations, placed = _placed(annotations, sequences)
    identity = Identity(
        DEFINITIONS_VERSION,
        model_identity(encoder),
        resolved.identity_settings(),
        SequencesIdentity(*(sequences.attributes[n] for n in ("n_records", "content_sha256"))),
        None if codes is None else hashlib.sha256(codes.tobytes()).hexdigest(),
        names,
        None if annotations is None else fingerprint(annotations.settings()),
    )
    index, cut = _index(storage, encoder, sequences, resolved, identity, known, send)
    identity = replace(identity, windows=cut)
    if not index.n_windows:
        raise InputError(
            "at least one window",
            f"{len(sequences.lengths)} records without one, {_n_empty(sequences)} without bases",
            source=", ".join(str(s["name"]) for s in sequences.attributes["sources"][:4]),
            remedy=f"lower --min-length ({resolved.min_length}) or check the input",
        )
    facts = RunFacts(
        fingerprint=identity.fingerprint,
        identity=identity,
        settings=resolved,
        shape=shape,
        group_windows=row_group(shape, resolved.partition_windows, index.n_windows),
        model=absolute_path(model),
        model_id=_model_id(model),
        sequences=elsewhere,
        sources=tuple(sequences.attributes["sources"]),
        sampling=SAMPLING if known is None else known.sampling,
    )
    by_token = index if isinstance(index, TokenWindows) else None
    context = RunContext(storage, facts, encoder, sequences, by_token)
    # A run that is under way was let through already.
    if known is None and not settings.allow_unknown:
        check_known(context)
    summary = InputSummary(
        len(sequences.lengths),
        _n_empty(sequences),
        None if labelled is None else labelled.summary,
        placed,
    )
    return PreparedRun(context, codes, annotations, summary)


def _by_bases(settings: Settings, encoder: Encoder) -> Settings:
    """Windows of equal bases, as stores have them that were set up before windows of tokens."""
    if not by_tokens(encoder.tokenizer, settings.window, settings.stride):
        return settings
    return replace(settings, window=encoder.tokenizer.window_bases())


def _index(
    storage: Storage,
    encoder: Encoder,
    sequences: Sequences,
    resolved: ResolvedSettings,
    identity: Identity,
    known: RunFacts | None,
    send: Callable[[Event], None],
) -> tuple[Index, CutWindows | None]:
    """The windows; those that are cut by tokens are a part of the identity."""
    if resolved.window is not None:
        return window_index(sequences.lengths, resolved), None
    if known is not None and (cut := known.identity.windows) is not None:
        old = replace(known.identity, windows=None)
        check_same(storage.url, old.to_json(), identity.to_json())
        data = RunFolder(storage).read_windows()
        if hashlib.sha256(data).hexdigest() == cut.sha256:
            where = RunFolder(storage).windows_url
            return TokenWindows.of_bytes(data, cut.sha256, resolved.strand, where), cut
    total = int(sequences.lengths.sum())
    index = cut_windows(
        encoder.tokenizer,
        record_pieces(sequences),
        strand=resolved.strand,
        min_length=resolved.min_length,
        on_bases=every_second(lambda bases, n: send(Cutting(bases, total, n))),
    )
    digest = hashlib.sha256(index.to_bytes()).hexdigest()
    return index, CutWindows("tokens", index.n_windows, digest)


def every_second(action: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """The same action, left out if the last one was less than a second ago."""
    last = time.monotonic()

    def sometimes(a: int, b: int) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            action(a, b)

    return sometimes


def resolve(
    settings: Settings, encoder: Encoder, annotations: Annotations | None = None
) -> tuple[ResolvedSettings, Shape]:
    """Settings with every default decided, and the sizes of the arrays.

    Raises:
        UsageError: for settings that do not go with the model.
    """
    tokenizer, device = encoder.tokenizer, encoder.device.type
    tokens = by_tokens(tokenizer, settings.window, settings.stride)
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
    resolved = settings.resolved(
        window=None if tokens else window,
        stride=None if tokens else settings.stride or window,
        max_tokens=encoder.max_tokens,
        dtype=str(encoder.dtype).removeprefix("torch."),
        device=device,
        batch_tokens=settings.batch_tokens or cost.BATCH_TOKENS[device],
        partition_windows=settings.partition_windows
        or cost.partition_windows(facts, shape.max_tokens, size),
    )
    return resolved, shape


def set_up(prepared: PreparedRun) -> RunContext:
    """Make the arrays of a run, or check that they were made by the same run.

    A damaged `run.json` is written again: the run is the same if the fingerprints of the root
    and of all completion records are.

    Returns:
        The run with the facts that the store holds of its set-up.

    Raises:
        MismatchError: names what differs from the run that the store was made by.
    """
    context = prepared.context
    try:
        known = context.folder.read_run()
    except DamagedError:
        known = None
    if known is not None:
        old, new = known.identity.to_json(), context.facts.identity.to_json()
        check_same(context.storage.url, old, new)
        _keep_inputs(prepared, known.inputs or ())
        now = context.facts
        facts = replace(
            known,
            settings=now.settings,
            model=now.model,
            sequences=now.sequences,
            sources=known.sources or now.sources,
        )
        return replace(context, facts=facts)
    _refuse_other_run(context)
    inputs = input_files(prepared)
    for key, data in inputs.items():
        context.storage.write(key, data)
    written_by = root_file.written_by(context.storage) or root_file.writers()
    context = replace(context, facts=replace(context.facts, written_by=written_by))
    names, files = restore(context)
    facts = replace(
        context.facts, constants=tuple(names), files=files, inputs=tuple(sorted(inputs))
    )
    context.folder.write_run(facts)
    return replace(context, facts=facts)


def _keep_inputs(prepared: PreparedRun, kept: Collection[str]) -> None:
    """Write again what a run kept of its inputs and what is damaged or lost now."""
    files, folder = input_files(prepared), prepared.context.folder
    # The other files are parts of the identity; this one may count other rows of a table.
    key = f"{FOLDER}/{INPUT}"
    counts = files.pop(key)
    for name, data in files.items():
        _put(prepared.context.storage, name, data)
    try:
        lost = folder.read_input() is None and key in kept
    except DamagedError:
        lost = True
    if lost:
        prepared.context.storage.write(key, counts)


def input_files(prepared: PreparedRun) -> dict[str, bytes]:
    """What a run keeps of its inputs, by place in the store."""
    found = {INPUT: input_bytes(prepared.summary)}
    if prepared.codes is not None:
        found[LABELS] = labels_bytes(prepared.codes)
    if prepared.annotations is not None:
        found[ANNOTATIONS] = annotations_bytes(prepared.annotations)
    if prepared.context.cut is not None:
        found[WINDOWS] = prepared.context.cut.to_bytes()
    return {f"{FOLDER}/{name}": data for name, data in found.items()}


def restore(
    context: RunContext, keys: Collection[str] | None = None
) -> tuple[list[str], dict[str, Entry]]:
    """Make what a run is set up with, and put in place what is missing or differs.

    It is made in memory first, so that chunks of finished row groups stay.

    Args:
        keys: files to put in place; None: all.

    Returns:
        Names of the constants; size and SHA-256 of all files but the root, which changes.
    """
    scratch = Storage(f"memory://bertgeom-{uuid4().hex}")
    version = context.format_version
    try:
        zarr_io.create_root(scratch, written_by=context.facts.written_by)
        RunFolder(scratch).create()
        names = zarr_io.create(
            scratch, context.layout, _attributes(context), _weights(context), version
        )
        files = {}
        for key in sorted(scratch.sizes()):
            data = scratch.read(key)
            files[key] = entry_of(data)
            if keys is None or key in keys:
                _put(context.storage, key, data)
    finally:
        scratch.remove("")
    files.pop(root_file.METADATA)
    return names, files


def is_root_of(context: RunContext) -> bool:
    """Whether the attributes of the root are those that the run was set up with."""
    try:
        found = root_file.check_format(context.storage, root_file.FORMAT)
    except StoreError:
        return False
    expected = json.loads(json.dumps(_attributes(context)))
    same = all(found[name] == value for name, value in expected.items() if name in found)
    return same and "fingerprint" in found


def _put(storage: Storage, key: str, data: bytes) -> None:
    """Write a file unless it is there with these bytes."""
    try:
        if storage.read(key) == data:
            return
    except FileNotFoundError:
        pass
    storage.write(key, data)


def _refuse_other_run(context: RunContext) -> None:
    """Compare with what is left of a run whose `run.json` is lost.

    Raises:
        MismatchError: if it was another run; nothing of it is overwritten.
    """
    url = context.storage.url
    try:
        attributes = root_file.check_format(context.storage, root_file.FORMAT)
    except DamagedError:
        attributes = {}
    now = {"fingerprint": context.fingerprint, "settings": _attributes(context)["settings"]}
    old = {name: attributes[name] for name in now if name in attributes}
    check_same(url, old, {name: now[name] for name in old})
    for group in context.folder.written_groups():
        found = context.folder.fingerprint_of_group(group)
        if found is not None:
            check_same(url, {"fingerprint": found}, {"fingerprint": context.fingerprint})


def _labels(labels: str | Path | None, sequences: Sequences) -> LabelledRecords | None:
    return None if labels is None else label_records(read_labels(labels), sequences.ids())


def _placed(
    annotations: Annotations | None, sequences: Sequences
) -> tuple[Annotations | None, AnnotationSummary | None]:
    if annotations is None:
        return None, None
    return place_regions(annotations, sequences.ids(), sequences.lengths)


def _n_empty(sequences: Sequences) -> int:
    return int((sequences.lengths == 0).sum())


def _model_id(model: str) -> str:
    """Name of a model without the folders that it lies in."""
    return Path(model).name if Path(model).is_dir() else model


def _weights(context: RunContext) -> xarray.Dataset | None:
    """Statistics of the model's weights, None where its projections are not recognised.

    On one thread, so that the last bits are the same whatever else the run uses.
    """
    from threadpoolctl import threadpool_limits

    from bertgeom.analysis.weights import weight_statistics

    if context.encoder is None:
        return None
    try:
        with threadpool_limits(1):
            return weight_statistics(context.encoder.model)
    except ModelError:
        return None


def _attributes(context: RunContext) -> dict[str, Any]:
    """Provenance for readers: what was measured, with what, from what. No clock, no host."""
    facts, shape = context.facts, context.shape
    identity = facts.identity
    hidden = {"dtype", "device", "tokenizer"}
    return {
        "model": {
            "id": facts.model_id or _model_id(facts.model),
            "fingerprint": identity.model.fingerprint,
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            "hidden": shape.hidden,
        },
        "tokenizer": identity.model.tokenizer,
        "dtype": identity.model.dtype,
        "device": identity.model.device,
        "settings": {k: v for k, v in identity.settings.items() if k not in hidden},
        "fingerprint": context.fingerprint,
        "sources": context.sequences.attributes["sources"],
        "sequences": asdict(identity.sequences),
        "labels": list(identity.label_names or ()),
        "n_windows": context.plan.n_windows,
    }
