"""Makes store-1.0.tar.xz: stores of format 1.0, written by version 0.1.0 (commit 09c0aef).

    git worktree add /tmp/old 09c0aef
    mkdir /tmp/old/path && cp -r /tmp/old/bertgeom /tmp/old/path
    cp -r /tmp/old/kernels /tmp/old/pipelines /tmp/old/path/bertgeom
    PYTHONPATH=/tmp/old/path python tests/data/make_old_stores.py tests/data/store-1.0.tar.xz

It holds what the runs were given, with the model, and these stores:

    core.zarr, core-killed.zarr         several row groups, labels; the second was killed
    reduced.zarr, reduced-killed.zarr   tier full, regions, spectra, --reduce
    spoiled.zarr                        windows of 1200 and 700 tokens in one batch
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

RUNS: dict[str, dict[str, Any]] = {
    "core": {"labels": "labels.tsv", "tier": "core", "keep": "logits"},
    "reduced": {
        "labels": "labels.tsv",
        "annotations": "regions.bed",
        "spectra": 2,
        "reduce": True,
    },
}
FIXED: dict[str, Any] = {"window": 24, "partition_windows": 4, "threads": 1, "impl": "numba"}
#: A killed run has done this many partitions; a row group has two.
KILLED_AFTER = 3
SCRIPT = Path(__file__).absolute()


def write_inputs() -> None:
    """Sequences, labels, regions and models in the working folder."""
    from safetensors.numpy import load_file, save_file

    from bertgeom.testing import save_tiny_classifier

    rng = np.random.default_rng(1)
    bases = np.frombuffer(b"ACGTN", np.uint8)
    with open("x.fa", "wb") as file:
        for i, length in enumerate((130, 7, 61, 3, 90)):
            letters = rng.choice(bases, length, p=[0.24, 0.24, 0.24, 0.24, 0.04])
            file.write(b">r%d\n%s\n" % (i, letters.tobytes()))
    with open("long.fa", "wb") as file:
        for i, length in enumerate((1200, 700)):
            file.write(b">r%d\n%s\n" % (i, rng.choice(bases[:4], length).tobytes()))
    Path("labels.tsv").write_text("r0\tone\nr2\ttwo\nr4\ttwo\n")
    Path("regions.bed").write_text("r0\t10\t60\tfront\nr2\t0\t40\tfront\nr4\t10\t80\tback\n")
    save_tiny_classifier(Path("model"), k=2, n_layers=1, n_heads=2, hidden=16, max_tokens=32)
    long = {"k": 1, "n_layers": 1, "n_heads": 1, "hidden": 16, "max_tokens": 1210}
    weights = save_tiny_classifier(Path("long-model"), **long) / "model.safetensors"
    # Zeros instead of positions, for the size of the archive.
    tensors = load_file(weights)
    tensors["bert.embeddings.position_embeddings.weight"][:] = 0
    save_file(tensors, weights, {"format": "pt"})


def run(out: str, killed: bool = False, **options: Any) -> None:
    """A run; killed without a farewell after some partitions."""
    from bertgeom.pipelines import setting, stages
    from bertgeom.pipelines.events import PartitionDone

    done = 0

    def count(event: Any) -> None:
        nonlocal done
        done += isinstance(event, PartitionDone)
        if killed and done == KILLED_AFTER:
            os._exit(9)

    setting.row_group = lambda shape, size, n: 2 * size
    given = {"sources": "x.fa", "model": "model", **FIXED, **options}
    stages.run(out=out, subscribers=[count], **given)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without owners and times; no lock."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return None if member.name.endswith("/lock") else member


def main(target: str) -> None:
    target = str(Path(target).absolute())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_inputs()
        for name, options in RUNS.items():
            run(f"{name}.zarr", **options)
            here = [sys.executable, str(SCRIPT), "--killed", name]
            if subprocess.run(here).returncode != 9:
                raise RuntimeError(f"{name}: the run was not killed")
        run("spoiled.zarr", sources="long.fa", model="long-model", window=1200, tier="core")
        with tarfile.open(target, "w:xz", preset=9) as file:
            for path in sorted(Path().iterdir()):
                file.add(path, filter=plain)
        os.chdir("/")


if __name__ == "__main__":
    if sys.argv[1] == "--killed":
        sys.exit(run(f"{sys.argv[2]}-killed.zarr", killed=True, **RUNS[sys.argv[2]]))
    main(sys.argv[1])
