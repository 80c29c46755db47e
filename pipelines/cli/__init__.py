"""The command line: every command, its options, and what it prints.

`main` is the program `bertgeom`; `options` makes options from `bertgeom.config.Settings`;
`catalogue` and `whole_store` hold the commands on finished stores, `models` those on a model,
`catalogue_options` what they share; `tables`, `catalogue_tables`, `progress` and `output` print,
`logs` shows log records.
Read `main` first. May import from every room; only `casestudy` has commands of its own.
"""
