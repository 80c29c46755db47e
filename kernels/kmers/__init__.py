"""Bases to token ids, reverse complement and ambiguity counts; see README.md."""

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
