"""Attention with the statistics of its weights, without the matrix of weights.

`api` checks arguments and chooses an implementation, `options` holds the options of a call,
`reference` is the float64 oracle, `cpu` and `gpu` compute on the fly, `tolerance` compares
implementations with the oracle.
Read README.md for the derivation, then `reference`.
May import from: `kernels._cpu`, `kernels._triton`, `cone_angles`.
"""
