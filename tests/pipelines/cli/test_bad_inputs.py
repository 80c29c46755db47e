"""Whatever a user can get wrong: one line that names the culprit, and nothing touched.

Every case is a command line in one workspace with a source, a model, a finished store and shards.
It must end with exit code 1 or 2 and one error line, without a traceback and without advice to
debug, and leave every file of the workspace as it was.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bertgeom.pipelines.cli.main import main
from bertgeom.pipelines.run import stages
from bertgeom.store import storage

GOOD = b">r0 first\n" + b"ACGTTGCAAC" * 12 + b"\n>r1\n" + b"GATTACAGGC" * 5 + b"\n>r2\nACGTA\n"
Content = bytes | Callable[[Path], None]


@dataclass(frozen=True)
class Bad:
    """A wrong call.

    Attributes:
        name: what is wrong. arguments: the command line, blanks between; `{}`-free.
        words: what the error line must hold, in any case.
        files: made in the workspace beforehand and removed afterwards.
    """

    name: str
    arguments: str | list[str]
    words: tuple[str, ...] = ()
    files: dict[str, Content] = field(default_factory=dict)


RUN = "--model model --out out.zarr --window 20 --threads 1 --tier core"


def source(name: str, content: bytes, *words: str, file: str = "bad.fa") -> Bad:
    return Bad(f"source: {name}", f"run {file} {RUN}", (file, *words), {file: content})


def run(name: str, options: str, *words: str, **files: Content) -> Bad:
    named = {key.replace("__", "."): content for key, content in files.items()}
    return Bad(f"run: {name}", f"run good.fa {RUN} {options}", words, named)


def labels(name: str, content: bytes, *words: str) -> Bad:
    files: dict[str, Content] = {"bad.tsv": content}
    return Bad(f"labels: {name}", f"run good.fa {RUN} --labels bad.tsv", ("bad.tsv", *words), files)


def regions(name: str, content: bytes, *words: str, file: str = "bad.bed") -> Bad:
    files: dict[str, Content] = {file: content}
    return Bad(f"regions: {name}", f"run good.fa {RUN} --annotations {file}", (file, *words), files)


def place(name: str, out: str, *words: str, **files: Content) -> Bad:
    named = {key.replace("__", "."): content for key, content in files.items()}
    fixed = "--model model --window 20 --threads 1 --tier core"
    return Bad(f"place: {name}", ["run", "good.fa", *fixed.split(), "--out", out], words, named)


def model(name: str, change: Callable[[Path], None], *words: str) -> Bad:
    def make(path: Path) -> None:
        shutil.copytree(path.parent / "model", path)
        change(path)

    options = RUN.replace("--model model", "--model bad-model")
    return Bad(f"model: {name}", f"run good.fa {options}", words, {"bad-model": make})


def store(name: str, arguments: str, *words: str, **files: Content) -> Bad:
    named = {key.replace("__", "."): content for key, content in files.items()}
    return Bad(f"store: {name}", arguments, words, named)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


def put(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def drop(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def cut(name: str, share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return change


def tensors(change_all: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = {k: np.array(v) for k, v in load_file(folder / "model.safetensors").items()}
        change_all(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


def poison(value: float) -> Callable[[Path], None]:
    def change(weights: dict[str, np.ndarray]) -> None:
        weights["bert.encoder.layer.1.attention.self.query.weight"][0, 0] = value

    return tensors(change)


def without(part: str) -> Callable[[Path], None]:
    def change(weights: dict[str, np.ndarray]) -> None:
        for name in [name for name in weights if part in name]:
            del weights[name]

    return tensors(change)


def reshaped(weights: dict[str, np.ndarray]) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    weights[name] = np.ascontiguousarray(weights[name][:, :-1])


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def folder_of(**files: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("__", ".")).write_bytes(content)

    return make


def link_to(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.symlink_to(target)

    return make


def zip_of(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.fa", GOOD)


def damaged(key: str, content: bytes | None) -> Callable[[Path], None]:
    """A copy of the finished store with one file replaced or removed."""

    def make(path: Path) -> None:
        shutil.copytree(path.parent / "done.zarr", path)
        if content is None:
            (path / key).unlink()
        else:
            (path / key).write_bytes(content)

    return make


def of_version(version: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        shutil.copytree(path.parent / "done.zarr", path)
        about = json.loads((path / "zarr.json").read_text())
        about["attributes"]["format_version"] = version
        (path / "zarr.json").write_text(json.dumps(about))

    return make


MB = b"ACGT" * 4096
SOURCES = [
    Bad("source: empty name", ["run", "", *RUN.split()], ("source",)),
    Bad("source: none", f"run {RUN}", ("source",)),
    Bad("source: missing", f"run missing.fa {RUN}", ("missing.fa",)),
    Bad("source: a glob without match", f"run nothing*.fa {RUN}", ("nothing*.fa",)),
    Bad("source: missing among good", f"run good.fa gone.fa {RUN}", ("gone.fa",)),
    Bad("source: empty folder", f"run folder {RUN}", ("folder",), {"folder": folder_of()}),
    Bad(
        "source: folder without sequences",
        f"run folder {RUN}",
        ("folder",),
        {"folder": folder_of(a__txt=b"no")},
    ),
    Bad(
        "source: symlink loop", f"run loop.fa {RUN}", ("loop.fa",), {"loop.fa": link_to("loop.fa")}
    ),
    Bad("source: dangling link", f"run dang.fa {RUN}", ("dang.fa",), {"dang.fa": link_to("gone")}),
    Bad("source: a device", f"run /dev/null {RUN}", ("/dev/null",)),
    Bad("source: unknown protocol", f"run nope://bucket/x.fa {RUN}", ("nope",)),
    Bad("source: S3 without its package", f"run s3://bucket/x.fa {RUN}", ("bertgeom[s3]",)),
    Bad("source: Google without its package", f"run gs://bucket/x.fa {RUN}", ("gcsfs",)),
    Bad("source: HTTP that nobody answers", f"run http://127.0.0.1:9/x.fa {RUN}", ("http",)),
    Bad("source: a finished store", f"run done.zarr {RUN}", ("done.zarr",)),
    Bad("source: with shards too", f"run good.fa --sequences shards {RUN}", ("--sequences",)),
    Bad(
        "source: shards that are none",
        f"run --sequences folder {RUN}",
        ("folder",),
        {"folder": folder_of()},
    ),
    source("empty", b""),
    source("only blanks", b"\n \n\n"),
    source("no header", b"ACGTACGT\n", "line 1"),
    source("binary", bytes(range(256)) * 4),
    source("NUL bytes", b">a\nACG\0T\n"),
    source("header is not UTF-8", b">a \xff\xfe\nACGT\n"),
    source("UTF-16", ">a\nACGT\n".encode("utf-16")),
    source("protein", b">a\nMKVLAEF\n"),
    source("digits", b">a\nACGT123\n"),
    source("header inside a line", b">a\nACGT>b\nACGT\n"),
    source("only a header", b">a\n"),
    source("records without bases", b">a\n>b\n"),
    source("header without a name and nothing else", b">\n"),
    source("an HTML page", b"<!DOCTYPE html><html><body>404</body></html>\n"),
    source("JSON", b'{"a": 1}\n'),
    source("a PDF", b"%PDF-1.7\n\x80\x81\x82\n"),
    source("GenBank", b"LOCUS       NC_045512  29903 bp\nORIGIN\n        1 attaaaggtt\n//\n"),
    source("a VCF", b"##fileformat=VCFv4.2\n#CHROM\tPOS\n"),
    source(
        "a Git-LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    source("broken quality", b"@a\nACGT\n+\nII\n", file="bad.fq"),
    source("FASTQ without a plus", b"@a\nACGT\nIIII\n", file="bad.fq"),
    source("FASTQ cut in a record", b"@a\nACGT\n+\n", file="bad.fq"),
    source("truncated gzip", gzip.compress(b">a\n" + MB + b"\n")[:-20], file="bad.fa.gz"),
    source("not gzip", b"plain text", file="bad.fa.gz"),
    source("gzip of nothing", gzip.compress(b""), file="bad.fa.gz"),
    source("truncated xz", lzma.compress(b">a\n" + MB + b"\n")[:-20], file="bad.fa.xz"),
    source("truncated bz2", bz2.compress(b">a\n" + MB + b"\n")[:-20], file="bad.fa.bz2"),
    source("not zstd", b"plain text", file="bad.fa.zst"),
    Bad("source: zip archive", f"run bad.zip {RUN}", ("bad.zip",), {"bad.zip": zip_of}),
    Bad("ingest: missing", "ingest missing.fa --out new", ("missing.fa",)),
    Bad("ingest: nothing", "ingest --out new", ("source",)),
    Bad("ingest: binary", "ingest bad.fa --out new", ("bad.fa",), {"bad.fa": bytes(200)}),
    Bad(
        "ingest: into other shards",
        "ingest other.fa --out shards",
        ("shards",),
        {"other.fa": b">x\nACGT\n"},
    ),
    Bad("ingest: into a store", "ingest good.fa --out done.zarr", ("done.zarr",)),
    Bad("plan: missing", "plan missing.fa --model model", ("missing.fa",)),
]
LABELS = [
    run("labels are missing", "--labels gone.tsv", "gone.tsv"),
    run("labels are a folder", "--labels model", "model"),
    labels("empty", b""),
    labels("only comments", b"# nothing\n"),
    labels("one column", b"r0\nr1\n", "line 1"),
    labels("no record matches", b"x\ta\ny\tb\n"),
    labels("a key with two labels", b"r0\ta\nr0\tb\n", "r0"),
    labels("index beyond the records", b"index\tlabel\n7\ta\n", "7"),
    labels("latin-1", "r0\tcaf\xe9\n".encode("latin-1"), "utf-8"),
    labels("binary", bytes(range(256))),
    labels("a header alone", b"strain\tclade\n"),
    labels("without labels", b"r0\t\nr1\t\n", "line 1"),
    Bad("labels: cohorts gone", "cohorts done.zarr --labels gone.tsv", ("gone.tsv",)),
    Bad("labels: cohorts folder", "cohorts done.zarr --labels model", ("model",)),
    Bad("labels: distributions gone", "distributions done.zarr --labels gone.tsv", ("gone.tsv",)),
    Bad("labels: plan gone", "plan good.fa --model model --labels gone.tsv", ("gone.tsv",)),
]
MANY = b"".join(b"r0\t%d\t%d\tgroup%d\n" % (i, i + 2, i) for i in range(40))
REGIONS = [
    run("annotations are missing", "--annotations gone.bed", "gone.bed"),
    run("annotations are a folder", "--annotations model", "model"),
    regions("empty", b""),
    regions("binary", bytes(range(256))),
    regions("latin-1", "r0\t0\t9\tg\xe8ne\n".encode("latin-1")),
    regions("two columns", b"r0\t5\n", "line 1"),
    regions("a word for a number", b"r0\tfive\t9\tg\n", "line 1"),
    regions("negative", b"r0\t-5\t9\tg\n", "line 1"),
    regions("start after stop", b"r0\t9\t5\tg\n", "line 1"),
    regions("a number without end", b"r0\t0\t" + b"9" * 23 + b"\tg\n", "line 1"),
    regions("beyond the record", b"r0\t5000\t6000\tg\n", "r0"),
    regions("no record matches", b"chrX\t0\t9\tg\n", "chrX"),
    regions("too many groups", MANY, "16"),
    regions(
        "BED12 with fewer blocks than it says",
        b"r0\t0\t50\tg\t0\t+\t0\t50\t0\t3\t5,5,\t0,45,\n",
        "line 1",
    ),
    regions(
        "BED12 with a block beyond its end", b"r0\t0\t50\tg\t0\t+\t0\t50\t0\t1\t80,\t0,\n", "line 1"
    ),
    regions(
        "GFF3 with eight columns",
        b"##gff-version 3\nr0\t.\tgene\t1\t9\t.\t+\t.\n",
        "line 2",
        file="bad.gff3",
    ),
    regions(
        "GFF3 with a bad strand",
        b"##gff-version 3\nr0\t.\tgene\t1\t9\t.\tx\t.\tID=a\n",
        "line 2",
        file="bad.gff3",
    ),
    regions(
        "GFF3 from 0",
        b"##gff-version 3\nr0\t.\tgene\t0\t9\t.\t+\t.\tID=a\n",
        "line 2",
        file="bad.gff3",
    ),
    regions("GTF without attributes", b"r0\t.\texon\t1\t9\t.\t+\t.\n", "line 1", file="bad.gtf"),
    Bad("regions: gone", "regions done.zarr --annotations gone.bed", ("gone.bed",)),
    Bad("regions: plan gone", "plan good.fa --model model --annotations gone.bed", ("gone.bed",)),
]
SETTINGS = [
    run("near below 0", "--near -1", "near", "-1"),
    run("near beyond the kernels", "--near 100", "near", "100"),
    run("theta of 0", "--theta 0", "theta"),
    run("theta of 2", "--theta 2", "theta"),
    run("theta that is no number", "--theta nan", "theta"),
    run("window of 0", "--window 0", "--window"),
    run("negative window", "--window -5", "--window"),
    run("stride of 0", "--stride 0", "--stride"),
    run("min length of 0", "--min-length 0", "--min-length"),
    run("min length beyond the window", "--min-length 30", "--min-length"),
    run("min length beyond all records", "--window 4000 --min-length 3000"),
    run("unknown strand", "--strand x", "--strand"),
    run("unknown tier", "--tier x", "--tier"),
    run("unknown array", "--keep x", "--keep"),
    run("block map in core", "--keep block_map", "--tier"),
    run("unknown angles", "--angles x", "--angles"),
    run("unknown dtype", "--dtype float99", "dtype"),
    run("unknown kernels", "--impl x", "--impl"),
    run("kernels of another device", "--impl triton", "triton"),
    run("unknown device", "--device tpu9", "tpu9"),
    run("a device that is not there", "--device cuda", "cuda"),
    run("no mantissa", "--bitround 0", "--bitround"),
    run("too much mantissa", "--bitround 24", "--bitround"),
    run("share beyond 1", "--max-unknown 2", "--max-unknown"),
    run("share that is no number", "--max-unknown nan", "--max-unknown"),
    run("negative spectra", "--spectra -1", "--spectra"),
    run("partitions of nothing", "--partition-windows 0", "--partition-windows"),
    run("batches of nothing", "--batch-tokens 0", "--batch-tokens"),
    run("no workers", "--workers 0", "--workers"),
    run("no threads", "--threads 0", "--threads"),
    run("memory in words", "--memory lots", "lots"),
    run("no memory", "--memory 0", "memory"),
    run("memory that does not do", "--memory 1KB", "memory"),
    run("tokens beyond the model", "--max-tokens 100000", "100000"),
    run("one token", "--max-tokens 1", "max_tokens"),
    run("unknown tokenizer", "--tokenizer nonsense", "nonsense"),
    run("tokenizer without letters", "--tokenizer dnabert:k=0", "k"),
    run("tokenizer of another vocabulary", "--tokenizer dnabert:k=6", "token"),
    run("groups of no regions", "--group-by type", "--annotations"),
    run("unknown groups", "--group-by colour --annotations good.bed", "--group-by"),
    run("unknown option", "--nonsense 3", "--nonsense"),
    run("a word for a number", "--window many", "--window"),
    run("scheduler that is no address", "--scheduler nonsense", "nonsense"),
    Bad("run: no model", "run good.fa --out out.zarr", ("--model",)),
    Bad("run: no place", "run good.fa --model model", ("--out",)),
    Bad("unknown command", "measure good.fa", ("measure",)),
]
MODELS = [
    Bad(
        "model: missing",
        f"run good.fa {RUN.replace('--model model', '--model gone/model')}",
        ("gone/model",),
    ),
    Bad(
        "model: a hub name without network",
        f"run good.fa {RUN.replace('--model model', '--model nobody/nothing')}",
        ("nobody/nothing",),
    ),
    Bad(
        "model: a file",
        f"run good.fa {RUN.replace('--model model', '--model good.fa')}",
        ("good.fa",),
    ),
    Bad("model: empty name", ["run", "good.fa", "--model", "", "--out", "out.zarr"], ("model",)),
    Bad(
        "model: empty folder",
        f"run good.fa {RUN.replace('--model model', '--model folder')}",
        ("folder",),
        {"folder": folder_of()},
    ),
    Bad("model: weights of no folder", "weights --model gone/model", ("gone/model",)),
    Bad("model: check of no folder", "check gone/model good.fa", ("gone/model",)),
    Bad("model: check on no file", "check model gone.fa", ("gone.fa",)),
    Bad("model: check on no window", "check model good.fa --windows 0", ("windows",)),
    Bad("model: check on no bases", "check model bad.fa", ("bad.fa",), {"bad.fa": b">a\n"}),
    Bad("model: import of no package", "check model --import gone_models", ("gone_models",)),
    Bad("model: import of no name", ["check", "model", "--import", "a b"], ("a b",)),
    run("import of no package", "--import gone_models", "gone_models"),
    model("no configuration", drop("config.json"), "config.json"),
    model("broken configuration", put("config.json", b"{"), "config.json"),
    model("configuration that is a list", put("config.json", b"[]"), "config"),
    model("no type", edit_config(model_type=None, architectures=None), "model_type"),
    model("unknown type", edit_config(model_type="nonsense"), "nonsense"),
    model("a decoder", edit_config(is_decoder=True), "causal"),
    model("heads that do not divide", edit_config(num_attention_heads=5), "5"),
    model("fewer layers than weights", edit_config(num_hidden_layers=1), "layer"),
    model("more layers than weights", edit_config(num_hidden_layers=3), "layer"),
    model("smaller vocabulary than weights", edit_config(vocab_size=9), "embed"),
    model("wider than weights", edit_config(hidden_size=64, intermediate_size=128)),
    model("weights of another shape", tensors(reshaped), "weight"),
    model("no weights", drop("model.safetensors"), "safetensors"),
    model("only a pickle", only_pickle, "pickled weights"),
    model("cut weights", cut("model.safetensors", 0.5), "model.safetensors"),
    model("empty weights", put("model.safetensors", b""), "model.safetensors"),
    model(
        "an LFS pointer",
        put("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors",
    ),
    model("a shard that is missing", missing_shard, "model-00001-of-00002"),
    model("weights that are NaN", poison(np.nan), "query.weight"),
    model("weights that are infinite", poison(np.inf), "query.weight"),
    model("a layer without weights", without("layer.1."), "layer.1"),
    model("no classifier", without("classifier"), "classifier"),
    model("no tokenizer", drop("vocab.txt"), "tokenizer"),
    model("broken tokenizer", put("bertgeom_tokenizer.json", b"{"), "tokenizer"),
    model("unknown tokenizer", put("bertgeom_tokenizer.json", b'{"kind": "nonsense"}'), "nonsense"),
]
PLACES = [
    place("a file", "notes.txt", "notes.txt", notes__txt=b"mine"),
    place("the source", "good.fa", "good.fa"),
    place("below a file", "notes.txt/x.zarr", "notes.txt", notes__txt=b"mine"),
    place("a folder with things", "folder", "folder", folder=folder_of(a__txt=b"mine")),
    place("a folder with a draft", "folder", "folder", folder=folder_of(thesis__partial=b"mine")),
    place("the model", "model", "model"),
    place("inside the model", "model/x.zarr", "model"),
    place("shards", "shards", "shards"),
    place("inside a store", "done.zarr/x.zarr", "done.zarr"),
    place("nowhere", "", "--out"),
    place("a dangling link", "link", "link", link=link_to("gone")),
    place("a link to itself", "link", "link", link=link_to("link")),
    place("a name too long", "x" * 300, "xxx"),
    place("a system folder", "/proc/nothing/x.zarr", "/proc/nothing"),
    place("unknown protocol", "nope://x.zarr", "nope"),
    place("S3 without its package", "s3://bucket/x.zarr", "bertgeom[s3]"),
    Bad(
        "place: inside the source",
        "run folder --model model --out folder/x.zarr --window 20",
        ("folder",),
        {"folder": folder_of(a__fa=GOOD)},
    ),
    Bad(
        "place: another window",
        f"run good.fa {RUN.replace('out.zarr', 'done.zarr')} --window 24",
        ("done.zarr", "window"),
    ),
    Bad(
        "place: another source",
        f"run other.fa {RUN.replace('out.zarr', 'done.zarr')}",
        ("done.zarr",),
        {"other.fa": b">x\nACGTACGT\n"},
    ),
    Bad(
        "place: another version",
        f"run good.fa {RUN.replace('out.zarr', 'old.zarr')}",
        ("old.zarr", "9.0"),
        {"old.zarr": of_version("9.0")},
    ),
    Bad(
        "place: export into a folder",
        "export done.zarr -o folder",
        ("folder",),
        {"folder": folder_of()},
    ),
    Bad("place: export of unknown kind", "export done.zarr -o x.doc", ("x.doc",)),
    Bad("place: export nowhere", "export done.zarr -o gone/x.tsv", ("gone",)),
    Bad("place: export over the store", "export done.zarr -o done.zarr", ("done.zarr",)),
    Bad(
        "place: report into a folder",
        "report done.zarr -o folder",
        ("folder",),
        {"folder": folder_of()},
    ),
    Bad("place: report nowhere", "report done.zarr -o gone/x.html", ("gone",)),
    Bad("place: cohorts of unknown kind", "cohorts done.zarr -o x.doc", ("x.doc",)),
    Bad("place: tracks of unknown kind", "tracks done.zarr -o x.doc", ("x.doc",)),
]
STORES = [
    *(
        Bad(f"store: {command} of nothing", f"{command} gone.zarr{more}", ("gone.zarr",))
        for command, more in (
            ("status", ""),
            ("verify", ""),
            ("report", ""),
            ("export", " -o x.tsv"),
            ("cohorts", ""),
            ("distributions", ""),
            ("angles", ""),
            ("cluster", ""),
            ("tracks", " -o x.tsv"),
            ("spectra", ""),
            ("rollout", ""),
            ("regions", " --annotations good.bed"),
        )
    ),
    *(
        Bad(f"store: {command} of a {what}", f"{command} {what}", (what,))
        for command in ("status", "verify", "report", "cohorts")
        for what in ("good.fa", "model", "shards")
    ),
    store(
        "verify with run.json cut",
        "verify bad.zarr",
        "run.json",
        bad__zarr=damaged("run/run.json", b"{"),
    ),
    store(
        "status with run.json cut",
        "status bad.zarr",
        "run.json",
        bad__zarr=damaged("run/run.json", b"{"),
    ),
    store(
        "report with its metadata cut",
        "report bad.zarr",
        "bad.zarr",
        bad__zarr=damaged("zarr.json", b"{"),
    ),
    store(
        "report with its metadata gone",
        "report bad.zarr",
        "bad.zarr",
        bad__zarr=damaged("zarr.json", None),
    ),
    store(
        "open of another version",
        "cohorts old.zarr",
        "old.zarr",
        "9.0",
        old__zarr=of_version("9.0"),
    ),
    store("unknown statistic", "cohorts done.zarr --statistics nonsense", "nonsense"),
    store("unknown cohort", "cohorts done.zarr --contrast a,nobody", "nobody"),
    store("a contrast of one", "cohorts done.zarr --contrast a", "contrast"),
    store("unknown unit", "cohorts done.zarr --unit base", "base"),
    store("angles without vectors", "angles done.zarr", "--keep cls"),
    store("clusters without vectors", "cluster done.zarr", "--keep cls"),
    store("tracks that were not kept", "tracks done.zarr -o x.tsv", "--keep tracks"),
    store("rollout beyond the window", "rollout done.zarr --row 999", "999"),
    store("spectra of no windows", "spectra done.zarr --windows 0", "windows"),
    store("unknown level", "export done.zarr -o x.tsv --level base", "base"),
    store("a model that was moved", "spectra done.zarr --model gone/model", "gone/model"),
    *(
        store(f"a model that is gone, {command}", f"{command} moved.zarr{more}", "give --model")
        for command, more in (
            ("verify", ""),
            ("spectra", ""),
            ("rollout", ""),
            ("regions", " --annotations good.bed"),
        )
    ),
    store("another model", "verify done.zarr --model other-model", "fingerprint"),
]
CASES = [*SOURCES, *LABELS, *REGIONS, *SETTINGS, *MODELS, *PLACES, *STORES]


@pytest.fixture(scope="module")
def workspace(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, a model, another model, shards, and a finished store."""
    from bertgeom.testing import save_tiny_classifier

    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny_model, folder / "model")
    save_tiny_classifier(folder / "other-model", seed=1)
    (folder / "good.fa").write_bytes(GOOD)
    (folder / "good.bed").write_bytes(b"r0\t0\t9\tgene\n")
    (folder / "labels.tsv").write_bytes(b"r0\ta\nr1\tb\n")
    stages.ingest(folder / "good.fa", folder / "shards")
    shutil.copytree(folder / "model", folder / "gone-model")
    for model, out in (("model", "done.zarr"), ("gone-model", "moved.zarr")):
        stages.run(
            folder / "good.fa",
            model=folder / model,
            out=folder / out,
            labels=folder / "labels.tsv",
            window=20,
            threads=1,
            tier="core",
        )
    shutil.rmtree(folder / "gone-model")
    return folder


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file, folder and link, with its contents; but logs of what was tried."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.name != "history.jsonl":
            found[name] = "folder" if path.is_dir() else path.read_bytes()
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_line_and_nothing_is_touched(
    case: Bad, workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.2)
    try:
        for name, content in case.files.items():
            path = workspace / name
            if callable(content):
                content(path)
            else:
                path.write_bytes(content)
        before = snapshot(workspace)
        arguments = case.arguments.split() if isinstance(case.arguments, str) else case.arguments
        code = main(arguments)
        out, err = capfd.readouterr()
        changed = {name for name, content in (before.items() ^ snapshot(workspace).items())}
    finally:
        clean(workspace, [*case.files, "out.zarr", "new", "x.tsv", "report.html"])
    assert code in (1, 2), out
    assert changed == set()
    said = " ".join(err.replace("│", " ").split()).lower()
    for word in case.words:
        assert word.lower() in said
    assert "traceback" not in said
    assert "--debug" not in said
    if code == 1:
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
        assert err.splitlines()[-1].startswith("error: ")


def clean(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
