"""Bases per second and core of the sequence side: `python -m bench.sequence`.

Reading FASTA, counting, the other strand, and whole `encode_batch` calls (ids, special marks,
offsets, counts), beside a copy of the same bytes. Nothing is timed before the oracle has agreed
on a slice of the same input. Seconds are those of the one thread that works (CPU time), so that
a busy machine changes little; inputs are larger than the caches and read in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.run import environment, quartiles, save
from bertgeom.kernels.kmers import count_ambiguous, reference, reverse_complement
from bertgeom.sequences.fasta import read_chunks
from bertgeom.tokens.select import (
    DnabertKmer,
    KmerTokenizer,
    NucleotideTransformer,
    PaperKmer,
    SingleNucleotide,
    build_vocabulary,
)

GENOME = 30_000
LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)


def genomes(n: int, seed: int = 0, unknown: float = 0.0) -> list[np.ndarray]:
    """Relatives of one genome, one substitution in a thousand, a share of N."""
    rng = np.random.default_rng(seed)
    first = rng.choice(LETTERS, GENOME)
    found = []
    for _ in range(n):
        one = first.copy()
        at = rng.integers(0, GENOME, GENOME // 1000)
        one[at] = rng.choice(LETTERS, at.size)
        one[rng.integers(0, GENOME, int(unknown * GENOME))] = ord("N")
        found.append(one)
    return found


def windows(some: list[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """Batches of 64 windows."""
    cut = [g[i : i + size] for g in some for i in range(0, GENOME - size + 1, size)]
    return [cut[i : i + 64] for i in range(0, len(cut), 64)]


def gate(tokenizer: Any, batch: list[np.ndarray]) -> None:
    """The first windows of a batch, against the oracle."""
    found = tokenizer.encode_batch(batch[:8])
    for b, bases in enumerate(batch[:8]):
        text = bases.tobytes().decode()
        row = found.row(b)
        expected = expected_ids(tokenizer, text)[: int((~row.special).sum())]
        if row.ids[~row.special].tolist() != expected:
            raise AssertionError(f"{tokenizer.name}: expected the oracle's ids, found others")


def expected_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of the oracle, without special tokens."""
    if isinstance(tokenizer, KmerTokenizer):
        tokens = reference.kmer_tokens(
            text,
            tokenizer.table.vocabulary,
            tokenizer.k,
            tokenizer.stride,
            tokenizer.special_ids["unk"],
            pad=tokenizer.pad_with_n,
        )
    elif isinstance(tokenizer, NucleotideTransformer):
        tokens = reference.split_kmer_tokens(text, tokenizer.vocabulary, tokenizer.k, 0)
    else:
        tokens = reference.single_tokens(text, tokenizer.letters, tokenizer.special_ids["unk"])
    return [token for token, _, _ in tokens]


def rates(run: Callable[[Any], Any], inputs: list[Any], n_bases: int, rounds: int) -> list[float]:
    """GB/s of every round over all inputs, the first round unmeasured."""
    found = []
    for i in range(rounds + 1):
        start = time.thread_time()
        for one in inputs:
            run(one)
        if i:
            found.append(n_bases / (time.thread_time() - start) / 1e9)
    return found


def workloads(folder: Path, n: int) -> dict[str, tuple[Callable[[Any], Any], list[Any], int]]:
    """Name -> what to call, on what, and how many bases that is."""
    related, gappy = genomes(n), genomes(n, unknown=0.0005)
    foreign = [np.random.default_rng(9).choice(LETTERS, GENOME) for _ in range(n)]
    trained_on = windows(related[: n // 4], PaperKmer([]).window_bases())
    seen = PaperKmer(build_vocabulary(window for batch in trained_on for window in batch))
    todo: dict[str, tuple[Any, list[list[np.ndarray]]]] = {
        "paper k=12 stride=9": (seen, windows(related, seen.window_bases())),
        "the same, N every 2,000 bases": (seen, windows(gappy, seen.window_bases())),
        "the same, all k-mers unknown": (seen, windows(foreign, seen.window_bases())),
    }
    for other in (DnabertKmer(6), NucleotideTransformer(), SingleNucleotide(1026)):
        todo[other.name] = (other, windows(related, other.window_bases()))
    found: dict[str, tuple[Callable[[Any], Any], list[Any], int]] = {}
    found["copy"] = (np.copy, related, n * GENOME)
    fasta = folder / "genomes.fa"
    write_fasta(fasta, related)
    found["read FASTA, lines of 80"] = (drain, [fasta], n * GENOME)
    found["count ambiguous bases"] = (count_ambiguous, related, n * GENOME)
    found["reverse complement"] = (reverse_complement, related, n * GENOME)
    for name, (tokenizer, batches) in todo.items():
        gate(tokenizer, batches[0])
        n_bases = sum(w.size for batch in batches for w in batch)
        found[name] = (tokenizer.encode_batch, batches, n_bases)
    return found


def write_fasta(path: Path, some: list[np.ndarray]) -> None:
    """Lines of 80 bases."""
    with path.open("wb") as stream:
        for i, bases in enumerate(some):
            stream.write(b">genome%d\n" % i)
            stream.write(np.insert(bases, np.arange(80, GENOME, 80), ord("\n")).tobytes() + b"\n")


def drain(path: Path) -> int:
    """Bases of a file."""
    return sum(chunk.bases.size for chunk in read_chunks(path))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.sequence", description=__doc__)
    parser.add_argument("--genomes", type=int, default=2000, help="of 30,000 bases each")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--no-save", action="store_true", help="do not write bench/results")
    options = parser.parse_args(argv)
    results: dict[str, Any] = {"environment": environment("cpu"), "rates": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, work in workloads(Path(folder), options.genomes).items():
            low, middle, high = quartiles(list(rates(*work, options.rounds)))
            results["rates"][name] = {"q25": low, "median": middle, "q75": high}
    copy = results["rates"]["copy"]["median"]
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        print(", ".join(f"{k} {v}" for k, v in results["environment"].items()))
        print(f"{'':34} {'GB/s':>6}  {'quartiles':12} {'of a copy':>9}")
        for name, row in results["rates"].items():
            spread = f"{row['q25']:.2f}..{row['q75']:.2f}"
            print(f"{name:34} {row['median']:6.2f}  {spread:12} {row['median'] / copy:9.3f}")
    if not options.no_save:
        print(f"written: {save(results, 'sequence.json')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
