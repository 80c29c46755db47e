"""Train a BERT that tells the nine classes apart by their spike gene.

`train` is idempotent: the same call again continues from the last checkpoint, and a run that
was interrupted ends with the same weights, bit for bit (on one device kind and thread
count), because a batch, its augmentation and its dropout depend on the step alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig
from transformers import BertForSequenceClassification as Classifier

from bertgeom.errors import MismatchError, ModelError
from bertgeom.pipelines.casestudy.classifier import checkpoint as checkpoints
from bertgeom.pipelines.casestudy.classifier.calibrate import (
    Decision,
    choose_threshold,
    fit_temperature,
)
from bertgeom.pipelines.casestudy.classifier.quiet import no_progress_bars
from bertgeom.pipelines.casestudy.classifier.settings import TrainSettings
from bertgeom.pipelines.casestudy.classifier.stream import (
    LabelledSequences,
    calibration_samples,
    encode,
    stream_seed,
    training_batch,
    training_sequences,
    validation_samples,
    vocabulary,
)
from bertgeom.pipelines.casestudy.genomes.lineages import CLASSES
from bertgeom.store.files import check_folder, replacing_folder, system_errors
from bertgeom.store.storage import explain_write_errors
from bertgeom.tokens.select import (
    SETTINGS_FILE,
    KmerTokenizer,
    PaperKmer,
    load_kmer_tokenizer,
    save_kmer_tokenizer,
)

_MODEL, _DROPOUT = 10, 11
_FIGURES = "training.json"


@dataclass(frozen=True)
class Progress:
    """What is told after every step; `validation` only where one was made.

    Attributes:
        step, steps: 1-based step just done, and how many there are at most.
        loss: training loss of the step (nats).
        seconds: since this process began to train.
        validation: {"loss", "accuracy"} or None.
    """

    step: int
    steps: int
    loss: float
    seconds: float
    validation: dict[str, float] | None = None


def train(
    out: Path,
    settings: TrainSettings,
    *,
    given: LabelledSequences | None = None,
    device: str = "auto",
    stop_after: int | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    inputs: Sequence[str | Path] = (),
) -> dict[str, Any] | None:
    """Train into a folder: `out/model` (the product) and `out/checkpoint` (to go on from).

    Args:
        out: folder, made if missing.
        settings: what to train; a checkpoint of other settings is refused.
        given: labelled sequences instead of simulated ones.
        device: "auto", "cpu" or "cuda".
        stop_after: leave after this many steps of this call, to be continued later.
        report: called after every step.
        inputs: files that were read for `given`; never written to.

    Returns:
        Figures of the run (also `out/model/training.json`), None if left early.

    Raises:
        MismatchError: the folder holds a run of other settings.
        UsageError: it holds folders of these names that are not of a training, or an input.
        StoreError: it cannot be written.
    """
    with explain_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    _check_folder(out, [*inputs, *(() if settings.init is None else [settings.init])])
    chosen = torch.device(_pick(device))
    tokenizer = _tokenizer(out, settings, given)
    torch.manual_seed(stream_seed(settings, _MODEL))
    model = new_model(settings, tokenizer).to(chosen)
    loop = _Loop(settings, tokenizer, model, given, chosen, out / "checkpoint")
    finished = loop.run(stop_after, report)
    if not finished:
        return None
    loop.restore_best()
    return _finish(out / "model", loop)


def _check_folder(out: Path, inputs: Sequence[str | Path]) -> None:
    """Refuse folders of the same names that `train` has not written, and those of inputs."""
    ours: dict[str, Callable[[Path], bool]] = {
        "tokenizer": lambda folder: (folder / SETTINGS_FILE).is_file(),
        "checkpoint": checkpoints.is_checkpoint,
        "model": _is_product,
    }
    checkpoints.recover(out / "checkpoint")
    for name, is_ours in ours.items():
        check_folder(out / name, is_ours, inputs=inputs)


def _is_product(folder: Path) -> bool:
    return (folder / _FIGURES).is_file()


def new_model(settings: TrainSettings, tokenizer: KmerTokenizer) -> Any:
    """A classifier with the vocabulary of the tokeniser: fresh, or from `settings.init`."""
    size = 1 + max(max(tokenizer.vocabulary.values()), max(tokenizer.special_ids.values()))
    labels = dict(enumerate(CLASSES))
    if settings.init is not None:
        return _pretrained(settings.init, size, labels)
    config = BertConfig(
        vocab_size=size,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.intermediate,
        max_position_embeddings=settings.max_tokens,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_id,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )
    return Classifier(config)


def _pretrained(name: str, size: int, labels: dict[int, str]) -> Any:
    """A model folder or hub model, with rows for new k-mers and a head for the nine classes."""
    with no_progress_bars():
        model = AutoModelForSequenceClassification.from_pretrained(
            name,
            num_labels=len(CLASSES),
            id2label=labels,
            label2id={label: i for i, label in labels.items()},
            ignore_mismatched_sizes=True,  # a head of other classes is begun anew
            use_safetensors=True,
            dtype=torch.float32,
        )
    if model.config.vocab_size < size:
        model.resize_token_embeddings(size, mean_resizing=False)
    return model


class _Loop:
    """The state of a run between two steps, and the steps themselves."""

    def __init__(
        self,
        settings: TrainSettings,
        tokenizer: KmerTokenizer,
        model: Any,
        given: LabelledSequences | None,
        device: torch.device,
        folder: Path,
    ) -> None:
        self.settings, self.tokenizer, self.model = settings, tokenizer, model
        self.given, self.device, self.folder = given, device, folder
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, settings.weight_decay), lr=settings.learning_rate
        )
        self.identity = settings.as_dict() | {"data": None if given is None else given.digest()}
        self.samples = validation_samples(settings)
        self.history = checkpoints.History()
        if folder.exists():
            self.history = checkpoints.load(folder, model, self.optimizer, self.identity)

    def run(self, stop_after: int | None, report: Callable[[Progress], None]) -> bool:
        settings, history = self.settings, self.history
        began, done = time.perf_counter(), 0
        while not history.finished:
            if stop_after is not None and done == stop_after:
                self._keep()
                return False
            loss = self._step(history.step)
            history.step += 1
            done += 1
            validation = None
            last = history.step == settings.steps
            if history.step % settings.evaluate_every == 0 or last:
                validation = self._validate()
                self._judge(validation, last)
            seconds = time.perf_counter() - began
            report(Progress(history.step, settings.steps, loss, seconds, validation))
        return True

    def restore_best(self) -> None:
        checkpoints.load_best(self.folder, self.model)

    def logits(self, sequences: list[np.ndarray], batch_size: int = 64) -> Tensor:
        """Logits float32 (n, classes) on the CPU, in evaluation mode."""
        self.model.eval()
        parts = []
        with torch.inference_mode():
            for start in range(0, len(sequences), batch_size):
                ids, mask = encode(sequences[start : start + batch_size], self.tokenizer)
                parts.append(self._forward(ids, mask).float().cpu())
        return torch.cat(parts)

    def _step(self, step: int) -> float:
        settings = self.settings
        batch = training_batch(settings, step, self.tokenizer, self.given)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        torch.manual_seed(stream_seed(settings, _DROPOUT) + step)
        self.model.train()
        logits = self._forward(batch.ids, batch.mask, batch.positions).float()
        targets = torch.from_numpy(batch.targets).to(self.device)
        loss = nn.functional.cross_entropy(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(f"expected a finite loss, found {value} at step {step + 1}")
        return value

    def _forward(
        self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray | None = None
    ) -> Tensor:
        half = self.device.type == "cuda" and self.settings.mixed_precision
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            inputs = {"input_ids": ids, "attention_mask": mask}
            if positions is not None and self.settings.keep_tokens < 1:
                inputs["position_ids"] = positions
            output = self.model(
                **{name: torch.tensor(array, device=self.device) for name, array in inputs.items()}
            )
        logits: Tensor = output.logits
        return logits

    def _validate(self) -> dict[str, float]:
        logits = self.logits([sample.bases for sample in self.samples])
        truth = torch.tensor([CLASSES.index(sample.label) for sample in self.samples])
        return {
            "loss": float(nn.functional.cross_entropy(logits, truth)),
            "accuracy": float((logits.argmax(1) == truth).double().mean()),
        }

    def _judge(self, validation: dict[str, float], last: bool) -> None:
        history = self.history
        history.validations.append({"step": history.step, **validation})
        if validation["loss"] < history.best_loss:
            history.best_loss, history.best_step = validation["loss"], history.step
        waited = history.step - history.best_step
        history.finished = last or waited >= self.settings.patience * self.settings.evaluate_every
        self._keep()

    def _keep(self) -> None:
        checkpoints.save(self.folder, self.model, self.optimizer, self.identity, self.history)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Linear warm-up, then a cosine to zero; of the step that is about to be made."""
    warm = max(1, round(settings.warmup * settings.steps))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, settings.steps - warm)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices; none on biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _tokenizer(
    out: Path, settings: TrainSettings, given: LabelledSequences | None
) -> KmerTokenizer:
    """The tokeniser of the folder, or of `init`; else built from the training sequences."""
    folder = out / "tokenizer"
    if (folder / SETTINGS_FILE).exists():
        tokenizer = load_kmer_tokenizer(folder)
    elif settings.init is not None and (Path(settings.init) / SETTINGS_FILE).exists():
        tokenizer = load_kmer_tokenizer(settings.init)
    else:
        tokenizer = _new_tokenizer(settings, given)
    found, wanted = (tokenizer.k, tokenizer.stride), (settings.k, settings.stride)
    if found != wanted:
        raise MismatchError(f"{folder}: expected k, stride of {wanted}, found {found}")
    save_kmer_tokenizer(folder, tokenizer)
    return tokenizer


def _new_tokenizer(settings: TrainSettings, given: LabelledSequences | None) -> KmerTokenizer:
    """k-mers get the ids after those of the model to start from, or after the special ones."""
    kmers = vocabulary(training_sequences(settings, given), settings)
    ids: Mapping[str, int] | Sequence[str] = kmers
    if settings.init is not None:
        first = _size_of(settings.init)
        ids = {name: first + i for i, name in enumerate(kmers)}
    return PaperKmer(ids, k=settings.k, stride=settings.stride, max_tokens=settings.max_tokens)


def _size_of(name: str) -> int:
    return int(AutoConfig.from_pretrained(name).vocab_size)


def _finish(folder: Path, loop: _Loop) -> dict[str, Any]:
    """Calibrate, write the model folder, and return the figures of the run."""
    samples = calibration_samples(loop.settings)
    truth = np.array([CLASSES.index(sample.label) for sample in samples])
    logits = loop.logits([sample.bases for sample in samples]).double().numpy()
    temperature = fit_temperature(logits, truth)
    decision = Decision(min_confidence=choose_threshold(logits / temperature, truth))
    figures = {
        "settings": loop.settings.as_dict(),
        "steps": loop.history.step,
        "best_step": loop.history.best_step,
        "validations": loop.history.validations,
        "temperature": temperature,
        "decision": decision.as_dict(),
        "classes": list(CLASSES),
        "n_kmers": len(loop.tokenizer.vocabulary),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(),
    }
    with replacing_folder(folder, _is_product) as draft, system_errors():
        write_model(draft, loop.model, loop.tokenizer, loop.settings, temperature, decision)
        (draft / _FIGURES).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return figures


def write_model(
    folder: Path,
    model: Any,
    tokenizer: KmerTokenizer,
    settings: TrainSettings,
    temperature: float,
    decision: Decision,
) -> None:
    """A Hugging Face folder with safetensors; logits are divided by the temperature for good."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        model.classifier.weight.div_(temperature)
        model.classifier.bias.div_(temperature)
    model.config.bertgeom_decision = decision.as_dict()
    kind = torch.float16 if settings.half_file else torch.float32
    with no_progress_bars():
        model.to(kind).save_pretrained(folder)
    model.to(torch.float32)
    # Half-precision files are read back as float32: the type is the file's, not the model's.
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    save_kmer_tokenizer(folder, tokenizer)


def _pick(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
