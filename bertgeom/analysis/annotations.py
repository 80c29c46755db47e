"""Annotated regions of records -> groups of tokens.

A region is a named set of half-open, 0-based intervals of a record (a protein domain, an
exon). Regions of the same name are one group; up to 16 groups are bits of an int32 per
token. **A token belongs to a group if its bases overlap one of its intervals by at least one
base.** Special tokens have no bases and belong to none. Groups may overlap.

Definitions: `docs/catalogue.md`; the masses are those of Vig et al. 2021.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom import variables
from bertgeom.analysis.region_files import Region, RegionFile, read_regions
from bertgeom.config import GROUP_BY
from bertgeom.errors import InputError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from bertgeom.kernels.attention_stats.bias import Bias

#: Thresholds are lowered by this relative amount, see `docs/statistics.md` section 8.
_SLACK = 1e-5
_CIGAR = re.compile(r"(\d+)([MIDNSHP=X])")
_BOTH, _RECORD, _REFERENCE = "M=X", "IS", "DN"


@dataclass(frozen=True)
class Intervals:
    """Disjoint, sorted intervals: start, stop (k,) int64."""

    start: np.ndarray
    stop: np.ndarray

    def overlaps(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Whether [start, stop) (n,) meets any of the intervals; empty ranges never do."""
        if not len(self.start):
            return np.zeros(len(start), dtype=bool)
        following = np.searchsorted(self.stop, start, side="right")
        first = self.start[np.minimum(following, len(self.start) - 1)]
        return (following < len(self.start)) & (first < stop) & (start < stop)


@dataclass(frozen=True)
class Alignment:
    """Which parts of a record align with which parts of a reference, on the same strand.

    Attributes:
        reference: (k,) int64, first base of every gapless block on the reference, ascending.
        record: (k,) int64, first base of the block in the record.
        length: (k,) int64, bases of the block.
    """

    reference: np.ndarray
    record: np.ndarray
    length: np.ndarray

    def lift(self, start: int, stop: int) -> tuple[int, int] | None:
        """The record's interval for [start, stop) of the reference, None if nothing aligns.

        From the first to the last aligned base inside: insertions between them belong to the
        region, bases beyond the alignment do not.
        """
        low = np.maximum(start - self.reference, 0)
        high = np.minimum(stop - self.reference, self.length)
        inside = np.flatnonzero(low < high)
        if not len(inside):
            return None
        first, last = inside[0], inside[-1]
        return int(self.record[first] + low[first]), int(self.record[last] + high[last])


@dataclass(frozen=True)
class Annotations:
    """Regions by sequence and group, ready for windows.

    Attributes:
        names: group names; the position is the bit.
        by_sequence: record (or reference) id -> one `Intervals` a group.
        source: the file.
        file: the parsed file, None if the regions come from no file.
        group_by: what makes regions one group.
    """

    names: tuple[str, ...]
    by_sequence: Mapping[str, tuple[Intervals, ...]]
    source: str
    file: RegionFile | None = None
    group_by: str = "name"

    @property
    def n_groups(self) -> int:
        return len(self.names)

    def settings(self) -> dict[str, object]:
        """Everything that defines the groups, as JSON values."""
        return {
            "names": list(self.names),
            "regions": {
                sequence: [[x.start.tolist(), x.stop.tolist()] for x in groups]
                for sequence, groups in sorted(self.by_sequence.items())
            },
        }

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any], source: str = "the store") -> Annotations:
        """The inverse of `settings`."""
        return cls(
            tuple(settings["names"]),
            {
                sequence: tuple(
                    Intervals(np.array(a, dtype=np.int64), np.array(b, dtype=np.int64))
                    for a, b in groups
                )
                for sequence, groups in settings["regions"].items()
            },
            source,
        )

    def require(self, record_ids: Iterable[str]) -> None:
        """Check that at least one record has regions.

        Raises:
            InputError: if none has: the ids of file and records do not match.
        """
        if self.by_sequence.keys().isdisjoint(record_ids):
            example = next(iter(self.by_sequence))
            raise InputError(
                "regions of records of this database",
                f"sequences such as {example!r}, none of them a record id",
                source=self.source,
                remedy="use record ids in the first column, or lift the regions of a reference",
            )

    def groups(self, record_id: str, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Bit mask of groups of every token.

        Args:
            record_id: id of the record the tokens are from.
            start, stop: (n,) bases of the tokens in the record; negative: special token.

        Returns:
            (n,) int32.
        """
        out = np.zeros(len(start), dtype=np.int32)
        for bit, intervals in enumerate(self.by_sequence.get(record_id, ())):
            out |= (intervals.overlaps(start, stop) & (start >= 0)).astype(np.int32) << bit
        return out

    def lifted(
        self, record_id: str, alignment: Alignment, reference_id: str | None = None
    ) -> Annotations:
        """These annotations of a reference in the coordinates of an aligned record.

        Args:
            record_id: the record.
            alignment: of the record with the reference.
            reference_id: the reference's id; not needed if the file has only one sequence.
        """
        if reference_id is None:
            if len(self.by_sequence) != 1:
                raise UsageError(
                    f"expected regions of one reference in {self.source}, found "
                    f"{len(self.by_sequence)} sequences; name the reference"
                )
            (reference_id,) = self.by_sequence
        groups = []
        for intervals in self.by_sequence.get(reference_id, ()):
            pairs = zip(intervals.start.tolist(), intervals.stop.tolist(), strict=True)
            moved = [alignment.lift(a, b) for a, b in pairs]
            groups.append(_merged([x for x in moved if x is not None]))
        return Annotations(self.names, {record_id: tuple(groups)}, self.source)


def read_annotations(path: str | Path, *, group_by: str = "name") -> Annotations:
    """Read a BED (3 to 12 columns), GFF3 or GTF file, plain or compressed; both are detected.

    A BED line without a name is named `sequence:start-stop`; one with blocks means its blocks.
    A GFF3 feature is named by the first that it has of `Name`, `ID`, `gene` and `Parent`, or else
    by its type; lines that share an ID and a type are one feature. A GTF feature is named by
    its `gene_name`, `gene_id` or `transcript_id`: all features of a gene are one group.

    Args:
        path: the file.
        group_by: "name", or "type" to take the feature type of GFF3 and GTF as the group.

    Raises:
        InputError: for a malformed line, no region, or more than 16 groups.
        UsageError: for another `group_by`, or "type" with BED.

    Example:
        >>> from pathlib import Path
        >>> from bertgeom.analysis.annotations import read_annotations
        >>> written = Path("genes.bed").write_text("r0\\t0\\t30\\thead\\nr0\\t60\\t90\\ttail\\n")
        >>> read_annotations("genes.bed").names
        ('head', 'tail')
    """
    if group_by not in GROUP_BY:
        raise UsageError(f"expected group_by 'name' or 'type', found {group_by!r}")
    file = read_regions(path, group_by)
    if not file.regions:
        raise InputError("at least one region", "none", source=file.source)
    found = group_regions(file.regions, source=file.source, group_by=group_by)
    return replace(found, file=file, group_by=group_by)


def group_regions(
    regions: Sequence[Region], *, source: str = "regions", group_by: str = "name"
) -> Annotations:
    """Annotations from regions; groups are numbered by first appearance.

    Raises:
        InputError: for more than 16 groups.
    """
    keys = [r.kind if group_by == "type" else r.name for r in regions]
    names = tuple(dict.fromkeys(keys))
    if len(names) > variables.MAX_GROUPS:
        raise InputError(
            f"at most {variables.MAX_GROUPS} groups of regions",
            f"{len(names)} ({', '.join(names[:4])}, ...)",
            source=source,
            remedy="keep only the lines of interest, give regions of one kind the same name, or "
            "group GFF3 and GTF features by type (--group-by type)",
        )
    bit = {name: i for i, name in enumerate(names)}
    collected: dict[str, list[list[tuple[int, int]]]] = {}
    for region, key in zip(regions, keys, strict=True):
        groups = collected.setdefault(region.sequence, [[] for _ in names])
        groups[bit[key]].append((region.start, region.stop))
    by_sequence = {
        sequence: tuple(_merged(pairs) for pairs in groups)
        for sequence, groups in collected.items()
    }
    return Annotations(names, by_sequence, source)


def alignment_of_cigar(cigar: str, *, reference_start: int, record_start: int = 0) -> Alignment:
    """The blocks of a CIGAR string (SAM, or PAF's cg tag).

    Soft clips consume record bases, as in SAM; hard clips and padding consume nothing.

    Raises:
        InputError: for a malformed string.
    """
    operations = _CIGAR.findall(cigar)
    if not operations or "".join(n + op for n, op in operations) != cigar:
        raise InputError("a CIGAR string", repr(cigar[:60]))
    reference, record = reference_start, record_start
    blocks: list[tuple[int, int, int]] = []
    for text, operation in operations:
        length = int(text)
        if operation in _BOTH:
            blocks.append((reference, record, length))
        reference += length * (operation in _BOTH + _REFERENCE)
        record += length * (operation in _BOTH + _RECORD)
    columns = np.array(blocks, dtype=np.int64).reshape(-1, 3).T
    return Alignment(*columns)


def record_intervals(
    start: np.ndarray, stop: np.ndarray, window_start: int, window_stop: int, strand: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Bases of tokens in their record, from their bases in the sequence that was encoded.

    Args:
        start, stop: (n,) offsets in the window's sequence, -1 for special tokens. On strand
            -1 that sequence is the reverse complement of the window.
        window_start, window_stop: the window in the record.

    Returns:
        start, stop (n,) int64 in the record, cut at the window's ends (a k-mer may extend
        into padding); -1 for special tokens.
    """
    length = window_stop - window_start
    special = start < 0
    low, high = np.minimum(start, length), np.minimum(stop, length)
    if strand < 0:
        low, high = length - high, length - low
    return (
        np.where(special, -1, low + window_start).astype(np.int64),
        np.where(special, -1, high + window_start).astype(np.int64),
    )


def token_share(groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Share of the n valid tokens (special ones included) in every group, (n_groups,).

    The attention mass of a group divided by this is 1 where attention ignores the region.

    Args:
        groups: (n,) integers, bit g set where the token is in group g. n_groups: at most 16.

    Example:
        >>> import numpy as np
        >>> from bertgeom.analysis.annotations import token_share
        >>> token_share(np.array([0, 1, 1, 3]), 2).tolist()  # bits: group 0, group 1
        [0.75, 0.25]
    """
    bits = (groups[:, None] >> np.arange(n_groups)) & 1
    return bits.mean(axis=0) if len(groups) else np.full(n_groups, np.nan)


def region_attention(
    query: Tensor,
    key: Tensor,
    groups: Tensor,
    n_groups: int,
    *,
    scale: float | None = None,
    window: int | None = None,
    bias: Bias | None = None,
    theta: float = 0.3,
    block: int = 256,
) -> dict[str, Tensor]:
    """Attention on every region, of one layer and window: the paper's domain proportions.

    Streams over blocks of query rows of one head; no n x n map is kept.

    Args:
        query: (H, n, d), key: (Hk, n, d), valid tokens of one window as the model computes
            them. Computed in float32, or float64 where the inputs are.
        groups: (n,) int32 bit mask of groups.
        n_groups: groups in use, at most 16.
        scale: of the logits, d^-0.5 if None.
        window: key j is visible to query i iff |i - j| <= window.
        bias: added to the logits, as the kernels take it; None: nothing.
        theta: weights of at least this size are confident.
        block: query rows at a time.

    Returns:
        (H, n_groups) each, means over query rows: `mass`; `confident_mass` and
        `confident_count` of weights >= theta; `relative_mass` = mass over the region's share
        of tokens; `confident_share` = confident_mass over the head's confident mass; NaN
        where the denominator is 0.

    Example:
        >>> import torch
        >>> from bertgeom.analysis.annotations import region_attention
        >>> query = key = torch.zeros(2, 10, 8)  # even attention
        >>> groups = torch.tensor([1] * 3 + [0] * 7, dtype=torch.int32)
        >>> region_attention(query, key, groups, 1)["mass"].round(decimals=4).tolist()
        [[0.3], [0.3]]
    """
    import torch

    from bertgeom.analysis.biases import add_bias

    heads, n, d = query.shape
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    scale = d**-0.5 if scale is None else scale
    bits = torch.arange(n_groups, device=query.device)
    member = ((groups.to(query.device)[:, None] >> bits) & 1).to(wide)
    position = torch.arange(n, device=query.device)
    received = torch.zeros(3, heads, n, dtype=torch.float64, device=query.device)
    for head in range(heads):
        k = key[head // (heads // key.shape[0])].to(wide)
        for start in range(0, n, block):
            logits = scale * (query[head, start : start + block].to(wide) @ k.mT)
            add_bias(logits, bias, head, slice(start, start + block))
            if window is not None:
                rows = position[start : start + block, None]
                logits.masked_fill_((rows - position).abs() > window, -torch.inf)
            weights = torch.softmax(logits, dim=-1)
            confident = weights >= theta * (1 - _SLACK)
            received[0, head] += weights.sum(0, dtype=torch.float64)
            received[1, head] += torch.where(confident, weights, 0).sum(0, dtype=torch.float64)
            received[2, head] += confident.sum(0)
    received /= n
    mass, confident_mass, count = received @ member.double()
    share = member.double().mean(0)
    total = received[1].sum(-1, keepdim=True)
    return {
        "mass": mass,
        "relative_mass": torch.where(share > 0, mass / share, torch.nan),
        "confident_mass": confident_mass,
        "confident_count": count,
        "confident_share": torch.where(total > 0, confident_mass / total, torch.nan),
    }


def _merged(pairs: Iterable[tuple[int, int]]) -> Intervals:
    out: list[list[int]] = []
    for start, stop in sorted(pairs):
        if out and start <= out[-1][1]:
            out[-1][1] = max(out[-1][1], stop)
        else:
            out.append([start, stop])
    columns = np.array(out, dtype=np.int64).reshape(-1, 2)
    return Intervals(columns[:, 0].copy(), columns[:, 1].copy())
