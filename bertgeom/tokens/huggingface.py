"""Any Hugging Face tokenizer, with the bases of every token.

The tokenizer gets a window as one string, in the spelling of its own vocabulary: upper or lower
case, with T or with U, with or without spaces between the letters (`bertgeom.tokens.spelling`). A
base is a nucleotide, a residue of a protein or a byte of a text. Every base belongs to exactly one
token; a tokenizer that leaves a base without one is rejected. A token that stands for no base, such
as the mark that SentencePiece puts in front of a text, is a special token.

In a text, white space and what the tokenizer leaves out have no token, and the tokens of one
character may be several.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bertgeom.errors import ModelError, UsageError
from bertgeom.kernels.kmers import count_ambiguous
from bertgeom.sequences.alphabets import ALPHABETS
from bertgeom.tokens.encoded import BatchTokenizer, Encoded, EncodedBatch, stack
from bertgeom.tokens.spelling import Spelling, best_spelling, probes

#: A token of letters only, with the marks that tokenizers put around pieces of a word.
_MARKED = r"[^A-Za-z0-9<\[]*([{}]+)(</w>)?[^A-Za-z0-9]*"
_LETTERS = {
    "nucleotide": re.compile(_MARKED.format("ACGTUNRYSWKMBDHV"), re.IGNORECASE),
    "protein": re.compile(_MARKED.format("A-Z"), re.IGNORECASE),
    "text": re.compile(r"(.*)", re.DOTALL),
}
#: Marks of pieces of words: what is left spells the text.
_PIECE = re.compile(r"^(##|\u2581|\u0120)|</w>$|@@$")


@dataclass(frozen=True, eq=False)
class HuggingFace(BatchTokenizer):
    """A transformers tokenizer that is given the bases as one string.

    Tokens beyond `max_tokens` are cut off before the closing special tokens.

    Attributes:
        tokenizer: a transformers tokenizer; one without offsets must reproduce its text.
        max_tokens: maximum tokens of a sequence, special ones included.
        case: "upper" or "lower", the case in which it gets the bases.
        name: short name for messages.
        thymine: "T" or "U", the letter it gets for both.
        alphabet: what sequences are made of: "nucleotide", "protein" or "text".
        spaced: whether it gets a space between letters.
        rare_as_x: whether it gets the residues U, Z, O and B as X.
    """

    tokenizer: Any
    max_tokens: int
    case: str = "upper"
    name: str = "hf"
    thymine: str = "T"
    alphabet: str = "nucleotide"
    spaced: bool = False
    rare_as_x: bool = False
    exact_counts = False

    def __post_init__(self) -> None:
        _ = self.spelling
        if self.max_tokens <= self._extra:
            raise UsageError(
                f"expected max_tokens of at least {self._extra + 1}, found {self.max_tokens}"
            )
        if self.tokenizer.is_fast:
            # Ignore a length limit saved in tokenizer.json: `max_tokens` counts.
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()

    @property
    def spelling(self) -> Spelling:
        """How the tokenizer gets its bases."""
        return Spelling(self.case, self.thymine, self.alphabet, self.spaced, self.rare_as_x)

    @cached_property
    def _extra(self) -> int:
        return int(self.tokenizer.num_special_tokens_to_add(pair=False))

    @cached_property
    def _marks(self) -> int:
        """Tokens without a base that every sequence gets beyond the closing and opening ones."""
        return int(self._whole([probes(self.alphabet)[0]])[0].special.sum()) - self._extra

    @property
    def n_special(self) -> int:
        """Tokens of every sequence that stand for no base."""
        return self._extra + self._marks

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return int(max(self.tokenizer.get_vocab().values())) + 1

    @cached_property
    def unknown_ids(self) -> tuple[int, ...]:
        """Ids of the unknown token: the declared one, and the one that the model returns."""
        found = {self.tokenizer.unk_token_id, self._model_unknown}
        return tuple(sorted(int(i) for i in found if i is not None))

    @cached_property
    def _model_unknown(self) -> int | None:
        """The unknown id inside a fast tokenizer, which need not be declared outside."""
        if not self.tokenizer.is_fast:
            return None
        backend = self.tokenizer.backend_tokenizer
        model = json.loads(backend.to_str())["model"]
        token = model.get("unk_token")
        found = model.get("unk_id") if token is None else backend.token_to_id(token)
        return None if found is None else int(found)

    @cached_property
    def longest_token(self) -> int:
        """Most bases of a token of the vocabulary."""
        special = set(self.tokenizer.all_special_tokens)
        tokens = self.tokenizer.get_vocab().keys() - special
        found = (_LETTERS[self.alphabet].fullmatch(token) for token in tokens)
        return max((len(match[1].encode()) for match in found if match), default=1)

    @property
    def variable_length(self) -> bool:
        """Whether the number of tokens depends on the bases, not only on their number."""
        return self.longest_token > 1

    def settings(self) -> dict[str, Any]:
        """Everything that changes an id, JSON-able."""
        found = {
            "kind": "hf",
            "class": type(self.tokenizer).__name__,
            "case": self.case,
            "max_tokens": self.max_tokens,
            "sha256": self._digest,
        }
        # Only if they are not the defaults, so that runs of older stores can be continued.
        if self.thymine != "T":
            found["thymine"] = self.thymine
        if self.alphabet != "nucleotide":
            found["alphabet"] = self.alphabet
        if self.spaced:
            found["spaced"] = True
        if self.rare_as_x:
            found["rare_as_x"] = True
        if self._marks:
            found["marks"] = self._marks
        if self.unknown_ids and self.unknown_ids != (self.tokenizer.unk_token_id,):
            found["unknown"] = list(self.unknown_ids)
        return found

    @cached_property
    def _digest(self) -> str:
        if self.tokenizer.is_fast:
            text = self.tokenizer.backend_tokenizer.to_str()
        else:
            text = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _counts(self, n_bases: np.ndarray) -> np.ndarray:
        """Upper bound: one token per base."""
        counts: np.ndarray = np.minimum(n_bases + self.n_special, self.max_tokens)
        return counts

    def window_bases(self) -> int:
        """Longest sequence that is guaranteed to fit: one token per base."""
        return max(1, self.max_tokens - self.n_special)

    def encode(self, bases: np.ndarray) -> Encoded:
        """Tokens of uint8 ASCII bases (n,) of any case.

        Raises:
            ModelError: if the tokenizer gives no offsets and they cannot be recovered, or if a
                base has no token or several.
        """
        return self._rows([bases])[0]

    def encode_batch(self, sequences: Sequence[np.ndarray]) -> EncodedBatch:
        """Tokens of several sequences, each a row."""
        return stack(self._rows(sequences) if len(sequences) else [], self.pad_id)

    def encode_whole(self, sequences: Sequence[np.ndarray]) -> list[Encoded]:
        """Tokens of several sequences, without truncation.

        Raises:
            ModelError: as `encode`.
        """
        rows = self._whole(sequences) if len(sequences) else []
        for row, bases in zip(rows, sequences, strict=True):
            self._check_places(row, bases)
        return rows

    def _rows(self, sequences: Sequence[np.ndarray]) -> list[Encoded]:
        return [self._cut(row) for row in self.encode_whole(sequences)]

    def _whole(self, sequences: Sequence[np.ndarray]) -> list[Encoded]:
        """Tokens as the tokenizer gives them; tokens without a base are special."""
        texts = [self.spelling.text(bases) for bases in sequences]
        fast = self.tokenizer.is_fast
        found = self.tokenizer(
            texts,
            add_special_tokens=True,
            return_special_tokens_mask=True,
            return_offsets_mapping=fast,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        rows = []
        for b, bases in enumerate(sequences):
            ids = np.array(found["input_ids"][b], dtype=np.int32)
            special = np.array(found["special_tokens_mask"][b], dtype=bool)
            if fast:
                offsets = np.array(found["offset_mapping"][b], dtype=np.int32).reshape(-1, 2)
            else:
                special, offsets = self._align(texts[b], ids)
            offsets = self.spelling.places(offsets, bases)
            special = special | _without_bases(special, offsets, shared=self.alphabet == "text")
            offsets[special] = -1
            start, stop = np.ascontiguousarray(offsets.T)
            n_ambiguous = self._n_ambiguous(bases)
            rows.append(
                Encoded(
                    ids, special, start, stop, self._n_unknown(ids, special), n_ambiguous, False
                )
            )
        return rows

    def _n_ambiguous(self, bases: np.ndarray) -> int:
        if self.alphabet == "nucleotide":
            return int(count_ambiguous(bases)[0])
        return int(ALPHABETS[self.alphabet].ambiguous[bases].sum())

    def _n_unknown(self, ids: np.ndarray, special: np.ndarray) -> int:
        return int((np.isin(ids, self.unknown_ids) & ~special).sum())

    def _cut(self, row: Encoded) -> Encoded:
        """The row without the content that does not fit."""
        if row.ids.size <= self.max_tokens:
            return row
        content = np.flatnonzero(~row.special)
        kept = np.ones(row.ids.size, dtype=bool)
        kept[content[max(0, self.max_tokens - int(row.special.sum())) :]] = False
        ids, special = row.ids[kept], row.special[kept]
        return Encoded(
            ids,
            special,
            row.start[kept],
            row.stop[kept],
            self._n_unknown(ids, special),
            row.n_ambiguous,
            True,
        )

    def _check_places(self, row: Encoded, bases: np.ndarray) -> None:
        """Every base belongs to exactly one token; in a text some characters have none."""
        start, stop = row.start[~row.special], row.stop[~row.special]
        if self.alphabet == "text":
            return
        edges = np.concatenate([[0], stop])
        wanted = np.concatenate([start, [len(bases)]])
        if np.array_equal(edges, wanted):
            return
        place = int(np.flatnonzero(edges != wanted)[0])
        base = min(int(min(edges[place], wanted[place])), len(bases) - 1)
        letter = self._dropped(bases) or self.spelling.text(bases[base : base + 1])
        many = "none" if edges[place] < wanted[place] else "several"
        raise ModelError(
            f"expected exactly one token of {self.name} for every base, found {many} for "
            f"{letter!r}: the tokenizer has no place in its vocabulary for it, nor an unknown "
            "token; choose another one with --tokenizer, or leave such letters out of the input"
        )

    def _dropped(self, bases: np.ndarray) -> str:
        """The first letter that gives no token; tokens after it have wrong positions."""
        letters = np.unique(bases)
        rows = self._whole([np.array([letter]) for letter in letters])
        lost = [letter for letter, row in zip(letters, rows, strict=True) if row.special.all()]
        return self.spelling.text(np.array(lost[:1], dtype=np.uint8))

    def _align(self, text: str, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Special marks and offsets for a tokenizer that gives none: its tokens, end to end."""
        tokens = self.tokenizer.tokenize(text)
        plain = self.tokenizer.convert_tokens_to_ids(tokens)
        pieces = [_PIECE.sub("", token) for token in tokens]
        first = _find(plain, ids)
        if first is None or _folded("".join(pieces)) != _folded("".join(text.split())):
            raise ModelError(
                f"expected a tokenizer with offsets, or whose tokens spell the sequence, found "
                f"{type(self.tokenizer).__name__}; choose one with --tokenizer"
            )
        special = np.ones(ids.size, dtype=bool)
        special[first : first + len(plain)] = False
        # Where the letters of the text are that are no white space.
        letters = np.flatnonzero([not letter.isspace() for letter in text])
        stops = np.cumsum([len(piece) for piece in pieces], dtype=np.int32)
        starts = np.concatenate([[0], stops[:-1]])[: stops.size].astype(np.int32)
        offsets = np.full((ids.size, 2), -1, dtype=np.int32)
        full = stops > starts
        places = np.zeros((stops.size, 2), dtype=np.int32)
        places[full, 0] = letters[starts[full]]
        places[full, 1] = letters[stops[full] - 1] + 1
        offsets[~special] = places
        return special, offsets


def read_spelling(
    tokenizer: Any,
    case: str | None = None,
    thymine: str | None = None,
    alphabet: str = "nucleotide",
) -> Spelling:
    """The spelling that suits a transformers tokenizer best, see `best_spelling`.

    Raises:
        ModelError: if the places of its tokens cannot be found in any spelling.
    """
    sample = probes(alphabet)
    letters = sum(len(one) for one in sample)

    def read(spelling: Spelling) -> tuple[int, int]:
        reader = HuggingFace(
            tokenizer,
            letters,
            spelling.case,
            thymine=spelling.thymine,
            alphabet=alphabet,
            spaced=spelling.spaced,
        )
        known = tokens = 0
        for row in reader._whole(sample):
            content = ~row.special & ~np.isin(row.ids, reader.unknown_ids)
            known += int((row.stop[content] - row.start[content]).sum())
            tokens += row.ids.size
        return letters - known, tokens

    return best_spelling(read, case, thymine, alphabet)


def _without_bases(special: np.ndarray, offsets: np.ndarray, *, shared: bool) -> np.ndarray:
    """bool (n,): content tokens that stand for no base.

    They have no width, or have the offset of the base with which the next token begins, like the
    mark in front of a text; unless tokens may share a base, as the bytes of one character do.
    """
    found = np.zeros(special.size, dtype=bool)
    content = np.flatnonzero(~special)
    start, stop = offsets[content].T
    found[content] = start == stop
    if not shared:
        found[content[:-1]] |= start[:-1] == start[1:]
    return found


def _find(part: list[int], ids: np.ndarray) -> int | None:
    """Where `part` begins in `ids`, None if it is not in there."""
    for first in range(ids.size - len(part) + 1):
        if ids[first : first + len(part)].tolist() == part:
            return first
    return None


def _folded(text: str) -> str:
    return text.upper().replace("U", "T")
