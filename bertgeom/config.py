"""Settings of a run, their validation, and the identity by which a store knows its run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bertgeom import variables
from bertgeom.errors import MismatchError, UsageError
from bertgeom.kernels._dispatch import IMPLEMENTATIONS as KERNELS
from bertgeom.kernels.attention_stats.options import fault as option_fault

STRANDS = ("+", "-", "both")
IMPLEMENTATIONS = ("auto", *KERNELS)
#: What names a region: its own name, or (GFF3, GTF) its feature type.
GROUP_BY = ("name", "type")
#: Options that leave every number as it is: they may change from one start to the next. What
#: `group_by` decides is compared with the regions themselves.
_FREE = {"trust_remote_code", "allow_unknown", "group_by"}
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
    trust_remote_code: bool = _setting(False, "Run code that the model brings.", MACHINE)

    def __post_init__(self) -> None:
        keep = self.keep.split(",") if isinstance(self.keep, str) else self.keep
        object.__setattr__(self, "keep", tuple(sorted({k.strip() for k in keep if k.strip()})))
        for name in ("window", "stride", "max_tokens", "batch_tokens", "partition_windows"):
            _at_least(name, getattr(self, name), 1)
        _at_least("min_length", self.min_length, 1)
        for name in ("tier", "theta", "near", "impl"):
            wrong = option_fault(name, getattr(self, name))
            if wrong:
                raise UsageError(f"{_option(name)}: {wrong}")
        _at_least("spectra", self.spectra, 0)
        _one_of("strand", self.strand, STRANDS)
        _one_of("group_by", self.group_by, GROUP_BY)
        _one_of("angles", self.angles, ("default", "all"))
        for name in self.keep:
            _one_of("keep", name, variables.KEEP)
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
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of `to_json`."""
        return cls(**{**values, "keep": tuple(values["keep"])})

    def to_json(self) -> dict[str, Any]:
        """JSON-able values by name."""
        return {**asdict(self), "keep": list(self.keep)}

    def identity_settings(self) -> dict[str, Any]:
        """The settings that a store holds on to."""
        return {name: value for name, value in self.to_json().items() if name not in _FREE}


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


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"expected {_option(name)} out of {', '.join(allowed)}, found {value!r}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
