"""From labelled genomes to a store: spikes cut out, classes, a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bertgeom.errors import InputError
from bertgeom.store.files import replacing, write_text

KEEP = ("block_map", "cls", "logits", "tracks")
#: What is measured, with genomes, and where.
SPIKES, LABELS, STORE = "spikes.fasta", "labels.tsv", "run.zarr"


def measure_genomes(
    source: str,
    folder: Path,
    truth: Mapping[str, str],
    model: str | Path | None,
    tell: Callable[[str], None],
    run_settings: dict[str, Any],
) -> tuple[str, list[dict[str, str]]]:
    """Spikes cut out of the genomes and measured; the store, and what was skipped."""
    from bertgeom import data
    from bertgeom.pipelines.casestudy.genomes.spike import Spike, extract_all
    from bertgeom.pipelines.run.stages import run
    from bertgeom.sequences.fasta import read_records

    spikes: list[Spike] = []
    skipped: list[dict[str, str]] = []
    seen: set[str] = set()
    tell("cut out spikes")
    for found in extract_all(record for record in read_records(source) if record.id in truth):
        if not isinstance(found, Spike):
            skipped.append({"id": found.id, "reason": found.reason})
        elif found.id in seen:
            skipped.append({"id": found.id, "reason": "the id occurs twice"})
        else:
            spikes.append(found)
            seen.add(found.id)
    if not spikes:
        raise InputError(
            "labelled genomes with a spike", f"none of {len(skipped)} usable", source=source
        )
    fasta, table = folder / SPIKES, folder / LABELS
    with replacing(fasta, inputs=[source]) as draft, draft.open("wb") as out:
        for spike in spikes:
            out.write(b">" + spike.id.encode() + b"\n" + spike.bases.tobytes() + b"\n")
    rows = [f"{spike.id}\t{truth[spike.id]}\n" for spike in spikes]
    write_text(table, "record_id\tclass\n" + "".join(rows))
    tell(f"measure {len(spikes)} spikes")
    run(
        fasta,
        model=data.demo_model() if model is None else model,
        out=folder / STORE,
        labels=table,
        **{"keep": ",".join(KEEP), "angles": "all", **run_settings},
    )
    return str(folder / STORE), skipped


def read_classes(path: str | Path, relabel: Mapping[str, str] | None) -> dict[str, str]:
    """Record id -> class."""
    from bertgeom.analysis.cohorts import read_labels

    found = read_labels(path)
    names = [(relabel or {}).get(name, name) for name in found.names]
    names = ["background" if name.startswith("other_") else name for name in names]
    return {key: names[code] for key, code in found.by_key.items()}
