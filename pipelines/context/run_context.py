"""Everything one process needs to work on a run: store, plan, model. Opened once a process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.config import MeasureSettings, ResolvedSettings, Settings, check_same
from bertgeom.errors import DamagedError, ModelError, StoreError
from bertgeom.model.packages import import_packages
from bertgeom.pipelines.context.facts import ModelIdentity, RunFacts
from bertgeom.pipelines.context.folder import RUN, RunFolder
from bertgeom.pipelines.plan.partitions import Index, Pieces, Plan, window_index
from bertgeom.sequences.shards import Sequences, open_sequences
from bertgeom.store import root_file
from bertgeom.store.layout import Layout, Shape
from bertgeom.store.manifest import FOLDER
from bertgeom.store.storage import Storage

if TYPE_CHECKING:
    from bertgeom.analysis.annotations import Annotations
    from bertgeom.model.encoder import Encoder
    from bertgeom.pipelines.plan.token_windows import TokenWindows

SEQUENCES = "sequences"
#: From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True, eq=False)
class RunContext:
    """A run as one process sees it.

    Attributes:
        storage: the store.
        facts: what the run is, the contents of `run/run.json`.
        encoder: the model, None where nothing is computed (status, finalise).
        shards: the sequences, if they are open already.
        cut: the windows, if they were cut by tokens just now.
    """

    storage: Storage
    facts: RunFacts
    encoder: Encoder | None = None
    shards: Sequences | None = None
    cut: TokenWindows | None = None

    @property
    def loaded(self) -> Encoder:
        """The model, where something is to be computed.

        Raises:
            RuntimeError: if this process opened the run without it.
        """
        if self.encoder is None:
            raise RuntimeError(f"{self.storage.shown}: opened without a model")
        return self.encoder

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.storage)

    def sidecars(self, kind: str) -> Iterator[bytes]:
        """What every row group keeps beside its chunks, in order; see `folder.SIDECARS`.

        Raises:
            DamagedError: if one is missing or was changed.
        """
        for group in range(self.plan.n_groups):
            size, digest = self.record(group)[kind]
            yield self.folder.read_sidecar(group, kind, (size, digest))

    def record(self, group: int) -> dict[str, Any]:
        """Completion record of a row group.

        Raises:
            DamagedError: if it cannot be read, or is of another run.
        """
        return self.folder.read_group(group, self.fingerprint, self.plan.group(group))

    def records(
        self, pieces: Pieces | None = None
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """All completion records, and what is wrong with those that cannot be used."""
        pieces = pieces or self.plan
        return self.folder.read_groups(self.fingerprint, pieces.group, pieces.n_groups)

    @property
    def format_version(self) -> str:
        """Of the store; decides how its arrays are encoded."""
        return (self.facts.written_by or {}).get("format_version", "1.0")

    @property
    def fingerprint(self) -> str:
        return self.facts.fingerprint

    @property
    def settings(self) -> ResolvedSettings:
        return self.facts.settings

    @property
    def shape(self) -> Shape:
        return self.facts.shape

    def with_encoder(self, encoder: Encoder) -> RunContext:
        """The same run with a model."""
        return RunContext(self.storage, self.facts, encoder)

    @cached_property
    def sequences(self) -> Sequences:
        """The shards of the run.

        Raises:
            MismatchError: if others lie in their place.
        """
        if self.shards is not None:
            return self.shards
        elsewhere = self.facts.sequences
        inside = self.storage.child(SEQUENCES)
        found = Sequences(inside) if elsewhere is None else open_sequences(Storage(elsewhere))
        expected = asdict(self.facts.identity.sequences)
        attributes = found.attributes
        check_same(found.storage.url, expected, {k: attributes.get(k) for k in expected})
        return found

    @cached_property
    def plan(self) -> Plan:
        settings = self.settings
        return Plan.of(
            self._index,
            settings.partition_windows,
            self.facts.group_windows,
            settings.batch_tokens,
        )

    def pieces(self, n_windows: object) -> Pieces:
        """Partitions and row groups, without a look at the records where their windows are known.

        Args:
            n_windows: what the root of the store says; anything but a count is ignored.
        """
        if self.facts.identity.windows is not None or type(n_windows) is not int:
            return self.plan
        # Shards of something else are an error here as well.
        _ = self.sequences
        return Pieces(n_windows, self.settings.partition_windows, self.facts.group_windows)

    @property
    def _index(self) -> Index:
        known = self.facts.identity.windows
        if known is None:
            return window_index(self.sequences.lengths, self.settings)
        if self.cut is not None:
            return self.cut
        from bertgeom.pipelines.plan.token_windows import TokenWindows

        return TokenWindows.of_bytes(
            self.folder.read_windows(),
            known.sha256,
            self.settings.strand,
            self.folder.windows_url,
        )

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.shape, self.plan.n_windows, self.plan.group_windows)

    @cached_property
    def labels(self) -> np.ndarray | None:
        return self.folder.read_labels(self.facts.identity.labels)

    @cached_property
    def annotations(self) -> Annotations | None:
        return self.folder.read_annotations(self.facts.identity.annotations)

    @cached_property
    def record_ids(self) -> list[str]:
        return self.sequences.ids()

    @cached_property
    def measure_settings(self) -> MeasureSettings:
        return measure_settings_of(self.settings, self.shape)


def measure_settings_of(settings: Settings, shape: Shape) -> MeasureSettings:
    """The part of the settings that the encoder needs."""
    keep = settings.keep
    if settings.tier == "full":
        # Block maps are always summed by cohort, see `cohort_sums`.
        keep = tuple(sorted({*keep, "block_map"}))
    return settings.to_measure(
        keep=keep, n_offset_side=shape.n_offset_side, n_groups=len(shape.group_names)
    )


def open_context(url: str, encoder: Encoder | None = None) -> RunContext:
    """A run that was set up, without loading its model.

    Raises:
        StoreError: if there is no run at `url`.
    """
    storage = Storage(url)
    facts = RunFolder(storage).read_run()
    if facts is None and root_file.is_store(storage, root_file.FORMAT):
        raise DamagedError(
            f"{url}/{FOLDER}/{RUN}: expected what the run is, found no such file; the bertgeom run "
            "command of this store, given again, restores it"
        )
    if facts is None:
        raise StoreError(
            f"{url}: expected a store that bertgeom run has set up, found none; "
            "give the bertgeom run command"
        )
    return RunContext(storage, facts, encoder)


_current: RunContext | None = None


def context_with_model(
    url: str, model: str, threads: int, imports: tuple[str, ...] = ()
) -> RunContext:
    """A run with its model, loaded once per process and kept for the next partition.

    Args:
        url: of the store. model: as this process finds it. threads: to compute with.
        imports: packages that register the model's classes, imported first. The store names none:
            what it was made with is not imported unasked.

    Raises:
        UsageError: for a package that is not here.
        MismatchError: if the model found here is not the one the store was set up with.
    """
    global _current
    found = open_context(url)
    if (
        _current is not None
        and _current.storage == found.storage
        and _current.fingerprint == found.fingerprint
    ):
        return _current
    _current = None
    set_threads(threads)
    import_packages(imports)
    encoder = load_model(model, found.settings)
    _check_model(found, encoder)
    _current = found.with_encoder(encoder)
    return _current


def reopened(
    context: RunContext,
    model: str | None,
    *,
    elsewhere: bool = False,
    impl: str | None = None,
) -> RunContext:
    """A run with its model, to compute more of it.

    Args:
        model: where the model is now; None: where it was when the run began.
        elsewhere: another precision or kind of device will do: on a machine without that of the
            run, it is float32 on the CPU.
        impl: kernels to use in place of those of the run.

    Raises:
        ModelError: if the model cannot be loaded; with the option that helps if it was moved.
        MismatchError: if the model is not the one the store was made with.
    """
    import torch

    settings: Settings = context.settings
    if elsewhere and settings.device == "cuda" and not torch.cuda.is_available():
        settings = replace(settings, device="cpu", dtype="float32")
    try:
        encoder = load_model(model or context.facts.model, settings, impl=impl)
    except ModelError as error:
        if model is not None:
            raise
        raise ModelError(
            f"{context.storage.shown}: {error}; give --model if the model was moved"
        ) from error
    _check_model(context, encoder, ("fingerprint", "tokenizer") if elsewhere else None)
    return context.with_encoder(encoder)


def _check_model(
    context: RunContext, encoder: Encoder, names: Collection[str] | None = None
) -> None:
    """Compare a model with that of the run, in all or in some fields of its identity.

    Raises:
        MismatchError: names what differs.
    """
    old, new = asdict(context.facts.identity.model), asdict(model_identity(encoder))
    kept = old.keys() if names is None else names
    check_same(context.storage.url, {k: old[k] for k in kept}, {k: new[k] for k in kept})


def load_model(model: str, settings: Settings, impl: str | None = None) -> Encoder:
    """The encoder as the settings want it, loaded without a progress bar of its own."""
    from transformers.utils import logging

    from bertgeom.model.encoder import load_encoder

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return load_encoder(
            model,
            device=settings.device,
            dtype=settings.dtype,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            max_tokens=settings.max_tokens,
            tokenizer=settings.tokenizer,
            alphabet=settings.alphabet,
            attention_impl=impl or settings.impl,
        )
    finally:
        if shown:
            logging.enable_progress_bar()


def model_identity(encoder: Encoder) -> ModelIdentity:
    """What must be the same for a run to go on: weights, tokenizer, precision, device kind."""
    return ModelIdentity(
        encoder.fingerprint,
        encoder.tokenizer.settings(),
        str(encoder.dtype).removeprefix("torch."),
        encoder.device.type,
    )


def set_threads(threads: int) -> None:
    """Use this many compute threads in torch and Numba, and keep memory that they free."""
    import numba
    import torch

    keep_freed_memory()
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def keep_freed_memory() -> None:
    """Tells glibc not to hand freed memory back to the system; elsewhere nothing happens.

    Activations are allocated and freed layer by layer. Where small results lie between them glibc
    trims its heap every time, and every page of the next layer is a fault: a fifth of a forward.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 1 << 28)


def absolute_path(place: str) -> str:
    """A local path made absolute, a URL or hub name as it is."""
    return str(Path(place).absolute()) if Path(place).exists() else place
