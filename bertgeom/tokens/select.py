"""Which tokeniser a model needs, and how a k-mer tokeniser is saved with it.

`load_tokenizer` uses the first of these that exists:
1. `override`, a spec from the command line: "kmer:k=12,stride=9", "dnabert:k=6", "nt:v2",
   "single", "hf";
2. `bertgeom_tokenizer.json` in the model folder, the same keys as JSON: {"kind": "kmer", ...};
3. a `vocab.txt` of DNABERT or of the Nucleotide Transformer, recognised by its lines;
4. the tokenizer class of HyenaDNA or Caduceus, whose code is then not needed;
5. transformers' AutoTokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertgeom.config import ONE_STRANDED
from bertgeom.errors import ModelError, UsageError
from bertgeom.sequences.alphabets import alphabet_of
from bertgeom.tokens.bases import (
    NT_MAX_TOKENS,
    SINGLE_IDS,
    SINGLE_SPECIAL_IDS,
    NucleotideTransformer,
    SingleNucleotide,
    nt_vocabulary,
)
from bertgeom.tokens.encoded import Encoded, EncodedBatch, Tokenizer
from bertgeom.tokens.kmer import (
    BASE_ORDER,
    DNABERT_SPECIAL_IDS,
    PAPER_SPECIAL_IDS,
    SPECIAL_NAMES,
    DnabertKmer,
    KmerTokenizer,
    PaperKmer,
    all_kmers,
    build_vocabulary,
)

__all__ = [
    "DNABERT_SPECIAL_IDS",
    "PAPER_SPECIAL_IDS",
    "DnabertKmer",
    "Encoded",
    "EncodedBatch",
    "KmerTokenizer",
    "NucleotideTransformer",
    "PaperKmer",
    "SingleNucleotide",
    "Tokenizer",
    "build_vocabulary",
    "encode_batch",
    "load_kmer_tokenizer",
    "load_tokenizer",
    "parse_spec",
    "save_kmer_tokenizer",
]

SETTINGS_FILE = "bertgeom_tokenizer.json"
VOCABULARY_FILE = "vocab.txt"
DEFAULT_MAX_TOKENS = 512
_SINGLE_CLASSES = ("HyenaDNATokenizer", "CaduceusTokenizer")
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
#: Keys that a spec or a settings file may hold, with the type of each.
_KEYS: dict[str, dict[str, type]] = {
    "kmer": {"k": int, "stride": int, "pad_with_n": bool, "case": str, "vocab": str},
    "dnabert": {"k": int},
    "nt": {"version": str},
    "single": {"cls": bool, "sep": bool},
    "hf": {"case": str},
}


@dataclass(frozen=True)
class _Home:
    """Where a tokenizer's files are: a folder, or a hub name and its revision."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name


def load_tokenizer(
    model: str | os.PathLike[str],
    *,
    max_tokens: int | None = None,
    override: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    alphabet: str | None = None,
) -> Tokenizer:
    """The tokeniser that belongs to a model.

    Args:
        model: a folder, or a name on the Hugging Face hub (HF_HUB_OFFLINE is honoured).
        max_tokens: upper limit of tokens per window; a lower one of the tokeniser counts.
        override: a spec such as "kmer:k=12,stride=9" that overrides the files.
        trust_remote_code: whether AutoTokenizer may run code of the model's repository.
        revision: branch, tag or commit of a hub name; None: its main branch.
        alphabet: "dna", "rna", "protein" or "text"; None: nucleotides, in the letters of the
            vocabulary.

    Raises:
        UsageError: for an invalid spec or limit, or a tokenizer of bases for another alphabet.
        ModelError: for missing files, or files that are not a tokeniser's.
    """
    home = _Home(str(model), revision)
    if override is not None:
        settings = parse_spec(override)
    elif (path := _find(home, SETTINGS_FILE)) is not None:
        settings = read_settings(path)
    else:
        settings = _recognise(home)
    kind = settings["kind"]
    if alphabet in ONE_STRANDED and kind != "hf":
        raise UsageError(
            f"expected a tokenizer of {alphabet} for --alphabet {alphabet}, found {kind}, which "
            "knows bases only; choose another model, or --tokenizer hf"
        )
    if kind == "kmer":
        return _kmer(home, settings, max_tokens)
    if kind == "dnabert":
        limit = _limit(settings, max_tokens, DEFAULT_MAX_TOKENS)
        return DnabertKmer(settings.get("k", 6), max_tokens=limit)
    if kind == "nt":
        return _nucleotide_transformer(home, settings, max_tokens)
    if kind == "single":
        return _single(home, settings, max_tokens)
    return _hugging_face(home, settings, max_tokens, trust_remote_code, alphabet)


def encode_batch(tokenizer: Tokenizer, sequences: Sequence[Any]) -> EncodedBatch:
    """Tokens of several arrays of bases, padded to the longest row; see `EncodedBatch`."""
    return tokenizer.encode_batch(sequences)


def parse_spec(spec: str) -> dict[str, Any]:
    """ "kmer:k=12,stride=9" as {"kind": "kmer", "k": 12, "stride": 9}.

    Raises:
        UsageError: for an unknown kind or key, or a value of another type.
    """
    kind, _, rest = spec.partition(":")
    settings: dict[str, Any] = {"kind": kind}
    for part in filter(None, rest.split(",")):
        key, given, value = part.partition("=")
        if kind == "nt" and not given:
            key, value = "version", part
        settings[key.strip()] = value.strip()
    return _checked(settings, f"tokenizer {spec!r}")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of `bertgeom_tokenizer.json`.

    Raises:
        ModelError: if it cannot be read; UsageError: for an unknown kind or key.
    """
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: expected a tokenizer's settings in JSON: {error}") from error
    if not isinstance(settings, dict) or "kind" not in settings:
        raise ModelError(f'{path}: expected a JSON object with "kind", found {settings!r}')
    return _checked(settings, str(path))


def _checked(settings: dict[str, Any], where: str) -> dict[str, Any]:
    kind = settings["kind"]
    if kind not in _KEYS:
        raise UsageError(f"{where}: expected a kind out of {', '.join(_KEYS)}, found {kind!r}")
    keys = {**_KEYS[kind], "max_tokens": int, "special_ids": dict}
    checked = {"kind": kind}
    for key, value in settings.items():
        if key == "kind":
            continue
        if key not in keys:
            raise UsageError(f"{where}: expected keys out of {', '.join(keys)}, found {key!r}")
        try:
            checked[key] = _typed(value, keys[key])
        except ValueError:
            raise UsageError(
                f"{where}: expected {key} as {keys[key].__name__}, found {value!r}"
            ) from None
    return checked


def _typed(value: Any, wanted: type) -> Any:
    if isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    if not isinstance(value, str) or wanted is dict:
        raise ValueError
    if wanted is bool:
        if value.lower() not in _BOOLEANS:
            raise ValueError
        return _BOOLEANS[value.lower()]
    return wanted(value)


def _limit(settings: Mapping[str, Any], max_tokens: int | None, default: int | None) -> int:
    own = settings.get("max_tokens")
    given = [n for n in (own, max_tokens) if n is not None]
    if not given and default is None:
        raise UsageError("expected a limit of tokens per window, found none; give --max-tokens")
    return min(given) if given else int(default or 0)


def _find(model: _Home, name: str) -> Path | None:
    """A file of a model folder, or of a hub repository (from its cache when offline)."""
    if Path(model.name).is_dir():
        path = Path(model.name) / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(
        model.name,
        name,
        revision=model.revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _recognise(model: _Home) -> dict[str, Any]:
    lines = _lines(model, VOCABULARY_FILE, missing_ok=True)
    if (k := _dnabert_k(lines)) is not None:
        return {"kind": "dnabert", "k": k}
    if _is_nt(lines):
        return {"kind": "nt"}
    if _json(model, "tokenizer_config.json").get("tokenizer_class") in _SINGLE_CLASSES:
        return {"kind": "single"}
    return {"kind": "hf"}


def _dnabert_k(lines: Sequence[str]) -> int | None:
    """k, if the lines are the published vocabulary of k-mers in its order, with T or U."""
    n_special = len(DNABERT_SPECIAL_IDS)
    special = [f"[{name.upper()}]" for name in DNABERT_SPECIAL_IDS]
    if list(lines[:n_special]) != special or len(lines) == n_special:
        return None
    k = len(lines[n_special])
    whole = 1 <= k <= 8 and len(lines) == 4**k + n_special
    # Models of RNA write U, which is T in every table of k-mers.
    kmers = [line.upper().replace("U", "T") for line in lines[n_special:]]
    return k if whole and kmers == all_kmers(k) else None


def _is_nt(lines: Sequence[str], k: int = 6) -> bool:
    needed = {"<unk>", "<pad>", "<cls>", *BASE_ORDER}
    held = set(lines)
    return needed <= held and held.issuperset(all_kmers(k))


def _lines(model: _Home, name: str, *, missing_ok: bool = False) -> list[str]:
    if Path(name).name != name:
        raise ModelError(f"{model}: expected a vocabulary file in the folder, found {name!r}")
    path = _find(model, name)
    if path is None:
        if missing_ok:
            return []
        raise ModelError(f"{model}: expected a vocabulary {name}, one token per line, found none")
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: expected a vocabulary, one token per line: {error}") from error


def _json(model: _Home, name: str) -> dict[str, Any]:
    path = _find(model, name)
    try:
        found = {} if path is None else json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: expected JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _kmer(model: _Home, settings: Mapping[str, Any], max_tokens: int | None) -> KmerTokenizer:
    lines = _lines(model, settings.get("vocab", VOCABULARY_FILE))
    k = settings.get("k", 12)
    case = settings.get("case") or _case_of(lines, k)
    vocabulary = kmers_of(lines, k, case)
    if not vocabulary:
        raise ModelError(
            f"{model}: expected {case}-case {k}-mers in the vocabulary, found none among "
            f"{len(lines)} lines; check k and case"
        )
    stride = settings.get("stride", 9)
    return KmerTokenizer(
        vocabulary,
        k,
        stride,
        settings.get("pad_with_n", True),
        settings.get("special_ids") or _special_ids(model, lines),
        _limit(settings, max_tokens, DEFAULT_MAX_TOKENS),
        f"kmer(k={k}, stride={stride})",
    )


def _case_of(lines: Sequence[str], k: int) -> str:
    """The case in which more of the lines are k-mers; lower if there are none."""
    return max(("lower", "upper"), key=lambda case: len(kmers_of(lines, k, case)))


def kmers_of(lines: Sequence[str], k: int, case: str) -> dict[str, int]:
    """k-mer -> id of the lines that are k IUPAC letters of the given case."""
    letters = "ACGTUNRYSWKMBDHV"
    allowed = set(letters if case == "upper" else letters.lower())
    return {line: i for i, line in enumerate(lines) if len(line) == k and allowed.issuperset(line)}


def _special_ids(model: _Home, lines: Sequence[str]) -> dict[str, int]:
    found = _special_lines(lines)
    missing = [name for name in SPECIAL_NAMES if name not in found]
    if missing:
        raise ModelError(
            f"{model}: expected the line [{missing[0].upper()}] in the vocabulary, found none; "
            f'add it, or give "special_ids" in {SETTINGS_FILE}'
        )
    return {name: found[name] for name in SPECIAL_NAMES}


def _special_lines(lines: Sequence[str]) -> dict[str, int]:
    """Ids of special tokens by name; they are written [CLS] or <cls>, and <eos> is [SEP]."""
    ids = {line: i for i, line in enumerate(lines)}
    found: dict[str, int] = {}
    for name in SPECIAL_NAMES:
        spelt = [f"[{name.upper()}]", f"<{name}>", *(["<eos>"] if name == "sep" else [])]
        held = [ids[text] for text in spelt if text in ids]
        if held:
            found[name] = held[0]
    return found


def _nucleotide_transformer(
    model: _Home, settings: Mapping[str, Any], max_tokens: int | None
) -> NucleotideTransformer:
    version = settings.get("version")
    lines = [] if version else _lines(model, VOCABULARY_FILE, missing_ok=True)
    if _is_nt(lines):
        vocabulary = {token: i for i, token in enumerate(lines)}
        version = "v2" if vocabulary.get("<bos>", 0) < vocabulary["A" * 6] else "v1"
    else:
        version = version or "v2"
        vocabulary = nt_vocabulary(version)
    longest = NT_MAX_TOKENS[version]
    limit = min(longest, _limit(settings, max_tokens, longest))
    return NucleotideTransformer(vocabulary, limit, name=f"nucleotide-transformer-{version}")


def _single(model: _Home, settings: Mapping[str, Any], max_tokens: int | None) -> SingleNucleotide:
    config = _json(model, "tokenizer_config.json")
    limit = _limit(
        {"max_tokens": _sensible(config.get("model_max_length")), **settings}, max_tokens, None
    )
    lines = _lines(model, VOCABULARY_FILE, missing_ok=True)
    letters = kmers_of(lines, 1, "upper") or kmers_of(lines, 1, "lower")
    special = _special_lines(lines)
    if not letters:
        letters, special = _listed_letters(config), dict(SINGLE_SPECIAL_IDS)
    return SingleNucleotide(
        limit,
        letters,
        settings.get("special_ids") or special,
        cls=settings.get("cls", False),
        sep=settings.get("sep", True),
    )


def _listed_letters(config: Mapping[str, Any]) -> dict[str, int]:
    """Ids by letter as HyenaDNA and Caduceus count them: after seven special tokens."""
    listed = config.get("characters")
    if not isinstance(listed, list) or not all(isinstance(c, str) and len(c) == 1 for c in listed):
        return dict(SINGLE_IDS)
    return {letter: SINGLE_IDS["A"] + i for i, letter in enumerate(listed)}


def _hugging_face(
    model: _Home,
    settings: Mapping[str, Any],
    max_tokens: int | None,
    trust_remote_code: bool,
    alphabet: str | None,
) -> Tokenizer:
    from transformers import AutoTokenizer

    from bertgeom.tokens.huggingface import HuggingFace, read_spelling

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.name, revision=model.revision or "main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        _need_sentencepiece(model)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"expected a tokenizer at {model.name!r}, found: {reason}; choose one with "
            "--tokenizer, such as kmer:k=12,stride=9, dnabert:k=6, nt:v2 or single"
        ) from error
    own = _sensible(tokenizer.model_max_length)
    limit = _limit({"max_tokens": own, **settings}, max_tokens, DEFAULT_MAX_TOKENS)
    name = Path(model.name).name or model.name
    thymine = {"dna": "T", "rna": "U"}.get(alphabet or "")
    kind = alphabet_of(alphabet).name
    spelling = read_spelling(tokenizer, settings.get("case"), thymine, kind)
    return HuggingFace(
        tokenizer,
        limit,
        spelling.case,
        name,
        spelling.thymine,
        spelling.alphabet,
        spelling.spaced,
        # ProtT5's authors ask for it (github.com/agemagician/ProtTrans); its vocabulary has all.
        rare_as_x=spelling.spaced and type(tokenizer).__name__.startswith("T5Tokenizer"),
    )


def _need_sentencepiece(model: _Home) -> None:
    """Say so where only a package reads the tokenizer's file; transformers names another one."""
    import importlib.util

    # protobuf is the package google.protobuf.
    missing = any(importlib.util.find_spec(name) is None for name in ("sentencepiece", "google"))
    if missing and _find(model, "tokenizer.json") is None and _find(model, "spiece.model"):
        raise ModelError(
            f"expected tokenizer.json at {model.name!r}, found spiece.model alone, which two "
            "packages read; install them: pip install sentencepiece protobuf"
        )


def _sensible(limit: Any) -> int | None:
    """A tokenizer's length limit; transformers writes 1e30 where there is none."""
    return int(limit) if isinstance(limit, int | float) and 0 < limit < 1e9 else None


def save_kmer_tokenizer(folder: str | os.PathLike[str], tokenizer: KmerTokenizer) -> None:
    """Write `vocab.txt` (line number = id) and `bertgeom_tokenizer.json` into a model folder.

    k-mers are written in lower case. Ids that neither a special token nor a k-mer has become
    lines `[unused<id>]`.

    Raises:
        StoreError: if a file cannot be written.
    """
    from bertgeom.store.files import write_text
    from bertgeom.store.storage import explain_write_errors

    folder = Path(folder)
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    names = {i: f"[{name.upper()}]" for name, i in tokenizer.special_ids.items()}
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
    # The settings come last, because they show that the tokenizer is complete.
    write_text(folder / VOCABULARY_FILE, "".join(f"{line}\n" for line in lines))
    write_text(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")


def load_kmer_tokenizer(folder: str | os.PathLike[str]) -> KmerTokenizer:
    """The tokeniser that `save_kmer_tokenizer` wrote into a model folder.

    Raises:
        ModelError, UsageError: as `load_tokenizer`.
    """
    settings = read_settings(Path(folder) / SETTINGS_FILE)
    return _kmer(_Home(str(folder)), settings, None)
