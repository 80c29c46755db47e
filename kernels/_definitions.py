"""Names and limits of cone, stream and angle statistics, which all implementations share."""

from __future__ import annotations

#: Names of the float statistics, in the order of the implementations' results.
CONE = ("cone_index", "cone_resultant", "cone_mean_cosine")
AXIS = ("cone_axis_angle_mean", "cone_axis_angle_max")
STREAM = (
    "stream_mean",
    "stream_variance",
    "stream_skewness",
    "stream_kurtosis",
    "stream_norm_mean",
    "stream_norm_std",
    "stream_norm_max",
    "stream_rowsum_mean",
    "stream_rowsum_variance",
    "stream_rowsum_skewness",
    "stream_rowsum_kurtosis",
)
RATIO = ("stream_participation_ratio",)
ANGLE = ("angle_mean", "angle_std", "angle_min", "angle_max")
#: Bins of the angle histogram of a station, 2 degrees each.
STATION_BINS = 90

#: Below this resultant the unit vectors cancel and the cone has no axis.
NO_AXIS = 1e-6
#: Unit vectors are centred if the length of their mean exceeds this.
NARROW = 0.5
#: A variance below this share of the mean square is that of a constant, up to rounding.
CONSTANT = 1e-12
#: Entries of the mean vector this many standard deviations off are outlier dimensions.
OUTLIER = 6.0
