"""Settings of a run, their validation, and the identity by which a store knows its run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from bertgeom import variables
from bertgeom.errors import MismatchError, UsageError
from bertgeom.kernels.attention_stats.options import IMPLEMENTATIONS as KERNELS
from bertgeom.kernels.attention_stats.options import fault as option_fault

STRANDS = ("+", "-", "both")
#: What sequences are made of; None is nucleotides, in the letters that the tokenizer knows.
ALPHABETS = ("dna", "rna", "protein", "text")
#: Those without a reverse complement.
ONE_STRANDED = ("protein", "text")
ANGLES = ("default", "all")
IMPLEMENTATIONS = ("auto", *KERNELS)
#: What names a region: its own name, or (GFF3, GTF) its feature type.
GROUP_BY = ("name", "type")
#: Options that leave every number as it is: they may change from one start to the next. What
#: `group_by` decides is compared with the regions themselves, a `revision` with its weights.
_FREE = {"trust_remote_code", "revision", "allow_unknown", "group_by"}
#: Panels of the command line's help.
CUT, WHAT, STORED = "Windows", "What to measure", "What to store"
NUMBERS, MACHINE = "Precision", "Where to work"


def _setting(default: Any, text: str, panel: str, metavar: str | None = None) -> Any:
    """A field of `Settings` with what the command line says of it."""
    return field(default=default, metadata={"help": text, "panel": panel, "metavar": metavar})


@dataclass(frozen=True)
class Settings:
    """What to measure and how to cut the input. All of it decides what the store holds.

    Every field is declared once: its default, its help text and its panel on the command line
    stand here, and `run` and `plan` take their options from the fields.
    """

    window: int | None = _setting(
        None,
        "Bases of a window; default: what fits the model. Where tokens differ in length (BPE...) "
        "and neither window nor stride is given, windows are cut by tokens.",
        CUT,
    )
    stride: int | None = _setting(
        None, "Bases from one window to the next; default: the window.", CUT
    )
    min_length: int = _setting(1, "Leave out records and last windows shorter than this.", CUT)
    strand: str = _setting(
        "+", "As in the record, reverse complement, or one row each.", CUT, metavar="+|-|both"
    )
    alphabet: str | None = _setting(
        None,
        "What the input is made of; default: nucleotides, with T or U as the tokenizer knows them. "
        "Text: a document a record, or a line where there are no headers.",
        CUT,
        metavar="dna|rna|protein|text",
    )
    max_tokens: int | None = _setting(
        None, "Most tokens of a window, at most the model's own limit.", CUT
    )
    max_unknown: float = _setting(0.5, "Flag windows with a larger share of unknown tokens.", CUT)
    allow_unknown: bool = _setting(
        False, "Go on although most tokens are unknown to the tokenizer.", CUT
    )
    tokenizer: str | None = _setting(
        None, "In place of the model's: kmer:k=12,stride=9, dnabert:k=6, hf...", CUT
    )
    tier: str = _setting("full", "Core leaves out the costlier arrays.", WHAT, metavar="core|full")
    keep: tuple[str, ...] = _setting(
        (),
        "Opt-in arrays: block_map, cls, logits, tracks; separated by commas.",
        WHAT,
        metavar="LIST",
    )
    angles: str = _setting(
        "default",
        "Pairwise angles at the embedding and layer outputs, or at all stations.",
        WHAT,
        metavar="default|all",
    )
    group_by: str = _setting(
        "name",
        "What makes annotated regions one group: name, or type (GFF3, GTF).",
        WHAT,
        metavar="name|type",
    )
    theta: float = _setting(0.3, "Weights of at least this are confident.", WHAT)
    near: int = _setting(4, "Tokens from the diagonal that count as near (gates).", WHAT)
    dtype: str = _setting(
        "auto",
        "Auto: float16 on CUDA, float32 on a CPU.",
        NUMBERS,
        metavar="auto|float32|float16|bfloat16",
    )
    impl: str = _setting(
        "auto",
        "Kernels: auto is Triton on CUDA, Numba on a CPU.",
        NUMBERS,
        metavar="auto|triton|numba|reference",
    )
    device: str = _setting("auto", "auto, cpu, cuda, cuda:1...", MACHINE)
    batch_tokens: int | None = _setting(
        None, "Padded tokens of a batch; default: 4096 on a CPU, 65536 on CUDA.", MACHINE
    )
    partition_windows: int | None = _setting(
        None, "Windows of a partition, the unit of work; default: seconds of work.", MACHINE
    )
    reduce: bool = _setting(
        False,
        "Store no statistics of windows, only their means by record and sums by cohort.",
        STORED,
    )
    spectra: int = _setting(
        0,
        "Exact spectra of K windows of every partition, in the group `spectra`.",
        WHAT,
        metavar="K",
    )
    bitround: int | None = _setting(
        None,
        "Keep this many mantissa bits of floats: lossy, smaller stores.",
        STORED,
        metavar="BITS",
    )
    revision: str | None = _setting(
        None, "Branch, tag or commit of a model on the hub; default: main.", MACHINE
    )
    trust_remote_code: bool = _setting(False, "Run code that the model brings.", MACHINE)

    def __post_init__(self) -> None:
        keep = self.keep.split(",") if isinstance(self.keep, str) else self.keep
        object.__setattr__(self, "keep", tuple(sorted({k.strip() for k in keep if k.strip()})))
        for name in ("window", "stride", "max_tokens", "batch_tokens", "partition_windows"):
            _at_least(name, getattr(self, name), 1)
        _at_least("min_length", self.min_length, 1)
        _at_least("spectra", self.spectra, 0)
        _one_of("--strand", self.strand, STRANDS)
        if self.alphabet is not None:
            _one_of("--alphabet", self.alphabet, ALPHABETS)
        if self.alphabet in ONE_STRANDED and self.strand != "+":
            raise UsageError(
                f"expected --strand + with --alphabet {self.alphabet}, which has no reverse "
                f"complement, found --strand {self.strand}"
            )
        _one_of("--group-by", self.group_by, GROUP_BY)
        _check_what_to_measure(self, _option)
        if not 0 <= self.max_unknown <= 1:
            raise UsageError(f"expected --max-unknown between 0 and 1, found {self.max_unknown}")
        if self.bitround is not None and not 1 <= self.bitround <= 23:
            raise UsageError(f"expected --bitround between 1 and 23, found {self.bitround}")
        if self.tier == "core" and {"block_map", "tracks"} & set(self.keep):
            raise UsageError(
                "expected --tier full with --keep block_map or tracks, found --tier core"
            )

    @classmethod
    def of(cls, **options: Any) -> Settings:
        """Settings from keyword arguments.

        Raises:
            UsageError: for an unknown name or an impossible value.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise UsageError(
                f"expected settings out of {', '.join(sorted(known))}, found {unknown}"
            )
        return cls(**options)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**{**values, "keep": tuple(values["keep"])})

    def to_json(self) -> dict[str, Any]:
        """JSON-able values by name."""
        return {**asdict(self), "keep": list(self.keep)}

    def identity_settings(self) -> dict[str, Any]:
        """The settings that must stay the same for a run to go on."""
        found = {name: value for name, value in self.to_json().items() if name not in _FREE}
        # Only if it is chosen, so that runs of older stores can be continued.
        if self.alphabet is None:
            del found["alphabet"]
        return found

    def resolved(self, **decided: Any) -> ResolvedSettings:
        """The same settings with the values that were decided for this model and machine."""
        return ResolvedSettings(**{**vars(self), **decided})

    def to_measure(self, **more: Any) -> MeasureSettings:
        """What the encoder needs of them; `more` are fields of `MeasureSettings`."""
        names = {field.name for field in fields(MeasureSettings)}
        return MeasureSettings(**{k: v for k, v in vars(self).items() if k in names} | more)


@dataclass(frozen=True)
class ResolvedSettings(Settings):
    """Settings of a run that was set up: what a default left open is decided.

    `window` and `stride` stay None where windows are cut by tokens.
    """

    max_tokens: int = field(kw_only=True)
    batch_tokens: int = field(kw_only=True)
    partition_windows: int = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_tokens", "batch_tokens", "partition_windows"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is not decided")


@dataclass(frozen=True)
class MeasureSettings:
    """What to measure in a forward pass: a part of `Settings`, and two sizes of a run.

    Attributes:
        tier: "core" or "full", see `bertgeom.variables`.
        keep: names of opt-in arrays: "block_map", "cls", "logits", "tracks".
        angles: "default" takes pairwise angles at the embedding and layer outputs, "all" at
            every station.
        theta: weights of at least this size are confident.
        near: half width, in tokens, of the band around the diagonal that counts as near.
        n_offset_side: one-sided bins of the offset profile; the last one is open.
        n_groups: number of token groups in use, at most 16.
        impl: kernel implementation: "auto", "triton", "numba" or "reference".
    """

    tier: str = Settings.tier
    keep: tuple[str, ...] = Settings.keep
    angles: str = Settings.angles
    theta: float = Settings.theta
    near: int = Settings.near
    n_offset_side: int = 10
    n_groups: int = 0
    impl: str = Settings.impl

    def __post_init__(self) -> None:
        _check_what_to_measure(self, str)
        for name in ("n_offset_side", "n_groups"):
            _check_option(name, getattr(self, name), name)


def fingerprint(identity: Mapping[str, Any]) -> str:
    """SHA-256 over JSON with sorted keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Readable differences of two nested mappings: "settings.window: 512 -> 1024"."""
    found = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}: {_short(a)} in the store, {_short(b)} now")
    return found


def check_same(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare the identity in a store with that of this run.

    Raises:
        MismatchError: if anything differs; names every difference.
    """
    found = differences(json.loads(json.dumps(old)), json.loads(json.dumps(new)))
    if found:
        raise MismatchError(
            f"{where}: expected the run this store was made by, found another: "
            f"{'; '.join(found)}; give the same options, or another --out"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UsageError(f"expected {_option(name)} of at least {least}, found {value}")


def _check_what_to_measure(
    settings: Settings | MeasureSettings, shown: Callable[[str], str]
) -> None:
    """The ranges of what `Settings` and `MeasureSettings` share; `shown` gives a field's name."""
    for name in ("tier", "theta", "near", "impl"):
        _check_option(name, getattr(settings, name), shown(name))
    _one_of(shown("angles"), settings.angles, ANGLES)
    for keep in settings.keep:
        _one_of(shown("keep"), keep, variables.KEEP)


def _check_option(name: str, value: Any, shown: str) -> None:
    """An option of the kernels, which have its range."""
    if wrong := option_fault(name, value):
        raise UsageError(f"{shown}: {wrong}")


def _one_of(shown: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"expected {shown} out of {', '.join(allowed)}, found {value!r}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
