"""Attention statistics on the CPU: one head at a time per thread, its weights in the cache.

`run` is the call, `work` its arrays, `results` its values, `products` its matrix products, `rows`
the loops over weights, `second_look` what takes weights twice, `head` what follows from their sums.
Read `run` first.
May import from: `options`, `kernels._cpu`.
"""
