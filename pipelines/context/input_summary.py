"""What a run was given and what of it is left out, counted once and kept in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bertgeom.analysis.labels import LabelSummary
from bertgeom.analysis.region_placement import AnnotationSummary


@dataclass(frozen=True)
class InputSummary:
    """Counts of records, labels and annotations.

    Attributes:
        records: in the database. empty_records: those without bases, which have no window.
        labels, annotations: None where none were given.
    """

    records: int
    empty_records: int
    labels: LabelSummary | None = None
    annotations: AnnotationSummary | None = None

    @classmethod
    def of_json(cls, facts: Mapping[str, Any]) -> InputSummary:
        """The inverse of `to_json`."""
        labels, annotations = facts["labels"], facts["annotations"]
        return cls(
            facts["records"],
            facts["empty_records"],
            labels and LabelSummary(**{**labels, "dropped": tuple(labels["dropped"])}),
            annotations and AnnotationSummary(**annotations),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-able content; the same for equal runs."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people: what was used, and what was left out."""
        found = []
        if self.empty_records:
            found.append(f"records: {self.empty_records} of {self.records} have no bases")
        for part in (self.labels, self.annotations):
            found += part.lines() if part is not None else []
        return found
