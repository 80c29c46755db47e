"""`bertgeom casestudy analyze`: from labelled genomes, or a store over them, to numbers.

    genomes --extract--> spikes --run--> run.zarr --analyze--> analysis.json, arrays.safetensors

Everything but the close-ups comes from the store's own arrays. Close-ups (attention on domains
by confident weights, spectra, one exact attention map) run some windows through the model
again, as `bertgeom regions` and `bertgeom spectra` do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertgeom.errors import DamagedError, StoreError, UsageError
from bertgeom.pipelines.casestudy.along import attention_along, class_codes, exact_maps, token_ids
from bertgeom.pipelines.casestudy.classifier.metrics import agreement
from bertgeom.pipelines.casestudy.genomes.domains import (
    DOMAINS,
    domain_of,
    spike_annotations,
)
from bertgeom.pipelines.casestudy.measure import (
    KEEP,
    LABELS,
    SPIKES,
    STORE,
    measure_genomes,
    read_classes,
)
from bertgeom.pipelines.casestudy.positions import one_versus_all
from bertgeom.pipelines.report.summary import ALL, Summary, summarise
from bertgeom.store.dataset import attribute
from bertgeom.store.files import check_target, replacing, system_errors, write_text
from bertgeom.store.manifest import read_facts
from bertgeom.store.storage import Storage, explain_write_errors

if TYPE_CHECKING:
    import xarray

    from bertgeom.pipelines.context.run_context import RunContext

RESULT, ARRAYS = "analysis.json", "arrays.safetensors"


@dataclass(frozen=True)
class Settings:
    """How much is looked at closely.

    Attributes:
        domain_windows: genomes for the domain proportions, evenly spaced.
        spectra_windows: genomes for spectra.
        seed: of cross-validation and k-means.
    """

    domain_windows: int = 256
    spectra_windows: int = 8
    seed: int = 0


def analyze(
    source: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    model: str | Path | None = None,
    relabel: Mapping[str, str] | None = None,
    settings: Settings | None = None,
    tell: Callable[[str], None] = lambda text: None,
    **run_settings: Any,
) -> dict[str, Any]:
    """Analyse labelled genomes or spikes, or a store of `bertgeom run` over labelled spikes.

    Args:
        source: FASTA, or a store that keeps `cls`, `logits`, `block_map` and `tracks`.
        out: folder for the results; with FASTA also for the spikes and the store, where a
            second call goes on.
        labels: table with record id and class; needed with FASTA.
        model: classifier folder; the shipped one if None. With a store: where it is now.
        relabel: label -> class, with FASTA; labels that start with `other_` are `background`.
        settings: see `Settings`.
        tell: called with a line before every step.
        run_settings: passed to `bertgeom.run`.

    Returns:
        What is in `analysis.json`.

    Raises:
        UsageError: FASTA without labels. InputError: no usable labelled spike.
        StoreError: the store lacks labels or arrays that the analysis needs.
    """
    folder, settings = Path(out), settings or Settings()
    given = [one for one in (source, labels, model) if isinstance(one, str | Path)]
    written = [RESULT, ARRAYS, *([] if _is_store(str(source)) else [SPIKES, LABELS])]
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in written:
        check_target(folder / name, inputs=given)
    skipped: list[dict[str, str]] = []
    store = str(source)
    if not _is_store(store):
        if labels is None:
            raise UsageError("expected --labels with genomes, found none")
        store, skipped = measure_genomes(
            store, folder, read_classes(labels, relabel), model, tell, run_settings
        )
    result, arrays = analyze_store(store, model=model, settings=settings, tell=tell)
    result["genomes"]["skipped"] = skipped
    result["store"] = STORE if Path(store) == folder / STORE else str(Path(store).absolute())
    _write(folder, result, arrays)
    return result


def analyze_store(
    store: str,
    *,
    model: str | Path | None = None,
    settings: Settings | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The results of a store: JSON-able figures, and arrays by name."""
    from bertgeom.pipelines.catalogue.samples import store_regions, store_spectra
    from bertgeom.pipelines.context.run_context import open_context

    settings = settings or Settings()
    moved = None if model is None else str(model)
    dataset = _opened(store)
    tell("read the store")
    summary = summarise(dataset)
    context = open_context(store)
    spikes = _spikes(context)
    annotations = spike_annotations(spikes)
    tell("attention along the spike")
    profiles, received = attention_along(dataset, context, spikes, summary)
    tell("attention on domains")
    n_regions = settings.domain_windows
    regions = store_regions(store, annotations, n_regions, model=moved, theta=_theta(dataset))
    tell("spectra")
    spectra = store_spectra(store, settings.spectra_windows, model=moved)
    tell("a close-up")
    maps = exact_maps(store, moved)
    tell("few positions")
    tokens = token_ids(context, dataset.sizes["window"], moved)
    codes = class_codes(dataset)
    dtype = str(attribute(dataset, "dtype", "float32"))
    few = one_versus_all(tokens, codes, summary.cohorts, received, dtype=dtype, seed=settings.seed)
    result = {
        "model": attribute(dataset, "model"),
        "fingerprint": dataset.attrs["fingerprint"],
        "genomes": {
            "measured": summary.counts.measured,
            "by_class": summary.counts.cohorts,
            "flags": summary.counts.flags,
        },
        "classification": _classification(dataset, codes, summary.cohorts),
        "heads": _heads(summary),
        "cone_index": {
            cohort: _list(summary.of("cone_index", cohort)) for cohort in (ALL, *summary.cohorts)
        },
        "clusters": _clusters(dataset, codes, settings.seed),
        "domains": _domains(regions, dataset),
        "few_positions": [
            {**asdict(one), "places": _places(one.positions, context)} for one in few
        ],
    }
    arrays = {
        **{f"mean_{name}": np.asarray(values) for name, values in summary.mean.data_vars.items()},
        **{f"spectra_{name}": np.asarray(values) for name, values in spectra.data_vars.items()},
        **profiles,
        **maps,
    }
    arrays = {str(k): np.ascontiguousarray(v) for k, v in arrays.items() if v.dtype.kind in "fiu"}
    return result, arrays


def load(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The results in a folder.

    Raises:
        StoreError: if there are none, or they are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    place = Path(folder)
    if not (place / RESULT).is_file() or not (place / ARRAYS).is_file():
        raise StoreError(
            f"{place}: expected {RESULT} and {ARRAYS}, found no analysis; "
            "run bertgeom casestudy analyze first"
        )
    remedy = "run bertgeom casestudy analyze again"
    result = read_facts(Storage(str(place)), RESULT, "the results of an analysis", remedy)
    try:
        return result, load_file(place / ARRAYS)
    except SafetensorError as error:
        raise DamagedError(
            f"{place / ARRAYS}: expected the arrays of an analysis, found a damaged file "
            f"({error}); {remedy}"
        ) from error


def _write(folder: Path, result: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    with replacing(folder / ARRAYS) as draft, system_errors():
        save_file(arrays, draft)
    write_text(folder / RESULT, json.dumps(result, indent=1) + "\n")


def _is_store(source: str) -> bool:
    from bertgeom.store.root_file import FORMAT, is_store
    from bertgeom.store.storage import Storage

    return is_store(Storage(source), FORMAT)


def _opened(store: str) -> xarray.Dataset:
    from bertgeom.store.zarr_io import open as open_store

    dataset = open_store(store)
    needed = {
        "cls": "cls",
        "logits": "logits",
        "block_map": "block_map",
        "tracks": "attention_received",
    }
    missing = [keep for keep, name in needed.items() if name not in dataset]
    if missing:
        raise StoreError(
            f"{store}: expected a store with {', '.join(needed)}, found none of "
            f"{', '.join(missing)}; run again with --keep {','.join(KEEP)}"
        )
    if not attribute(dataset, "labels"):
        raise StoreError(f"{store}: expected labelled windows, found none; run with --labels")
    if dataset.sizes["window"] != len(np.unique(dataset["record_index"])):
        raise StoreError(
            f"{store}: expected one window a spike, found {dataset.sizes['window']} windows"
        )
    return dataset


def _spikes(context: RunContext) -> list[tuple[str, np.ndarray]]:
    """Id and bases of every record."""
    shards = context.sequences
    ids, offsets, lengths = shards.ids(), shards.offsets, shards.lengths
    return [
        (ids[i], shards.bases(int(offsets[i]), int(offsets[i] + lengths[i])))
        for i in range(len(ids))
    ]


def _theta(dataset: xarray.Dataset) -> float:
    return float(attribute(dataset, "settings", {}).get("theta", 0.3))


def _classification(
    dataset: xarray.Dataset, codes: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """How the logits of the store agree with the labels, whatever the confidence."""
    classes = [str(name) for name in dataset["class"].values]
    logits = np.asarray(dataset["logits"])
    kept = np.flatnonzero(codes >= 0)
    truth = [names[codes[i]] for i in kept]
    answers = [classes[int(logits[i].argmax())] for i in kept]
    everything = [*classes, *(n for n in names if n not in classes)]
    return {"n": len(truth), **agreement(truth, answers, everything)}


def _heads(summary: Summary) -> list[dict[str, Any]]:
    from bertgeom.pipelines.report.figures.heads import dominant
    from bertgeom.variables import GATE_MIXED, GATES

    mass = summary.of("gate_mass")
    k90 = np.nanmedian(np.asarray(summary.sample["attention_k90_median"]), axis=0)
    found = []
    for layer, head in np.ndindex(mass.shape[:2]):
        code = dominant(mass[layer, head])
        found.append(
            {
                "layer": layer,
                "head": head,
                "gate": "mixed" if code == GATE_MIXED else GATES[code],
                "gate_mass": dict(zip(GATES, _list(mass[layer, head]), strict=True)),
                "k90_median": float(k90[layer, head]),
                "entropy": float(summary.of("attention_entropy")[layer, head]),
            }
        )
    return found


def _clusters(dataset: xarray.Dataset, codes: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Agreement of k-means clusters with the classes: [CLS] by station, logits, softmax."""
    import xarray
    from scipy.special import softmax

    from bertgeom.analysis.clustering import ClusterSettings, cluster_layers

    kept = np.flatnonzero(codes >= 0)
    logits = np.asarray(dataset["logits"], dtype=np.float64)
    found = []
    stations: list[tuple[str, Any]] = [
        (str(n), dataset["cls"][:, i]) for i, n in enumerate(dataset["hidden_state"].values)
    ]
    stations += [("logits", logits), ("softmax", softmax(logits, axis=-1))]
    k = len(np.unique(codes[kept]))
    for name, vectors in stations:
        rows = np.asarray(vectors, dtype=np.float64)[kept]
        if k < 2 or len(kept) <= k:
            continue
        one = cluster_layers(
            xarray.DataArray(rows[:, None], dims=("window", "hidden_state", "hidden")),
            codes[kept],
            ClusterSettings(n_clusters=k, seed=seed, n_components=min(50, *rows.shape)),
        )
        scores = {n: float(one[n][0]) for n in ("homogeneity", "completeness", "adjusted_rand")}
        found.append({"station": name, **scores})
    return found


def _domains(regions: xarray.Dataset, dataset: xarray.Dataset) -> dict[str, Any]:
    """Means over genomes by layer, head and domain of attention, confident mass and count.

    `confident_mass_total` and `confident_count_total` are means of the store's arrays over the
    same genomes, by layer and head.
    """
    names = [str(name) for name in regions["group"].values]
    rows = np.asarray(regions["window_index"])
    means = {
        key: np.asarray(regions[f"region_{key}"]).mean(axis=0)
        for key in ("mass", "confident_mass", "confident_count")
    }
    totals = {
        f"{key}_total": np.asarray(dataset[f"attention_{key}"])[rows].mean(axis=0)
        for key in ("confident_mass", "confident_count")
    }
    return {
        "names": names,
        "windows": int(regions.sizes["sample"]),
        "theta": float(regions.attrs["theta"]),
        "token_share": _list(np.asarray(regions["token_share"]).mean(axis=0)),
        **{key: _list(values) for key, values in (means | totals).items()},
        "amino_acids": {d.name: [d.first, d.last] for d in DOMAINS if d.name in names},
    }


def _places(positions: Iterable[int], context: RunContext) -> list[dict[str, Any]]:
    """First amino acid of the tokens at these positions in the reference spike, and its domain.

    Positions count from the first token, which is [CLS]; a stride's worth of bases each.
    """
    settings = context.facts.identity.model.tokenizer
    stride = int(settings.get("stride", settings.get("k", 1)))
    found = []
    for position in positions:
        amino = (position - 1) * stride // 3 + 1
        found.append({"position": int(position), "amino_acid": amino, "domain": domain_of(amino)})
    return found


def _list(values: np.ndarray) -> Any:
    return np.asarray(values, dtype=np.float64).tolist()
