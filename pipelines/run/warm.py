"""Compiled CPU kernels ahead of the first run: in container images, on nodes of a cluster."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from bertgeom.data import demo_genomes, demo_model
from bertgeom.pipelines.run import stages
from bertgeom.sequences.fasta import read_records


def warm() -> None:
    """Run one shipped genome with every statistic, so that all kernels are compiled and kept.

    Code is kept in the user's cache folder, or in `NUMBA_CACHE_DIR`; later processes of every
    environment with the same kernels load it.
    The run itself is thrown away.

    Raises:
        StoreError: if the folder for temporary files cannot be written.
    """
    with TemporaryDirectory(prefix="bertgeom-warm-") as folder:
        source, regions = Path(folder) / "genome.fa", Path(folder) / "regions.bed"
        record = next(iter(read_records(demo_genomes())))
        source.write_text(f">{record.id}\n{record.bases.tobytes().decode('ascii')}\n")
        regions.write_text(f"{record.id}\t0\t300\tfirst\n")
        stages.run(
            source,
            model=demo_model(),
            out=Path(folder) / "run.zarr",
            annotations=regions,
            keep="block_map,cls,logits,tracks",
            angles="all",
            strand="both",
            device="cpu",
        )
