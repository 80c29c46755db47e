"""A benchmark a kernel: `python -m pytest bench --benchmark-enable`; with it, one table a kernel.

`cases` says what is timed, `limits` what the machine could do, `conftest` times and prints,
`plot` draws a saved JSON. Every `test_*.py` is one kernel or one step of the way of the data. In
the tests (`--benchmark-disable`) each benchmark runs once, on a tiny input.
"""
