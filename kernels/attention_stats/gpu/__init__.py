"""Attention statistics on the GPU: a few launches, each with its module.

`run` is the order of the launches; `rows`, `k90`, `columns`, `pairs` and `gram` are the kernels,
`tiles` what they share, `shipped` their configurations. Read `run` first, and README.md.
May import from: `options`, `finish`, `kernels._triton`.
"""
