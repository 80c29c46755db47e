"""The case study: nine SARS-CoV-2 lineages, a classifier of their spike gene, and what it does.

`genomes` simulates and cuts sequences, `classifier` trains and evaluates, `measure` makes a store
of labelled genomes, `analyze` makes numbers of it (`along`: by place on the spike), `positions`
asks which tokens decide, `report` writes the page (with `report_answers` and `report_spike`),
`cli` has the commands. Read `cli` first. May import from: report and the rooms below it.
"""
