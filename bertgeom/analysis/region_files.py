"""Regions of records in BED, GFF3 and GTF files; the format is detected from the content.

No existing parser reads all three. gffutils keeps GFF3 and GTF in an SQLite database and reads
no BED, bcbio-gff needs Biopython, biotite reads only GFF3, pyranges brings pandas. What is needed
is a few columns of each line, and the number of the line that is wrong.

Specifications: BED (UCSC, GA4GH BEDv1), GFF3 (Sequence Ontology, version 1.26), GTF 2.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from bertgeom.errors import InputError, UsageError
from bertgeom.sequences.textlines import read_lines

_NAME_ATTRIBUTES = ("Name", "ID", "gene", "Parent")
_GTF_NAMES = ("gene_name", "gene_id", "transcript_id")
_COORDINATE = re.compile(r"[0-9]{1,15}")
_GTF_PAIR = re.compile(r'\s*([^\s";=]+)\s+("(?:[^"\\]|\\.)*"|[^\s";]+)\s*(?:;|$)')
_STRANDS = {"+", "-", ".", "?"}
_WHAT = "regions in BED, GFF3 or GTF"


@dataclass(frozen=True)
class Region:
    """One interval: `start`, `stop` are 0-based and half-open in `sequence`.

    Attributes:
        sequence: id of the record.
        name: what names it. kind: the feature type of GFF3 and GTF.
        line: its line in the file, None if it comes from no file.
    """

    sequence: str
    start: int
    stop: int
    name: str
    kind: str = "region"
    line: int | None = None


@dataclass
class RegionFile:
    """The content of a region file.

    Attributes:
        format: "BED", "GFF3" or "GTF".
        regions: in the order of the file; a BED line with blocks gives one per block.
        declared: sequence -> last base by `##sequence-region`.
        circular: sequence -> bases of a landmark with `Is_circular=true`.
    """

    source: str
    format: str = ""
    regions: list[Region] = field(default_factory=list)
    declared: dict[str, int] = field(default_factory=dict)
    circular: dict[str, int] = field(default_factory=dict)


def read_regions(path: str | Path, group_by: str = "name") -> RegionFile:
    """All regions of a file.

    Raises:
        InputError: for a malformed line, with its number. UsageError: for groups by type of BED.
    """
    found = RegionFile(str(path))
    version = ""
    names: dict[tuple[str, str], str] = {}
    for number, line in read_lines(path, _WHAT):
        if line.startswith(("##FASTA", ">")) and found.format != "BED":
            break
        if line.startswith("##"):
            version = _directive(line, version, found, number)
        if not line.strip() or line.startswith("#") or _is_header(line):
            continue
        fields = line.rstrip(" ").split("\t")
        found.format = found.format or _format(fields, version)
        if found.format == "BED" and group_by == "type":
            raise UsageError(
                f"expected GFF3 or GTF for groups by type, found BED in {found.source}"
            )
        try:
            found.regions += _PARSERS[found.format](fields, number, found, names)
        except _MalformedLine as error:
            raise _error(found, number, str(error), line) from None
    return found


class _MalformedLine(Exception):
    """A line is not as expected; the message says what was expected."""


def _directive(line: str, version: str, found: RegionFile, number: int) -> str:
    """The version that the file declares; declared lengths are added to `found`."""
    words = line.split()
    if words[0] == "##gff-version" and len(words) > 1:
        if words[1].partition(".")[0] not in ("2", "3"):
            raise _error(found, number, "GFF version 3", line)
        return words[1].partition(".")[0]
    if words[0] == "##sequence-region" and len(words) == 4:
        sequence = unquote(words[1])
        if not (_COORDINATE.fullmatch(words[2]) and _COORDINATE.fullmatch(words[3])):
            raise _error(found, number, "##sequence-region with a name and two numbers", line)
        found.declared[sequence] = int(words[3])
    return version


def _error(found: RegionFile, number: int, expected: str, line: str) -> InputError:
    return InputError(expected, repr(line[:60]), source=found.source, line=number)


def _is_header(line: str) -> bool:
    """Whether a line is meant for a genome browser; a record may be named `track`, too."""
    words = line.split()
    return words[0] in ("track", "browser") and not (
        len(words) > 2 and _COORDINATE.fullmatch(words[1]) and _COORDINATE.fullmatch(words[2])
    )


def _format(fields: list[str], version: str) -> str:
    if version == "3":
        return "GFF3"
    looks_gff = (
        len(fields) >= 8
        and _COORDINATE.fullmatch(fields[3])
        and not (_COORDINATE.fullmatch(fields[1]) and _COORDINATE.fullmatch(fields[2]))
    )
    if not looks_gff and not version:
        return "BED"
    attributes = fields[8].strip() if len(fields) > 8 else ""
    is_gtf = version == "2" or (_GTF_PAIR.match(attributes) and "gene_id" in attributes)
    return "GTF" if is_gtf else "GFF3"


def _coordinate(text: str, expected: str) -> int:
    if not _COORDINATE.fullmatch(text):
        raise _MalformedLine(expected)
    return int(text)


_Names = dict[tuple[str, str], str]


def _bed(fields: list[str], number: int, found: RegionFile, names: _Names) -> list[Region]:
    expected = "sequence, start < stop"
    if len(fields) < 3:
        fields = "\t".join(fields).split()
    if len(fields) < 3 or not fields[0]:
        raise _MalformedLine(expected)
    start, stop = (_coordinate(x.strip(), expected) for x in fields[1:3])
    if start >= stop:
        raise _MalformedLine(expected)
    name = fields[3].strip() if len(fields) > 3 else ""
    name = name or f"{fields[0]}:{start}-{stop}"
    return [
        Region(fields[0], start + a, start + b, name, line=number)
        for a, b in _blocks(fields, stop - start)
    ]


def _blocks(fields: list[str], length: int) -> Iterator[tuple[int, int]]:
    """Blocks of a BED12 line from its start; the whole region if there are none."""
    if len(fields) < 11 or (len(fields) == 11 and not fields[10].strip(" ,")):
        yield 0, length
        return
    expected = (
        "BED12 blocks (columns 10 to 12: count, sizes, starts) in order, without overlap, from "
        "the region's start to its stop"
    )
    if len(fields) < 12:
        raise _MalformedLine(expected)
    count = _coordinate(fields[9].strip(), expected)
    sizes, starts = (
        [_coordinate(x.strip(), expected) for x in column.strip().removesuffix(",").split(",")]
        for column in fields[10:12]
    )
    stops = [a + n for a, n in zip(starts, sizes, strict=False)]
    ordered = all(b <= a for b, a in zip(stops, starts[1:], strict=False))
    fits = starts[0] == 0 and stops[-1] == length and min(sizes) > 0
    if not (count == len(sizes) == len(starts) and ordered and fits):
        raise _MalformedLine(expected)
    yield from zip(starts, stops, strict=True)


def _one_based(fields: list[str], kind: str, circular: bool) -> tuple[int, int]:
    expected = f"nine {kind} columns with 1 <= start <= end"
    if len(fields) != 9 or not fields[0]:
        raise _MalformedLine(expected)
    first, last = (_coordinate(x.strip(), expected) for x in fields[3:5])
    if first > last and circular:
        expected += " (across the origin of a circular record, end plus the record's length)"
    if not 1 <= first <= last:
        raise _MalformedLine(expected)
    return first - 1, last


def _gff(fields: list[str], number: int, found: RegionFile, names: _Names) -> list[Region]:
    start, stop = _one_based(fields, "GFF3", True)
    if fields[6] not in _STRANDS:
        raise _MalformedLine("GFF3 with one of + - . ? as the strand")
    attributes = _gff_attributes(fields[8])
    sequence, kind = unquote(fields[0]), unquote(fields[2])
    if attributes.get("Is_circular", "").lower() == "true":
        # A landmark spans its sequence; another circular feature says nothing about its length.
        if start == 0:
            found.circular[sequence] = max(stop, found.circular.get(sequence, 0))
        else:
            raise _MalformedLine("a feature with Is_circular=true that starts at base 1")
    parents = attributes.get("Parent", "").split(",")
    first = next((a for a in _NAME_ATTRIBUTES if attributes.get(a)), None)
    if first == "Parent":
        chosen = [unquote(parent) for parent in parents if parent]
    else:
        chosen = [unquote(attributes[first]) if first else kind]
    if "ID" in attributes:
        # Lines with one ID are parts of one feature, even if only the first has its name.
        key = (attributes["ID"], kind)
        chosen = [names.setdefault(key, chosen[0])]
    return [Region(sequence, start, stop, name, kind, number) for name in chosen]


def _gff_attributes(column: str) -> dict[str, str]:
    """Values by key, still percent-encoded."""
    found = {}
    for part in column.split(";"):
        key, equals, value = part.partition("=")
        if part.strip() in ("", "."):
            continue
        if not equals or not key.strip():
            raise _MalformedLine("GFF3 attributes like key=value;key=value")
        found[unquote(key.strip())] = value.strip()
    return found


def _gtf(fields: list[str], number: int, found: RegionFile, names: _Names) -> list[Region]:
    start, stop = _one_based(fields, "GTF", False)
    attributes = _gtf_attributes(fields[8])
    name = next((attributes[a] for a in _GTF_NAMES if attributes.get(a)), fields[2])
    return [Region(fields[0], start, stop, name, fields[2], number)]


def _gtf_attributes(column: str) -> dict[str, str]:
    """First value by key."""
    found: dict[str, str] = {}
    place = 0
    while column[place:].strip(" ;") and not column[place:].lstrip().startswith("#"):
        pair = _GTF_PAIR.match(column, place)
        if pair is None:
            raise _MalformedLine('GTF attributes like gene_id "x"; transcript_id "y";')
        value = pair[2]
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found.setdefault(pair[1], value)
        place = pair.end()
    if "gene_id" not in found:
        raise _MalformedLine('GTF attributes with gene_id "..."')
    return found


_PARSERS = {"BED": _bed, "GFF3": _gff, "GTF": _gtf}
