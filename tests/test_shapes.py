"""Ellipsoids and tubes on a grid: as large as geometry says, whole, and the same whatever box they are drawn in."""

import numpy as np
import pytest
from scipy.ndimage import label

from pants_dist.shapes import Bend, Ellipsoid, Grid, Shape, Tube

ELLIPSOID = Ellipsoid((3, -4, 6), (20, 12, 30), (20, 35, -50))
TUBE = Tube(((-30, 0, -40), (0, 20, 0), (10, -20, 30), (40, 10, 45)), (4, 9, 6, 3), stretch=(1, 1.2, 1))


def grid(spacing_mm_xyz: tuple[float, float, float], bend: Bend | None = None) -> Grid:
    x, y, z = (np.arange(-70, 70, mm) for mm in spacing_mm_xyz)
    return Grid((x, y, z), bend)


def drawn(shape: Shape, on: Grid, margin_mm: float = 0.0) -> np.ndarray:
    """Mask over the whole grid."""
    mask = np.zeros(on.shape, bool)
    part = shape.on(on, margin_mm)
    mask[part.box] = part.depth < 1
    return mask


def test_an_ellipsoid_has_its_volume_however_it_is_turned() -> None:
    """Its voxels add up to 4/3 pi a b c; a cut through its middle takes away half."""
    ml = drawn(ELLIPSOID, grid((1.5, 1.5, 1.5))).sum() * 1.5**3
    assert ml == pytest.approx(4 / 3 * np.pi * 20 * 12 * 30, rel=0.02)
    half = Ellipsoid(ELLIPSOID.center_mm, (20, 20, 20), cuts=(((1, 0, 0), ELLIPSOID.center_mm),))
    assert drawn(half, grid((1.5, 1.5, 1.5))).sum() * 1.5**3 == pytest.approx(2 / 3 * np.pi * 20**3, rel=0.12)


def test_a_straight_tube_has_its_volume() -> None:
    """pi r^2 times its length, and a half ball at each end."""
    tube = Tube(((-40, 0, 0), (40, 0, 0)), (10, 10))
    expected = np.pi * 100 * 80 + 4 / 3 * np.pi * 1000
    assert drawn(tube, grid((1.5, 1.5, 1.5))).sum() * 1.5**3 == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("shape", [ELLIPSOID, TUBE])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_box_loses_nothing(shape: Shape, seed: int) -> None:
    """On a bent grid, a shape drawn in its own box has the voxels that it has when drawn over the whole grid."""
    bent = grid((3, 2, 4), Bend(np.random.default_rng(seed)))
    whole = drawn(shape, bent, margin_mm=1000)
    assert whole.any()
    assert (drawn(shape, bent) == whole).all()


def test_a_bend_moves_no_point_further_than_it_says() -> None:
    """Boxes rely on it."""
    bend = Bend(np.random.default_rng(0))
    bent = grid((5, 5, 5), bend)
    everything = slice(None), slice(None), slice(None)
    for axis, (moved, straight) in enumerate(zip(bent.coordinates(everything), bent.axes_mm, strict=True)):
        away = np.abs(moved - straight.reshape(np.roll((-1, 1, 1), axis)))
        assert 1 < away.max() <= bend.most_mm_xyz[axis] + 1e-3


def test_a_tube_thinner_than_the_grid_is_in_one_piece() -> None:
    """A vessel of 1 mm does not fall between voxels of 3 x 3 x 8 mm, and says that it fills little of them."""
    vessel = Tube(((-50, -20, -40), (0, 10, 5), (50, 0, 40)), (0.5, 0.5, 0.5), steps=12)
    coarse = grid((3, 3, 8), Bend(np.random.default_rng(4)))
    _, pieces = label(drawn(vessel, coarse), np.ones((3, 3, 3)))
    assert pieces == 1
    assert vessel.on(coarse).solidity < 0.2


def test_along_runs_from_the_first_point_of_a_tube_to_the_last() -> None:
    """A voxel's position along a tube is that of the nearest control point, to a fraction of the way to the next."""
    fine = grid((2, 2, 2))
    part = TUBE.on(fine)
    assert part.along is not None
    for number, point in enumerate(TUBE.points_mm):
        index = tuple(
            int(np.abs(axis[side] - mm).argmin()) for axis, side, mm in zip(fine.axes_mm, part.box, point, strict=True)
        )
        assert part.along[index] == pytest.approx(number, abs=0.15)
        np.testing.assert_allclose(TUBE.at(number), point, atol=1e-9)
