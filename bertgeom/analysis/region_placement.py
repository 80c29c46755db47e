"""Regions mapped to the records of a database: across an origin, beyond an end, or absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bertgeom.analysis.annotations import Annotations, group_regions
from bertgeom.analysis.region_files import Region, RegionFile
from bertgeom.errors import InputError

_OTHER_VERSION = "are these regions of another version of the assembly?"


@dataclass(frozen=True)
class AnnotationSummary:
    """How the regions of a file match the records.

    Attributes:
        format: "BED", "GFF3" or "GTF".
        groups, regions: in the file; blocks and parts count one by one.
        placed: regions on records of the database, and of these
        wrapped: across the origin of a circular record,
        cut: that end beyond their record; the part inside is used.
        absent_regions, absent_records: regions on, and number of, sequences that are no record
            of the database.
        shorter: records longer than the file declares them.
        bare_records: records of the database without a region.
    """

    format: str
    groups: int
    regions: int
    placed: int
    wrapped: int
    cut: int
    absent_regions: int
    absent_records: int
    shorter: int
    bare_records: int

    def lines(self) -> list[str]:
        """Lines for the user: what was used, and what was left out."""
        found = [
            f"annotations: {self.placed} of {self.regions} regions ({self.format}) in "
            f"{self.groups} groups lie on records of the database"
        ]
        for number, text in (
            (self.wrapped, "cross the origin of a circular record"),
            (self.cut, "end beyond their record and are cut there"),
            (self.absent_regions, f"lie on {self.absent_records} sequences that are no record"),
        ):
            if number:
                found.append(f"annotations: {number} regions {text}")
        if self.shorter:
            found.append(f"annotations: {self.shorter} records are longer than the file declares")
        if self.bare_records:
            found.append(f"annotations: {self.bare_records} records have no region")
        return found


def place_regions(
    annotations: Annotations, record_ids: Sequence[str], lengths: np.ndarray
) -> tuple[Annotations, AnnotationSummary]:
    """Annotations on the records of a database.

    Args:
        annotations: as read from a file.
        record_ids: (records,) ids, lengths: (records,) bases.

    Returns:
        The annotations, with regions across a circular origin in two parts, and what was
        counted.

    Raises:
        InputError: if no record has regions, if a region begins beyond its record, if more
            than half of them end beyond, or if a declared length is not that of the record.
    """
    annotations.require(record_ids)
    file = annotations.file or RegionFile(annotations.source)
    spans = _spans(record_ids, lengths)
    for sequence, (shortest, longest) in spans.items():
        _check_declared(file, sequence, shortest, longest)
    regions: list[Region] = []
    wrapped = cut = placed = 0
    for region in file.regions:
        parts = [region]
        if region.sequence in spans:
            shortest, longest = spans[region.sequence]
            placed += 1
            if region.start >= longest:
                raise _beyond(file, region, longest)
            if region.stop > shortest and region.sequence in file.circular:
                parts = _wrapped(file, region, longest)
                wrapped += 1
            else:
                cut += region.stop > shortest
        regions += parts
    if 2 * cut > placed:
        raise InputError(
            "regions inside their records",
            f"{cut} of {placed} that end beyond",
            source=file.source,
            remedy=_OTHER_VERSION,
        )
    if wrapped:
        placed_on = group_regions(regions, source=annotations.source, group_by=annotations.group_by)
        annotations = replace(placed_on, file=annotations.file, group_by=annotations.group_by)
    sequences = set(annotations.by_sequence)
    return annotations, AnnotationSummary(
        format=file.format,
        groups=annotations.n_groups,
        regions=len(file.regions),
        placed=placed,
        wrapped=wrapped,
        cut=cut,
        absent_regions=len(file.regions) - placed,
        absent_records=len(sequences - spans.keys()),
        shorter=sum(
            file.declared[s] < longest for s, (_, longest) in spans.items() if s in file.declared
        ),
        bare_records=sum(name not in sequences for name in record_ids),
    )


def _spans(record_ids: Sequence[str], lengths: np.ndarray) -> dict[str, tuple[int, int]]:
    """Shortest and longest record of every id; ids may repeat."""
    spans: dict[str, tuple[int, int]] = {}
    for name, length in zip(record_ids, lengths.tolist(), strict=True):
        low, high = spans.get(name, (length, length))
        spans[name] = min(low, length), max(high, length)
    return spans


def _check_declared(file: RegionFile, sequence: str, shortest: int, longest: int) -> None:
    circular = file.circular.get(sequence)
    if circular is not None and not circular == shortest == longest:
        found = f"a circular landmark of {circular} in the annotations"
    elif file.declared.get(sequence, 0) > longest:
        found = f"##sequence-region to {file.declared[sequence]} in the annotations"
    else:
        return
    raise InputError(
        f"a sequence of {longest} bases as in the database",
        found,
        source=file.source,
        record=sequence,
        remedy=_OTHER_VERSION,
    )


def _wrapped(file: RegionFile, region: Region, length: int) -> list[Region]:
    over = region.stop - length
    if over > region.start:
        raise InputError(
            f"a region of at most {length} bases, the length of the circular record",
            f"{region.stop - region.start} ({region.name!r})",
            source=file.source,
            record=region.sequence,
            line=region.line,
        )
    return [replace(region, stop=length), replace(region, start=0, stop=over)]


def _beyond(file: RegionFile, region: Region, length: int) -> InputError:
    return InputError(
        f"regions inside the {length} bases of the record",
        f"{region.name!r} from base {region.start + 1} to {region.stop}",
        source=file.source,
        record=region.sequence,
        line=region.line,
        remedy=_OTHER_VERSION,
    )
