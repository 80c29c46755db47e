"""Bases to token ids, reverse complement and ambiguity counts; see README.md."""

from __future__ import annotations

from bertgeom.kernels.kmers.api import (
    KmerTable,
    count_ambiguous,
    encode_kmers,
    kmer_keys,
    n_kmers,
    pack_kmers,
    reverse_complement,
    unpack_kmers,
)

__all__ = [
    "KmerTable",
    "count_ambiguous",
    "encode_kmers",
    "kmer_keys",
    "n_kmers",
    "pack_kmers",
    "reverse_complement",
    "unpack_kmers",
]
