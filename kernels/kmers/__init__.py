"""Bases to token ids, reverse complement and ambiguity counts.

`alphabet` codes bases, `table` holds vocabularies, `cpu` has the loops, `reference` is the oracle.
Read README.md first. May import from: `kernels._cpu`. Knows no tensor and no GPU.
"""

from __future__ import annotations

from bertgeom.kernels.kmers.api import (
    SplitTokens,
    count_ambiguous,
    encode_kmers,
    encode_singles,
    encode_split,
    kmer_keys,
    kmer_places,
    n_kmers,
    reverse_complement,
)
from bertgeom.kernels.kmers.table import KmerTable, pack_kmers, single_table, unpack_kmers

__all__ = [
    "KmerTable",
    "SplitTokens",
    "count_ambiguous",
    "encode_kmers",
    "encode_singles",
    "encode_split",
    "kmer_keys",
    "kmer_places",
    "n_kmers",
    "pack_kmers",
    "reverse_complement",
    "single_table",
    "unpack_kmers",
]
