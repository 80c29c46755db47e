"""Moments, norms and participation ratio of the information stream."""
