"""Any Hugging Face tokenizer, with the bases behind every token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from bertgeom.encoded import Encoded, EncodedBatch, stack
from bertgeom.errors import ModelError, UsageError
from bertgeom.kernels.kmers import count_ambiguous


@dataclass(frozen=True, eq=False)
class HuggingFace:
    """A transformers tokenizer that is given the bases as one string.

    Tokens beyond `max_tokens` are cut off in front of the closing special tokens.

    Attributes:
        tokenizer: a transformers tokenizer; one without offsets must give back its text.
        max_tokens: most tokens of a sequence, special ones included.
        case: "upper" or "lower", the case in which it gets the bases; U is T.
        name: short name, for people.
    """

    tokenizer: Any
    max_tokens: int
    case: str = "upper"
    name: str = "hf"
    exact_counts = False

    def __post_init__(self) -> None:
        if self.case not in ("upper", "lower"):
            raise UsageError(f"expected case 'upper' or 'lower', found {self.case!r}")
        if self.max_tokens <= self._extra:
            raise UsageError(
                f"expected max_tokens of at least {self._extra + 1}, found {self.max_tokens}"
            )
        if self.tokenizer.is_fast:
            # A length limit saved in tokenizer.json is no rule of this project.
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()

    @cached_property
    def _extra(self) -> int:
        return int(self.tokenizer.num_special_tokens_to_add(pair=False))

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def settings(self) -> dict[str, Any]:
        """Everything that changes an id, JSON-able."""
        return {
            "kind": "hf",
            "class": type(self.tokenizer).__name__,
            "case": self.case,
            "max_tokens": self.max_tokens,
            "sha256": self._digest,
        }

    @cached_property
    def _digest(self) -> str:
        if self.tokenizer.is_fast:
            text = self.tokenizer.backend_tokenizer.to_str()
        else:
            text = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @overload
    def count_tokens(self, n_bases: int) -> int: ...
    @overload
    def count_tokens(self, n_bases: np.ndarray) -> np.ndarray: ...
    def count_tokens(self, n_bases: int | np.ndarray) -> int | np.ndarray:
        """Upper bound: every base a token."""
        counts = np.minimum(np.asarray(n_bases, dtype=np.int64) + self._extra, self.max_tokens)
        return counts if isinstance(n_bases, np.ndarray) else int(counts)

    def window_bases(self) -> int:
        """Longest sequence that surely fits: every base a token."""
        return self.max_tokens - self._extra

    def encode(self, bases: np.ndarray) -> Encoded:
        """Tokens of uint8 ASCII bases (n,) of any case.

        Raises:
            ModelError: if the tokenizer tells no offsets and they cannot be recovered.
        """
        return self._rows([bases])[0]

    def encode_batch(self, sequences: Sequence[np.ndarray]) -> EncodedBatch:
        """Tokens of several sequences, each a row."""
        return stack(self._rows(sequences) if len(sequences) else [], self.pad_id)

    def _rows(self, sequences: Sequence[np.ndarray]) -> list[Encoded]:
        texts = [self._text(bases) for bases in sequences]
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
            offsets[special] = -1
            rows.append(self._row(bases, ids, special, offsets))
        return rows

    def _row(
        self, bases: np.ndarray, ids: np.ndarray, special: np.ndarray, offsets: np.ndarray
    ) -> Encoded:
        truncated = ids.size > self.max_tokens
        if truncated:
            content = np.flatnonzero(~special)
            kept = np.ones(ids.size, dtype=bool)
            kept[content[self.max_tokens - int(special.sum()) :]] = False
            ids, special, offsets = ids[kept], special[kept], offsets[kept]
        n_unknown = 0
        if self.tokenizer.unk_token_id is not None:
            n_unknown = int(((ids == self.tokenizer.unk_token_id) & ~special).sum())
        start, stop = np.ascontiguousarray(offsets.T)
        n_ambiguous = int(count_ambiguous(bases)[0])
        return Encoded(ids, special, start, stop, n_unknown, n_ambiguous, truncated)

    def _text(self, bases: np.ndarray) -> str:
        text = np.ascontiguousarray(bases).tobytes().decode("ascii", "replace")
        text = text.upper().replace("U", "T")
        return text if self.case == "upper" else text.lower()

    def _align(self, text: str, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Special marks and offsets for a tokenizer that gives none: its tokens, end to end."""
        tokens = self.tokenizer.tokenize(text)
        if "".join(tokens) != text:
            raise ModelError(
                f"expected a tokenizer with offsets, or whose tokens spell the sequence, found "
                f"{type(self.tokenizer).__name__}; choose one with --tokenizer"
            )
        plain = self.tokenizer.convert_tokens_to_ids(tokens)
        # Special tokens frame the plain ones: find where these begin.
        first = next(
            i for i in range(ids.size - len(plain) + 1) if ids[i : i + len(plain)].tolist() == plain
        )
        special = np.ones(ids.size, dtype=bool)
        special[first : first + len(plain)] = False
        stops = np.cumsum([len(token) for token in tokens], dtype=np.int32)
        offsets = np.full((ids.size, 2), -1, dtype=np.int32)
        offsets[~special, 1] = stops
        offsets[~special, 0] = np.concatenate([[0], stops[:-1]])[: stops.size]
        return special, offsets
