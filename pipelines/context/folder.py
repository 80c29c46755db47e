"""The bookkeeping of a run, in the folder `run` of its store.

    run/run.json                      what the run is: identity, settings, plan
    run/labels.i4                     label code of every record, if there are labels
    run/annotations.json              regions by record, if there are annotations
    run/windows.safetensors           windows that were cut by tokens, see `token_windows`
    run/input.json                    counts of records, labels and regions, used and left out
    run/partitions/00000042.spool     results of a finished partition, until its row group is whole
    run/groups/00000003.sums          sums of a row group by cohort
    run/groups/00000003.records       sums of a row group by record, with --reduce
    run/groups/00000003.spectra       spectra of sampled windows, with --spectra
    run/groups/00000003.json          completion record of a row group: counts, checksums
    run/tasks/00000003.lock           held while a task works on a row group, see `claims`
    run/lock                          held while a run is at work, see `claims`
    run/manifest.json                 size and SHA-256 of every file of a finished store
    run/history.jsonl                 when, where, how long; the only file with a clock in it

A file is there whole or not at all. Nothing counts as done without its file, and a file that
cannot be read, or is of another run, is no better than none. Records hold their own checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bertgeom.config import fingerprint as fingerprint_of
from bertgeom.errors import DamagedError, StoreError
from bertgeom.pipelines.context.facts import RunFacts
from bertgeom.pipelines.context.input_summary import InputSummary
from bertgeom.store import root_file
from bertgeom.store.manifest import (
    FOLDER,
    REMEDY,
    Entry,
    difference,
    entries,
    read_many,
    sealed,
    unsealed,
)
from bertgeom.store.storage import Storage

if TYPE_CHECKING:
    from bertgeom.analysis.annotations import Annotations

RUN, LABELS, ANNOTATIONS = "run.json", "labels.i4", "annotations.json"
WINDOWS, INPUT = "windows.safetensors", "input.json"
HISTORY = "history.jsonl"
_SPOOL, _RECORD = ".spool", ".json"
#: Kinds of what a row group keeps beside its chunks, as its completion record names them.
SIDECARS = ("sums", "spectra", "records")
#: What wrote a store whose run.json does not say.
_FIRST_WRITERS = {"format_version": "1.0", "bertgeom_version": "0.1.0"}
_SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "U8": "<u1",
    "I8": "<i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes the bookkeeping.

    Attributes:
        store: where the store lies.
    """

    store: Storage

    @property
    def storage(self) -> Storage:
        return self.store.child(FOLDER)

    def create(self) -> None:
        """Make the folder; harmless when repeated."""
        from bertgeom.store.zarr_io import create_plain_group

        create_plain_group(self.storage, "bookkeeping of the run; no arrays")

    def read_run(self) -> RunFacts | None:
        """What the run is, None before it was set up.

        Raises:
            DamagedError: if the file cannot be read.
        """
        if not self.storage.exists(RUN):
            return None
        try:
            facts = unsealed(self.storage.read(RUN))
            if "written_by" not in facts:
                facts = self._completed(facts)
            return RunFacts.from_json(facts)
        except ValueError as error:
            raise DamagedError(
                f"{self.storage.shown}/{RUN}: expected what the run is, found a damaged file "
                f"({error}); the bertgeom run command of this store, given again, restores it"
            ) from error

    def _completed(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Facts of a run by version 0.1.0, with what only the root of its store says."""
        try:
            root = root_file.check_format(self.store, root_file.FORMAT)
        except StoreError:
            root = {}
        model_id = (root.get("model") or {}).get("id") or Path(str(facts.get("model"))).name
        writers = {name: str(root.get(name, old)) for name, old in _FIRST_WRITERS.items()}
        return {"model_id": model_id, **facts, "written_by": writers}

    def write_run(self, facts: RunFacts) -> None:
        self.storage.write(RUN, sealed(facts.to_json()))

    def read_labels(self, digest: str | None) -> np.ndarray | None:
        """int32 (records,) label codes, None without labels.

        Args:
            digest: SHA-256 of the file, as the run's identity holds it.

        Raises:
            DamagedError: if the file is another, or missing.
        """
        if digest is None:
            return None
        data = self._read(LABELS)
        if hashlib.sha256(data).hexdigest() != digest:
            raise self._damaged(LABELS, "labels")
        return np.frombuffer(data, dtype="<i4")

    def read_annotations(self, digest: str | None) -> Annotations | None:
        """The regions of the run, None without any.

        Args:
            digest: fingerprint of the regions, as the run's identity holds it.

        Raises:
            DamagedError: if the file is another, or missing.
        """
        from bertgeom.analysis.annotations import Annotations

        if digest is None:
            return None
        try:
            facts = json.loads(self._read(ANNOTATIONS))
            if fingerprint_of(facts) != digest:
                raise ValueError("others")
            return Annotations.of_settings(facts)
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(ANNOTATIONS, "regions") from error

    def _read(self, key: str) -> bytes:
        """The bytes of a file, none where it is missing."""
        try:
            return self.storage.read(key)
        except FileNotFoundError:
            return b""

    def _damaged(self, key: str, what: str) -> DamagedError:
        return DamagedError(
            f"{self.storage.shown}/{key}: expected the {what} of the run, found a damaged file; "
            "the bertgeom run command of this store, given again, restores it"
        )

    @property
    def windows_url(self) -> str:
        """Where `read_windows` reads, for messages."""
        return f"{self.storage.url}/{WINDOWS}"

    def read_windows(self) -> bytes:
        """The windows that were cut by tokens; nothing if the file is gone."""
        return self.storage.read(WINDOWS) if self.storage.exists(WINDOWS) else b""

    def read_input(self) -> InputSummary | None:
        """What the run was given, None in stores that do not say.

        Raises:
            DamagedError: if the file cannot be read.
        """
        if not self.storage.exists(INPUT):
            return None
        try:
            return InputSummary.of_json(unsealed(self.storage.read(INPUT)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(INPUT, "counts of the input") from error

    def spooled(self) -> list[int]:
        """Partitions whose results wait for their row group."""
        names = self.storage.names("partitions")
        return [n for name in names if (n := _number(name, _SPOOL)) is not None]

    def write_spool(
        self,
        partition: int,
        arrays: Mapping[str, np.ndarray],
        fingerprint: str,
        counts: Mapping[str, int],
    ) -> None:
        """Results and completion record of a partition in one file."""
        facts = {
            "fingerprint": fingerprint,
            "partition": str(partition),
            "counts": json.dumps(counts),
            "sha256": _digest(arrays),
        }
        self.storage.write(_spool_key(partition), save(dict(sorted(arrays.items())), facts))

    def read_spool(
        self, partition: int, fingerprint: str
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Results and counts of a partition.

        Raises:
            StoreError: if the file is damaged or of another run.
        """
        data = self._read(_spool_key(partition))
        try:
            size = int.from_bytes(data[:8], "little")
            facts = json.loads(data[8 : 8 + size])["__metadata__"]
            arrays = load(data)
            if facts["fingerprint"] != fingerprint or facts["sha256"] != _digest(arrays):
                raise ValueError("fingerprint or checksum")
            counts = json.loads(facts["counts"])
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DamagedError(
                f"{self.store.shown}: expected whole results of partition {partition}, found a "
                "damaged file or one of another run; the next run measures it again"
            ) from error
        return arrays, counts

    def spool_header(self, partition: int) -> tuple[int, dict[str, Any]]:
        """Bytes of the header of a partition's results, and what it says of every array."""
        key = _spool_key(partition)
        size = int.from_bytes(self.storage.read(key, 0, 8), "little")
        return size, json.loads(self.storage.read(key, 8, 8 + size))

    def read_spool_rows(
        self, partition: int, name: str, start: int, stop: int, header: tuple[int, dict[str, Any]]
    ) -> np.ndarray:
        """Rows start..stop of one array of a partition, in one read.

        Args:
            header: from `spool_header`.

        Raises:
            KeyError: if the partition has no such array.
        """
        key = _spool_key(partition)
        size, arrays = header
        about = arrays[name]
        dtype = np.dtype(_SAFETENSORS_DTYPES[about["dtype"]])
        row = int(np.prod(about["shape"][1:], dtype=np.int64)) * dtype.itemsize
        begin = 8 + size + about["data_offsets"][0]
        data = self.storage.read(key, begin + start * row, begin + stop * row)
        return np.frombuffer(data, dtype).reshape(stop - start, *about["shape"][1:])

    def remove_spool(self, partition: int) -> None:
        self.storage.remove(_spool_key(partition))

    def written_groups(self) -> list[int]:
        """Row groups with a file that may be a completion record."""
        names = self.storage.names("groups")
        return [n for name in names if (n := _number(name, _RECORD)) is not None]

    def write_sidecar(self, group: int, kind: str, data: bytes) -> None:
        """What a row group keeps beside its chunks, one of `SIDECARS`."""
        self.storage.write(sidecar_key(group, kind), data)

    def read_sidecar(self, group: int, kind: str, entry: Entry) -> bytes:
        """What `write_sidecar` wrote.

        Args:
            entry: size and SHA-256 from the completion record.

        Raises:
            DamagedError: if the file is another, or missing.
        """
        key = sidecar_key(group, kind)
        data = self._read(key)
        if wrong := difference(data, entry):
            raise DamagedError(f"{self.storage.shown}/{key}: the file {wrong}; {REMEDY}")
        return data

    def write_group(self, group: int, facts: Mapping[str, Any]) -> None:
        self.storage.write(group_key(group), sealed(facts))

    def read_group(self, group: int, fingerprint: str, windows: tuple[int, int]) -> dict[str, Any]:
        """Completion record of a row group.

        Args:
            fingerprint: of the run. windows: first one of the group, and one past its last.

        Raises:
            DamagedError: if it cannot be read, or is of another run.
        """
        return self._record(group, self._read(group_key(group)), fingerprint, windows)

    def read_groups(
        self, fingerprint: str, windows: Callable[[int], tuple[int, int]], n_groups: int
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """All completion records by row group, and what is wrong with the others.

        Args:
            windows: first window of a group, and one past its last. n_groups: of the plan.
        """
        there = self.written_groups()
        records: dict[int, dict[str, Any]] = {}
        wrong = {g: "is no row group of this run" for g in there if g >= n_groups}
        there = [g for g in there if g < n_groups]
        for group, data in zip(there, read_many(self.storage, map(group_key, there)), strict=True):
            try:
                records[group] = self._record(group, data, fingerprint, windows(group))
            except DamagedError as error:
                wrong[group] = str(error)
        return records, wrong

    def _record(
        self, group: int, data: bytes, fingerprint: str, windows: tuple[int, int]
    ) -> dict[str, Any]:
        try:
            record = unsealed(data)
            if record["fingerprint"] != fingerprint:
                raise ValueError("it is of another run")
            if tuple(record["windows"]) != windows:
                raise ValueError(f"it is of windows {record['windows']}")
            entries(record["files"])
            entries({kind: record[kind] for kind in SIDECARS if record.get(kind)})
            if not isinstance(record["counts"], dict):
                raise ValueError("no counts")
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"{self.storage.shown}/{group_key(group)}: expected the completion record of row "
                f"group {group}, found what cannot be used ({error}); the row group is not done"
            ) from error
        return record

    def fingerprint_of_group(self, group: int) -> str | None:
        """Of which run a completion record is, None if that cannot be read."""
        try:
            return str(unsealed(self._read(group_key(group)))["fingerprint"])
        except (ValueError, KeyError):
            return None

    def remove_group(self, group: int) -> None:
        """Take the completion record away: the row group is not done."""
        self.storage.remove(group_key(group))

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the run history."""
        self.storage.append(HISTORY, json.dumps(line) + os.linesep)

    def history(self) -> list[dict[str, Any]]:
        """All lines of the run history; lines that cannot be read are left out."""
        if not self.storage.exists(HISTORY):
            return []
        found = []
        for line in self.storage.read(HISTORY).decode("utf-8", "replace").splitlines():
            try:
                fact = json.loads(line)
            except ValueError:
                continue
            found += [fact] if isinstance(fact, dict) else []
        return found


def _spool_key(partition: int) -> str:
    return f"partitions/{partition:08d}{_SPOOL}"


def group_key(group: int) -> str:
    """Where the completion record lies in the folder."""
    return f"groups/{group:08d}{_RECORD}"


def labels_bytes(codes: np.ndarray) -> bytes:
    """The label codes as they are stored."""
    return codes.astype("<i4").tobytes()


def input_bytes(summary: InputSummary) -> bytes:
    """The file of what a run was given."""
    return sealed(summary.to_json())


def annotations_bytes(annotations: Annotations) -> bytes:
    """The regions as they are stored."""
    return json.dumps(annotations.settings()).encode()


def _number(name: str, ending: str) -> int | None:
    """The number in the name of a file, None for another file."""
    stem = name.removesuffix(ending)
    return int(stem) if stem != name and stem.isdecimal() else None


def sidecar_key(group: int, kind: str) -> str:
    """Where it lies in the folder."""
    return f"groups/{group:08d}.{kind}"


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Counts of several parts together, without those that a part does not tell."""
    names = [name for name in counts[0] if all(name in part for part in counts)] if counts else []
    return {name: sum(part[name] for part in counts) for name in names}
