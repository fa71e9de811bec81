"""Ellipsoids and tubes on a voxel grid that is bent a little, so that what is drawn with them looks grown.

Coordinates are RAS millimetres (x towards the patient's right, y anterior, z superior); arrays are (x, y, z). A shape's
*depth* is 0 in its middle, 1 on its surface and more outside. It is evaluated in the shape's bounding box only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.interpolate import CubicSpline

LEAST_HALF_VOXELS = 0.72  # a shape thinner than the grid is drawn this thick, so that it does not fall between voxels
ROUNDING = 9  # edges where an ellipsoid is cut off: the higher the sharper
WAVELENGTHS_MM = (360.0, 150.0, 62.0)
AMPLITUDES_MM = (6.0, 3.0, 1.3)

Box = tuple[slice, slice, slice]
Point = tuple[float, float, float]


class Bend:
    """A smooth random displacement: per axis a sum of products of sines, so that it costs a few products a voxel."""

    def __init__(self, rng: np.random.Generator) -> None:
        terms = len(WAVELENGTHS_MM)
        self._amplitude_mm = np.array(AMPLITUDES_MM)[:, None] * rng.uniform(0.5, 1.0, (terms, 3))
        self._frequency = 2 * np.pi / np.array(WAVELENGTHS_MM)[:, None, None] * rng.uniform(0.8, 1.25, (terms, 3, 3))
        self._phase = rng.uniform(0, 2 * np.pi, (terms, 3, 3))

    @property
    def most_mm_xyz(self) -> np.ndarray:
        """The largest displacement possible along each axis."""
        return self._amplitude_mm.sum(axis=0)

    def waves(self, axes_mm: Sequence[np.ndarray]) -> list[list[list[np.ndarray]]]:
        """Per displaced axis and term, three float32 vectors over a grid's axes: the term is their outer product."""
        return [[self._term(axis, term, axes_mm) for term in range(len(WAVELENGTHS_MM))] for axis in range(3)]

    def _term(self, axis: int, term: int, axes_mm: Sequence[np.ndarray]) -> list[np.ndarray]:
        parts = zip(axes_mm, self._frequency[term, axis], self._phase[term, axis], strict=True)
        x, y, z = (np.sin(f * at + p).astype(np.float32) for at, f, p in parts)
        return [np.float32(self._amplitude_mm[term, axis]) * x, y, z]


@dataclass(frozen=True)
class Grid:
    """Voxel centers along x, y and z in mm, ascending, and the bend that is laid over them (None: straight)."""

    axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray]
    bend: Bend | None

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = (len(axis) for axis in self.axes_mm)
        return x, y, z

    @property
    def spacing_mm_xyz(self) -> np.ndarray:
        return np.array([axis[1] - axis[0] if len(axis) > 1 else 1.0 for axis in self.axes_mm])

    def straight(self) -> "Grid":
        """The same grid without the bend."""
        return Grid(self.axes_mm, None)

    def box(self, low_mm: np.ndarray, high_mm: np.ndarray) -> Box:
        """The voxels that may lie between two corners, once bent; a slice of no length where there are none."""
        slack = self.bend.most_mm_xyz if self.bend else np.zeros(3)
        ends = zip(self.axes_mm, low_mm - slack, high_mm + slack, strict=True)
        x, y, z = (slice(*np.searchsorted(axis, (low, high)).tolist()) for axis, low, high in ends)
        return x, y, z

    def coordinates(self, box: Box) -> list[np.ndarray]:
        """x, y and z in mm of a box's voxels, bent: float32, each broadcasting to the box's shape."""
        flat = [axis[part].astype(np.float32) for axis, part in zip(self.axes_mm, box, strict=True)]
        straight = [flat[0][:, None, None], flat[1][:, None], flat[2]]
        if not self._waves:
            return straight
        return [at + self._displacement(n, box) for n, at in enumerate(straight)]

    @cached_property
    def _waves(self) -> list[list[list[np.ndarray]]]:
        return self.bend.waves(self.axes_mm) if self.bend else []

    def _displacement(self, axis: int, box: Box) -> np.ndarray:
        across, along, up = box
        return _sum((x[across, None] * y[along])[:, :, None] * z[up] for x, y, z in self._waves[axis])


@dataclass(frozen=True)
class Drawn:
    """A shape on a grid: its box and, there, its depth; for a tube also how far along it is (in control points)."""

    box: Box
    depth: np.ndarray
    along: np.ndarray | None = None
    solidity: float = 1.0  # below 1 where the grid made it thicker than it is: how much of its voxels it fills


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid, turned about x, y and z (degrees, in this order), cut off where normal . (p - point) > 0."""

    center_mm: Point
    radii_mm: Point
    turn_deg: Point = (0.0, 0.0, 0.0)
    cuts: tuple[tuple[Point, Point], ...] = ()  # (normal, point_mm) each

    def varied(self, rng: np.random.Generator, shift_mm: float = 2.5, growth: float = 0.08) -> "Ellipsoid":
        """A little elsewhere, larger or smaller, and turned."""
        (center,) = points_of(np.array([self.center_mm]) + rng.normal(0, shift_mm, 3))
        (radii,) = points_of(np.array([self.radii_mm]) * rng.normal(1, growth, 3).clip(0.75, 1.25))
        (turn,) = points_of(np.array([self.turn_deg]) + rng.normal(0, 5, 3))
        return replace(self, center_mm=center, radii_mm=radii, turn_deg=turn)

    def on(self, grid: Grid, margin_mm: float = 0.0) -> Drawn:
        """The shape on a grid, in a box that leaves `margin_mm` around it."""
        least_mm = LEAST_HALF_VOXELS * grid.spacing_mm_xyz
        center, radii, turn = np.array(self.center_mm), np.array(self.radii_mm), _rotation(self.turn_deg)
        drawn_radii = np.maximum(radii, least_mm)
        reach = np.sqrt((turn * drawn_radii) ** 2 @ np.ones(3)) + margin_mm
        box = grid.box(center - reach, center + reach)
        offsets = [at - np.float32(c) for at, c in zip(grid.coordinates(box), center, strict=True)]
        depth = np.sqrt(_sum((_dot(turn[:, n], offsets) / np.float32(drawn_radii[n])) ** 2 for n in range(3)))
        for normal, point in self.cuts:
            away = _dot(np.array(normal) / np.linalg.norm(normal), offsets) - _unit_offset(normal, point, center)
            flat = np.maximum(1 + away / np.float32(radii.min()), 0)
            depth = (depth**ROUNDING + flat**ROUNDING) ** np.float32(1 / ROUNDING)
        return Drawn(box, depth, solidity=float(np.prod(radii / drawn_radii)))


@dataclass(frozen=True)
class Tube:
    """A tube of varying radius along a smooth curve; `stretch` makes its cross-section wider along an axis."""

    points_mm: tuple[Point, ...]
    radii_mm: tuple[float, ...]
    stretch: Point = (1.0, 1.0, 1.0)
    steps: int = field(default=4, repr=False)  # straight pieces between two points

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(position along in control points (n,), points in mm (n, 3), radii in mm (n,)) of the smooth curve."""
        knots = np.arange(len(self.points_mm))
        along = np.linspace(0, knots[-1], knots[-1] * self.steps + 1)
        kind = "natural" if len(knots) > 2 else "not-a-knot"
        radii = np.interp(along, knots, self.radii_mm)
        return along, CubicSpline(knots, np.array(self.points_mm, float), bc_type=kind)(along), radii

    def at(self, along: float | np.ndarray) -> np.ndarray:
        """The middle of the tube in mm, (3,) or (..., 3), at a position along it."""
        knots, points, _ = self.curve()
        return np.stack([np.interp(along, knots, points[:, axis]) for axis in range(3)], axis=-1)

    def varied(self, rng: np.random.Generator, shift_mm: float = 2.5, growth: float = 0.08) -> "Tube":
        """A little elsewhere, thicker or thinner, and otherwise bent."""
        points = np.array(self.points_mm) + rng.normal(0, shift_mm, (len(self.points_mm), 3))
        radii = np.array(self.radii_mm) * rng.normal(1, growth)
        return replace(self, points_mm=points_of(points), radii_mm=tuple(radii.tolist()))

    def on(self, grid: Grid, margin_mm: float = 0.0) -> Drawn:
        """The tube on a grid, in a box that leaves `margin_mm` around it."""
        along, points, radii = self.curve()
        reach = np.maximum(radii.max() * np.array(self.stretch), LEAST_HALF_VOXELS * grid.spacing_mm_xyz) + margin_mm
        box = grid.box(points.min(axis=0) - reach, points.max(axis=0) + reach)
        shape = tuple(part.stop - part.start for part in box)
        depth, where = np.full(shape, np.inf, np.float32), np.zeros(shape, np.float32)
        solid = [
            self._draw_piece(grid, box, depth, where, points[n : n + 2], radii[n : n + 2].mean(), along[n], margin_mm)
            for n in range(len(points) - 1)
        ]
        return Drawn(box, depth, where, float(np.mean(solid)))

    def _draw_piece(
        self,
        grid: Grid,
        box: Box,
        depth: np.ndarray,
        where: np.ndarray,
        ends_mm: np.ndarray,
        radius_mm: float,
        along: float,
        margin_mm: float,
    ) -> float:
        """Draw one straight piece into `depth` and `where`; returns its solidity."""
        thin = radius_mm * np.array(self.stretch)
        thick = np.maximum(thin, LEAST_HALF_VOXELS * grid.spacing_mm_xyz)
        part = grid.box(ends_mm.min(axis=0) - thick - margin_mm, ends_mm.max(axis=0) + thick + margin_mm)
        solidity = float(np.sqrt(np.prod(thin / thick)))
        if any(side.start >= side.stop for side in part):
            return solidity
        start, step = ends_mm[0] / thick, (ends_mm[1] - ends_mm[0]) / thick
        offsets = [
            at / np.float32(t) - np.float32(s) for at, t, s in zip(grid.coordinates(part), thick, start, strict=True)
        ]
        t = np.clip(_dot(step / max(step @ step, 1e-9), offsets), 0, 1)
        distance = np.sqrt(_sum((offset - t * np.float32(s)) ** 2 for offset, s in zip(offsets, step, strict=True)))
        inner = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
        nearer = distance < depth[inner]
        depth[inner][nearer] = distance[nearer]
        where[inner][nearer] = along + t[nearer] / self.steps
        return solidity


Shape = Ellipsoid | Tube


def points_of(array_mm: np.ndarray) -> tuple[Point, ...]:
    """The rows of an (n, 3) array as points."""
    return tuple((x, y, z) for x, y, z in array_mm.tolist())


def _rotation(turn_deg: Point) -> np.ndarray:
    """(3, 3): columns are the shape's own axes after turns about x (y to z), then y (x to z), then z (x to y)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(turn_deg)):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _dot(vector: np.ndarray, offsets: Sequence[np.ndarray]) -> np.ndarray:
    return _sum(offset * np.float32(v) for offset, v in zip(offsets, vector, strict=True))


def _unit_offset(normal: Point, point_mm: Point, center_mm: np.ndarray) -> np.float32:
    return np.float32(np.array(normal) @ (np.array(point_mm) - center_mm) / np.linalg.norm(normal))


def _sum(terms: Iterable[np.ndarray]) -> np.ndarray:
    total, *others = terms
    for term in others:
        total = total + term
    return total
