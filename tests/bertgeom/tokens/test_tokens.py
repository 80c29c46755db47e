"""Tokenisers against their rules, and against the tokenizers the models were trained with."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgeom.errors import ModelError, UsageError
from bertgeom.kernels.kmers import reference
from bertgeom.tokens.bases import SINGLE_IDS, nt_vocabulary
from bertgeom.tokens.encoded import Tokenizer
from bertgeom.tokens.huggingface import HuggingFace
from bertgeom.tokens.kmer import KmerTokenizer, all_kmers
from bertgeom.tokens.select import (
    DnabertKmer,
    NucleotideTransformer,
    PaperKmer,
    SingleNucleotide,
    build_vocabulary,
    encode_batch,
    load_kmer_tokenizer,
    load_tokenizer,
    parse_spec,
    save_kmer_tokenizer,
)


def as_bases(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def random_bases(n: int, letters: str = "ACGT", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(as_bases(letters), n)


def text_of(bases: np.ndarray) -> str:
    return bases.tobytes().decode()


SPIKE_LIKE = random_bases(3822, seed=5)


def paper(max_tokens: int = 512) -> KmerTokenizer:
    return PaperKmer(build_vocabulary([SPIKE_LIKE]), max_tokens=max_tokens)


@pytest.fixture(scope="module")
def hugging_face(minilm: Path) -> HuggingFace:
    found = load_tokenizer(minilm)
    assert isinstance(found, HuggingFace)
    return found


KINDS: dict[str, Callable[[], Tokenizer] | None] = {
    "paper": paper,
    "dnabert": lambda: DnabertKmer(3, max_tokens=40),
    "nt": lambda: NucleotideTransformer(nt_vocabulary("v2"), 40),
    "single": lambda: SingleNucleotide(40, cls=True),
    "hf": None,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = KINDS[request.param]
    return request.getfixturevalue("hugging_face") if made is None else made()


SEQUENCES = [
    as_bases(text)
    for text in (
        "",
        "A",
        "ACGTACGTACG",
        "ACGTACGTACGT",
        "acguACGTTTGCA" * 3,
        "N" * 30,
        "ACGTNNRYACGTTTAGCANACGATTAGC" * 3,
        "ACG---TTAG",
    )
] + [random_bases(600, "ACGTN", 1), SPIKE_LIKE]


def test_every_kind_is_a_tokenizer(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer, Tokenizer)
    json.dumps(tokenizer.settings())


@pytest.mark.parametrize("bases", SEQUENCES, ids=lambda b: f"{len(b)} bases")
def test_an_encoding_is_consistent(tokenizer: Tokenizer, bases: np.ndarray) -> None:
    encoded = tokenizer.encode(bases)
    n, content = encoded.ids.size, ~encoded.special
    assert encoded.ids.dtype == encoded.start.dtype == encoded.stop.dtype == np.int32
    assert encoded.special.dtype == bool
    assert encoded.special.size == encoded.start.size == encoded.stop.size == n
    assert n <= tokenizer.max_tokens
    assert ((encoded.ids >= 0) & (encoded.ids < tokenizer.vocab_size)).all()
    assert (encoded.start[~content] == -1).all()
    assert (encoded.stop[~content] == -1).all()
    start, stop = encoded.start[content], encoded.stop[content]
    assert (np.diff(start) >= 0).all()
    assert ((start >= 0) & (start <= stop) & (stop <= bases.size)).all()
    assert encoded.n_ambiguous == reference.count_ambiguous(text_of(bases))
    counted = tokenizer.count_tokens(bases.size)
    assert n == counted if tokenizer.exact_counts else n <= counted


def test_a_batch_is_its_rows(tokenizer: Tokenizer) -> None:
    batch = encode_batch(tokenizer, SEQUENCES)
    assert len(batch) == len(SEQUENCES)
    assert batch.ids.shape[1] == batch.lengths.max()
    for b, bases in enumerate(SEQUENCES):
        alone, row = tokenizer.encode(bases), batch.row(b)
        for name in ("ids", "special", "start", "stop"):
            assert getattr(row, name).tolist() == getattr(alone, name).tolist(), name
        assert (row.n_unknown, row.n_ambiguous, row.truncated) == (
            alone.n_unknown,
            alone.n_ambiguous,
            alone.truncated,
        )
        padding = np.arange(batch.ids.shape[1]) >= batch.lengths[b]
        assert (batch.ids[b, padding] == tokenizer.pad_id).all()
        assert not batch.special[b, padding].any()
        assert (batch.start[b, padding] == -1).all()


def test_an_empty_batch_has_no_rows(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode_batch([])
    assert len(batch) == 0
    assert batch.ids.shape == (0, 0)


def test_case_and_u_are_folded(tokenizer: Tokenizer) -> None:
    upper = tokenizer.encode(as_bases("ACGTTGCATTACGGATTA"))
    assert tokenizer.encode(as_bases("acguTgcauuacggATTA")).ids.tolist() == upper.ids.tolist()


def test_the_longest_window_fits_and_one_more_base_does_not(tokenizer: Tokenizer) -> None:
    n = tokenizer.window_bases()
    assert not tokenizer.encode(random_bases(n)).truncated
    assert tokenizer.count_tokens(np.array([n, 0])).tolist()[0] <= tokenizer.max_tokens
    if tokenizer.exact_counts:
        assert tokenizer.encode(random_bases(n + 60)).truncated


@pytest.mark.parametrize("kind", ["paper", "dnabert"])
def test_a_window_one_base_longer_is_cut_off(kind: str) -> None:
    make = KINDS[kind]
    assert make is not None
    made = make()
    n = made.window_bases()
    assert not made.encode(random_bases(n)).truncated
    assert made.encode(random_bases(n + 1)).truncated


# The paper's k-mers.


@settings(deadline=None, max_examples=40)
@given(text=st.text("ACGTNr", max_size=120), k=st.integers(2, 13), stride=st.integers(1, 14))
def test_paper_kmers_agree_with_the_oracle(text: str, k: int, stride: int) -> None:
    bases = as_bases(text)
    tokenizer = PaperKmer(
        build_vocabulary([bases[: len(bases) // 2]], k, stride), k=k, stride=stride, max_tokens=12
    )
    tokens = reference.kmer_tokens(text, tokenizer.table.vocabulary, k, stride, 100, pad=True)
    kept = tokens[:10]
    encoded = tokenizer.encode(bases)
    assert encoded.ids.tolist() == [101, *(token for token, _, _ in kept), 102]
    assert encoded.start.tolist() == [-1, *(start for _, start, _ in kept), -1]
    assert encoded.stop.tolist() == [-1, *(stop for _, _, stop in kept), -1]
    assert encoded.special.tolist() == [True, *[False] * len(kept), True]
    assert encoded.n_unknown == sum(token == 100 for token, _, _ in kept)
    assert encoded.truncated == (len(tokens) > 10)


def test_a_spike_gives_the_papers_number_of_tokens() -> None:
    """3,822 bases are padded to 3,828; (3,828 - 12) / 9 + 1 = 425 k-mers."""
    encoded = paper().encode(SPIKE_LIKE)
    assert encoded.ids.size == 427
    assert encoded.n_unknown == 0
    assert encoded.start[-2] == 3816
    assert encoded.stop[-2] == 3822


def test_kmers_with_n_are_tokens_only_if_training_saw_them() -> None:
    seen = as_bases("ACGTACGTACGTACG")
    tokenizer = PaperKmer(build_vocabulary([seen]))
    assert sorted(tokenizer.vocabulary) == ["acgtacgtacgt", "cgtacgnnnnnn"]
    assert tokenizer.encode(seen).n_unknown == 0
    assert tokenizer.encode(as_bases("ACGTACGTACGTACN")).n_unknown == 1


def test_offsets_name_the_bases_of_a_kmer() -> None:
    tokenizer = paper()
    encoded = tokenizer.encode(SPIKE_LIKE)
    letters = {i: kmer for kmer, i in tokenizer.table.vocabulary.items()}
    for token, start, stop in zip(
        encoded.ids[1:-1], encoded.start[1:-1], encoded.stop[1:-1], strict=True
    ):
        assert letters[int(token)].rstrip("N") == text_of(SPIKE_LIKE[start:stop])


def test_a_vocabulary_is_sorted_counted_and_free_of_gaps() -> None:
    some = [as_bases("AAACCC"), as_bases("AAAGGG"), as_bases("AAA-GG"), as_bases("")]
    assert build_vocabulary(some, 3, 3) == ["aaa", "ccc", "ggg"]
    assert build_vocabulary(some, 3, 3, min_count=2) == ["aaa"]
    assert build_vocabulary(some[::-1], 3, 3) == build_vocabulary(some, 3, 3)
    assert build_vocabulary([], 3, 3) == []
    many = [random_bases(90, seed=i) for i in range(300)]
    met = Counter(k for m in many for k, _, _ in reference.kmers(text_of(m), 3, 3, pad=True))
    frequent = sorted(kmer.lower() for kmer, times in met.items() if times >= 150)
    assert build_vocabulary(many, 3, 3, min_count=150) == frequent


def test_a_saved_tokenizer_comes_back(tmp_path: Path) -> None:
    tokenizer = paper(300)
    save_kmer_tokenizer(tmp_path, tokenizer)
    lines = (tmp_path / "vocab.txt").read_text().splitlines()
    assert (lines[0], lines[1], lines[100:105]) == (
        "[PAD]",
        "[unused1]",
        ["[UNK]", "[CLS]", "[SEP]", "[MASK]", min(tokenizer.vocabulary)],
    )
    for loaded in (load_tokenizer(tmp_path), load_kmer_tokenizer(tmp_path)):
        assert loaded.settings() == tokenizer.settings()
        assert loaded.encode(SPIKE_LIKE).ids.tolist() == tokenizer.encode(SPIKE_LIKE).ids.tolist()
    assert load_tokenizer(tmp_path, max_tokens=100).max_tokens == 100
    assert load_tokenizer(tmp_path, max_tokens=1000).max_tokens == 300


def test_what_changes_an_id_changes_the_settings() -> None:
    kmers = build_vocabulary([SPIKE_LIKE])
    base = PaperKmer(kmers).settings()
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    for other in (
        PaperKmer(kmers[1:]),
        PaperKmer(kmers[::-1]),
        PaperKmer(kmers, stride=8),
        PaperKmer(kmers, max_tokens=100),
        PaperKmer({kmer: i for i, kmer in enumerate(kmers, 104)}, special_ids={**special}),
    ):
        assert other.settings() != base
    assert PaperKmer(kmers).settings() == base


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"vocabulary": ["acgt"], "k": 5}, ModelError, "expected k-mers of 5 bases, found 'acgt'"),
        ({"vocabulary": ["ac", "AC"], "k": 2}, ModelError, "expected every k-mer once"),
        ({"vocabulary": {"ac": 101}, "k": 2}, ModelError, r"special ids apart.*\[101\]"),
        ({"vocabulary": ["ac"], "k": 2, "special_ids": {"unk": 1}}, ModelError, "found none of"),
        ({"vocabulary": ["ac"], "k": 2, "stride": 0}, UsageError, "stride of at least 1"),
        ({"vocabulary": ["ac"], "k": 2, "max_tokens": 2}, UsageError, "max_tokens of at least 3"),
    ],
)
def test_kmer_tokenizers_that_cannot_be_meant(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PaperKmer(**arguments)


# DNABERT, against transformers' BertTokenizer.


@pytest.fixture(scope="module")
def dnabert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dnabert")
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *all_kmers(6)]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("letters", ["ACGT", "ACGTACGTACGTACGTACGTACGTACGTACGTN"])
def test_dnabert_agrees_with_transformers(dnabert_folder: Path, letters: str) -> None:
    from transformers import BertTokenizer

    theirs = BertTokenizer(str(dnabert_folder / "vocab.txt"), do_lower_case=False)
    ours = load_tokenizer(dnabert_folder)
    assert ours.settings() == DnabertKmer(6).settings()
    for seed in range(20):
        text = text_of(random_bases(seed * 7, letters, seed))
        kmers = " ".join(text[i : i + 6] for i in range(len(text) - 5))
        assert ours.encode(as_bases(text)).ids.tolist() == theirs(kmers)["input_ids"]


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_dnabert_ids_follow_the_order_a_t_c_g(k: int) -> None:
    tokenizer = DnabertKmer(k)
    assert tokenizer.vocab_size == 4**k + 5
    ids = [int(tokenizer.encode(as_bases(x * k)).ids[1]) for x in "ATCG"]
    repeated = (4**k - 1) // 3
    assert ids == [5, 5 + repeated, 5 + 2 * repeated, 4**k + 4]
    assert tokenizer.encode(as_bases("N" * k)).ids.tolist() == [2, 1, 3]
    assert tokenizer.encode(as_bases("A" * (k - 1))).ids.tolist() == [2, 3]


# Nucleotide Transformer, against transformers' EsmTokenizer.


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nucleotide_transformer_agrees_with_transformers(tmp_path: Path, version: str) -> None:
    from transformers import EsmTokenizer

    vocabulary = nt_vocabulary(version)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    theirs = EsmTokenizer(str(tmp_path / "vocab.txt"), eos_token=None)
    ours = load_tokenizer(tmp_path)
    assert ours.max_tokens == {"v1": 1000, "v2": 2048}[version]
    assert ours.settings() == load_tokenizer(tmp_path, override=f"nt:{version}").settings()
    for seed in range(60):
        letters = ("ACGT" * 8 + "N", "ACGT" * 6 + "NRY-")[seed % 2]
        text = text_of(random_bases(seed * 3, letters, seed))
        assert ours.encode(as_bases(text)).ids.tolist() == theirs(text)["input_ids"], text


def test_nucleotide_transformer_layouts() -> None:
    v1, v2 = nt_vocabulary("v1"), nt_vocabulary("v2")
    assert [v1[x] for x in ("<unk>", "<pad>", "<mask>", "<cls>", "AAAAAA", "A", "N")] == [
        *(0, 1, 2, 3, 4),
        4100,
        4104,
    ]
    assert [v2[x] for x in ("<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>", "AAAAAA")] == [
        *range(7)
    ]
    assert len(v2) == 4107
    # The embedding of version 1 has 4,105 rows; its <eos> and <bos> never occur.
    assert NucleotideTransformer(v1).vocab_size == 4105
    assert NucleotideTransformer(v2).vocab_size == 4107


def test_nucleotide_transformer_offsets() -> None:
    encoded = NucleotideTransformer().encode(as_bases("ACGTACNACRRA"))
    assert list(zip(encoded.start.tolist(), encoded.stop.tolist(), strict=True)) == [
        *((-1, -1), (0, 6), (6, 7), (7, 8), (8, 9), (9, 11), (11, 12))
    ]
    assert encoded.n_unknown == 1
    assert encoded.n_ambiguous == 3


def test_an_incomplete_nucleotide_transformer_vocabulary_is_refused() -> None:
    vocabulary = nt_vocabulary()
    del vocabulary["ACGTAC"]
    with pytest.raises(ModelError, match="found no ACGTAC"):
        NucleotideTransformer(vocabulary)


# Single bases.


def test_single_bases_as_hyenadna_and_caduceus_have_them() -> None:
    encoded = SingleNucleotide(10).encode(as_bases("ACGTnRu"))
    assert encoded.ids.tolist() == [7, 8, 9, 10, 11, 6, 10, 1]
    assert encoded.special.tolist() == [False] * 7 + [True]
    assert encoded.start.tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
    assert (encoded.n_unknown, encoded.n_ambiguous) == (1, 2)
    assert SingleNucleotide(10, cls=True, sep=False).encode(as_bases("AC")).ids.tolist() == [
        0,
        7,
        8,
    ]
    assert SINGLE_IDS["N"] == 11


def test_single_bases_are_cut_off_in_front_of_the_last_token() -> None:
    encoded = SingleNucleotide(4).encode(as_bases("ACGTA"))
    assert encoded.ids.tolist() == [7, 8, 9, 1]
    assert encoded.truncated


# Any Hugging Face tokenizer.


def test_hugging_face_offsets_map_back_to_the_bases(hugging_face: HuggingFace) -> None:
    bases = random_bases(95, "ACGTN", 2)
    encoded = hugging_face.encode(bases)
    theirs = hugging_face.tokenizer(text_of(bases))["input_ids"]
    assert encoded.ids.tolist() == theirs
    assert encoded.special.tolist() == [True, *[False] * (len(theirs) - 2), True]
    tokens = hugging_face.tokenizer.convert_ids_to_tokens(theirs)
    for token, start, stop in zip(
        tokens[1:-1], encoded.start[1:-1], encoded.stop[1:-1], strict=True
    ):
        assert token.removeprefix("##").upper() == text_of(bases[start:stop])
    assert encoded.start[1] == 0
    assert encoded.stop[-2] == bases.size


def test_hugging_face_cuts_off_content_and_keeps_special_tokens(
    minilm: Path, hugging_face: HuggingFace
) -> None:
    short = load_tokenizer(minilm, max_tokens=8)
    bases = random_bases(90)
    whole, cut = hugging_face.encode(bases), short.encode(bases)
    assert cut.truncated
    assert cut.ids.tolist() == [*whole.ids[:7].tolist(), whole.ids[-1]]
    assert cut.stop.tolist() == [*whole.stop[:7].tolist(), -1]


def test_hugging_face_counts_its_unknown_token(hugging_face: HuggingFace) -> None:
    # More than 100 letters without a space are one unknown word to WordPiece.
    encoded = hugging_face.encode(random_bases(101))
    assert encoded.n_unknown == 1
    assert (encoded.start[1], encoded.stop[1]) == (0, 101)


def test_a_file_of_sentencepiece_alone_names_the_packages_that_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spiece.model").write_bytes(b"\0")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    found = importlib.util.find_spec
    absent = ("sentencepiece", "google")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name in absent else found(name)
    )
    with pytest.raises(ModelError, match=r"^[^\n]*pip install sentencepiece protobuf$"):
        load_tokenizer(tmp_path, alphabet="protein")


def test_a_length_limit_saved_with_a_tokenizer_is_no_rule(hugging_face: HuggingFace) -> None:
    assert json.loads(hugging_face.tokenizer.backend_tokenizer.to_str())["truncation"] is None
    assert hugging_face.max_tokens == 512


def test_a_tokenizer_without_offsets_is_aligned_by_its_tokens(tmp_path: Path) -> None:
    from transformers import EsmTokenizer

    lines = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *"ACGTN"]
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    EsmTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, max_tokens=100)
    assert isinstance(tokenizer, HuggingFace)
    assert not tokenizer.tokenizer.is_fast
    encoded = tokenizer.encode(as_bases("ACRRGT"))
    assert encoded.ids.tolist() == [0, 5, 6, 3, 7, 8, 2]
    assert encoded.start.tolist() == [-1, 0, 1, 2, 4, 5, -1]
    assert encoded.stop.tolist() == [-1, 1, 2, 4, 5, 6, -1]
    assert encoded.n_unknown == 1
    assert tokenizer.encode(as_bases("")).special.tolist() == [True, True]


# Which tokenizer a model gets.


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("kmer:k=12,stride=9", {"kind": "kmer", "k": 12, "stride": 9}),
        ("kmer: k=6 , pad_with_n=no", {"kind": "kmer", "k": 6, "pad_with_n": False}),
        ("dnabert:k=6", {"kind": "dnabert", "k": 6}),
        ("nt:v2", {"kind": "nt", "version": "v2"}),
        ("nt", {"kind": "nt"}),
        ("single:cls=1,sep=0", {"kind": "single", "cls": True, "sep": False}),
        ("hf:case=lower", {"kind": "hf", "case": "lower"}),
    ],
)
def test_specs(spec: str, expected: dict[str, Any]) -> None:
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bpe", "expected a kind out of kmer, dnabert, nt, single, hf, found 'bpe'"),
        ("", "expected a kind"),
        ("kmer:k=x", "expected k as int, found 'x'"),
        ("kmer:size=6", "expected keys out of k, stride.*found 'size'"),
        ("single:cls=maybe", "expected cls as bool, found 'maybe'"),
    ],
)
def test_specs_that_cannot_be_meant(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_spec(spec)


def test_a_spec_decides_before_the_files(tmp_path: Path, dnabert_folder: Path) -> None:
    save_kmer_tokenizer(tmp_path, paper())
    assert load_tokenizer(tmp_path).settings()["kind"] == "kmer"
    assert load_tokenizer(tmp_path, override="dnabert:k=4").settings() == DnabertKmer(4).settings()
    assert load_tokenizer(tmp_path, override="nt:v1").max_tokens == 1000
    assert load_tokenizer(tmp_path, override="single", max_tokens=64).window_bases() == 63
    kmer = load_tokenizer(dnabert_folder, override="kmer:k=6,stride=3,case=upper")
    assert isinstance(kmer, KmerTokenizer)
    assert (kmer.k, kmer.stride, len(kmer.vocabulary)) == (6, 3, 4096)


def test_unknown_versions_and_missing_limits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected nt:v1 or nt:v2, found 'v3'"):
        load_tokenizer(tmp_path, override="nt:v3")
    with pytest.raises(UsageError, match="give --max-tokens"):
        load_tokenizer(tmp_path, override="single")


@pytest.mark.parametrize("name", ["HyenaDNATokenizer", "CaduceusTokenizer"])
def test_single_base_models_need_none_of_their_code(tmp_path: Path, name: str) -> None:
    config = {"tokenizer_class": name, "model_max_length": 1026}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, SingleNucleotide)
    assert tokenizer.max_tokens == 1026


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "expected a tokenizer at .*; choose one with --tokenizer"),
        ({"bertgeom_tokenizer.json": "{"}, "expected a tokenizer's settings in JSON"),
        ({"bertgeom_tokenizer.json": "{}"}, 'expected a JSON object with "kind"'),
        ({"bertgeom_tokenizer.json": '{"kind": "kmer"}'}, "expected a vocabulary vocab.txt"),
        (
            {
                "bertgeom_tokenizer.json": '{"kind": "kmer", "k": 3, "case": "lower"}',
                "vocab.txt": "[PAD]\nACG\n",
            },
            "expected lower-case 3-mers in the vocabulary, found none among 2 lines",
        ),
        (
            {"bertgeom_tokenizer.json": '{"kind": "kmer", "k": 3}', "vocab.txt": "[PAD]\nacg\n"},
            r"expected the line \[UNK\] in the vocabulary, found none",
        ),
        (
            {"bertgeom_tokenizer.json": '{"kind": "kmer", "k": 3, "vocab": "../vocab.txt"}'},
            r"expected a vocabulary file in the folder, found '\.\./vocab\.txt'",
        ),
        ({"tokenizer_config.json": "{"}, "expected JSON"),
    ],
)
def test_folders_without_a_tokenizer_stop_with_one_line(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_settings_file_with_an_unknown_key_names_it(tmp_path: Path) -> None:
    (tmp_path / "bertgeom_tokenizer.json").write_text('{"kind": "kmer", "kk": 3}')
    with pytest.raises(UsageError, match=r"bertgeom_tokenizer\.json: .*found 'kk'"):
        load_tokenizer(tmp_path)


def test_a_model_that_is_nowhere_stops_with_one_line() -> None:
    with pytest.raises(ModelError, match="no-such/model"):
        load_tokenizer("no-such/model")
