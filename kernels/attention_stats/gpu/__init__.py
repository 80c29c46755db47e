"""Attention statistics on the GPU: a few kernels, each in its own module.

`run` is the order of the launches; `rows`, `k90`, `columns`, `pairs` and `gram` are the kernels
that sum, `finish` makes statistics of their sums, `cones` sums unit vectors; `tiles` is what they
share, `shipped` their configurations. Read `run` first, and README.md.
May import from: `options`, `kernels._triton`.
"""
