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
    run/lock                          held while a run is at work, see `claims`
    run/history.jsonl                 when, where, how long; the only file with a clock in it

A file is there whole or not at all. Nothing counts as done without its file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bertgeom import store
from bertgeom.annotations import Annotations
from bertgeom.errors import StoreError
from bertgeom.storage import Storage

from .input_summary import InputSummary

FOLDER = "run"
_RUN, _LABELS, _HISTORY = "run.json", "labels.i4", "history.jsonl"
_ANNOTATIONS, _WINDOWS = "annotations.json", "windows.safetensors"
_INPUT = "input.json"
_SPOOL = ".spool"
#: Kinds of what a row group keeps beside its chunks, as its completion record names them.
BESIDE = ("sums", "spectra", "records")
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
        store.create_plain_group(self.storage, "bookkeeping of the run; no arrays")

    def read_run(self) -> dict[str, Any] | None:
        """What the run is, None before it was set up."""
        if not self.storage.exists(_RUN):
            return None
        return json.loads(self.storage.read(_RUN))

    def write_run(self, facts: Mapping[str, Any]) -> None:
        self.storage.write(_RUN, json.dumps(facts, indent=2).encode())

    def read_labels(self) -> np.ndarray | None:
        """int32 (records,) label codes, None without labels."""
        if not self.storage.exists(_LABELS):
            return None
        return np.frombuffer(self.storage.read(_LABELS), dtype="<i4")

    def write_labels(self, codes: np.ndarray) -> None:
        self.storage.write(_LABELS, codes.astype("<i4").tobytes())

    def read_annotations(self) -> Annotations | None:
        """The regions of the run, None without any."""
        if not self.storage.exists(_ANNOTATIONS):
            return None
        return Annotations.of_settings(json.loads(self.storage.read(_ANNOTATIONS)))

    def write_annotations(self, annotations: Annotations) -> None:
        self.storage.write(_ANNOTATIONS, json.dumps(annotations.settings()).encode())

    def read_windows(self) -> bytes:
        """The windows that were cut by tokens; nothing if the file is gone."""
        return self.storage.read(_WINDOWS) if self.storage.exists(_WINDOWS) else b""

    def write_windows(self, data: bytes) -> None:
        self.storage.write(_WINDOWS, data)

    def read_input(self) -> InputSummary | None:
        """What the run was given, None in stores that do not say."""
        if not self.storage.exists(_INPUT):
            return None
        return InputSummary.of_json(json.loads(self.storage.read(_INPUT)))

    def write_input(self, summary: InputSummary) -> None:
        self.storage.write(_INPUT, json.dumps(summary.to_json(), indent=2).encode())

    def spooled(self) -> list[int]:
        """Partitions whose results wait for their row group."""
        names = self.storage.names("partitions")
        return [int(name.removesuffix(_SPOOL)) for name in names if name.endswith(_SPOOL)]

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
        data = self.storage.read(_spool_key(partition))
        try:
            size = int.from_bytes(data[:8], "little")
            facts = json.loads(data[8 : 8 + size])["__metadata__"]
            arrays = load(data)
            if facts["fingerprint"] != fingerprint or facts["sha256"] != _digest(arrays):
                raise ValueError("fingerprint or checksum")
        except (ValueError, KeyError, SafetensorError) as error:
            raise StoreError(
                f"{self.store.url}: expected whole results of partition {partition}, found a "
                "damaged file or one of another run; the next run measures it again"
            ) from error
        return arrays, json.loads(facts["counts"])

    def read_spool_rows(self, partition: int, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of one array of a partition, without reading the others.

        Raises:
            KeyError: if the partition has no such array.
        """
        key = _spool_key(partition)
        size = int.from_bytes(self.storage.read(key, 0, 8), "little")
        header = json.loads(self.storage.read(key, 8, 8 + size))
        about = header[name]
        dtype = np.dtype(_SAFETENSORS_DTYPES[about["dtype"]])
        row = int(np.prod(about["shape"][1:], dtype=np.int64)) * dtype.itemsize
        begin = 8 + size + about["data_offsets"][0]
        data = self.storage.read(key, begin + start * row, begin + stop * row)
        return np.frombuffer(data, dtype).reshape(stop - start, *about["shape"][1:])

    def remove_spool(self, partition: int) -> None:
        self.storage.remove(_spool_key(partition))

    def written_groups(self) -> list[int]:
        """Row groups with a completion record."""
        names = self.storage.names("groups")
        return [int(name.removesuffix(".json")) for name in names if name.endswith(".json")]

    def write_beside(self, group: int, kind: str, data: bytes) -> None:
        """What a row group keeps beside its chunks, one of `BESIDE`."""
        self.storage.write(beside_key(group, kind), data)

    def read_beside(self, group: int, kind: str) -> bytes:
        """What `write_beside` wrote."""
        return self.storage.read(beside_key(group, kind))

    def write_group(self, group: int, facts: Mapping[str, Any]) -> None:
        self.storage.write(_group_key(group), json.dumps(facts, indent=2).encode())

    def read_group(self, group: int) -> dict[str, Any]:
        """Completion record of a row group."""
        return json.loads(self.storage.read(_group_key(group)))

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the run history."""
        self.storage.append(_HISTORY, json.dumps(line) + os.linesep)

    def history(self) -> list[dict[str, Any]]:
        """All lines of the run history; a torn last line is left out."""
        if not self.storage.exists(_HISTORY):
            return []
        found = []
        for line in self.storage.read(_HISTORY).decode("utf-8", "replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def _spool_key(partition: int) -> str:
    return f"partitions/{partition:08d}{_SPOOL}"


def _group_key(group: int) -> str:
    return f"groups/{group:08d}.json"


def beside_key(group: int, kind: str) -> str:
    """Where it lies in the folder."""
    return f"groups/{group:08d}.{kind}"


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
