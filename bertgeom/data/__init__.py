"""Data that ships with the package: reference, lineage facts, demo spikes, a trained model.

Every function returns a path on disk (the package is always installed unpacked) except
`reference`, which returns the bases themselves. The README in
this folder says where each file comes from.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "REFERENCE_ID",
    "REFERENCE_SHA256",
    "demo_genomes",
    "demo_labels",
    "demo_model",
    "lineage_mutations",
    "reference",
    "reference_path",
    "sublineages",
]

REFERENCE_ID = "NC_045512.2"
REFERENCE_SHA256 = "7d5621cd3b3e498d0c27fcca9d3d3c5168c7f3d3f9776f3005c7011bd90068ca"

_FOLDER = Path(__file__).resolve().parent


def reference_path() -> Path:
    """The SARS-CoV-2 reference genome, gzipped FASTA with one record."""
    return _FOLDER / "NC_045512.2.fasta.gz"


def reference() -> np.ndarray:
    """The reference genome NC_045512.2: (29903,) uint8, upper-case ASCII, read-only."""
    return _reference()


def lineage_mutations() -> Path:
    """Lineage-defining nucleotide changes relative to the reference, 1-based (TSV)."""
    return _FOLDER / "lineage_mutations.tsv"


def sublineages() -> Path:
    """Descendants of those lineages and common background lineages (TSV)."""
    return _FOLDER / "sublineages.tsv"


def demo_model() -> Path:
    """Folder of the trained variant classifier, in Hugging Face layout."""
    return _FOLDER / "model"


def demo_genomes() -> Path:
    """Simulated spike genes of all nine classes, gzipped FASTA."""
    return _FOLDER / "demo_spikes.fasta.gz"


def demo_labels() -> Path:
    """TSV with the columns `record_id`, `class`, `lineage`, one row per demo genome."""
    return _FOLDER / "demo_labels.tsv"


@cache
def _reference() -> np.ndarray:
    with gzip.open(reference_path(), "rt", encoding="ascii") as lines:
        next(lines)
        text = "".join(line.strip() for line in lines)
    import numpy as np

    return np.frombuffer(text.encode("ascii"), np.uint8)
