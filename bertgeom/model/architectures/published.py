"""Published checkpoints that bring their own code, recognised from config.json.

Their code does not run here: this package has its own classes for them, which read the original
weight names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bertgeom.model.architectures.gena import (
    GenaConfig,
    GenaForSequenceClassification,
    GenaModel,
    check_gena,
)
from bertgeom.model.architectures.mosaic import (
    MosaicBertConfig,
    MosaicBertForSequenceClassification,
    MosaicBertModel,
)
from bertgeom.model.architectures.nucleotide import (
    NucleotideConfig,
    NucleotideForSequenceClassification,
    NucleotideModel,
    check_nucleotide,
)


def _nothing(model: str, raw: dict[str, Any]) -> None:
    """Nothing is refused."""


@dataclass(frozen=True)
class Published:
    """Classes for a kind of checkpoint.

    Attributes:
        name: as users know it.
        config, encoder, classifier: classes.
        recognise: whether config.json, as a dict, is of this kind.
        check: raises ModelError for variants that are not supported.
    """

    name: str
    config: Any
    encoder: Any
    classifier: Any
    recognise: Callable[[dict[str, Any]], bool]
    check: Callable[[str, dict[str, Any]], None] = _nothing


def _code(raw: dict[str, Any]) -> set[str]:
    """Names of the modules that config.json would run, without the repository they are in."""
    named = raw.get("auto_map")
    paths = named.values() if isinstance(named, dict) else ()
    texts = [p for path in paths for p in (path if isinstance(path, list) else [path])]
    return {str(t).split("--")[-1].rsplit(".", 1)[0] for t in texts if t}


def _is_mosaic(raw: dict[str, Any]) -> bool:
    return "bert_layers" in _code(raw) or (
        raw.get("model_type", "bert") == "bert" and "alibi_starting_size" in raw
    )


def _is_gena(raw: dict[str, Any]) -> bool:
    return raw.get("model_type", "bert") == "bert" and raw.get("pre_layer_norm") is True


def _is_nucleotide(raw: dict[str, Any]) -> bool:
    # Its config.json names no model_type.
    return "modeling_esm" in _code(raw) and ("add_bias_fnn" in raw or "model_type" not in raw)


PUBLISHED: tuple[Published, ...] = (
    Published(
        "MosaicBERT (DNABERT-2, DNABERT-S, BiRNA-BERT)",
        MosaicBertConfig,
        MosaicBertModel,
        MosaicBertForSequenceClassification,
        _is_mosaic,
    ),
    Published(
        "GENA-LM",
        GenaConfig,
        GenaModel,
        GenaForSequenceClassification,
        _is_gena,
        check_gena,
    ),
    Published(
        "Nucleotide Transformer v2",
        NucleotideConfig,
        NucleotideModel,
        NucleotideForSequenceClassification,
        _is_nucleotide,
        check_nucleotide,
    ),
)


def published(raw: dict[str, Any]) -> Published | None:
    """The classes for a config.json; None if transformers has them, or nobody.

    Example:
        >>> from bertgeom.model.architectures.published import published
        >>> published({"model_type": "bert", "pre_layer_norm": True}).name
        'GENA-LM'
        >>> published({"model_type": "bert"}) is None
        True
    """
    kind = raw.get("model_type")
    for known in PUBLISHED:
        if kind == known.config.model_type or known.recognise(raw):
            return known
    return None
