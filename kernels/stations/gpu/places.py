"""Where the statistics of a station lie in the packed results of its launches."""

from __future__ import annotations

import triton.language as tl

from bertgeom.kernels._definitions import ANGLE, AXIS, CONE, RATIO, STREAM

#: Names of the float statistics, in the order of a row of the packed results.
FLOATS = CONE + AXIS + STREAM + RATIO + ANGLE

#: First places of the axis, of the moments of entries, of norms and of row sums, of the
#: participation ratio and of the angles; then an angle near the mean, which is no result.
AT_AXIS = tl.constexpr(len(CONE))
AT_ENTRIES = tl.constexpr(len(CONE + AXIS))
AT_NORMS = tl.constexpr(len(CONE + AXIS) + 4)
AT_ROW_SUMS = tl.constexpr(len(CONE + AXIS) + 7)
AT_RATIO = tl.constexpr(len(CONE + AXIS + STREAM))
AT_ANGLES = tl.constexpr(len(CONE + AXIS + STREAM + RATIO))
AT_NEAR_MEAN = tl.constexpr(len(FLOATS))
N_OUT = tl.constexpr(len(FLOATS) + 1)

#: Integers of a window: vectors that are not zero, or -1 where an entry is not finite; outlier
#: dimensions; zero vectors; programs of the last launch that are done.
AT_KEPT = tl.constexpr(0)
AT_OUTLIERS = tl.constexpr(1)
AT_ZEROS = tl.constexpr(2)
AT_DONE = tl.constexpr(3)
N_COUNTS = tl.constexpr(4)

#: Numbers of a block of rows: sum and maximum of the angles to the axis, trace of the covariance,
#: sum of the squares of its diagonal.
N_PARTS = tl.constexpr(4)
#: Numbers of a tile of angles: sums of angle - near mean and of its square, least, largest, sum of
#: the squares of the covariance right of the diagonal.
N_SUMS = tl.constexpr(5)
