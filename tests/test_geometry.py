import math

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from pants_dist.geometry import Geometry, Window, corner_of, drawn, window_of
from pants_dist.plan import Sample

TURNING = Geometry((12, 20, 16), (1.5, 1.5, 1.5), 30.0, (0.7, 1.4), "zy")


def sample(**changes) -> Sample:
    return Sample(
        **{"index": 0, "case": "c", "structure": None, "draw": 0, "uniform_zyx": (0.0, 0.5, 0.999), "augment_seed": 0}
        | changes
    )


def test_a_patch_is_centred_on_its_voxel_and_stays_inside() -> None:
    """The voxel is in the middle of the patch, or the patch at the border; it never leaves a case that is long enough."""
    assert corner_of(sample(), (100, 100, 100), (10, 20, 30), (50, 50, 50)) == (45, 40, 35)
    assert corner_of(sample(), (100, 100, 100), (10, 20, 30), (0, 99, 50)) == (0, 80, 35)


def test_without_a_voxel_the_patch_lies_anywhere() -> None:
    """The corner runs over every place where the patch fits, and short axes are centred."""
    assert corner_of(sample(), (100, 100, 100), (10, 20, 30), None) == (0, 40, 70)
    assert corner_of(sample(), (6, 100, 100), (10, 20, 30), None)[0] == -2


def test_without_spacing_the_window_is_the_patch_inside_the_scan() -> None:
    """The plain window has the patch's corner and whole voxels; what overhangs the scan is not read."""
    plain = Geometry((10, 20, 30))
    window = window_of(sample(), plain, (6, 100, 100), (5.0, 0.7, 0.7), None)
    assert (window.corner_zyx, window.shape_zyx, window.block_zyx) == ((0, 40, 70), (6, 20, 30), (1, 1, 1))
    assert window.to_image == ((1, 0, 0, -2), (0, 1, 0, 0), (0, 0, 1, 0)) == window.to_codes


def points(affine, size: tuple[int, ...]) -> np.ndarray:
    """(3, voxels of the patch) points that its voxels come from."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij")).reshape(3, -1)
    matrix = np.array(affine)
    return matrix[:, :3] @ grid + matrix[:, 3:]


def in_case(window: Window, affine, size: tuple[int, ...], middle: np.ndarray) -> np.ndarray:
    """The same points in voxels of the case, where a block's voxel stands for the point `middle` of the block."""
    column = np.array(window.block_zyx)[:, None], np.array(middle)[:, None], np.array(window.corner_zyx)[:, None]
    return points(affine, size) * column[0] + column[1] + column[2]


CASES = [((60, 200, 190), (5.0, 0.7, 0.7)), ((190, 180, 220), (0.75, 0.75, 0.75)), ((40, 50, 45), (3.0, 0.4, 0.4))]


@pytest.mark.parametrize("shape, own_mm", CASES)
def test_image_and_codes_are_taken_at_the_same_points_of_the_case(shape, own_mm) -> None:
    """Both ways name the same points, as far apart as spacing and zoom say, inside the window wherever inside the scan."""
    for seed in range(40):
        window = window_of(sample(augment_seed=seed, uniform_zyx=(0.3, 0.6, 0.9)), TURNING, shape, own_mm, None)
        block = np.array(window.block_zyx)
        image = in_case(window, window.to_image, TURNING.size_zyx, (block - 1) / 2)
        codes = in_case(window, window.to_codes, TURNING.size_zyx, block // 2)
        assert np.allclose(image, codes, atol=1e-9)
        zoom = drawn(seed, TURNING)[1]
        for axis in range(3):
            first, second = (np.ravel_multi_index(p, TURNING.size_zyx) for p in ((0, 0, 0), tuple(np.eye(3, dtype=int)[axis])))
            apart_mm = np.linalg.norm((image[:, second] - image[:, first]) * own_mm)
            assert math.isclose(apart_mm, 1.5 * zoom, rel_tol=1e-9)
        low, high = np.array(window.corner_zyx), np.array(window.corner_zyx) + block * window.shape_zyx
        assert (low >= 0).all() and (high <= shape).all()
        covered = (image >= low[:, None] - 0.5).all(0) & (image <= high[:, None] - 0.5).all(0)
        in_scan = (image >= 0).all(0) & (image <= np.array(shape)[:, None] - block[:, None]).all(0)
        assert covered[in_scan].all()


@pytest.mark.parametrize("shape, own_mm", CASES[:2])
def test_the_window_holds_what_the_whole_case_does(shape, own_mm) -> None:
    """Interpolating in the window gives what interpolating in the whole case does."""
    rng = np.random.default_rng(0)
    volume = rng.normal(size=shape)
    fine = Geometry((12, 20, 16), (0.7, 0.7, 0.7), 30.0, (1.0, 1.0), "zyx")
    for seed in range(12):
        window = window_of(sample(augment_seed=seed), fine, shape, own_mm, tuple(n // 2 for n in shape))
        box = tuple(slice(c, c + n) for c, n in zip(window.corner_zyx, window.shape_zyx, strict=True))
        got = map_coordinates(volume[box], points(window.to_image, fine.size_zyx), order=1)
        expected = map_coordinates(volume, in_case(window, window.to_image, fine.size_zyx, np.zeros(3)), order=1)
        assert window.block_zyx == (1, 1, 1) and np.allclose(got, expected, atol=1e-9)


def test_coarse_patches_are_read_in_blocks() -> None:
    """Blocks are floor(target / own) along each axis, and smaller where the patch is zoomed in."""
    plain = Geometry((8, 8, 8), (3.0, 1.5, 1.5))
    assert window_of(sample(), plain, (90, 90, 90), (1.0, 0.75, 0.8), None).block_zyx == (3, 2, 1)


def test_a_window_too_large_gets_a_milder_turn() -> None:
    """Under the limit a drawn window stays; over it turn and zoom are made milder, down to none at all."""
    large = [s for s in range(200) if drawn(s, TURNING)[1] > 1.3]
    free = {s: window_of(sample(augment_seed=s), TURNING, CASES[1][0], CASES[1][1], None) for s in large}
    size = max(3 * math.prod(window.shape_zyx) for window in free.values())
    bound = Geometry(**{**vars(TURNING), "max_window_bytes": size // 2})
    none = Geometry(**{**vars(TURNING), "max_window_bytes": 1})
    shape, own_mm = CASES[1]
    for seed in large:
        window = window_of(sample(augment_seed=seed), bound, shape, own_mm, None)
        assert 3 * math.prod(window.shape_zyx) <= size // 2
        unturned = np.array(window_of(sample(augment_seed=seed), none, shape, own_mm, None).to_image)[:, :3]
        assert np.allclose(np.abs(unturned), np.eye(3))  # 1.5 mm in blocks of two voxels of 0.75 mm


def test_draws_are_within_their_bounds_and_as_often_as_they_should() -> None:
    """Matrices are rotations with flips along the named axes; a fifth of the samples is turned, a fifth zoomed."""
    turned, zoomed, flipped = 0, 0, np.zeros(3)
    for seed in range(2000):
        matrix, zoom = drawn(seed, TURNING)
        assert np.allclose(matrix @ matrix.T, np.eye(3)) and 0.7 <= zoom <= 1.4
        signs = np.sign(np.diag(matrix))
        turned += not np.allclose(np.abs(matrix), np.eye(3))
        zoomed += zoom != 1
        flipped += signs < 0
    assert abs(turned / 2000 - 0.2) < 0.03 and abs(zoomed / 2000 - 0.2) < 0.03
    assert (abs(flipped[:2] / 2000 - 0.5) < 0.04).all() and flipped[2] == 0
