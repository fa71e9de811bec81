"""Areas of marching-cubes patches by neighbor code: the weights of surface distances.

A neighbor code has one bit for each voxel of a 2 x 2 x 2 neighborhood: bit n is CORNERS[n], axes z y x. The patch is
what separates the voxels inside from those outside within the box that the eight voxel centers span, through the middles
of its edges. The table follows from three choices, and then equals that of DeepMind's surface-distance: a code and its
complement have the same patch; voxels that touch only across a face's diagonal are apart where they are the fewer; and
polygons that are not flat are cut into the triangles of largest area.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np

CORNERS = tuple(product((0, 1), repeat=3))

Point = tuple[float, ...]


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
