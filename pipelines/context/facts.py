"""What a run is, typed: the contents of `run/run.json`.

`RunFacts.from_json` reads what any version has written, `to_json` writes the same names in the
same order. What only later versions write is None where an earlier one wrote the file.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, Self, TypeVar

from bertgeom.config import ResolvedSettings, fingerprint
from bertgeom.store.layout import Shape
from bertgeom.store.manifest import Entry, entries

T = TypeVar("T")


@dataclass(frozen=True)
class ModelIdentity:
    """What must be the same of a model: weights, tokenizer, precision, kind of device."""

    fingerprint: str
    tokenizer: Mapping[str, Any]
    dtype: str
    device: str


@dataclass(frozen=True)
class SequencesIdentity:
    """What must be the same of the sequences."""

    n_records: int
    content_sha256: str


@dataclass(frozen=True)
class CutWindows:
    """Windows that were cut by tokens: they lie in a file of the run."""

    cut: str
    n_windows: int
    sha256: str


@dataclass(frozen=True)
class Identity:
    """What must be the same for a run to go on; its fingerprint is that of the run.

    Attributes:
        settings: as the version wrote them that began the run; they are only compared.
        labels: SHA-256 of the label codes. annotations: fingerprint of the regions.
        windows: None where windows are cut by bases.
    """

    definitions_version: int
    model: ModelIdentity
    settings: Mapping[str, Any]
    sequences: SequencesIdentity
    labels: str | None
    label_names: tuple[str, ...] | None
    annotations: str | None
    windows: CutWindows | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-able values by name; without windows where there are none."""
        found = asdict(self)
        if self.windows is None:
            del found["windows"]
        return json_values(found)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.to_json())


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run is. The order of the fields is that of the file.

    Attributes:
        identity: what must be the same for the run to go on. settings: every default decided.
        shape: sizes of the arrays. group_windows: windows of a row group.
        model: where the model was when the run began. model_id: its name without folders.
        sequences: URL of the sequence shards, None if they lie in the store.
        sources: name, size and SHA-256 of every source file.
        sampling: how windows are drawn for spectra. written_by: versions that wrote the store.
        constants: arrays that are the same for all windows.
        files: size and SHA-256 of the files of the set-up. inputs: files kept of the inputs.
    """

    fingerprint: str
    identity: Identity
    settings: ResolvedSettings
    shape: Shape
    group_windows: int
    model: str
    model_id: str | None = None
    sequences: str | None
    sources: tuple[Mapping[str, Any], ...] | None = None
    sampling: str | None = None
    written_by: Mapping[str, str] | None = None
    constants: tuple[str, ...] | None = None
    files: Mapping[str, Entry] | None = None
    inputs: tuple[str, ...] | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, for what any version has written.

        Raises:
            ValueError: says what is missing, or is not what it should be.
        """
        values = dict(values)
        settings, files = values.pop("settings", None), values.pop("files", None)
        if not isinstance(settings, dict):
            raise ValueError("no settings")
        try:
            resolved = ResolvedSettings.from_json(settings)
        except (TypeError, KeyError) as error:
            raise ValueError(f"settings: {error}") from error
        kept = None if files is None else entries(files)
        found = read_dataclass(cls, {**values, "settings": resolved, "files": kept})
        if found.fingerprint != fingerprint(values["identity"]):
            raise ValueError("a fingerprint of something else")
        if found.fingerprint != found.identity.fingerprint:
            raise ValueError("an identity of a later version of bertgeom")
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON-able values by name, in the order of the file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {
            "identity": self.identity.to_json(),
            "settings": self.settings.to_json(),
            "shape": vars(self.shape),
        }
        later = {field.name for field in fields(self) if field.default is None}
        return json_values({k: v for k, v in values.items() if v is not None or k not in later})


def json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from JSON: lists in place of tuples."""
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def read_dataclass(kind: type[T], values: Any, where: str = "") -> T:
    """A dataclass of plain fields from JSON; entries that it does not have are left out.

    Raises:
        ValueError: names the field that is missing or of another type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'it'}: not a JSON object")
    hints, found = typing.get_type_hints(kind), {}
    prefix = f"{where}." if where else ""
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in values:
            name = f"{prefix}{field.name}"
            found[field.name] = _value(hints[field.name], values[field.name], name)
        elif field.default is MISSING:
            raise ValueError(f"no {prefix}{field.name}")
    return kind(**found)


def _value(hint: Any, value: Any, name: str) -> Any:
    """A value of one of the types that the fields above have."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        (hint,) = (one for one in inner if one is not types.NoneType)
        return None if value is None else _value(hint, value, name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_value(inner[0], one, name) for one in value)
    if is_dataclass(hint) and not isinstance(value, hint):  # type: ignore[arg-type]
        return read_dataclass(typing.cast("type[Any]", hint), value, name)
    if hint is not Any and not isinstance(value, origin or hint):
        raise ValueError(f"{name}: another type than {getattr(hint, '__name__', hint)}")
    return value
