"""Limits in the definitions of cones and streams, shared by all implementations."""

from __future__ import annotations

#: Below this resultant the unit vectors cancel and the cone has no axis.
NO_AXIS = 1e-6
#: Unit vectors are centred if the length of their mean exceeds this.
NARROW = 0.5
#: A variance below this share of the mean square is that of a constant, up to rounding.
CONSTANT = 1e-12
#: Entries of the mean vector this many standard deviations off are outlier dimensions.
OUTLIER = 6.0
