"""Checkpoints without pickle: safetensors for weights and optimiser state, JSON for the rest.

A checkpoint is written beside the old one and renamed into its place. The best weights so
far live in it too, so that one rename keeps everything consistent. Killed between the two
renames, the old one lies under another name, where `recover` finds it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bertgeom.errors import DamagedError, MismatchError
from bertgeom.store.files import sync_folder, system_errors
from bertgeom.store.storage import explain_write_errors, reason

_STATE, _WEIGHTS = "state.json", "model.safetensors"
_BEST, _MOMENTS = "best.safetensors", "optimizer.safetensors"


@dataclass
class History:
    """Where a run stands: steps done, validations, and the best of them."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    finished: bool = False
    validations: list[dict[str, float]] = field(default_factory=list)


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    history: History,
) -> None:
    """Replace the checkpoint by the present state.

    Args:
        identity: settings and data of the run, JSON-able; what `load` compares.
    """
    recover(folder)
    fresh, old = _fresh(folder), _old(folder)
    weights = _weights(model)
    try:
        with explain_write_errors(folder, "the checkpoint"), system_errors():
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            save_file(weights, fresh / _WEIGHTS)
            save_file(_moments(model, optimizer), fresh / _MOMENTS)
            if history.best_step == history.step or not folder.exists():
                save_file(weights, fresh / _BEST)
            else:
                shutil.copyfile(folder / _BEST, fresh / _BEST)
            state = {"settings": identity, "history": asdict(history)}
            (fresh / _STATE).write_text(json.dumps(state, indent=1), "utf-8")
            sync_folder(fresh)
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            fresh.rename(folder)
    finally:
        recover(folder)
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Give the checkpoint before its name back, where a new one was killed before it had it."""
    if not folder.exists() and is_checkpoint(_old(folder)):
        _old(folder).rename(folder)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is what `save` writes."""
    return (folder / _STATE).is_file()


def _fresh(folder: Path) -> Path:
    return folder.with_name(folder.name + ".new")


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def load(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
) -> History:
    """Put model and optimiser into the state of the checkpoint.

    Raises:
        MismatchError: the checkpoint is of other settings; names them.
        DamagedError: it cannot be read.
    """
    with _readable(folder):
        state = json.loads((folder / _STATE).read_text("utf-8"))
        found, history = dict(state["settings"]), History(**state["history"])
        weights, moments = load_file(folder / _WEIGHTS), load_file(folder / _MOMENTS)
    wanted = identity
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise MismatchError(
                f"{folder}: expected {name} = {wanted.get(name)!r}, found a checkpoint with "
                f"{found.get(name)!r}; choose another folder or the same settings"
            )
    with _readable(folder):
        model.load_state_dict(weights, strict=True)
        _restore_moments(model, optimizer, moments)
    return history


def load_best(folder: Path, model: nn.Module) -> None:
    """Put the model into its best state so far.

    Raises:
        DamagedError: it cannot be read.
    """
    with _readable(folder):
        model.load_state_dict(load_file(folder / _BEST), strict=True)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Whatever a damaged checkpoint raises is one error that says what to do."""
    try:
        yield
    # torch raises RuntimeError for weights of other names or shapes.
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DamagedError(
            f"{folder}: expected a checkpoint of casestudy train, found: {reason(error)}; delete "
            "the folder to begin anew, or choose another --out"
        ) from error


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{key}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return found


def _restore_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for key, value in moments.items():
        kind, name = key.split("/", 1)
        parameter = parameters[name]
        # AdamW keeps its step count on the CPU, its moments where the parameter is.
        where = "cpu" if kind == "step" else parameter.device
        optimizer.state[parameter][kind] = value.to(where)
