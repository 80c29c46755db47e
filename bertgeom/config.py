"""Settings of a run, their validation, and the identity by which a store knows its run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from bertgeom import variables
from bertgeom.errors import MismatchError, UsageError

STRANDS = ("+", "-", "both")
IMPLEMENTATIONS = ("auto", "triton", "numba", "reference")
#: Options that leave every number as it is: they may change from one start to the next.
_FREE = {"trust_remote_code", "allow_unknown"}


@dataclass(frozen=True)
class Settings:
    """What to measure and how to cut the input. All of it decides what the store holds.

    Attributes:
        window: bases of a window; None: as many as fit the model's longest input. Where the
            tokens of a tokenizer differ in length (BPE, WordPiece, Unigram) and neither window
            nor stride is given, windows are cut by tokens: each is full, every base is in one.
        stride: bases from one window's start to the next; None: `window`.
        min_length: records and last windows shorter than this are left out.
        strand: "+" as in the record, "-" reverse complement, "both" one row each.
        max_tokens: a lower limit of tokens a window than the model's own.
        max_unknown: share of unknown tokens above which a window is flagged.
        allow_unknown: begin although most tokens of a sample of windows are unknown.
        tokenizer: tokenizer specification in place of the model's, see `bertgeom.tokens`.
        tier: "core" or "full".
        keep: opt-in arrays: "block_map", "cls", "logits", "tracks".
        angles: "default" (embedding and layer outputs) or "all" stations.
        theta: weights of at least this size are confident.
        near: half width in tokens of the band around the diagonal that counts as near.
        dtype, device: "auto", or as torch names them.
        impl: kernels: "auto", "triton", "numba", "reference".
        batch_tokens: padded tokens of a batch; None: by device.
        partition_windows: windows of a partition, the unit of work; None: seconds of work.
        reduce: keep no statistics of windows, only those of cohorts and the means of records.
        spectra: windows of every partition whose spectra are computed exactly.
        bitround: mantissa bits that float statistics keep; None: all.
        trust_remote_code: run code that comes with the model.
    """

    window: int | None = None
    stride: int | None = None
    min_length: int = 1
    strand: str = "+"
    max_tokens: int | None = None
    max_unknown: float = 0.5
    tokenizer: str | None = None
    tier: str = "full"
    keep: tuple[str, ...] = ()
    angles: str = "default"
    theta: float = 0.3
    near: int = 4
    dtype: str = "auto"
    device: str = "auto"
    impl: str = "auto"
    batch_tokens: int | None = None
    partition_windows: int | None = None
    reduce: bool = False
    spectra: int = 0
    bitround: int | None = None
    trust_remote_code: bool = False
    allow_unknown: bool = False

    def __post_init__(self) -> None:
        keep = self.keep.split(",") if isinstance(self.keep, str) else self.keep
        object.__setattr__(self, "keep", tuple(sorted({k.strip() for k in keep if k.strip()})))
        for name in ("window", "stride", "max_tokens", "batch_tokens", "partition_windows"):
            _at_least(name, getattr(self, name), 1)
        _at_least("min_length", self.min_length, 1)
        _at_least("near", self.near, 1)
        _at_least("spectra", self.spectra, 0)
        _one_of("strand", self.strand, STRANDS)
        _one_of("angles", self.angles, ("default", "all"))
        _one_of("tier", self.tier, ("core", "full"))
        _one_of("impl", self.impl, IMPLEMENTATIONS)
        for name in self.keep:
            _one_of("keep", name, variables.KEEP)
        if not 0 <= self.max_unknown <= 1:
            raise UsageError(f"expected --max-unknown between 0 and 1, found {self.max_unknown}")
        if not 0 < self.theta < 1:
            raise UsageError(f"expected --theta between 0 and 1, found {self.theta}")
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

    def lasting(self) -> dict[str, Any]:
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
