"""Load an encoder, and measure batches of tokens with it.

Weights come from safetensors only. Precision follows the device: float16 on CUDA, float32 on
a CPU (float16 is about ten times slower there), bfloat16 on request.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from bertgeom.config import MeasureSettings
from bertgeom.errors import ModelError, UsageError
from bertgeom.kernels.arrays import BoolArray
from bertgeom.model.architectures import architecture_of_config, refuse_by_name
from bertgeom.model.attention import record
from bertgeom.model.fetch import to_device
from bertgeom.model.loading import check_range, max_positions, read_model, vocabulary_size
from bertgeom.model.observed import observed
from bertgeom.model.probe import probe
from bertgeom.model.recorder import pad_tokens
from bertgeom.store.dataset import as_dataset
from bertgeom.variables import flag_bit

if TYPE_CHECKING:
    import xarray

    from bertgeom.tokens.select import Tokenizer

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}
#: Configuration entries that do not affect what the model computes.
_CONFIG_NOISE = {"transformers_version", "_name_or_path", "dtype", "torch_dtype"}


@dataclass(frozen=True)
class TokenBatch:
    """Windows as tokens, padded on the right.

    Attributes:
        ids: (B, N) int32.
        lengths: (B,) valid tokens of each window, 0 for an empty one.
        special: (B, N) bool, special tokens.
        groups: (B, N) int32 bit mask of token groups, or None.
    """

    ids: np.ndarray
    lengths: np.ndarray
    special: np.ndarray
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Encoder:
    """A model with its tokenizer, ready to measure. Made by `load_encoder`.

    Attributes:
        model_id: the folder or hub name it was loaded from.
        fingerprint: SHA-256 over the loaded weights and the configuration.
        max_tokens: longest window in tokens, special ones included.
        class_names: names of the logits, empty without a classification head.
    """

    model: torch.nn.Module
    tokenizer: Tokenizer
    model_id: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    n_layers: int
    n_heads: int
    head_dim: int
    hidden: int
    max_tokens: int
    class_names: tuple[str, ...]
    attention_impl: str = "auto"

    @property
    def runs_ahead(self) -> bool:
        """Whether the device works by itself: the next batch can start before one is fetched."""
        return self.device.type == "cuda"

    def measure(self, batch: TokenBatch, settings: MeasureSettings) -> dict[str, np.ndarray]:
        """Statistics of a batch; every row is independent of padding and of the other rows.

        Args:
            batch: B windows.
            settings: what to measure; `impl` "auto" takes the encoder's.

        Returns:
            By name: arrays of `bertgeom.variables` with B rows, except those that describe the
            window, and `flags` (B,) uint16. Rows that could not be computed are NaN (integers
            0) and flagged.

        Raises:
            UsageError: if logits are requested from a model without a classification head.
        """
        return self.start(batch, settings)()

    def start(
        self, batch: TokenBatch, settings: MeasureSettings
    ) -> Callable[[], dict[str, np.ndarray]]:
        """`measure` in two steps: starts the forward pass; the returned function waits for it.

        On a GPU the device works meanwhile, and the statistics are copied behind it in one piece.
        """
        if "logits" in settings.keep and not self.class_names:
            raise UsageError(
                f"expected a model with a classification head for --keep logits, found "
                f"{type(self.model).__name__}"
            )
        if settings.impl == "auto":
            settings = replace(settings, impl=self.attention_impl)
        rows = np.flatnonzero(batch.lengths)
        flags = np.where(batch.lengths == 0, flag_bit("empty"), 0).astype(np.uint16)
        if not len(rows):
            missing = {**self._missing(batch, settings), "flags": flags}
            return lambda: missing
        started = self._forward(self.model, batch, rows, settings)
        return lambda: self._completed(started(), batch, rows, flags, settings)

    def _completed(
        self,
        values: dict[str, np.ndarray],
        batch: TokenBatch,
        rows: np.ndarray,
        flags: np.ndarray,
        settings: MeasureSettings,
    ) -> dict[str, np.ndarray]:
        """Rows that are not finite again in float32; flags; rows without tokens."""
        bad = _not_finite(values)
        if bad.any() and self.dtype != torch.float32:
            again = self._forward(self._wide_model, batch, rows[bad], settings)()
            for name, array in values.items():
                array[bad] = again[name]
            flags[rows[bad]] |= flag_bit("recomputed")
            bad = _not_finite(values)
        flags[rows[values.pop("zero_vectors") > 0]] |= flag_bit("zero_vector")
        flags[rows[bad]] |= flag_bit("quarantined")
        out = {}
        for name, array in values.items():
            array[bad] = _missing_value(array.dtype)
            full = np.full((len(flags), *array.shape[1:]), _missing_value(array.dtype), array.dtype)
            full[rows] = array
            out[name] = full
        return {**out, "flags": flags}

    def probe(self) -> None:
        """Run two short windows with and without recording; raise an error if they differ.

        Deterministic and fast. Unsupported architectures are rejected here, with the reason.

        Raises:
            ModelError: for an architecture that cannot be observed, with the reason.
            UsageError: for kernels that cannot run here.
        """
        probe(
            self.model,
            pad_id=self.tokenizer.pad_id,
            max_tokens=self.max_tokens,
            impl=self.attention_impl,
        )

    def _forward(
        self,
        model: torch.nn.Module,
        batch: TokenBatch,
        rows: np.ndarray,
        settings: MeasureSettings,
    ) -> Callable[[], dict[str, np.ndarray]]:
        """Starts a forward pass; the returned function gives its statistics."""
        lengths = batch.lengths[rows]
        longest = int(lengths.max())

        def tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
            return to_device(torch.from_numpy(array[rows, :longest]).to(dtype), self.device)

        padded = bool(lengths.min() < longest)
        mask = torch.from_numpy(np.arange(longest) < lengths[:, None]).to(torch.long)
        groups = None if batch.groups is None else tensor(batch.groups, torch.int32)
        valid = torch.from_numpy(lengths.astype(np.int64))
        with (
            torch.inference_mode(),
            record(
                special_tokens_mask=tensor(batch.special, torch.bool),
                groups=groups,
                settings=settings,
                padded_rows="logits" in settings.keep,
                lengths=to_device(valid, self.device) if padded else None,
            ) as recorder,
        ):
            output = model(
                input_ids=tensor(batch.ids, torch.long),
                attention_mask=to_device(mask, self.device),
            )
            more = {"logits": output.logits.float()} if "logits" in settings.keep else {}
            started = recorder.start(**more)
        tokens = batch.ids.shape[1]
        return lambda: {name: pad_tokens(name, x, tokens) for name, x in started.arrays().items()}

    def _missing(self, batch: TokenBatch, settings: MeasureSettings) -> dict[str, np.ndarray]:
        """A result of the right shapes in which every row is missing."""
        one = TokenBatch(
            np.full_like(batch.ids[:1], self.tokenizer.pad_id),
            np.ones(1, dtype=batch.lengths.dtype),
            np.zeros_like(batch.special[:1]),
            None if batch.groups is None else np.zeros_like(batch.groups[:1]),
        )
        shapes = self._forward(self.model, one, np.arange(1), settings)()
        shapes.pop("zero_vectors")
        return {
            name: np.full(
                (len(batch.ids), *array.shape[1:]), _missing_value(array.dtype), array.dtype
            )
            for name, array in shapes.items()
        }

    @cached_property
    def _wide_model(self) -> torch.nn.Module:
        """The same model in float32, for windows that overflow half precision."""
        return copy.deepcopy(self.model).float()


def _missing_value(dtype: np.dtype) -> float:
    return np.nan if dtype.kind == "f" else 0


def _not_finite(values: dict[str, np.ndarray]) -> BoolArray:
    """(rows,) bool: rows whose statistics are not all finite.

    Statistics that are undefined for one token (pairs, variances) may be NaN: only the
    attention entropy of every head and the norms along the stream count.
    """
    heads = np.isfinite(values["attention_entropy"]).all(axis=(1, 2))
    layers = np.isfinite(values["stream_norm_max"]).all(axis=1)
    bad: BoolArray = ~(heads & layers)
    return bad


def load_encoder(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    max_tokens: int | None = None,
    tokenizer: str | None = None,
    alphabet: str | None = None,
    attention_impl: str = "auto",
) -> Encoder:
    """Load a transformers encoder and its tokenizer.

    Args:
        model: a folder, or a hub name that transformers can resolve.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1"...
        dtype: "auto" (float16 on CUDA, float32 on a CPU), "float32", "float16", "bfloat16".
        revision: branch, tag or commit of a hub name; None: its main branch.
        trust_remote_code: run code from the model's repository; off by default.
        max_tokens: upper limit of tokens per window, at most the model's own.
        tokenizer: a tokenizer specification that overrides the model's, see
            `bertgeom.tokens.select`.
        alphabet: what sequences are made of: "dna", "rna", "protein" or "text"; None: nucleotides.
        attention_impl: kernels to use: "auto", "triton", "numba" or "reference".

    Raises:
        ModelError: no such model, no safetensors weights, missing weights, weights beyond the
            range of the dtype, or an architecture whose attention cannot be observed.

    Example:
        >>> import bertgeom
        >>> encoder = bertgeom.load_encoder("model", device="cpu")
        >>> encoder.n_layers, encoder.n_heads, encoder.max_tokens
        (2, 2, 64)
    """
    from bertgeom.tokens.select import load_tokenizer

    where = _device(device)
    kind = _dtype(dtype, where)
    loaded, absent = read_model(str(model), trust_remote_code, revision)
    config = loaded.config
    architecture = architecture_of_config(config)
    fingerprint = _fingerprint(loaded, absent)
    check_range(str(model), loaded, kind)
    loaded = loaded.to(where, kind).eval()
    limit = max_positions(loaded)
    if max_tokens is not None:
        if limit is not None and max_tokens > limit:
            raise UsageError(f"expected --max-tokens of at most {limit}, found {max_tokens}")
        limit = max_tokens
    tokens = load_tokenizer(
        model,
        max_tokens=limit,
        override=tokenizer,
        trust_remote_code=trust_remote_code,
        revision=revision,
        alphabet=alphabet,
    )
    _refuse_made_up(tokens, str(model))
    vocabulary = vocabulary_size(loaded)
    top = getattr(tokens, "vocab_size", None)
    if top is not None and top > vocabulary:
        raise ModelError(
            f"expected a tokenizer with at most {vocabulary} ids for {model}, found {top}; "
            "the tokenizer does not belong to this model"
        )
    return Encoder(
        model=loaded,
        tokenizer=tokens,
        model_id=str(model),
        fingerprint=fingerprint,
        device=where,
        dtype=kind,
        n_layers=config.num_hidden_layers
        if architecture is None
        else architecture.n_layers(config),
        n_heads=config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        hidden=config.hidden_size,
        max_tokens=tokens.max_tokens,
        class_names=_class_names(loaded),
        attention_impl=attention_impl,
    )


def _refuse_made_up(tokens: Any, model: str) -> None:
    """Reject the tokenizer without a vocabulary that transformers makes if there is none."""
    inner = getattr(tokens, "tokenizer", None)
    if inner is None:
        return
    plain = set(inner.get_vocab()) - set(inner.all_special_tokens)
    if not plain:
        raise ModelError(
            f"expected a tokenizer at {model!r}, found none: only special tokens are known; add "
            "its files, or choose one with --tokenizer, such as dnabert:k=6, nt:v2 or single"
        )


def _device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError:
        raise UsageError(f"expected a device like cpu or cuda:0, found {device!r}") from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("expected a CUDA device, found none; use --device cpu")
    return where


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise UsageError(f"expected a dtype out of {', '.join(_DTYPES)}, found {dtype!r}")
    return _DTYPES[dtype]


def _fingerprint(model: Any, absent: set[str]) -> str:
    """SHA-256 over configuration and weights in the order of their names."""
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if k not in _CONFIG_NOISE}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        if name in absent:
            continue
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()


def _class_names(model: Any) -> tuple[str, ...]:
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return ()
    labels = model.config.id2label
    return tuple(str(labels[i]) for i in range(model.config.num_labels))


def measure(
    model: Any,
    *,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    special_tokens_mask: Tensor | None = None,
    tier: str = "full",
    **options: Any,
) -> xarray.Dataset:
    """Statistics of one forward pass of any transformers encoder, one row per window.

    The model is not changed: it keeps its attention implementation and its mode, and several
    threads may measure one model at once.

    Args:
        model: a `PreTrainedModel`, with any attention implementation; it is run in eval mode.
        input_ids: (B, N) token ids on the model's device.
        attention_mask: (B, N), 1 at valid tokens, as tokenizers return it.
        special_tokens_mask: (B, N), 1 at special tokens; None: no token is special.
        tier: "core" or "full".
        options: other fields of `MeasureSettings`; further model inputs are not supported.

    Returns:
        Variables, dimensions and units of `bertgeom.variables`.

    Raises:
        ModelError: if the architecture does not use transformers' AttentionInterface, or its
            attention or its layers are not supported; see `record`.
        UsageError: for a mask of another shape, or logits of a model without a head.

    Example:
        >>> import torch
        >>> import bertgeom
        >>> from bertgeom.testing import tiny_model
        >>> ids = torch.randint(5, 60, (2, 12))
        >>> geometry = bertgeom.measure(tiny_model("bert"), input_ids=ids)
        >>> geometry.attention_entropy.shape  # window, layer, head
        (2, 2, 2)
    """
    from bertgeom.variables import n_offset_side

    options.setdefault("n_offset_side", n_offset_side(input_ids.shape[1]))
    settings = MeasureSettings(tier=tier, **options)
    for name, mask in (
        ("attention_mask", attention_mask),
        ("special_tokens_mask", special_tokens_mask),
    ):
        if mask is not None and mask.shape != input_ids.shape:
            raise UsageError(
                f"expected {name} of shape {tuple(input_ids.shape)} like input_ids, found "
                f"{tuple(mask.shape)}"
            )
    _check_inputs(model, input_ids)
    with (
        torch.inference_mode(),
        record(
            special_tokens_mask=special_tokens_mask,
            settings=settings,
            padded_rows="logits" in settings.keep,
        ) as recorder,
    ):
        output = observed(model)(input_ids=input_ids, attention_mask=attention_mask)
    arrays = recorder.arrays()
    if "logits" in settings.keep:
        if not hasattr(output, "logits"):
            raise UsageError(
                f"expected a model with a classification head for logits, found "
                f"{type(model).__name__}"
            )
        arrays["logits"] = output.logits.float().cpu().numpy()
    return as_dataset(arrays, n_offset_side=settings.n_offset_side, angles=settings.angles)


def _check_inputs(model: Any, input_ids: Tensor) -> None:
    """Reject ids and lengths for which the model has no embedding, and other kinds of models."""
    if not isinstance(getattr(model, "config", None), PreTrainedConfig):
        return
    refuse_by_name(model.config)
    top = vocabulary_size(model)
    if input_ids.numel() and not 0 <= int(input_ids.max()) < top:
        raise UsageError(f"expected token ids below {top}, found {int(input_ids.max())}")
    limit = max_positions(model)
    if limit is not None and input_ids.shape[1] > limit:
        raise UsageError(
            f"expected at most {limit} tokens per window, as {type(model).__name__} has positions "
            f"for, found {input_ids.shape[1]}"
        )
