"""Stations on the GPU: three launches, and nothing else.

`run` starts them: `row_sums` of `_triton`, then `centre`, then `tiles`, whose last program of a
window also completes its statistics. `places` says where they lie in the packed results. Read
`run` first, and the README of `stations` for the formulas.
"""
