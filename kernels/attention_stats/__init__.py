"""Attention with the statistics of its weights; see README.md for the derivation."""
