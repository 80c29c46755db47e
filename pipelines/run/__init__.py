"""A whole run: ingest, prepare, run partitions, finalise, verify, repair.

`stages` is the order of it all; `ingestion`, `prepare`, `executors` and `progress` are its steps;
`estimate` is `bertgeom plan`, `check` is `bertgeom check`; `verify`, `inventory`, `oracle` and
`repair` look after a finished store.
Read `stages` first. May import from: partition, context, plan and `bertgeom`.
"""
