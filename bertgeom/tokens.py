"""Which tokeniser a model wants, and how a k-mer tokeniser is kept beside it.

`load_tokenizer` decides, in this order, from
1. `override`, a spec such as "kmer:k=12,stride=9", "dnabert:k=6" or "hf";
2. `bertgeom_tokenizer.json` in the model folder;
3. a `vocab.txt` of k-mers: DNABERT's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertgeom.encoded import Encoded, EncodedBatch, Tokenizer
from bertgeom.errors import ModelError
from bertgeom.kmer_tokens import (
    DNABERT_SPECIAL_IDS,
    PAPER_SPECIAL_IDS,
    SPECIAL_NAMES,
    DnabertKmer,
    KmerTokenizer,
    PaperKmer,
    build_vocabulary,
)

__all__ = [
    "DNABERT_SPECIAL_IDS",
    "PAPER_SPECIAL_IDS",
    "DnabertKmer",
    "Encoded",
    "EncodedBatch",
    "KmerTokenizer",
    "PaperKmer",
    "Tokenizer",
    "build_vocabulary",
    "load_kmer_tokenizer",
    "load_tokenizer",
    "save_kmer_tokenizer",
]

SETTINGS_FILE = "bertgeom_tokenizer.json"
VOCABULARY_FILE = "vocab.txt"


def save_kmer_tokenizer(folder: str | os.PathLike[str], tokenizer: KmerTokenizer) -> None:
    """Write `vocab.txt` (line number = id) and `bertgeom_tokenizer.json` into a model folder.

    Ids that neither a special token nor a k-mer has become lines `[unused<id>]`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {i: f"[{name.upper()}]" for name, i in tokenizer.special_ids.items()}
    # The case of the k-mers in the file is lower: `load_kmer_tokenizer` folds it.
    names |= {i: kmer.lower() for kmer, i in tokenizer.table.vocabulary.items()}
    lines = [names.get(i, f"[unused{i}]") for i in range(max(names) + 1)]
    settings = {
        "kind": "kmer",
        "k": tokenizer.k,
        "stride": tokenizer.stride,
        "pad_with_n": tokenizer.pad_with_n,
        "case": "lower",
        "max_tokens": tokenizer.max_tokens,
        "vocab": VOCABULARY_FILE,
    }
    (folder / VOCABULARY_FILE).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def load_kmer_tokenizer(
    folder: str | os.PathLike[str], settings: Mapping[str, Any] | None = None
) -> KmerTokenizer:
    """The k-mer tokeniser of a model folder.

    Args:
        folder: holds `vocab.txt` and, if `settings` is None, `bertgeom_tokenizer.json`.
        settings: k, stride (1), pad_with_n (True), case ("lower" or "upper": only vocabulary
            lines of that case are k-mers), max_tokens (512), vocab (`vocab.txt`), special_ids
            (if None, the lines [PAD], [UNK], [CLS], [SEP], [MASK] tell).

    Raises:
        ModelError: for a missing or malformed file; names it and the remedy.
    """
    folder = Path(folder)
    if settings is None:
        settings = read_settings(folder / SETTINGS_FILE)
    k, case = int(settings["k"]), settings.get("case", "lower")
    lines = _vocabulary_lines(folder, settings.get("vocab", VOCABULARY_FILE))
    special = settings.get("special_ids") or _special_ids(folder, lines)
    stride = int(settings.get("stride", 1))
    return KmerTokenizer(
        kmers_of(lines, k, case),
        k,
        stride,
        bool(settings.get("pad_with_n", True)),
        special,
        int(settings.get("max_tokens", 512)),
        f"kmer(k={k}, stride={stride})",
    )


def read_settings(path: Path) -> dict[str, Any]:
    """`bertgeom_tokenizer.json` as a dictionary with at least `kind`."""
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: expected a tokenizer's settings in JSON: {error}") from error
    if not isinstance(settings, dict) or "kind" not in settings:
        raise ModelError(f'{path}: expected a JSON object with "kind", found {settings!r}')
    return settings


def kmers_of(lines: Sequence[str], k: int, case: str) -> dict[str, int]:
    """k-mer -> id of the lines that are k IUPAC letters of the given case."""
    letters = "ACGTUNRYSWKMBDHV"
    allowed = set(letters if case == "upper" else letters.lower())
    return {line: i for i, line in enumerate(lines) if len(line) == k and allowed.issuperset(line)}


def _vocabulary_lines(folder: Path, name: str) -> list[str]:
    if Path(name).name != name:
        raise ModelError(f"{folder}: expected a vocabulary file in the folder, found {name!r}")
    try:
        return (folder / name).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{folder / name}: expected a vocabulary, one token a line: {error}"
        ) from error


def _special_ids(folder: Path, lines: Sequence[str]) -> dict[str, int]:
    ids = {name: i for i, name in enumerate(lines)}
    try:
        return {name: ids[f"[{name.upper()}]"] for name in SPECIAL_NAMES}
    except KeyError as error:
        raise ModelError(
            f"{folder}: expected the line {error.args[0]} in the vocabulary, found none; "
            'add it or give "special_ids" in the settings'
        ) from error


def load_tokenizer(
    model: str | os.PathLike[str],
    *,
    max_tokens: int | None = None,
    override: str | None = None,
    trust_remote_code: bool = False,
) -> Tokenizer:
    """The tokeniser that belongs to a model folder or name."""
    tokenizer = load_kmer_tokenizer(model)
    if max_tokens is None or max_tokens == tokenizer.max_tokens:
        return tokenizer
    import dataclasses

    return dataclasses.replace(tokenizer, max_tokens=max_tokens)
