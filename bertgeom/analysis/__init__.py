"""Analysis: from the statistics of windows to answers about labels, regions and layers.

Inputs of the user: `labels`, `annotations` with `region_files` and `region_placement`. Sums by
cohort: `cohorts`, `contrasts`. Single questions: `clustering`, `moments`, `rollout`, `spectra`,
`tracks`, `weights`; `eager` compares a model with its own attention in float64.
Read `cohorts` first. May import from: model, tokens, sequences, store.
"""
