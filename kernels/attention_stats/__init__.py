"""Attention with the statistics of its weights, without the matrix of weights.

`api` checks and chooses, `options` is what a call asks for, `reference` the float64 oracle, `cpu`
and `gpu` compute on the fly, `finish` makes statistics of raw sums, `tolerance` judges.
Read README.md for the derivation, then `reference`.
May import from: `kernels._cpu`, `kernels._triton`, `cone_angles`.
"""
