"""Whether a model can be trusted: what a run checks first, and what it takes longer to see.

the check of every run      declaration, outputs and stations of a dummy batch
eager attention             outputs, hidden states and maps of windows, in float64
the oracle                  every statistic of these windows
the tokenizer               unknown tokens, and whether tokens spell their bases
"""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom import variables
from bertgeom.config import MeasureSettings, Settings
from bertgeom.errors import InputError, ModelError, UsageError
from bertgeom.kernels.arrays import Int64Array
from bertgeom.pipelines.context.run_context import load_model
from bertgeom.pipelines.plan.sampling import stratified
from bertgeom.pipelines.run.ingestion import Sources, as_list
from bertgeom.pipelines.run.oracle import TOLERANCE, Comparison, compare_values
from bertgeom.pipelines.run.shares import mostly_unknown
from bertgeom.sequences.alphabets import alphabet_of
from bertgeom.sequences.fasta import read_chunks
from bertgeom.sequences.sources import expand_sources
from bertgeom.store.layout import station_names
from bertgeom.tokens.coverage import Coverage, coverage

if TYPE_CHECKING:
    from rich.table import Table

    from bertgeom.analysis.eager import EagerDifferences
    from bertgeom.model.encoder import Encoder, TokenBatch
    from bertgeom.tokens.encoded import Tokenizer

#: Windows whose tokens are counted, and bases that are read for them, at most.
_COVERED, _BASES = 256, 2**24
#: Bases a token, beyond which windows of a tokenizer of longer ones are shorter than they could be.
_BASES_A_TOKEN = 8
#: Rounds of each timing; the fastest one counts.
_ROUNDS = 3


@dataclass(frozen=True)
class Speed:
    """Of the compared windows in one batch.

    Attributes:
        windows_per_second: measured. bare: of the same model without recording.
        weight_bytes: of the parameters. peak_bytes: of this process, or of the CUDA device,
            before the float64 copy of the model was made.
    """

    windows_per_second: float
    bare: float
    weight_bytes: int
    peak_bytes: int

    @property
    def ratio(self) -> float:
        """How many times longer a measured pass takes than a bare one."""
        return self.bare / self.windows_per_second


@dataclass(frozen=True)
class ModelCheck:
    """What `check` found.

    Attributes:
        model, kind: as it was given, and its class. architecture: its declaration, in words.
        layers, heads, head_dim, hidden, max_tokens, dtype, device: of the loaded model.
        stations: of the residual stream, in its order.
        source: where the windows are from. lengths: tokens of the compared ones.
        coverage: what the tokenizer makes of the input.
        eager, arrays, speed: None and empty where the model cannot be observed.
        problems: one line each; none if the model can be trusted.
    """

    model: str
    kind: str
    architecture: str
    layers: int
    heads: int
    head_dim: int
    hidden: int
    max_tokens: int
    dtype: str
    device: str
    stations: tuple[str, ...]
    source: str
    lengths: tuple[int, ...]
    coverage: Coverage
    eager: EagerDifferences | None
    arrays: tuple[Comparison, ...]
    speed: Speed | None
    problems: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Everything, with what follows from it."""
        facts: dict[str, Any] = {"trusted": self.trusted, **asdict(self)}
        for name in ("bases_per_token", "unknown_share", "returned_share"):
            facts["coverage"][name] = getattr(self.coverage, name)
        if self.speed is not None:
            facts["speed"]["ratio"] = self.speed.ratio
        facts["arrays"] = [{**asdict(c), "agrees": c.agrees} for c in self.arrays]
        return facts


def check(
    model: str | Path,
    sources: Sources | None = None,
    *,
    windows: int = 4,
    tokens: int = 256,
    **settings: Any,
) -> ModelCheck:
    """Check a model and its tokenizer on windows of a database, or on random letters.

    Args:
        model: folder or hub name of an encoder.
        sources: as in `bertgeom.run`; of large ones the first 16 million bases are read.
        windows: how many are compared; the last one is half as long, so that a batch has padding.
        tokens: longest of them, at most. The float64 maps of a window take 8 H L n^2 bytes.
        settings: fields of `bertgeom.config.Settings`; those of the model, the tokenizer and the
            precision count.

    Raises:
        ModelError: for a model that cannot be loaded. InputError: for sources without bases.
        UsageError: for impossible settings.

    Example:
        >>> from bertgeom.pipelines.run.check import check
        >>> check("model", "genomes.fasta", windows=2, device="cpu").trusted
        True
    """
    if windows < 1 or tokens < 8:
        raise UsageError(
            f"expected --windows of at least 1 and --tokens of at least 8, found {windows} and "
            f"{tokens}"
        )
    options = Settings.of(**settings)
    encoder = load_model(str(model), options)
    pieces = _pieces(sources, encoder.tokenizer, options, tokens)
    covered = coverage(encoder.tokenizer, _spread(pieces, _COVERED, encoder.tokenizer, tokens))
    chosen = _spread(pieces, windows, encoder.tokenizer, tokens)
    if len(chosen) > 1:
        chosen[-1] = chosen[-1][: -(-len(chosen[-1]) // 2)]
    batch = _batch(encoder, chosen)
    eager, speed, problems = None, None, _of_tokens(encoder, covered)
    arrays: tuple[Comparison, ...] = ()
    try:
        encoder.probe()
        speed = _speed(encoder, batch)
        arrays = _against_oracle(encoder, batch)
        eager = _against_eager(encoder, batch)
        problems += [*_of_eager(encoder, eager), *_of_arrays(arrays)]
    except ModelError as error:
        problems.insert(0, str(error))
    return ModelCheck(
        str(model),
        type(encoder.model).__name__,
        _declared(encoder),
        encoder.n_layers,
        encoder.n_heads,
        encoder.head_dim,
        encoder.hidden,
        encoder.max_tokens,
        _dtype(encoder),
        str(encoder.device),
        tuple(station_names(encoder.n_layers)),
        "random letters" if sources is None else ", ".join(as_list(sources)),
        tuple(batch.lengths.tolist()),
        covered,
        eager,
        arrays,
        speed,
        tuple(problems),
    )


def _pieces(
    sources: Sources | None, tokenizer: Tokenizer, options: Settings, tokens: int
) -> list[tuple[int, np.ndarray]]:
    """Record and bases of windows, of the input or of random letters."""
    size = _bases_of(tokenizer, tokens)
    if tokenizer.variable_length:
        # What is guaranteed to fit is one base a token; `_fitted` cuts what does not.
        size *= _BASES_A_TOKEN
    alphabet = alphabet_of(options.alphabet)
    if sources is None:
        from bertgeom.tokens.spelling import probes

        letters = np.unique(np.concatenate(probes(alphabet.name)))
        rng = np.random.default_rng(0)
        return [(i, letters[rng.integers(0, len(letters), size)]) for i in range(32)]
    found: list[tuple[int, np.ndarray]] = []
    n_bases = 0
    for chunk in read_chunks(
        expand_sources(as_list(sources), alphabet=alphabet.name), alphabet=alphabet
    ):
        found += [
            (chunk.index, chunk.bases[first : first + size])
            for first in range(0, len(chunk.bases), size)
        ]
        n_bases += len(chunk.bases)
        if n_bases >= _BASES:
            break
    if not found:
        raise InputError("at least one base", "none", source=", ".join(as_list(sources)))
    return found


def _bases_of(tokenizer: Tokenizer, tokens: int) -> int:
    """Longest sequence that is guaranteed to have at most so many tokens."""
    low, high = 1, tokenizer.window_bases()
    while low < high:
        middle = (low + high + 1) // 2
        if tokenizer.count_tokens(middle) <= tokens:
            low = middle
        else:
            high = middle - 1
    return low


def _spread(
    pieces: Sequence[tuple[int, np.ndarray]], n: int, tokenizer: Tokenizer, tokens: int
) -> list[np.ndarray]:
    """At most n windows, from all over the input, each of at most so many tokens."""
    records: Int64Array = np.array([record for record, _ in pieces], dtype=np.int64)
    return [_fitted(tokenizer, pieces[i][1], tokens) for i in stratified(records, n).tolist()]


def _fitted(tokenizer: Tokenizer, bases: np.ndarray, tokens: int) -> np.ndarray:
    """The first bases, as many as have at most so many tokens, or nearly."""
    while tokenizer.variable_length and len(bases) > 1:
        row = tokenizer.encode(bases)
        n = row.ids.size
        if n <= tokens and not row.truncated:
            break
        covered = int(row.stop.max(initial=1)) if row.truncated else len(bases)
        bases = bases[: max(1, min(len(bases) - 1, covered * min(tokens, n) // n))]
    return bases


def _batch(encoder: Encoder, pieces: Sequence[np.ndarray]) -> TokenBatch:
    from bertgeom.model.encoder import TokenBatch

    encoded = encoder.tokenizer.encode_batch(pieces)
    groups = (np.arange(encoded.ids.shape[1]) % 3 == 0).astype(np.int32)
    return TokenBatch(
        encoded.ids, encoded.lengths, encoded.special, np.broadcast_to(groups, encoded.ids.shape)
    )


def _settings(batch: TokenBatch, impl: str = "auto") -> MeasureSettings:
    """Everything that a run can store."""
    return MeasureSettings(
        keep=("block_map", "tracks"),
        angles="all",
        n_offset_side=variables.n_offset_side(batch.ids.shape[1]),
        n_groups=1,
        impl=impl,
    )


def _against_oracle(encoder: Encoder, batch: TokenBatch) -> tuple[Comparison, ...]:
    """Every array of the windows, by the kernels and by the oracle."""
    wanted = _settings(batch)
    found = encoder.measure(batch, wanted)
    exact = replace(encoder, attention_impl="reference").measure(
        batch, _settings(batch, "reference")
    )
    lost = found["flags"] & variables.LOST
    if lost.any():
        raise ModelError(
            f"expected finite statistics of every window, found none of {int((lost > 0).sum())} of "
            f"{len(lost)} in {_dtype(encoder)}; give --dtype float32 or bfloat16"
        )
    stored = variables.select(wanted.tier, wanted.keep)
    chosen = [v for v in stored if v.name in found and v.kind != "window"]
    return tuple(compare_values(v, found[v.name], exact[v.name], _dtype(encoder)) for v in chosen)


def _against_eager(encoder: Encoder, batch: TokenBatch) -> EagerDifferences:
    from bertgeom.analysis.eager import compare_with_eager

    rows = zip(batch.ids, batch.lengths.tolist(), strict=True)
    return compare_with_eager(encoder, [ids[:n].astype(np.int64) for ids, n in rows])


def _speed(encoder: Encoder, batch: TokenBatch) -> Speed:
    """Of a measured and of a bare forward pass, and the memory up to here."""
    import torch

    ids = torch.from_numpy(batch.ids.astype(np.int64)).to(encoder.device)
    valid = np.arange(batch.ids.shape[1]) < batch.lengths[:, None]
    mask = torch.from_numpy(valid.astype(np.int64)).to(encoder.device)
    wanted = _settings(batch)

    def bare() -> None:
        with torch.inference_mode():
            encoder.model(input_ids=ids, attention_mask=mask)
        if encoder.device.type == "cuda":
            torch.cuda.synchronize(encoder.device)

    seconds = [_fastest(bare), _fastest(lambda: encoder.measure(batch, wanted))]
    weights = sum(p.numel() * p.element_size() for p in encoder.model.parameters())
    if encoder.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(encoder.device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    n = len(batch.ids)
    return Speed(n / seconds[1], n / seconds[0], weights, peak)


def _fastest(work: Any) -> float:
    times = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _dtype(encoder: Encoder) -> str:
    return str(encoder.dtype).removeprefix("torch.")


def _declared(encoder: Encoder) -> str:
    """The declaration of the first layer, in words."""
    from bertgeom.model.architectures import architecture_of

    found = next((a for m in encoder.model.modules() if (a := architecture_of(m))), None)
    if found is None:
        return "none that is declared"
    kind = "pre-norm" if found.pre_norm else "post-norm"
    return f"{found.name}: {kind}, the stream after the attention is the {found.station}"


def _of_tokens(encoder: Encoder, found: Coverage) -> list[str]:
    """Problems of the tokenizer."""
    problems = []
    name = encoder.tokenizer.name
    if mostly_unknown(found.unknown, found.tokens) or not found.tokens:
        problems.append(
            f"expected most tokens to be known to {name}, found {100 * found.unknown_share:.0f} % "
            f"unknown among {found.tokens:,}; choose another --tokenizer"
        )
    share = found.returned_share
    if share is not None and found.known_bases and share < 1:
        problems.append(
            f"expected tokens of {name} that spell their bases, found {100 * share:.2f} % of the "
            "bases again; choose another --tokenizer"
        )
    return problems


def _of_eager(encoder: Encoder, found: EagerDifferences) -> list[str]:
    """Problems of outputs and attention."""
    dtype = _dtype(encoder)
    most = TOLERANCE[dtype]
    wide = "" if dtype == "float32" else "; give --dtype float32"
    return [
        f"expected {name.replace('_', ' ')} of eager attention in float64 within {most:.0e} in "
        f"{dtype}, found a difference of {value:.1e}{wide}"
        for name, value in asdict(found).items()
        if value is not None and value > most
    ]


def _of_arrays(arrays: Sequence[Comparison]) -> list[str]:
    """Problems of the statistics, the widest first."""
    wrong = sorted((c for c in arrays if not c.agrees), key=lambda c: -c.largest / c.tolerance)
    return [
        f"expected {c.array} within {c.tolerance:.0e} of the oracle, found {c.outside} of "
        f"{c.values} numbers beyond it, the widest by {c.largest:.1e}"
        for c in itertools.islice(wrong, 8)
    ]


def check_table(found: ModelCheck) -> list[Table]:
    """The facts, and the comparisons with eager attention and the oracle, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    from bertgeom.pipelines.plan.cost import human

    facts = Table(title="model", title_justify="left", show_header=False)
    tokens, share = found.coverage, found.coverage.returned_share
    rows = [
        ("class", found.kind),
        ("architecture", found.architecture),
        ("layers, heads", f"{found.layers} x {found.heads} of {found.head_dim}"),
        ("stations", f"{len(found.stations)}: {', '.join(found.stations[:3])}, ..."),
        ("precision", f"{found.dtype} on {found.device}"),
        ("windows", f"{len(found.lengths)} from {found.source}, of {max(found.lengths)} tokens"),
        ("bases a token", f"{tokens.bases_per_token:.2f}"),
        ("unknown tokens", f"{100 * tokens.unknown_share:.2f} % of {tokens.tokens:,}"),
        ("bases spelled again", "not told" if share is None else f"{100 * share:.2f} %"),
    ]
    if found.speed is not None:
        speed = found.speed
        rows += [
            ("speed", f"{speed.windows_per_second:.3g} windows/s"),
            ("without recording", f"{speed.bare:.3g} windows/s, {speed.ratio:.2f} times as fast"),
            ("weights, peak memory", f"{human(speed.weight_bytes)}, {human(speed.peak_bytes)}"),
        ]
    for row in rows:
        facts.add_row(*row)
    errors = Table(title="widest differences", title_justify="left")
    errors.add_column("what")
    for name in ("found", "tolerance", ""):
        errors.add_column(name, justify="right")
    judged = [] if found.eager is None else list(asdict(found.eager).items())
    lines: list[tuple[str, float | None, float, bool | None]] = [
        (f"{name.replace('_', ' ')}, eager", value, TOLERANCE[found.dtype], None)
        for name, value in judged
    ]
    lines += [(c.array, c.largest, c.tolerance, c.agrees) for c in found.arrays]
    for name, value, most, agrees in lines:
        good = value is None or value <= most if agrees is None else agrees
        verdict = "ok" if good else Text("differs", style="bold red")
        shown = "not told" if value is None else f"{value:.2g}"
        errors.add_row(name, shown, f"{most:.0e}", verdict)
    return [facts, errors] if lines else [facts]
