"""What a tokenizer makes of sequences: bases a token, unknown tokens, and the way back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bertgeom.tokens.bases import NucleotideTransformer, SingleNucleotide
from bertgeom.tokens.encoded import Tokenizer
from bertgeom.tokens.huggingface import HuggingFace
from bertgeom.tokens.kmer import KmerTokenizer

#: Marks that tokenizers put around pieces of a word.
_MARKS = re.compile(r"^(##|\u2581|\u0120)+|(</w>|@@)$")


@dataclass(frozen=True)
class Coverage:
    """Tokens of a sample of sequences, special ones left out.

    Attributes:
        sequences, bases: of the sample.
        tokens: that stand for bases. unknown: those that are the unknown token.
        known_bases: bases that a known token covers.
        returned_bases: bases of those that come back from the text of a token; None where the
            tokens' texts do not say it (text, whose tokens are bytes).
    """

    sequences: int
    bases: int
    tokens: int
    unknown: int
    known_bases: int
    returned_bases: int | None

    @property
    def bases_per_token(self) -> float:
        """Bases of the sample over its tokens; those of overlapping k-mers count once."""
        return self.bases / self.tokens if self.tokens else 0.0

    @property
    def unknown_share(self) -> float:
        """Unknown ones among the tokens."""
        return self.unknown / self.tokens if self.tokens else 0.0

    @property
    def returned_share(self) -> float | None:
        """Bases that come back among those that a known token covers."""
        if self.returned_bases is None:
            return None
        return self.returned_bases / self.known_bases if self.known_bases else 0.0


def coverage(tokenizer: Tokenizer, sequences: Sequence[np.ndarray]) -> Coverage:
    """Encode sequences, and spell them again from the texts of their tokens.

    Args:
        tokenizer: from `load_tokenizer`.
        sequences: uint8 ASCII bases (n,), each short enough for one window.

    Example:
        >>> import numpy as np
        >>> from bertgeom.tokens.coverage import coverage
        >>> from bertgeom.tokens.select import SingleNucleotide
        >>> found = coverage(SingleNucleotide(8), [np.frombuffer(b"ACGT", np.uint8)])
        >>> found.bases_per_token, found.unknown_share, found.returned_share
        (1.0, 0.0, 1.0)
    """
    texts = _texts(tokenizer)
    protein = isinstance(tokenizer, HuggingFace) and tokenizer.alphabet == "protein"
    unknown_ids = np.array(tokenizer.unknown_ids, dtype=np.int64)
    tokens = unknown = known_bases = returned = 0
    for bases in sequences:
        row = tokenizer.encode(bases)
        letters = _folded(bases.tobytes().decode("latin-1"), protein)
        known, back = np.zeros(len(bases), bool), np.zeros(len(bases), bool)
        content = np.flatnonzero(~row.special)
        tokens += len(content)
        unknown += row.n_unknown
        for i in content[~np.isin(row.ids[content], unknown_ids)].tolist():
            start, stop = int(row.start[i]), int(row.stop[i])
            known[start:stop] = True
            text = texts.get(int(row.ids[i])) if texts is not None else None
            # A k-mer may reach beyond the end of the sequence.
            if text is not None and _says(text, letters[start:stop], tokenizer):
                back[start:stop] = True
        known_bases += int(known.sum())
        returned += int(back.sum())
    return Coverage(
        len(sequences),
        sum(len(bases) for bases in sequences),
        tokens,
        unknown,
        known_bases,
        None if texts is None else returned,
    )


def _says(text: str, letters: str, tokenizer: Tokenizer) -> bool:
    if isinstance(tokenizer, HuggingFace):
        if tokenizer.rare_as_x:
            letters = re.sub("[UZOB]", "X", letters)
        return text == letters
    return bool(letters) and text.startswith(letters)


def _texts(tokenizer: Tokenizer) -> Mapping[int, str] | None:
    """Folded letters of every token by id; None where a token's text is not that of its bases."""
    if isinstance(tokenizer, KmerTokenizer | NucleotideTransformer):
        vocabulary = tokenizer.vocabulary
    elif isinstance(tokenizer, SingleNucleotide):
        vocabulary = tokenizer.letters
    elif isinstance(tokenizer, HuggingFace) and tokenizer.alphabet != "text":
        vocabulary = tokenizer.tokenizer.get_vocab()
    else:
        return None
    protein = isinstance(tokenizer, HuggingFace) and tokenizer.alphabet == "protein"
    return {i: _folded(_MARKS.sub("", text), protein) for text, i in vocabulary.items()}


def _folded(text: str, protein: bool = False) -> str:
    """Upper case; U is T in nucleotides, and selenocysteine in proteins."""
    upper = text.upper()
    return upper if protein else upper.replace("U", "T")
