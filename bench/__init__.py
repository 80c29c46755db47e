"""Benchmarks: kernels and whole forwards, side by side, gated by the oracle."""
