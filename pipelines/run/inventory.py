"""What lies in a store against what was written: every file by name, and who can restore it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from bertgeom.errors import DamagedError, StoreError
from bertgeom.pipelines.context.folder import (
    ANNOTATIONS,
    INPUT,
    LABELS,
    RUN,
    SIDECARS,
    WINDOWS,
    group_key,
    sidecar_key,
)
from bertgeom.pipelines.context.run_context import SEQUENCES, RunContext
from bertgeom.pipelines.partition import cohort_sums, record_means
from bertgeom.sequences import shards as sequences
from bertgeom.store import manifest, root_file
from bertgeom.store.journal import DRAFT
from bertgeom.store.manifest import FOLDER, Entry
from bertgeom.store.storage import Storage

#: Groups that `finalise` writes; `spectra` is that of `run_spectra.GROUP`, which needs torch.
DERIVED = (cohort_sums.GROUP, record_means.GROUP, "spectra")
_GROUPS, _PARTITIONS = f"{FOLDER}/groups/", f"{FOLDER}/partitions/"
_READERS = 4
#: Names of what partitions and row groups keep in the folder of the run.
_OF_ROWS = re.compile(rf"{_PARTITIONS}\d+\.spool|{_GROUPS}\d+\.({'|'.join(SIDECARS)}|json)")


class Kind(StrEnum):
    """What a file belongs to, which says how it is restored."""

    ROW_GROUP = "row group"
    SET_UP = "set-up"
    ROOT = "root"
    DERIVED = "finalised"
    SEQUENCES = "sequences"
    RUN = "run"
    INPUT = "labels or regions"
    MANIFEST = "manifest"
    LEFTOVER = "leftover"
    ALIEN = "alien"


#: What a run keeps in its folder beside its bookkeeping of groups and partitions.
_KEPT = {RUN: Kind.RUN} | dict.fromkeys((LABELS, ANNOTATIONS, WINDOWS, INPUT), Kind.INPUT)


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written.

    Attributes:
        key: place in the store. what: is wrong with it. group: its row group.
    """

    key: str
    what: str
    kind: Kind
    group: int | None = None

    def __str__(self) -> str:
        if self.kind is Kind.SEQUENCES:
            key = self.key.removeprefix(SEQUENCES).removeprefix("/")
            return f"sequences: {key} {self.what}".replace(":  ", ": ")
        return f"{self.key} {self.what}"


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        complete: whether the run was finalised. listed: whether there is a list of all files.
        files: looked at. whole: whether the checksums of all were compared, or sizes alone.
    """

    complete: bool
    listed: bool
    files: int
    whole: bool
    damages: tuple[Damage, ...]

    def of(self, *kinds: Kind) -> list[Damage]:
        """Damages of these kinds."""
        return [damage for damage in self.damages if damage.kind in kinds]

    @property
    def groups(self) -> list[int]:
        """Row groups that are damaged."""
        return sorted({d.group for d in self.damages if d.group is not None})


def inspect(context: RunContext, largest: int | None = None) -> Inspection:
    """Compare the files of a store with what was written.

    Args:
        largest: bytes of a store up to which all checksums are compared. Of a larger one only
            those of small files are: everything but chunks of windows and of bases, whose
            presence and size are compared. None: always all.
    """
    sizes = context.storage.sizes()
    complete, damages = _root(context.storage)
    try:
        _ = context.plan
    except StoreError:
        # Without the lengths of the records there is no plan, and no row group has a place.
        shards = context.storage.child(SEQUENCES)
        damages += [Damage(SEQUENCES, text, Kind.SEQUENCES) for text in sequences.damage(shards)]
        if context.facts.sequences is not None or not damages:
            raise
        return Inspection(complete, False, len(sizes), True, tuple(damages))
    expected: dict[str, Entry] = {}
    listed = False
    if complete:
        try:
            files = manifest.read(context.storage)
            expected, listed = files or {}, files is not None
            if not listed and manifest.has_checksums(context.format_version):
                damages.append(Damage(manifest.KEY, "is missing", Kind.MANIFEST))
        except DamagedError:
            damages.append(Damage(manifest.KEY, "cannot be read", Kind.MANIFEST))
    records, wrong = context.records()
    if not listed:
        expected |= known_files(context, records)
    whole = largest is None or sum(sizes.values()) <= largest
    damages += _compare(context, expected, sizes, whole)
    named = {damage.key for damage in damages}
    for group, problem in wrong.items():
        if (key := f"{FOLDER}/{group_key(group)}") not in named:
            text = problem.partition("found ")[2] or problem
            damages.append(_named(context, key, f"cannot be used: {text}"))
    if listed:
        damages += _strays(context, expected, sizes)
    else:
        damages += _inputs(context, sizes)
    if context.facts.sequences is None:
        damages += _shards(context, named)
    return Inspection(complete, listed, len(expected), whole, tuple(damages))


def known_files(context: RunContext, records: Mapping[int, Mapping[str, Any]]) -> dict[str, Entry]:
    """Files that completion records, the set-up and the shards vouch for."""
    files: dict[str, Entry] = {}
    for group, record in records.items():
        files |= manifest.entries(record["files"])
        sidecars = {
            f"{FOLDER}/{sidecar_key(group, k)}": record[k] for k in SIDECARS if record.get(k)
        }
        files |= manifest.entries(sidecars)
    files |= manifest.entries(context.facts.files or {})
    if context.facts.sequences is None:
        try:
            inner = context.sequences.attributes["files"]
            files |= {f"{SEQUENCES}/{k}": e for k, e in manifest.entries(inner).items()}
        except (StoreError, KeyError, ValueError):
            pass
    return files


def written_files(context: RunContext, tops: Collection[str]) -> dict[str, Entry]:
    """The list of all files but the root, when a run is finalised.

    What is large has its checksum from where it was written; the rest is read.

    Args:
        tops: arrays and groups of the root.

    Raises:
        DamagedError: if a file is missing, or longer or shorter than it was written.
    """
    records, _ = context.records()
    known = known_files(context, records)
    sizes = context.storage.sizes()
    for key, (size, _) in known.items():
        if sizes.get(key) != size:
            found = f"{sizes[key]} bytes" if key in sizes else "none"
            raise DamagedError(
                f"{context.storage.shown}/{key}: expected a file of {size} bytes, found {found}; "
                "give the bertgeom run command again"
            )
    files, unknown = dict(known), []
    for key in sizes.keys() - known.keys():
        kind, _ = owner(context, key)
        ours = key.partition("/")[0] in tops and manifest.is_listed(key) and _is_ours(key)
        if not ours or kind in (Kind.ROOT, Kind.LEFTOVER):
            continue
        if "/c/" in key and kind in _LARGE:
            # A chunk that no record knows: of an attempt that was killed.
            context.storage.remove(key)
            continue
        unknown.append(key)
    read = manifest.read_many(context.storage, unknown)
    return files | dict(zip(unknown, map(manifest.entry_of, read), strict=True))


def _is_ours(key: str) -> bool:
    """Whether a file has a name that a run writes; any other is somebody's."""
    top, _, rest = key.partition("/")
    kept = top == FOLDER and rest in _KEPT
    return kept or bool(_OF_ROWS.fullmatch(key)) or root_file.is_of_zarr(key)


def owner(context: RunContext, key: str) -> tuple[Kind, int | None]:
    """What a file belongs to, and its row group if it has one."""
    top, _, rest = key.partition("/")
    if key == root_file.METADATA:
        return Kind.ROOT, None
    if key.startswith(_GROUPS):
        stem = key.removeprefix(_GROUPS).partition(".")[0]
        if stem.isdecimal() and int(stem) < context.plan.n_groups:
            return Kind.ROW_GROUP, int(stem)
        return Kind.LEFTOVER, None
    if key.startswith(_PARTITIONS) or _is_draft(key):
        return Kind.LEFTOVER, None
    if top == FOLDER:
        return _KEPT.get(rest, Kind.SET_UP if rest == root_file.METADATA else Kind.DERIVED), None
    if top == SEQUENCES:
        return Kind.SEQUENCES, None
    if top in DERIVED:
        return Kind.DERIVED, None
    variable = context.layout.by_name.get(top)
    if variable is not None and rest.startswith("c/"):
        number = rest.split("/")[1]
        rows = context.layout.chunks(variable)[0]
        if number.isdecimal() and int(number) * rows < context.plan.n_windows:
            return Kind.ROW_GROUP, int(number) * rows // context.plan.group_windows
        return Kind.LEFTOVER, None
    return Kind.SET_UP, None


def _root(storage: Storage) -> tuple[bool, list[Damage]]:
    """Whether the root says complete, and what is wrong with it."""
    try:
        return bool(root_file.check_format(storage, root_file.FORMAT).get("complete")), []
    except StoreError as error:
        # The list of files outlives its root: what it says is then compared.
        complete = storage.exists(manifest.KEY)
        text = str(error).partition(": ")[2]
        return complete, [Damage(root_file.METADATA, f"cannot be used: {text}", Kind.ROOT)]


def _compare(
    context: RunContext, expected: Mapping[str, Entry], sizes: Mapping[str, int], whole: bool
) -> Iterator[Damage]:
    def compared(item: tuple[str, Entry]) -> str | None:
        key, entry = item
        if key in sizes:
            if sizes[key] != entry[0]:
                return f"has {sizes[key]} bytes in place of {entry[0]}"
            if not whole and "/c/" in key and owner(context, key)[0] in _LARGE:
                return None
        return manifest.difference(_read(context.storage, key), entry)

    with ThreadPoolExecutor(_READERS) as pool:
        for key, wrong in zip(expected, pool.map(compared, expected.items()), strict=True):
            if wrong:
                yield _named(context, key, wrong)


#: Kinds whose chunks may be large.
_LARGE = (Kind.ROW_GROUP, Kind.SEQUENCES)


def _read(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.read(key)
    except FileNotFoundError:
        return None


def _named(context: RunContext, key: str, wrong: str) -> Damage:
    kind, group = owner(context, key)
    return Damage(key, wrong, kind, group)


def _strays(
    context: RunContext, expected: Mapping[str, Entry], keys: Iterable[str]
) -> Iterator[Damage]:
    """Files of a finished store that are not in its list."""
    arrays = {key.removesuffix(root_file.METADATA) for key in expected if "/" in key}
    for key in keys:
        if key in expected or not manifest.is_listed(key):
            continue
        array = key.partition("/c/")[0] + "/"
        ours = bool(_OF_ROWS.fullmatch(key)) or _is_draft(key)
        ours = ours or ("/c/" in key and array in arrays and _is_chunk(key))
        yield Damage(key, "is no part of the store", Kind.LEFTOVER if ours else Kind.ALIEN)


def _inputs(context: RunContext, sizes: Mapping[str, int]) -> Iterator[Damage]:
    """What an unfinished run kept of its inputs: no list vouches for it, but its own checksums."""
    identity, folder = context.facts.identity, context.folder
    readers: dict[str, Callable[[], object]] = {
        LABELS: lambda: folder.read_labels(identity.labels),
        ANNOTATIONS: lambda: folder.read_annotations(identity.annotations),
        INPUT: folder.read_input,
    }
    for name, read in readers.items():
        key = f"{FOLDER}/{name}"
        if key not in sizes:
            if key in (context.facts.inputs or ()):
                yield Damage(key, "is missing", Kind.INPUT)
            continue
        try:
            read()
        except DamagedError:
            yield Damage(key, "was changed: another content than its checksum", Kind.INPUT)


def _is_draft(key: str) -> bool:
    """Whether a killed write left it."""
    return bool(DRAFT.fullmatch(key.rpartition("/")[2]))


def _is_chunk(key: str) -> bool:
    return all(part.isdecimal() for part in key.partition("/c/")[2].split("/"))


def _shards(context: RunContext, named: set[str]) -> list[Damage]:
    """What the shards say of themselves, against what the run was made of."""
    key = f"{SEQUENCES}/{root_file.METADATA}"
    try:
        attributes = sequences.Sequences(context.storage.child(SEQUENCES)).attributes
        expected = asdict(context.facts.identity.sequences)
        other = [name for name in expected if attributes.get(name) != expected[name]]
        wrong = f"says another {' and '.join(other)} than the run" if other else None
    except StoreError as error:
        wrong = f"cannot be used: {str(error).partition(': ')[2]}"
    return [Damage(key, wrong, Kind.SEQUENCES)] if wrong and key not in named else []
