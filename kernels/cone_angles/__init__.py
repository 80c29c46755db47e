"""Cones: sums of unit vectors, and the exact histogram of all pairwise angles.

`api` checks arguments and chooses an implementation, `reference` is the float64 oracle, `cpu` and
`gpu` compute by tiles.
Read README.md first. May import from: `kernels._cpu`, `kernels._triton`.
"""
