"""A run in pieces, for batch schedulers: Slurm, PBS, SGE, AWS Batch, Nextflow, Snakemake.

`tasks` is all of it. May import from: `run` and below. Read `run/stages.py` first.
"""
