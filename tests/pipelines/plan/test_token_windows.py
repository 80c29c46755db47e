"""Windows that are cut by tokens: every base once, full, the same however they come about."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bertgeom
from bertgeom.errors import PlanError, StoreError
from bertgeom.kernels.kmers import reverse_complement
from bertgeom.pipelines.context.run_context import open_context
from bertgeom.pipelines.plan import token_windows
from bertgeom.pipelines.plan.token_windows import TokenWindows, cut_windows
from bertgeom.pipelines.run import stages
from bertgeom.pipelines.run.estimate import preview
from bertgeom.pipelines.run.shares import shares
from bertgeom.tokens.huggingface import HuggingFace

MAX_TOKENS = 48
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def dna(n: int, seed: int = 0, letters: str = "ACGT") -> np.ndarray:
    """Bases with repeats, as genomes have them, so that long tokens are met."""
    rng = np.random.default_rng(seed)
    pool = np.frombuffer(letters.encode(), np.uint8)
    words = [pool[rng.integers(0, len(pool), rng.integers(2, 12))] for _ in range(40)]
    picked = [words[i] for i in rng.integers(0, len(words), n // 2 + 1)]
    return np.concatenate([*picked, np.zeros(0, np.uint8)])[:n]


@cache
def trained(kind: str) -> Any:
    """A fast tokenizer trained on bases."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [dna(400, seed).tobytes().decode() for seed in range(40)]
    options: dict[str, Any] = {"vocab_size": 200, "show_progress": False}
    trainer: Any
    if kind == "bpe":
        made = Tokenizer(models.BPE(unk_token="[UNK]"))
        trainer = trainers.BpeTrainer(special_tokens=SPECIAL, **options)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(special_tokens=SPECIAL, unk_token="[UNK]", **options)
    elif kind == "metaspace":
        made = Tokenizer(models.BPE(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(special_tokens=SPECIAL, **options)
    else:
        made = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=10**6))
        trainer = trainers.WordPieceTrainer(special_tokens=SPECIAL, **options)
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", made.token_to_id("[CLS]")), ("[SEP]", made.token_to_id("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    )


@pytest.fixture(scope="module", params=["bpe", "unigram", "wordpiece", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> HuggingFace:
    return HuggingFace(trained(request.param), MAX_TOKENS)


@pytest.fixture(scope="module")
def bpe() -> HuggingFace:
    return HuggingFace(trained("bpe"), MAX_TOKENS)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches and pieces so small that records are longer than several of them."""
    monkeypatch.setattr(token_windows, "_STRETCH", 6000)
    monkeypatch.setattr(token_windows, "_PIECE", 700)
    monkeypatch.setattr(token_windows, "_MARGIN", 100)
    monkeypatch.setattr(token_windows, "_CALL", 5)


RECORDS = [dna(n, n) for n in (0, 1, 30, 46, 47, 300, 5000, 20000, 3, 0)]


def pieces(records: list[np.ndarray], size: int = 10**9) -> list[tuple[np.ndarray, bool]]:
    return [
        (record[low : low + size], low + size >= len(record))
        for record in records
        for low in range(0, max(len(record), 1), size)
    ]


def check(index: TokenWindows, tokenizer: HuggingFace, records: list[np.ndarray]) -> np.ndarray:
    """Every base is in one window, no window is cut off; tokens of the full windows."""
    windows = index.windows(0, index.n_windows)
    by_strand = {1: np.zeros(0), -1: np.zeros(0)}
    for sign in by_strand:
        rows = np.flatnonzero(windows.strand == sign)
        for number, record in enumerate(records if len(rows) else []):
            mine = rows[windows.record[rows] == number]
            edges = [0, *windows.stop[mine].tolist()]
            assert windows.start[mine].tolist() == edges[:-1]
            assert edges[-1] == len(record)
    full = []
    for i in range(index.n_windows):
        record = records[windows.record[i]]
        bases = record[windows.start[i] : windows.stop[i]]
        encoded = tokenizer.encode(bases if windows.strand[i] > 0 else reverse_complement(bases))
        assert not encoded.truncated
        assert windows.n_tokens is not None
        assert encoded.ids.size == windows.n_tokens[i]
        content = ~encoded.special
        assert encoded.start[content].tolist() == [0, *encoded.stop[content].tolist()][:-1]
        if windows.stop[i] < len(record):
            full.append(encoded.ids.size)
    return np.array(full)


@pytest.mark.parametrize("strand", ["+", "-"])
def test_windows_are_full_and_hold_every_base_once(
    small: None, tokenizer: HuggingFace, strand: str
) -> None:
    index = cut_windows(tokenizer, pieces(RECORDS), strand=strand)
    full = check(index, tokenizer, RECORDS)
    assert len(full) > 20
    assert full.min() >= 0.9 * MAX_TOKENS
    assert full.mean() >= 0.98 * MAX_TOKENS


def test_both_strands_fit_into_one_window(small: None, tokenizer: HuggingFace) -> None:
    index = cut_windows(tokenizer, pieces(RECORDS), strand="both")
    full = check(index, tokenizer, RECORDS).reshape(-1, 2)
    assert full.max(axis=1).mean() >= 0.9 * MAX_TOKENS


def test_pieces_change_nothing(small: None, bpe: HuggingFace) -> None:
    whole = cut_windows(bpe, pieces(RECORDS)).to_bytes()
    for size in (1000, 6000, 777):
        assert cut_windows(bpe, pieces(RECORDS, size)).to_bytes() == whole


def test_stretches_change_next_to_nothing(bpe: HuggingFace, monkeypatch: Any) -> None:
    one = cut_windows(bpe, pieces(RECORDS))
    monkeypatch.setattr(token_windows, "_STRETCH", 6000)
    other = cut_windows(bpe, pieces(RECORDS))
    assert other.n_windows == one.n_windows


def test_a_long_record_is_no_single_call(bpe: HuggingFace, monkeypatch: Any) -> None:
    longest = []
    whole = HuggingFace.encode_whole

    def spied(self: HuggingFace, sequences: Any) -> Any:
        longest.append(max(map(len, sequences), default=0))
        return whole(self, sequences)

    monkeypatch.setattr(HuggingFace, "encode_whole", spied)
    cut_windows(bpe, pieces([dna(100_000)]))
    assert max(longest) <= token_windows._PIECE + 2 * token_windows._MARGIN


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 900), max_size=5),
    strand=st.sampled_from(["+", "-", "both"]),
    seed=st.integers(0, 99),
)
def test_any_records_are_covered(
    bpe: HuggingFace, lengths: list[int], strand: str, seed: int
) -> None:
    records = [dna(n, seed + i, "ACGTN" if i % 2 else "ACGT") for i, n in enumerate(lengths)]
    check(cut_windows(bpe, pieces(records), strand=strand), bpe, records)


def test_a_last_window_that_is_too_short_shares_bases(small: None, bpe: HuggingFace) -> None:
    records = [dna(n, n) for n in range(1000, 1060, 7)]
    index = cut_windows(bpe, pieces([*records, dna(10)]), min_length=40)
    check(index, bpe, [*records, np.zeros(0, np.uint8)])
    assert index.bases.min() >= 40
    assert index.record_windows[-1] == 0


def test_runs_of_n_are_bounded(bpe: HuggingFace) -> None:
    records = [np.full(30_000, ord("N"), np.uint8)]
    check(cut_windows(bpe, pieces(records)), bpe, records)


# In a run.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a BPE tokenizer of 48 tokens."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bpe")
    tokenizer = trained("bpe")
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=MAX_TOKENS,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "x.fa"
    with path.open("wb") as file:
        for i, n in enumerate((3000, 20, 1500, 400)):
            file.write(b">r%d\n%s\n" % (i, dna(n, 7 + i).tobytes()))
    return path


def contents(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name not in ("history.jsonl", "lock")
    }


@pytest.fixture(scope="module")
def done(model: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "x.zarr"
    stages.run(source, model=model, out=out, threads=1, partition_windows=8)
    return out


def test_a_run_cuts_by_tokens_and_plan_says_the_same(done: Path, model: Path, source: Path) -> None:
    ds = bertgeom.open(done)
    assert not ds.truncated.values.any()
    n_tokens, record, stop = (ds[name].values for name in ("n_tokens", "record_index", "stop"))
    inner = stop < np.array([3000, 20, 1500, 400])[record.astype(int)]
    assert (n_tokens[inner] >= 0.9 * MAX_TOKENS).all()
    found = preview(source, model=model, threads=1, measure=False, partition_windows=8)
    assert (found.windows, found.tokens) == (ds.sizes["window"], int(n_tokens.sum()))
    assert found.exact_tokens
    assert found.cut == "tokens"
    assert found.window == int((ds.stop - ds.start).max())
    assert (ds.flags.values & 2 > 0).tolist() == (record == 1).tolist()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_plan_tells_the_figures_of_the_run(
    workers: int,
    done: Path,
    model: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command line, for any number of workers: the store is the same."""
    from bertgeom.pipelines.cli.main import main

    command = ["plan", str(source), "-m", str(model), "--partition-windows", "8", "--json"]
    assert main([*command, "--workers", str(workers), "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    context = open_context(str(done))
    ran = stages.status(str(done))
    assert found["workers"] == workers
    assert (found["records"], found["bases"]) == (4, 4920)
    assert found["windows"] == ran.windows
    assert found["tokens"] == ran.counts["tokens"]
    assert (found["partitions"], found["row_groups"]) == (ran.partitions, ran.groups)
    assert found["partition_windows"] == context.settings.partition_windows == 8
    assert found["batch_tokens"] == context.settings.batch_tokens
    chunks = [path for path in done.glob("*/c/**/*") if path.is_file()]
    dataset = bertgeom.open(done)
    arrays = {path.relative_to(done).parts[0] for path in chunks} & {*dataset.variables}
    by_window = [dataset[name] for name in arrays if dataset[name].dims[:1] == ("window",)]
    stored = sum(array.nbytes for array in by_window)
    assert 0.5 < found["store_bytes"] / stored < 2
    assert 0.5 < found["files"] / len(chunks) < 2
    # Equal workers share the time; the whole windows are timed, and of those fewer a second.
    ideal = found["windows"] / found["windows_per_second"] / workers
    assert 0.2 * ideal < found["seconds"] <= 1.01 * ideal


def test_a_plan_counts_the_memory_of_all_workers(model: Path, source: Path) -> None:
    options: dict[str, Any] = {"model": model, "threads": 1, "measure": False}
    one = preview(source, **options)
    budget = int(1.5 * one.memory_total)
    assert preview(source, memory=budget, **options).memory == one.memory
    with pytest.raises(PlanError, match="or use fewer --workers"):
        preview(source, memory=budget, workers=2, **options)


def test_a_run_goes_on_without_cutting_again(
    done: Path, model: Path, source: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from bertgeom.pipelines.run import prepare

    out = tmp_path / "x.zarr"
    options: dict[str, Any] = {"model": model, "out": out, "threads": 1, "partition_windows": 8}

    def killed(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "finalise", killed)
        with pytest.raises(KeyboardInterrupt):
            stages.run(source, **options)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "cut_windows", killed)
        stages.run(source, **options)
    assert contents(out) == contents(done)


def test_a_damaged_file_of_windows_is_named_and_made_again(
    done: Path, model: Path, source: Path, tmp_path: Path
) -> None:
    import shutil

    out = Path(shutil.copytree(done, tmp_path / "x.zarr"))
    kept = out / "run" / "windows.safetensors"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + b"\x7f")
    with pytest.raises(StoreError, match="found a damaged file; the bertgeom run command"):
        _ = open_context(str(out)).plan
    stages.run(source, model=model, out=out, threads=1, partition_windows=8)
    assert kept.read_bytes() == whole


def test_a_store_of_windows_by_bases_goes_on(model: Path, source: Path, tmp_path: Path) -> None:
    """A store that was set up with windows of bases by default resumes with the same command."""
    out = tmp_path / "x.zarr"
    explicit = MAX_TOKENS - 2
    stages.run(source, model=model, out=out, threads=1, window=explicit)
    again = stages.run(source, model=model, out=out, threads=1)
    assert again.complete
    facts = json.loads((out / "run" / "run.json").read_text())
    assert "windows" not in facts["identity"]
    assert facts["settings"]["window"] == explicit


def test_a_window_in_bases_is_kept_and_its_truncation_is_said(
    model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bertgeom.pipelines.cli.main import main

    out = tmp_path / "x.zarr"
    arguments = ["run", str(source), "-m", str(model), "-o", str(out), "--window", "1500"]
    assert main([*arguments, "--threads", "1"]) == 0
    text = capsys.readouterr().out
    ds = bertgeom.open(out)
    share = 100 * float(ds.truncated.mean())
    assert share > 50
    assert f"windows cut off at the longest input: {share:.3g} %" in text
    assert "warning: the bases behind the cut are in no window" in text
    assert shares(stages.status(str(out)).counts).truncated_windows == pytest.approx(share)
