"""Cones: sums of unit vectors, and the exact histogram of all pairwise angles."""
