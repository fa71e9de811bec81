"""The largest probability of a lesion in a scan as R-Super takes it: of probabilities resampled linearly to 1 mm."""

import math

import numpy as np

from pants_dist.surface import bounding_box

GRID_MM = 1.0
AROUND = 2  # voxels around the largest one that are looked at first
SLAB = 8  # planes looked at together, so that memory does not grow with the scan


def strongest_at_1mm(
    log_odds_zyx: np.ndarray, spacing_mm_zyx: tuple[float, float, float], inside_zyx: np.ndarray | None = None
) -> float:
    """Log-odds of the largest probability on a grid of 1 mm that begins at the first voxel's center, linear between voxels.

    `log_odds_zyx`: log(p / (1 - p)), (z, y, x). `inside_zyx` (boolean) leaves only grid points whose nearest voxel is in
    it. It is 1 - p that is interpolated, in float64, so that probabilities near 1 stay apart. NaN where there is no point.
    """
    if inside_zyx is not None and not inside_zyx.any():
        return math.nan
    axes = zip(log_odds_zyx.shape, spacing_mm_zyx, strict=True)
    points = [np.arange(0, count - 1 + 1e-9, GRID_MM / mm) for count, mm in axes]
    peak = log_odds_zyx if inside_zyx is None else np.where(inside_zyx, log_odds_zyx, -np.inf)
    top = np.unravel_index(int(peak.argmax()), peak.shape)
    near = [(int(at) - AROUND, int(at) + AROUND) for at in top]
    reached = _largest(log_odds_zyx, points, near, inside_zyx)
    # a point is no more probable than the best voxel around it: only where a voxel comes so far there can be a better one
    box = bounding_box(log_odds_zyx >= (-np.inf if math.isnan(reached) else reached))
    if box is None:
        return reached
    wide = [(part.start - 1, part.stop) for part in box]
    slabs = [(low, min(low + SLAB, wide[0][1])) for low in range(wide[0][0], wide[0][1], SLAB)]
    found = [_largest(log_odds_zyx, points, [slab, *wide[1:]], inside_zyx) for slab in slabs]
    known = [value for value in (reached, *found) if not math.isnan(value)]
    return max(known, default=math.nan)


def _largest(
    log_odds_zyx: np.ndarray, points: list[np.ndarray], box: list[tuple[int, int]], inside_zyx: np.ndarray | None
) -> float:
    """The same among the grid points that lie in a box of voxels (first, last), whatever lies beyond the scan left out."""
    first = [max(low, 0) for low, _ in box]
    last = [min(high, count - 1) for (_, high), count in zip(box, log_odds_zyx.shape, strict=True)]
    chosen = [axis[(axis >= low) & (axis <= high)] for axis, low, high in zip(points, first, last, strict=True)]
    if not all(axis.size for axis in chosen):
        return math.nan
    part = log_odds_zyx[tuple(slice(low, high + 1) for low, high in zip(first, last, strict=True))].astype(np.float64)
    clear = 1 / (1 + np.exp(np.clip(part, -700, 700)))
    for axis, (where, low) in enumerate(zip(chosen, first, strict=True)):
        clear = _linear(clear, where - low, axis)
    if inside_zyx is not None:
        nearest = [np.floor(axis + 0.5).astype(int).clip(0, count - 1)
                   for axis, count in zip(chosen, inside_zyx.shape, strict=True)]  # fmt: skip
        clear = np.where(inside_zyx[np.ix_(*nearest)], clear, np.inf)
    least = float(clear.min())
    return math.nan if least == math.inf else math.log1p(-least) - math.log(least)


def _linear(values: np.ndarray, where: np.ndarray, axis: int) -> np.ndarray:
    """Values at these places (in voxels) along an axis."""
    low = np.floor(where).astype(int).clip(0, max(values.shape[axis] - 2, 0))
    share = (where - low).reshape([-1 if n == axis else 1 for n in range(3)])
    high = (low + 1).clip(0, values.shape[axis] - 1)
    return values.take(low, axis) * (1 - share) + values.take(high, axis) * share
