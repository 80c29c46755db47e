"""Residual stations: cones, stream and pairwise angles of the token vectors between layers.

`api` measures stations in one call, `moments` is only `stream_moments`; `cpu` (with `work`, its
memory, and `sweeps`, its loops), `gpu` and `reference` implement both. Read `README.md` first.
May import from: `kernels._cpu`, `kernels._triton`, and the oracle of `cone_angles`.
"""
