"""Pickled weights as safetensors, without running what a pickle may hold.

torch reads them with `weights_only=True`: tensors and plain containers, and nothing else. The
folder that is written has the same weights under the same names, and the files beside them.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertgeom.errors import ModelError, UsageError
from bertgeom.model.loading import PICKLES
from bertgeom.store.files import replacing_folder, system_errors

#: Files that go along: configuration, tokenizer, licence. Not other weights.
_SIDECARS = (".json", ".txt", ".model", ".tsv", ".md", ".py", ".jinja")
_SINGLE, _INDEX = PICKLES


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        folder: the new model folder.
        n_weights: number of tensors. n_bytes: of all weights. n_files: of safetensors.
    """

    folder: Path
    n_weights: int
    n_bytes: int
    n_files: int


def convert(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    revision: str | None = None,
) -> Converted:
    """Write a model folder with safetensors from one with `pytorch_model.bin`, whole or in parts.

    Args:
        model: a folder, or a hub name; weights are downloaded then, and nothing is asked for.
        out: the folder to write; a new or an empty one.
        revision: branch, tag or commit of a hub name; None: its main branch.

    Raises:
        ModelError: no such weights, damaged ones, or a pickle that holds more than tensors.
        UsageError: for a folder that already has safetensors, or an `out` with contents.
        StoreError: if the folder cannot be written.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from bertgeom.model.convert import convert
        >>> Path("old").mkdir()
        >>> torch.save({"x.weight": torch.ones(2, 3)}, "old/pytorch_model.bin")
        >>> convert("old", "new").n_weights
        1
    """
    model, out = os.fspath(model), os.fspath(out)
    source = _fetch(model, revision)
    parts = _parts(source)
    written: dict[str, str] = {}
    n_bytes = 0
    inputs = [model] if Path(model).is_dir() else []
    with replacing_folder(out, lambda _: False, inputs=inputs) as draft:
        for i, part in enumerate(parts, 1):
            weights = read_pickle(part)
            name = (
                "model.safetensors"
                if len(parts) == 1
                else f"model-{i:05d}-of-{len(parts):05d}.safetensors"
            )
            for key in weights:
                if key in written:
                    raise ModelError(
                        f"{part}: expected every weight in one part, found {key} in two; "
                        "download the parts again"
                    )
                written[key] = name
            n_bytes += _save(weights, draft / name)
        if len(parts) > 1:
            _check_listed(source, written)
            index = {"metadata": {"total_size": n_bytes}, "weight_map": written}
            (draft / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
        for file in _sidecars(source):
            shutil.copyfile(file, draft / file.name)
    return Converted(Path(out), len(written), n_bytes, len(parts))


def read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict by name; no code of the file runs.

    Raises:
        ModelError: for a damaged file, one that holds more than tensors, or one without names.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{file}: expected tensors alone, found a pickle that holds more, or a damaged one "
            f"({_line(error)}); it is not read, because reading it may run its code"
        ) from error
    except Exception as error:
        raise ModelError(
            f"{file}: expected weights saved by torch, found a damaged or another file "
            f"({_line(error)}); download it again"
        ) from error
    if not isinstance(found, Mapping) or not found:
        raise ModelError(f"{file}: expected tensors by name, found a {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelError(
                f"{file}: expected a tensor for every name, found a {type(value).__name__} for "
                f"{name!r}; save the model's state_dict alone"
            )
    return dict(found)


def _is_zip(file: Path) -> bool:
    """Whether torch wrote the file in its present format, which can be mapped into memory."""
    with file.open("rb") as handle:
        return handle.read(4) == b"PK\x03\x04"


def _line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 100 else f"{text[:97]}..."


def _fetch(model: str, revision: str | None) -> Path:
    """The folder of a model: as given, or a copy of the hub's."""
    if not model.strip():
        raise UsageError("expected a model folder or a hub name, found an empty one")
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    wanted = [f"*{suffix}" for suffix in _SIDECARS] + ["pytorch_model*.bin"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise ModelError(
            f"expected a model with pytorch_model.bin at {model!r}, found no such folder, and the "
            f"hub could not be reached or has no such model ({_line(error)}); give the path of a "
            "model folder"
        ) from error


def _parts(source: Path) -> list[Path]:
    """The files of pickled weights, in order."""
    expected = f"expected pytorch_model.bin in {source}"
    if any(source.glob("*.safetensors")):
        raise UsageError(f"{expected}, found safetensors; the model needs no conversion")
    if (source / _SINGLE).is_file():
        return [source / _SINGLE]
    if not (source / _INDEX).is_file():
        raise ModelError(f"{expected}, found no weights; give the folder of a saved model")
    names = sorted({Path(str(name)).name for name in _listed(source).values()})
    missing = [name for name in names if not (source / name).is_file()]
    if missing:
        raise ModelError(
            f"{expected} or all its parts, found {len(missing)} of {len(names)} missing, the "
            f"first {missing[0]}; download it again"
        )
    return [source / name for name in names]


def _listed(source: Path) -> dict[str, Any]:
    path = source / _INDEX
    try:
        found = json.loads(path.read_text("utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f'{path}: expected JSON with "weight_map": {_line(error)}') from error
    if not isinstance(found, dict) or not found:
        raise ModelError(f'{path}: expected "weight_map" with names, found {type(found).__name__}')
    return found


def _check_listed(source: Path, written: Mapping[str, str]) -> None:
    """Every weight that the list of parts names was found in a part."""
    missing = sorted(set(_listed(source)) - set(written))
    if missing:
        raise ModelError(
            f"{source / _INDEX}: expected every listed weight in the parts, found "
            f"{len(missing)} missing, the first {missing[0]}; download it again"
        )


def _save(weights: Mapping[str, Tensor], file: Path) -> int:
    """Write the tensors; returns their bytes."""
    from safetensors.torch import save_file

    with system_errors():
        save_file(dict(_separate(weights)), file, metadata={"format": "pt"})
    return sum(value.numel() * value.element_size() for value in weights.values())


def _separate(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors that share no memory: safetensors stores none twice, and drops no name here."""
    seen: set[int] = set()
    for name, value in weights.items():
        memory = value.untyped_storage()
        whole = memory.nbytes() == value.numel() * value.element_size()
        if value.is_contiguous() and whole and memory.data_ptr() not in seen:
            seen.add(memory.data_ptr())
            yield name, value
        else:
            yield name, value.clone(memory_format=torch.contiguous_format)


def _sidecars(source: Path) -> Iterator[Path]:
    for file in sorted(source.iterdir()):
        if file.suffix in _SIDECARS and file.is_file() and file.name not in PICKLES:
            yield file
