"""The way of a record from a FASTA file to a row of the store, and what follows from the store.

1. `cli` turns a command line into one call of `run.stages`.
2. `run.ingestion` reads the record (`bertgeom.sequences.fasta`) and keeps its bases in shards.
3. `run.prepare` decides every default, fixes the identity of the run and makes the arrays;
   `plan` cuts the record into windows, and the windows into partitions. `context` holds what a
   process needs from here on: folder, settings, plan, model.
4. `run.executors` hands partitions to this process or to the workers of a Dask cluster.
5. `partition.measure` reads the bases of a partition, turns them into tokens (`bertgeom.tokens`),
   runs the model and takes the statistics (`bertgeom.model.encoder`, `bertgeom.kernels`);
   `partition.write` spools them, then writes whole chunks of the arrays: the record has its row.
6. `run.stages` finalises: sums of cohorts and records, and a checksum for every file.
   Without Dask, `jobs` does steps 4 and 5 in tasks of a batch scheduler.
7. `catalogue`, `report` and `casestudy` read the finished store.

Arrows go down this list of rooms only: cli, casestudy, report, catalogue, jobs, run, partition,
context, plan; then `bertgeom` and its kernels.
"""
