"""Labels of records: a table that a user gives, and the cohort of every record.

Tables come from many tools: tab or comma, with a header of any name or without, keyed by record
id or by record index. Rows about records that are not in the database are counted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertgeom.errors import InputError
from bertgeom.sequences.textlines import read_lines

_INDEX_HEADERS = ("index", "record_index")
_ID_HEADERS = ("id", "record", "record_id", "name")
_LABEL_HEADERS = ("label", "class", "cohort")
_WHAT = "a table of labels"
#: Names that outputs use for sets of windows.
RESERVED = ("all", "all windows", "unlabelled")


@dataclass(frozen=True)
class Labels:
    """Labels of records, as read from a file.

    Attributes:
        names: label names, sorted; the code of a label is its position.
        by_key: record id, or record index as a string -> code.
        keys_are_indices: what the file's header says; None if it has no known header.
        source: the file.
        first_key: key of the first row where it may be a header of another name.
        column: name of the column of labels, if there is a known header.
        line: key -> line of the file.
    """

    names: tuple[str, ...]
    by_key: Mapping[str, int]
    keys_are_indices: bool | None
    source: str
    first_key: str | None = None
    column: str | None = None
    line: Mapping[str, int] | None = None


@dataclass(frozen=True)
class LabelSummary:
    """How a table of labels matches the records.

    Attributes:
        records: in the database. labelled: with a label. unknown: keys that are no record.
        header: the first row, if it was taken for a header; None otherwise.
        dropped: labels that only unknown records have.
    """

    records: int
    labelled: int
    unknown: int
    header: str | None
    dropped: tuple[str, ...]

    def lines(self) -> list[str]:
        """Lines for the user: what was used, and what was left out."""
        found = [f"labels: {self.labelled} of {self.records} records are labelled"]
        if self.header is not None:
            found.append(f"labels: the first row ({self.header}) is taken for a header")
        if self.unknown:
            found.append(f"labels: {self.unknown} keys of the table are no record")
        if self.dropped:
            some = ", ".join(self.dropped[:4]) + (", ..." if len(self.dropped) > 4 else "")
            found.append(f"labels: {len(self.dropped)} of no record are left out: {some}")
        return found


@dataclass(frozen=True)
class LabelledRecords:
    """The cohort of every record.

    Attributes:
        codes: (records,) int32, -1 without a label.
        names: labels that records have, sorted. summary: the counts.
    """

    codes: np.ndarray
    names: tuple[str, ...]
    summary: LabelSummary


def read_labels(path: str | Path) -> Labels:
    """Read a table of record and label, separated by tabs or commas.

    A first field `id`, `record`, `record_id` or `name` (or `index`, `record_index`) of the
    first line says that it is a header, and that the keys are record ids (or record indices,
    from 0). A header of another name is found by `label_records`. Labels are in the second
    column; of more than two, in the one called `label`, `class` or `cohort`, if there is one.
    Empty lines and lines that start with # are skipped.

    Args:
        path: a text file, plain or compressed; a URL or a pipe too.

    Raises:
        InputError: for a file that cannot be read as text, a line without two fields, a key
            with two labels, or an empty table.

    Example:
        >>> from bertgeom.analysis.labels import read_labels
        >>> read_labels("labels.tsv").names
        ('a', 'b')
    """
    source = str(path)
    by_key: dict[str, str] = {}
    lines: dict[str, int] = {}
    keys_are_indices: bool | None = None
    first_key = column = None
    key_at, label_at = 0, 1
    for place, (number, fields) in enumerate(_rows(path)):
        if place == 0:
            key_at, label_at, header = _columns(fields)
            if header:
                keys_are_indices = fields[key_at].lower() in _INDEX_HEADERS
                column = fields[label_at] if len(fields) > label_at else None
                continue
        if len(fields) <= max(key_at, label_at) or not fields[key_at] or not fields[label_at]:
            raise InputError(
                "two tab-separated fields, record and label (or separated by commas)",
                repr("\t".join(fields)[:60]),
                source=source,
                line=number,
            )
        key, label = fields[key_at], fields[label_at]
        if place == 0:
            first_key = key
        if by_key.setdefault(key, label) != label:
            raise InputError(
                "one label per record",
                f"{by_key[key]!r} and {label!r}",
                source=source,
                record=key,
                line=number,
            )
        if key in lines and key == first_key:
            first_key = None
        lines.setdefault(key, number)
    if not by_key:
        raise InputError("at least one labelled record", "none", source=source)
    names = tuple(sorted(set(by_key.values())))
    code = {name: i for i, name in enumerate(names)}
    codes = {k: code[v] for k, v in by_key.items()}
    return Labels(names, codes, keys_are_indices, source, first_key, column, lines)


def assign_labels(labels: Labels, record_ids: Sequence[str]) -> np.ndarray:
    """Code of every record, (R,) int32, -1 for records without a label.

    Without a header the keys are record ids, unless all of them are integers and none is a
    record id: then they are record indices. A key may include the rest of the record's header
    line. Records that share an id share its label.

    Args:
        labels: a table. record_ids: the ids of all R records, in the order of the store.

    Raises:
        InputError: if no record has a label, an index is beyond the last record, or two keys
            of one record have two labels.

    Example:
        >>> from bertgeom.analysis.labels import assign_labels, read_labels
        >>> assign_labels(read_labels("labels.tsv"), ["r1", "r0", "unknown"]).tolist()
        [1, 0, -1]
    """
    return _assigned(labels, record_ids)[0]


def label_records(labels: Labels, record_ids: Sequence[str]) -> LabelledRecords:
    """The cohort of every record; labels that no record has are left out and counted.

    Raises:
        InputError: as `assign_labels`, and for a label with a name that outputs use otherwise.
    """
    codes, unknown, header = _assigned(labels, record_ids)
    used = np.unique(codes[codes >= 0])
    names = tuple(labels.names[code] for code in used)
    if reserved := sorted(set(names) & set(RESERVED)):
        raise InputError(
            f"labels other than {', '.join(RESERVED)}, which outputs use for sets of windows",
            repr(reserved[0]),
            source=labels.source,
            remedy="rename the label",
        )
    carried = {labels.names[c] for k, c in labels.by_key.items() if k != header}
    renumbered = np.full(len(labels.names) + 1, -1, dtype=np.int32)
    renumbered[used] = np.arange(len(used))
    summary = LabelSummary(
        records=len(record_ids),
        labelled=int((codes >= 0).sum()),
        unknown=len(unknown),
        header=None if header is None else f"{header}, {labels.names[labels.by_key[header]]}",
        dropped=tuple(sorted(carried - set(names))),
    )
    return LabelledRecords(renumbered[codes], names, summary)


def _assigned(
    labels: Labels, record_ids: Sequence[str]
) -> tuple[np.ndarray, list[str], str | None]:
    """Code of every record, keys that are no record, and the key of a header row."""
    known = set(record_ids)
    header = labels.first_key if _matching(labels.first_key or "", known) is None else None
    keys = [key for key in labels.by_key if key != header] or list(labels.by_key)
    by_index = labels.keys_are_indices
    if by_index is None:
        by_index = all(map(_is_index, keys)) and known.isdisjoint(keys)
    if by_index:
        if header is not None and (labels.keys_are_indices or _is_index(header)):
            header = None
        codes = _assign_by_index(labels, len(record_ids), header)
        return codes, [], header
    by_id: dict[str, tuple[str, int]] = {}
    unknown = []
    for key in keys:
        name = _matching(key, known)
        if name is None:
            unknown.append(key)
            continue
        code = labels.by_key[key]
        other, other_code = by_id.setdefault(name, (key, code))
        if other_code != code:
            both = f"{labels.names[other_code]!r} ({other!r}) and {labels.names[code]!r} ({key!r})"
            raise _two_labels(labels, key, name, both)
    if not by_id:
        raise _no_match(labels, record_ids)
    if header is not None and 2 * len(by_id) <= len(keys):
        unknown.insert(0, header)
        header = None
    found = [by_id[name][1] if name in by_id else -1 for name in record_ids]
    return np.array(found, dtype=np.int32), unknown, header


def _matching(key: str, known: set[str]) -> str | None:
    """The record that a key refers to, by its id or its whole header line."""
    for candidate in (key, key.removeprefix(">"), *key.removeprefix(">").split()[:1]):
        if candidate in known:
            return candidate
    return None


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdigit()


def _assign_by_index(labels: Labels, n_records: int, header: str | None) -> np.ndarray:
    codes = np.full(n_records, -1, dtype=np.int32)
    for key, code in labels.by_key.items():
        if key == header:
            continue
        if not (_is_index(key) and len(key) < 18 and int(key) < n_records):
            raise InputError(
                f"record indices from 0 to {n_records - 1}",
                repr(key[:60]),
                source=labels.source,
                line=(labels.line or {}).get(key),
            )
        if codes[int(key)] not in (-1, code):
            both = f"{labels.names[codes[int(key)]]!r} and {labels.names[code]!r}"
            raise _two_labels(labels, key, key, both)
        codes[int(key)] = code
    return codes


def _two_labels(labels: Labels, key: str, record: str, both: str) -> InputError:
    return InputError(
        "one label per record",
        both,
        source=labels.source,
        record=record,
        line=(labels.line or {}).get(key),
    )


def _no_match(labels: Labels, record_ids: Sequence[str]) -> InputError:
    by_stem = {name.rpartition(".")[0] or name: name for name in record_ids}
    remedy = (
        "use ids as in the FASTA headers up to the first blank, or a header line "
        "'index<TAB>label' and record indices"
    )
    for key in labels.by_key:
        stem = key.rpartition(".")[0] if key.rpartition(".")[2].isdigit() else key
        for name in (by_stem.get(key), by_stem.get(stem)):
            if name is not None and name != key:
                remedy = f"is {key!r} the record {name!r}? Version suffixes must agree"
                break
        else:
            continue
        break
    else:
        if record_ids:
            remedy = f"the first record is {record_ids[0]!r}; {remedy}"
    return InputError(
        "labels of records of this database",
        f"{len(labels.by_key)} keys, none of them among {len(record_ids)} record ids",
        source=labels.source,
        remedy=remedy,
    )


def _columns(fields: list[str]) -> tuple[int, int, bool]:
    """Where keys and labels are, and whether this first row is a header."""
    low = [field.lower() for field in fields]
    labels = [i for i, name in enumerate(low) if name in _LABEL_HEADERS]
    if low[0] in _ID_HEADERS + _INDEX_HEADERS:
        label = labels[0] if len(low) > 2 and labels and labels[0] else 1
        return 0, label, True
    keys = [i for i, name in enumerate(low) if name in _ID_HEADERS + _INDEX_HEADERS]
    if keys and labels and keys[0] != labels[0]:
        return keys[0], labels[0], True
    return 0, 1, False


def _rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row; tabs or commas, whichever the first row has."""
    kept = (
        (number, line)
        for number, line in read_lines(path, _WHAT)
        if line.strip() and not line.startswith("#")
    )
    separator = None
    for number, line in kept:
        if separator is None:
            separator = "\t" if "\t" in line or "," not in line else ","
        if separator == "\t":
            yield number, [_unquoted(field) for field in line.split("\t")]
            continue
        try:
            (fields,) = csv.reader([line], strict=True, skipinitialspace=True)
        except csv.Error as error:
            raise InputError(
                "fields separated by commas, quotes closed",
                repr(line[:60]),
                source=str(path),
                line=number,
            ) from error
        yield number, [field.strip() for field in fields]


def _unquoted(field: str) -> str:
    field = field.strip()
    if len(field) > 1 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"').strip()
    return field
