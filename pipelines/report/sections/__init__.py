"""Sections of a report: figures with captions, and sentences computed from the means.

`attention` has the heads, `stream` the token vectors, `cohorts` what sets cohorts apart, `store`
key figures and definitions. Read `attention` first. May import from: `page`, `summary`, `figures`.
"""

from bertgeom.pipelines.report.sections.attention import gates, groups, head_table, reach
from bertgeom.pipelines.report.sections.cohorts import cohorts
from bertgeom.pipelines.report.sections.store import definitions, overview
from bertgeom.pipelines.report.sections.stream import cone, information_stream, spectra, weights

__all__ = [
    "cohorts",
    "cone",
    "definitions",
    "gates",
    "groups",
    "head_table",
    "information_stream",
    "overview",
    "reach",
    "spectra",
    "weights",
]
