"""Load the weights of a model, and reject a checkpoint that does not match its configuration.

transformers fills missing weights with random numbers and ignores unexpected ones. Here both are
errors if they can change a stored number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertgeom.errors import ModelError, UsageError
from bertgeom.model.architectures import architecture_of_config, refuse_by_name
from bertgeom.model.masks import NAME

_LFS = b"version https://git-lfs"
_INDEX = "model.safetensors.index.json"
#: Names of pickled weights: one file, or the list of its parts.
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
#: What switches off that transformers has weights converted elsewhere.
_SWITCH = "DISABLE_SAFETENSORS_CONVERSION"
#: Names of weights that belong to the encoder: without them it is another model.
_ENCODER = re.compile(
    r"(^|\.)(encoder|embeddings|embed_\w+|transformer|layers?|layer_groups|h|blocks?|attention)\."
)
#: Names of weights that a bare encoder does not use.
_UNUSED = re.compile(
    r"(^|\.)(cls|lm_head|pooler|classifier|pre_classifier|score|contact_head|qa_outputs|"
    r"predictions|generator_\w+|discriminator_\w+|vocab_\w+|decoder|head)\.|"
    r"(position_ids|token_type_ids|inv_freq|lm_head)$"
)


def load_model(
    model: str | os.PathLike[str],
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> Any:
    """An encoder alone, without a tokenizer: ready for `bertgeom.measure` and `bertgeom.record`.

    Weights come from safetensors only. MosaicBERT (DNABERT-2, DNABERT-S, BiRNA-BERT), GENA-LM and
    the Nucleotide Transformer v2 are recognised from config.json: their classes are part of this
    package, and no code of their repositories runs.

    Args:
        model: a folder, or a hub name that transformers can resolve.
        revision: branch, tag or commit of a hub name; None: its main branch.
        trust_remote_code: run code from the model's repository; off by default.

    Returns:
        A `PreTrainedModel` in eval mode, in the dtype of its file, on the CPU, with this project's
        attention.

    Raises:
        ModelError: no such model, no safetensors weights, weights that do not belong to it, or a
            variant that is not supported.

    Example:
        >>> import torch
        >>> import bertgeom
        >>> model = bertgeom.load_model("model")
        >>> geometry = bertgeom.measure(model, input_ids=torch.randint(5, 60, (1, 12)))
        >>> dict(geometry.attention_entropy.sizes)
        {'window': 1, 'layer': 2, 'head': 2}
    """
    loaded, _ = read_model(os.fspath(model), trust_remote_code, revision)
    return loaded.eval()


def read_model(
    model: str, trust_remote_code: bool = False, revision: str | None = None
) -> tuple[Any, set[str]]:
    """A transformers encoder in the dtype of its file, and the names of weights the file lacks.

    Args:
        model: a folder, or a hub name that transformers can resolve.
        trust_remote_code: run code from the model's repository.
        revision: branch, tag or commit of a hub name.

    Returns:
        The model, and the missing weights; only an unused pooler may be missing.

    Raises:
        ModelError: no such model, damaged or unknown files, weights that are missing, unexpected,
            of another size or not finite.
        UsageError: for an empty name.
    """
    _check_place(model)
    with _quiet(), _no_requests():
        try:
            loaded, info = _from_pretrained(model, trust_remote_code, revision)
        except Exception as error:
            raise ModelError(_reason(model, error, revision)) from error
    _check_report(model, loaded, info)
    _check_weights(model, loaded)
    return loaded, set(info["missing_keys"])


def _from_pretrained(
    model: str, trust_remote_code: bool, revision: str | None
) -> tuple[Any, dict[str, Any]]:
    import transformers
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForSequenceClassification,
        PreTrainedConfig,
    )

    from bertgeom.model.architectures.published import published

    where = {"revision": revision or "main"}
    raw, _ = PreTrainedConfig.get_config_dict(model, **where)
    known = None if trust_remote_code else published(raw)
    options: dict[str, Any] = dict(where)
    encoder: Any = AutoModel
    classifier: Any = AutoModelForSequenceClassification
    if known is not None:
        known.check(model, raw)
        config = known.config.from_dict({k: v for k, v in raw.items() if k != "model_type"})
        encoder, classifier = known.encoder, known.classifier
    else:
        options["trust_remote_code"] = trust_remote_code
        config = AutoConfig.from_pretrained(model, **options)
        _check_architecture(model, config)
    _check_sizes(model, config)
    classifies = any(
        name.endswith("ForSequenceClassification") for name in config.architectures or ()
    )
    architecture = architecture_of_config(config)
    if architecture is not None and architecture.loads:
        encoder = classifier = getattr(transformers, architecture.loads)
    loaded, info = (classifier if classifies else encoder).from_pretrained(
        model,
        config=config,
        dtype="auto",
        use_safetensors=True,
        attn_implementation=NAME,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    return loaded, info


def _reason(model: str, error: Exception, revision: str | None) -> str:
    if isinstance(error, ModelError):
        return str(error)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = f"expected a transformers encoder with safetensors weights at {model!r}, found: "
    if not Path(model).is_dir() and isinstance(error, OSError):
        if _has_pickle(model, revision):
            return (
                f"{text}only pickled weights, which are never loaded; {_convert(model, revision)}"
            )
        return (
            f"{text}no such folder, and the hub could not be reached or has no such model; "
            "give the path of a model folder, or download it first"
        )
    found = " ".join(line.strip() for line in lines[:2])
    if isinstance(error, KeyError):
        found = f"the unknown name {found}"
    if "does not recognize this architecture" in found:
        return (
            f"{text}{_first_sentence(found)}; where a package registers it, give --import PACKAGE"
        )
    return f"{text}{found}; check config.json and the files next to it"


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")


def _has_pickle(model: str, revision: str | None) -> bool:
    """Whether a model on the hub, or in its cache, has weights as pickles."""
    from transformers.utils.hub import has_file

    for name in PICKLES:
        try:
            if has_file(model, name, revision=revision or "main"):
                return True
        except (OSError, ValueError):
            return False
    return False


def _convert(model: str | Path, revision: str | None = None) -> str:
    """What to do about pickled weights."""
    more = f" --revision {revision}" if revision else ""
    return f"make safetensors of them with: bertgeom convert {model}{more} --out FOLDER"


@contextmanager
def _no_requests() -> Iterator[None]:
    """transformers asks a service on the hub to convert weights if it finds none in safetensors.

    It would post the name of the model, and a token, without a word.
    """
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and reports of transformers; problems are raised as errors."""
    import logging as std_logging

    from transformers.utils import logging

    hub = std_logging.getLogger("huggingface_hub")
    level, hub_level, bars = (
        logging.get_verbosity(),
        hub.level,
        logging.is_progress_bar_enabled(),
    )
    logging.set_verbosity(std_logging.CRITICAL)
    hub.setLevel(std_logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            logging.enable_progress_bar()


def _check_place(model: str) -> None:
    """Reject a path without a model, before transformers makes guesses about it."""
    if not model.strip():
        raise UsageError("expected a model folder or a hub name, found an empty one")
    path = Path(model)
    expected = f"expected a transformers encoder, config.json and safetensors weights, at {model!r}"
    if path.is_file():
        raise ModelError(f"{expected}, found a file; give the folder it is in")
    if not path.is_dir():
        if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
            raise ModelError(f"{expected}, found no such folder; check the path")
        return
    if not (path / "config.json").is_file():
        found = "an empty folder" if not any(path.iterdir()) else "a folder without config.json"
        raise ModelError(f"{expected}, found {found}; give the folder of a saved model")
    config = _json(path / "config.json")
    if not isinstance(config.get("model_type"), str) and "auto_map" not in config:
        raise ModelError(
            f'{path / "config.json"}: expected a model_type, such as "bert", found none; add '
            "the one that the model was trained as"
        )
    _check_files(path, expected)


def _check_files(path: Path, expected: str) -> None:
    index = path / _INDEX
    files = [path / "model.safetensors"]
    if index.is_file() and not files[0].is_file():
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f'{index}: expected "weight_map", found none; download it again')
        files = [path / os.path.basename(str(name)) for name in sorted(set(shards.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing and files[0].name == "model.safetensors":
        if list(path.glob("*.bin")) or list(path.glob("*.pt")):
            raise ModelError(
                f"{expected}, found only pickled weights, which are never loaded; {_convert(path)}"
            )
        raise ModelError(f"{expected}, found no model.safetensors; download it again")
    if missing:
        raise ModelError(
            f"{expected}, found {len(missing)} of {len(files)} parts missing, the first "
            f"{missing[0]}; download it again"
        )
    for file in files:
        _check_safetensors(file)


def _check_safetensors(file: Path) -> None:
    from safetensors import safe_open

    try:
        with file.open("rb") as handle:
            pointer = handle.read(len(_LFS)) == _LFS
        if not pointer:
            with safe_open(file, framework="pt"):
                return
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{file}: expected safetensors weights, found a damaged or truncated file of "
            f"{file.stat().st_size} bytes ({reason}); download it again"
        ) from error
    raise ModelError(
        f"{file}: expected safetensors weights, found a pointer of Git LFS; fetch the file with "
        "git lfs pull"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        if data.startswith(_LFS):
            raise ModelError(
                f"{path}: expected JSON, found a pointer of Git LFS; fetch it with git lfs pull"
            )
        found = json.loads(data.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: expected JSON, found: {error}; download it again") from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{path}: expected a JSON object, found a {type(found).__name__}; download it again"
        )
    return found


def _check_architecture(model: str, config: Any) -> None:
    """Reject a configuration whose architecture is of another model type."""
    import transformers

    refuse_by_name(config)
    for name in config.architectures or ():
        kind = getattr(getattr(transformers, str(name), None), "config_class", None)
        wanted = getattr(kind, "model_type", None)
        if wanted is not None and wanted != config.model_type:
            raise ModelError(
                f"expected one kind of model in config.json of {model!r}, found model_type "
                f"{config.model_type!r} and architecture {name}, which is {wanted!r}; correct one"
            )


def _check_sizes(model: str, config: Any) -> None:
    """Reject a configuration without the sizes that every encoder has."""
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
        value = getattr(config, name, None)
        if not isinstance(value, int) or value < 1:
            raise ModelError(
                f"expected {name} of at least 1 in config.json of {model!r} "
                f"({config.model_type!r}), found {value!r}; it is not a supported encoder"
            )


def _check_report(model: str, loaded: Any, info: dict[str, Any]) -> None:
    """Raise errors for problems of a checkpoint that transformers only reports."""
    name = type(loaded).__name__
    if mismatched := sorted(info["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise ModelError(
            f"expected weights of {name} as config.json of {model!r} says, found "
            f"{len(mismatched)} of another size, the first {key} {tuple(found)} instead of "
            f"{tuple(expected)}; the checkpoint is of another configuration"
        )
    # An unused pooler may be missing; a classifier uses it.
    classifies = name.endswith("ForSequenceClassification")
    missing = sorted(k for k in info["missing_keys"] if classifies or "pooler" not in k)
    if missing:
        raise ModelError(
            f"expected all weights of {name} in {model!r}, found {len(missing)} missing, the "
            f"first {missing[0]}; the checkpoint is of another model"
        )
    rotary = getattr(loaded.config, "position_embedding_type", "") == "rotary"
    more = sorted(
        key
        for key in info["unexpected_keys"]
        if _ENCODER.search(key)
        and not _UNUSED.search(key)
        and not (rotary and "position_embeddings" in key)
    )
    if more:
        raise ModelError(
            f"expected the weights of {name} alone in {model!r}, found {len(more)} more of an "
            f"encoder, the first {more[0]}; config.json describes another model than the weights"
        )


def _check_weights(model: str, loaded: nn.Module) -> None:
    for name, weight in loaded.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise ModelError(
                f"expected finite weights in {model!r}, found NaN or infinity in {name}; the "
                "checkpoint is damaged, or was saved from a training that diverged"
            )
    table = _position_table(loaded)
    if table is not None and table.padding_idx is None and _starts_like_roberta(table.weight):
        raise ModelError(
            f"expected positions counted from 0 in {model!r}, as {type(loaded).__name__} does, "
            "found an empty row 1 in its position embeddings, as RoBERTa has; correct model_type "
            "in config.json"
        )


def check_range(model: str, loaded: nn.Module, dtype: torch.dtype) -> None:
    """Reject a precision in which a finite weight is infinite: float16 ends at 65504.

    Args:
        model: its name, for the message. loaded: as its file has it. dtype: what it is turned into.

    Raises:
        ModelError: names the first such weight, and the precisions that hold it.
    """
    most = torch.finfo(dtype).max
    for name, weight in loaded.state_dict().items():
        if weight.is_floating_point() and torch.finfo(weight.dtype).max > most and weight.numel():
            largest = float(weight.abs().max())
            if largest > most:
                raise ModelError(
                    f"expected weights of at most {most:g}, the largest number in "
                    f"{str(dtype).removeprefix('torch.')}, in {model!r}, found {largest:.3g} in "
                    f"{name}; give --dtype bfloat16 or --dtype float32"
                )


def _starts_like_roberta(weight: Tensor) -> bool:
    """Whether only row 1 is zero: padding, from which RoBERTa counts positions."""
    if len(weight) < 3:
        return False
    used = (weight[:3] != 0).any(1).tolist()
    return used == [True, False, True]


def _position_table(model: nn.Module) -> nn.Embedding | None:
    """The table of learned absolute positions of the model's embeddings."""
    for name, module in model.named_modules():
        if name.split(".")[-1] == "position_embeddings" and isinstance(module, nn.Embedding):
            return module
    return None


def vocabulary_size(model: Any) -> int:
    """Token ids that a model has embeddings for."""
    table = model.get_input_embeddings()
    size = getattr(table, "num_embeddings", None) or model.config.vocab_size
    return int(size)


def max_positions(model: Any) -> int | None:
    """Longest window in tokens that a model computes as observed, None if unlimited.

    Its positions end there, or its attention is full up to there.
    """
    architecture = architecture_of_config(model.config)
    full = architecture.full_up_to if architecture is not None else None
    limits = (_positions(model), None if full is None else full(model.config))
    return min((limit for limit in limits if limit is not None), default=None)


def _positions(model: Any) -> int | None:
    config = model.config
    if getattr(config, "position_embedding_type", "") in ("rotary", "alibi"):
        return None
    table = _position_table(model)
    if table is not None:
        # RoBERTa and its relatives count positions from the padding id plus one.
        offset = 0 if table.padding_idx is None else table.padding_idx + 1
        return table.num_embeddings - offset
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
