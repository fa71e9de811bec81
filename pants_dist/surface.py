"""Distances between the surfaces of two masks, weighted by surface area, as DeepMind's surface-distance defines them.

A mask's surface passes through the corners of voxels: a corner with voxels of both kinds among its eight neighbors is a
surface element, and its area is that of the marching-cubes patch inside the box spanned by the eight voxel centers.
Definition: Nikolov et al., J Med Internet Res 2021;23(7):e26151 (arXiv:1809.04430) and its code (surface-distance 0.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from scipy.spatial import KDTree

CORNERS = tuple(product((0, 1), repeat=3))  # bit n of a neighbor code is voxel CORNERS[n], axes z y x
SLAB = 16  # slices whose neighbor codes are made at once, so that they stay in cache

Point = tuple[float, ...]
Box = tuple[slice, slice, slice]


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
    box: list[slice] = []
    for axis in range(3):
        others = tuple(n for n in range(3) if n != axis)
        hits = np.flatnonzero(mask_zyx[tuple(box)].any(axis=others))
        if not hits.size:
            return None
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return box[0], box[1], box[2]


def joint_box(first: Box | None, second: Box | None) -> Box | None:
    """Smallest box around two boxes; None where both are."""
    if first is None or second is None:
        return first or second
    pairs = [slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True)]
    return pairs[0], pairs[1], pairs[2]


def surfaces(reference: np.ndarray, prediction: np.ndarray, spacing_mm_zyx: tuple[float, float, float]) -> Surfaces:
    """Distances and areas of all surface elements of two boolean (z, y, x) masks of one shape.

    Exact: each element takes its nearest element on the other surface (distances between voxel corners), found in a
    k-d tree of surface elements instead of a distance transform of the volume.
    """
    box = joint_box(bounding_box(reference), bounding_box(prediction))
    if box is None:
        return Surfaces(*(np.empty(0) for _ in range(4)))
    spacing = np.asarray(spacing_mm_zyx, np.float64)
    areas = surfel_areas(float(spacing[0]), float(spacing[1]), float(spacing[2]))
    grid = tuple(part.stop - part.start + 1 for part in box)
    ours, our_codes = surface_elements(reference[box])
    theirs, their_codes = surface_elements(prediction[box])
    reference_mm, reference_mm2 = _by_distance(nearest_mm(ours, theirs, grid, spacing), areas[our_codes])
    prediction_mm, prediction_mm2 = _by_distance(nearest_mm(theirs, ours, grid, spacing), areas[their_codes])
    return Surfaces(reference_mm, reference_mm2, prediction_mm, prediction_mm2)


def _by_distance(distances_mm: np.ndarray, areas_mm2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((areas_mm2, distances_mm))
    return distances_mm[order], areas_mm2[order]


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
    """Distance in mm from each grid point to the nearest target; both are sorted flat indices into `grid`."""
    distances = np.full(points.size, np.inf)
    if not targets.size:
        return distances
    place = np.minimum(np.searchsorted(targets, points), targets.size - 1)
    far = np.flatnonzero(targets[place] != points)
    distances[:] = 0
    if far.size:
        here = np.stack(np.unravel_index(points[far], grid), axis=1)
        there = np.stack(np.unravel_index(targets, grid), axis=1)
        tree = KDTree(there * spacing, leafsize=32, balanced_tree=False, compact_nodes=False)
        steps = there[tree.query(here * spacing)[1]] - here
        distances[far] = np.sqrt(((steps * spacing) ** 2).sum(axis=1))
    return distances


@cache
def surfel_areas(z_mm: float, y_mm: float, x_mm: float) -> np.ndarray:
    """Area in mm2 of the surface element of each of the 256 neighbor codes at this voxel spacing; shape (256,)."""
    scale = np.array([y_mm * x_mm, z_mm * x_mm, z_mm * y_mm])
    return np.array([sum(float(np.linalg.norm(normal * scale)) for normal in _normals(code)) for code in range(256)])


@cache
def _normals(code: int) -> tuple[np.ndarray, ...]:
    """Area vectors of the patch's triangles in a unit cube; scaling them by face areas gives any spacing's."""
    if code.bit_count() > 4:
        return _normals(255 - code)
    inside = {corner for n, corner in enumerate(CORNERS) if code >> n & 1}
    return tuple(normal for loop in _loops(inside) for normal in _largest(loop))


def _loops(inside: set[tuple[int, ...]]) -> Iterator[list[Point]]:
    """Polygons in which the surface cuts the cube. Voxels that touch only across a face's diagonal stay apart."""
    links: dict[Point, list[Point]] = {}
    for cycle in _faces():
        for first, second in _cuts(cycle, inside):
            links.setdefault(first, []).append(second)
            links.setdefault(second, []).append(first)
    while links:
        point = min(links)
        loop = []
        while point in links:
            loop.append(point)
            neighbors = links.pop(point)
            point = next((other for other in neighbors if other in links), point)
        yield loop


def _faces() -> Iterator[list[tuple[int, ...]]]:
    for axis, side in product(range(3), (0, 1)):
        for_axis = [list(corner) for corner in ((0, 0), (0, 1), (1, 1), (1, 0))]
        for corner in for_axis:
            corner.insert(axis, side)
        yield [tuple(corner) for corner in for_axis]


def _cuts(cycle: list[tuple[int, ...]], inside: set[tuple[int, ...]]) -> list[tuple[Point, Point]]:
    """Segments of the surface in one face, between middles of its edges: around each run of corners that are inside."""
    middles = [tuple((a + b) / 2 for a, b in zip(cycle[n - 1], cycle[n], strict=True)) for n in range(4)]
    enters = [n for n in range(4) if cycle[n] in inside and cycle[n - 1] not in inside]
    cuts = []
    for enter in enters:
        leave = next(n for n in range(enter + 1, enter + 5) if cycle[n % 4] not in inside)
        cuts.append((middles[enter], middles[leave % 4]))
    return cuts


def _largest(loop: list[Point]) -> list[np.ndarray]:
    """Area vectors of a polygon's largest triangulation: the one that the published table takes where it matters."""
    cuts = _triangulations(0, len(loop) - 1)
    choices = [[_area_vector(*(loop[corner] for corner in triangle)) for triangle in cut] for cut in cuts]
    return max(choices, key=lambda vectors: round(sum(float(np.linalg.norm(vector)) for vector in vectors), 9))


def _triangulations(first: int, last: int) -> list[list[tuple[int, int, int]]]:
    """All ways to cut the polygon first, first + 1, ..., last into triangles of its corners."""
    if last - first < 2:
        return [[]]
    return [
        [*left, *right, (first, apex, last)]
        for apex in range(first + 1, last)
        for left in _triangulations(first, apex)
        for right in _triangulations(apex, last)
    ]


def _area_vector(a: Point, b: Point, c: Point) -> np.ndarray:
    return 0.5 * np.cross(np.subtract(b, a), np.subtract(c, a))
