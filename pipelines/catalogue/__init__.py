"""What follows from a finished store: angles between all windows, samples, cohorts, exports.

`angles`, `angle_job` and `angle_results` compare all pairs, `samples` runs some windows again,
`cohorts` sums by label, `export` and `results` write files. Read `samples` first.
May import from: run and the rooms below it.
"""
