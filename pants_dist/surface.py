"""Distances between the surfaces of two masks, weighted by surface area, as DeepMind's surface-distance defines them.

A mask's surface passes through the corners of voxels: a corner with voxels of both kinds among its eight neighbors is a
surface element, and its area is that of the marching-cubes patch inside the box spanned by the eight voxel centers.
Definition: Nikolov et al., J Med Internet Res 2021;23(7):e26151 (arXiv:1809.04430) and its code (surface-distance 0.1).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from pants_dist.surfels import surfel_areas

SLAB = 16  # slices whose neighbor codes are made at once, so that they stay in cache
CROWDED = 16  # a distance transform takes about as long a voxel as a sixteenth of a query of the tree
AT_ONCE = 1 << 20  # points that are looked at together: a scan of noise has very many
SAMPLE, QUERY = 256, 300  # points that stand for these; a query of the tree takes as long as so many look-ups
PLACES, REACH = 150, 8  # how many places around a surface element are looked up, and how many voxels away at most

Box = tuple[slice, slice, slice]
Nearest = Callable[[np.ndarray], np.ndarray]  # the target nearest to each of some places, both (n, 3): z, y, x


@dataclass(frozen=True)
class Surfaces:
    """Both surfaces, element by element: distance in mm to the other surface (sorted) and area in mm2.

    Distances are inf where the other mask is empty; all arrays are empty where both are.
    """

    reference_mm: np.ndarray
    reference_mm2: np.ndarray
    prediction_mm: np.ndarray
    prediction_mm2: np.ndarray


def bounding_box(mask_zyx: np.ndarray) -> Box | None:
    """Smallest box of slices that holds every True voxel of a (z, y, x) mask; None where there is none."""
    deep = _extent(mask_zyx.any(axis=(1, 2)))
    if deep is None:
        return None
    shadow_yx = np.asarray(mask_zyx[deep].any(axis=0))
    high, wide = _extent(shadow_yx.any(axis=1)), _extent(shadow_yx.any(axis=0))
    return (deep, high, wide) if high and wide else None


def _extent(line: ArrayLike) -> slice | None:
    hits = np.flatnonzero(line)
    return slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else None


def joint_box(first: Box | None, second: Box | None) -> Box | None:
    """Smallest box around two boxes; None where both are."""
    if first is None or second is None:
        return first or second
    pairs = [slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True)]
    return pairs[0], pairs[1], pairs[2]


def surfaces(reference: np.ndarray, prediction: np.ndarray, spacing_mm_zyx: tuple[float, float, float]) -> Surfaces:
    """Distances and areas of all surface elements of two boolean (z, y, x) masks of one shape.

    Exact: each element takes its nearest element on the other surface (distances between voxel corners), found among
    surface elements instead of by a distance transform of the volume.
    """
    box = joint_box(bounding_box(reference), bounding_box(prediction))
    if box is None:
        return Surfaces(*(np.empty(0) for _ in range(4)))
    spacing = np.asarray(spacing_mm_zyx, np.float64)
    areas = surfel_areas(float(spacing[0]), float(spacing[1]), float(spacing[2]))
    grid = tuple(part.stop - part.start + 1 for part in box)
    ours, our_codes = surface_elements(reference[box])
    theirs, their_codes = surface_elements(prediction[box])
    reference_mm, reference_mm2 = _by_distance(nearest_mm(ours, theirs, grid, spacing), our_codes, areas)
    prediction_mm, prediction_mm2 = _by_distance(nearest_mm(theirs, ours, grid, spacing), their_codes, areas)
    return Surfaces(reference_mm, reference_mm2, prediction_mm, prediction_mm2)


def _by_distance(distances_mm: np.ndarray, codes: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances and areas sorted by distance, then area, so that sums are taken in the published code's order."""
    rank = np.argsort(np.argsort(areas)).astype(np.uint8)
    order = np.argsort(rank[codes], kind="stable")
    order = order[np.argsort(distances_mm[order], kind="stable")]
    return distances_mm[order], areas[codes[order]]


def surface_dice(found: Surfaces, tolerance_mm: float) -> float:
    """Share of both surfaces' area that is within `tolerance_mm` (inclusive) of the other; NaN where both are empty."""
    total = found.reference_mm2.sum() + found.prediction_mm2.sum()
    if total == 0:
        return float("nan")
    within = sum(
        areas[distances <= tolerance_mm].sum()
        for distances, areas in (
            (found.reference_mm, found.reference_mm2),
            (found.prediction_mm, found.prediction_mm2),
        )
    )
    return float(within / total)


def hausdorff_mm(found: Surfaces, percent: float = 95) -> float:
    """The larger of both directed distances that `percent` of the surface area keeps within; inf if a mask is empty."""
    return max(
        _percentile(found.reference_mm, found.reference_mm2, percent),
        _percentile(found.prediction_mm, found.prediction_mm2, percent),
    )


def _percentile(distances_mm: np.ndarray, areas_mm2: np.ndarray, percent: float) -> float:
    if not distances_mm.size:
        return float("inf")
    share = np.cumsum(areas_mm2) / areas_mm2.sum()
    return float(distances_mm[min(int(np.searchsorted(share, percent / 100)), distances_mm.size - 1)])


def surface_elements(mask_zyx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices (sorted) and neighbor codes of the surface elements, in the grid of voxel corners: shape + 1."""
    depth, height, width = mask_zyx.shape
    flat, codes = [], []
    for start in range(0, depth + 1, SLAB):
        stop = min(start + SLAB, depth + 1)
        slab = np.zeros((stop - start + 1, height + 2, width + 2), np.uint8)
        inside = mask_zyx[max(start - 1, 0) : stop]
        first = 1 if start == 0 else 0
        slab[first : first + len(inside), 1:-1, 1:-1] = inside
        code = neighbor_codes(slab).ravel()
        hits = np.flatnonzero((code - np.uint8(1)) < 254)  # neither 0 nor 255: unsigned numbers wrap
        flat.append(hits + start * (height + 1) * (width + 1))
        codes.append(code[hits])
    return np.concatenate(flat), np.concatenate(codes)


def neighbor_codes(padded_zyx: np.ndarray) -> np.ndarray:
    """uint8 code of each 2 x 2 x 2 neighborhood of a 0/1 array: bit 4 z + 2 y + x; one shorter along each axis."""
    code = padded_zyx[:, :, :-1] | padded_zyx[:, :, 1:] << 1
    code = code[:, :-1] | code[:, 1:] << 2
    return code[:-1] | code[1:] << 4


def nearest_mm(points: np.ndarray, targets: np.ndarray, grid: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    """Distance in mm from each grid point to the nearest target; both are sorted flat indices into `grid`.

    Most points have a target within a few voxels, so the nearest places are looked up one after the other. What is left
    asks a k-d tree or, where it is much of the grid as with noise, a distance transform. inf where there is no target.
    """
    distances = np.full(points.size, np.inf)
    if not points.size or not targets.size:
        return distances
    left = _look_around(points, targets, grid, spacing, distances)
    if left.size:
        nearest = (_by_transform if left.size * CROWDED > math.prod(grid) else _by_tree)(targets, grid, spacing)
        for some in _parts(left):
            here = np.stack(np.unravel_index(points[some], grid), axis=1)
            distances[some] = np.sqrt((((nearest(here) - here) * spacing) ** 2).sum(axis=1))
    return distances


def _by_tree(targets: np.ndarray, grid: tuple[int, ...], spacing: np.ndarray) -> Nearest:
    there = np.stack(np.unravel_index(targets, grid), axis=1)
    tree = KDTree(there * spacing, leafsize=32, balanced_tree=False, compact_nodes=False)
    return lambda here: there[tree.query(here * spacing)[1]]


def _by_transform(targets: np.ndarray, grid: tuple[int, ...], spacing: np.ndarray) -> Nearest:
    """The places, not the distances, of which scipy would make several float64 copies of the grid."""
    free = np.ones(grid, bool)
    free.ravel()[targets] = False
    found = distance_transform_edt(free, spacing, return_distances=False, return_indices=True)
    return lambda here: found[:, *here.T].T


def _parts(flat: np.ndarray) -> Iterator[np.ndarray]:
    """So few at once that whatever is made of them is small."""
    return (flat[start : start + AT_ONCE] for start in range(0, flat.size, AT_ONCE))


def _look_around(
    points: np.ndarray, targets: np.ndarray, grid: tuple[int, ...], spacing: np.ndarray, distances: np.ndarray
) -> np.ndarray:
    """Fill in `distances` of points that have a target among their nearest places; returns indices of the others."""
    steps, distances_mm = _nearest_places(float(spacing[0]), float(spacing[1]), float(spacing[2]))
    margin = np.abs(steps).max(axis=0)
    padded = tuple(int(n + 2 * m) for n, m in zip(grid, margin, strict=True))
    taken = np.zeros(padded, bool).ravel()
    for some in _parts(targets):
        taken[_lift(some, grid, padded, margin)] = True
    offsets = steps @ np.array([padded[1] * padded[2], padded[2], 1])
    others = []
    for left in _parts(np.arange(points.size)):
        place = _lift(points[left], grid, padded, margin)
        many = _worthwhile(taken, place, offsets)
        for offset, distance_mm in zip(offsets[:many].tolist(), distances_mm[:many], strict=True):
            hit = taken[place + offset]
            distances[left[hit]] = distance_mm
            left, place = left[~hit], place[~hit]
            if not left.size:
                break
        others.append(left)
    return np.concatenate(others)


def _worthwhile(taken: np.ndarray, place: np.ndarray, offsets: np.ndarray) -> int:
    """How many places around each point to look up before the others ask: all, or, of very many points, what takes least
    time for a sample of them.
    """
    if place.size < AT_ONCE:
        return offsets.size
    sample = place[:: place.size // SAMPLE + 1]
    hits = np.column_stack([taken[sample[:, None] + offsets], np.ones(sample.size, bool)])
    found = np.bincount(hits.argmax(axis=1), minlength=offsets.size + 1).cumsum()
    left = sample.size - np.concatenate([[0], found[:-1]])  # after none, one, two ... look-ups
    spent = np.concatenate([[0], left[:-1].cumsum()])
    return int((spent + QUERY * left).argmin())


def _lift(flat: np.ndarray, grid: tuple[int, ...], padded: tuple[int, ...], margin: np.ndarray) -> np.ndarray:
    """Flat indices into `grid` as flat indices into the padded one."""
    moved = tuple(axis + m for axis, m in zip(np.unravel_index(flat, grid), margin, strict=True))
    return np.asarray(np.ravel_multi_index(moved, padded))


@cache
def _nearest_places(z_mm: float, y_mm: float, x_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Up to PLACES steps on the grid, nearest first, none left out, and their lengths in mm."""
    spacing = np.array([z_mm, y_mm, x_mm])
    steps = np.array(list(product(range(-REACH, REACH + 1), repeat=3)))
    length_mm = np.sqrt(((steps * spacing) ** 2).sum(axis=1))
    order = np.argsort(length_mm, kind="stable")
    order = order[length_mm[order] < (REACH + 1) * spacing.min()][:PLACES]
    return steps[order], length_mm[order]
