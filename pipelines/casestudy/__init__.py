"""The case study: nine SARS-CoV-2 lineages, a classifier of their spike gene, and what it does.

`genomes` simulates and cuts sequences, `classifier` trains and evaluates, `analyze` measures,
`positions` asks which tokens decide, `report` writes the page, `cli` has the commands.
Read `cli` first. May import from: report and the rooms below it.
"""
