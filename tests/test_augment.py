from collections.abc import Iterator, Sequence
from dataclasses import astuple

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from pants_dist import augment
from pants_dist.augment import Intensities, Triple, augmented, resampled
from pants_dist.errors import UserError
from pants_dist.structures import LESION, PANCREAS, PANTS
from pants_dist.targets import swapped_left_right

OUTSIDE = -1024.0
ALL = Intensities(0.07, (0.55, 0.8, 0.95), 0.85, 1.2, 0.6, 0.8, 1.4)


def noise(shape: Sequence[int], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def smooth(shape: Sequence[int], seed: int = 0) -> Tensor:
    """An image whose values are not at their extremes in single voxels."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), [0] + [1.5] * (len(shape) - 1))
    return torch.from_numpy((field / field.std()).astype(np.float32))


def rotation(angles_zyx: Sequence[float]) -> np.ndarray:
    """Turns about z, then y, then x, in degrees; in (z, y, x) order."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(angles_zyx)):
        one, other = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        turned = turn @ turned
    return turned


def centered(linear: np.ndarray, window: Sequence[int], size: Sequence[int]) -> Tensor:
    """The mapping with this linear part that takes the patch's center to the window's."""
    shift = (np.array(window) - 1) / 2 - linear @ ((np.array(size) - 1) / 2)
    return torch.from_numpy(np.column_stack([linear, shift]))


def scipy_resampled(volume: np.ndarray, to_window: Tensor, size: Sequence[int]) -> np.ndarray:
    """The same patch by scipy: gaussian_filter where rows are longer than 1, map_coordinates, and what lies outside."""
    matrix = to_window.numpy()
    sigma = np.maximum(0, (np.sqrt((matrix[:, :3] ** 2).sum(axis=1)) - 1) / 2)
    places = np.einsum("ij,jzyx->izyx", matrix[:, :3], np.indices(size)) + matrix[:, 3, None, None, None]
    last = np.array(volume.shape[1:])[:, None, None, None] - 1
    inside = ((places >= -0.5) & (places <= last + 0.5)).all(axis=0)
    channels = [ndimage.gaussian_filter(channel.astype(np.float64), sigma, mode="nearest") for channel in volume]
    patches = [ndimage.map_coordinates(channel, places, order=1, mode="nearest") for channel in channels]
    return np.where(inside, np.stack(patches), OUTSIDE)


def mappings() -> Iterator[tuple[np.ndarray, Sequence[int]]]:
    """Linear parts and patch sizes: finer, coarser, each axis its own, turned, flipped, and random ones."""
    yield np.diag([0.4, 0.7, 0.9]), (12, 11, 10)
    yield np.diag([1.7, 3.1, 0.8]), (12, 7, 20)
    yield rotation((30, -20, 10)), (14, 15, 16)
    yield rotation((0, 0, 30)) @ np.diag([-1.3, 1.3, -1.3]), (14, 15, 16)
    rng = np.random.default_rng(1)
    for _ in range(12):
        spacing, flips = rng.uniform(0.5, 2.5, 3), rng.choice([-1, 1], 3)
        linear = np.diag(1 / spacing) @ rotation(rng.uniform(-30, 30, 3)) @ np.diag(flips * rng.uniform(0.7, 1.4))
        yield linear, rng.integers(5, 25, 3).tolist()


def test_resampling_agrees_with_scipy() -> None:
    """Spacing, rotation, scale and flips in one matrix, near the window's edge and beyond it."""
    for number, (linear, size) in enumerate(mappings()):
        volume = 100 * noise((2, 13, 17, 19), number)
        to_window = centered(linear, volume.shape[1:], size) + torch.tensor([0, 0, 0, 0.13], dtype=torch.float64)
        patch = resampled(volume, to_window, tuple(size), OUTSIDE)
        assert patch.shape == (2, *size) and patch.dtype == torch.float32
        np.testing.assert_allclose(patch, scipy_resampled(volume.numpy(), to_window, size), atol=0.02)


def test_whole_voxel_shifts_are_slices() -> None:
    """Bit for bit, within the window and over its edge."""
    volume = noise((3, 9, 10, 11))
    shift = torch.tensor([[1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 1, 1]], dtype=torch.float64)
    assert torch.equal(resampled(volume, shift, (5, 6, 7), OUTSIDE), volume[:, 2:7, 3:9, 1:8])
    shift[:, 3] = torch.tensor([-2, 4, -1])
    padded = np.pad(volume, ((0, 0), (2, 3), (0, 5), (1, 2)), constant_values=OUTSIDE)
    assert np.array_equal(resampled(volume, shift, (14, 11, 14), OUTSIDE), padded[:, :, 4:, :])


def test_flips_are_flipped_slices() -> None:
    """Also over the edge, on either side."""
    volume = noise((1, 6, 7, 8))
    flip = torch.tensor([[-1, 0, 0, 5], [0, 1, 0, 0], [0, 0, -1, 7]], dtype=torch.float64)
    assert torch.equal(resampled(volume, flip, (6, 7, 8), OUTSIDE), volume.flip(1, 3))
    flip[:, 3] = torch.tensor([7, -3, 4])
    padded = np.pad(volume, ((0, 0), (3, 2), (3, 0), (5, 0)), constant_values=OUTSIDE)[:, ::-1, :, ::-1]
    assert np.array_equal(resampled(volume, flip, (11, 10, 10), OUTSIDE), padded[..., 3:13])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("first", [-40, 40])
def test_a_patch_beside_the_window_is_outside(sign: int, first: int) -> None:
    beside = torch.tensor([[sign, 0, 0, first], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
    for to_window in (beside, beside + 0.01):
        assert (resampled(noise((1, 6, 7, 8)), to_window, (5, 6, 7), OUTSIDE) == OUTSIDE).all()


def test_whole_voxels_and_interpolation_agree() -> None:
    """A mapping that is a hair off a shift takes the other way to the same voxels, inside and outside."""
    volume = noise((1, 6, 7, 8))
    shift = torch.tensor([[1, 0, 0, -1], [0, 1, 0, 2], [0, 0, 1, 3]], dtype=torch.float64)
    exact, close = (resampled(volume, matrix, (8, 7, 7), OUTSIDE) for matrix in (shift, shift + 1e-9))
    torch.testing.assert_close(exact, close, atol=1e-4, rtol=0)


def test_nothing_is_mixed_with_what_lies_outside() -> None:
    """A uniform window gives its value up to half a voxel beyond the last center, then `outside`, and nothing between."""
    volume = torch.full((1, 8, 8, 8), 40.0)
    quarter = torch.tensor([[0.25, 0, 0, -1], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
    along = resampled(volume, quarter, (40, 8, 8), OUTSIDE)[0, :, 3, 3]
    at = -1 + 0.25 * np.arange(40)
    assert np.array_equal(along, np.where((at >= -0.5) & (at <= 7.5), 40.0, OUTSIDE))
    turned = resampled(volume, centered(1.3 * rotation((20, 25, -15)), (8, 8, 8), (12, 12, 12)), (12, 12, 12), OUTSIDE)
    assert (((turned - 40).abs() < 1e-4) | (turned == OUTSIDE)).all() and 0 < (turned == OUTSIDE).float().mean() < 1


def test_thin_windows() -> None:
    """A window of one slice is that slice as far as half a voxel."""
    volume = noise((1, 1, 6, 6))
    half = torch.tensor([[0.5, 0, 0, -1], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
    patch = resampled(volume, half, (5, 6, 6), OUTSIDE)
    torch.testing.assert_close(patch[:, 1:4], volume.expand(1, 3, 6, 6))
    assert (patch[:, [0, 4]] == OUTSIDE).all()


def test_structures_keep_summing_to_one() -> None:
    """One channel a class: each is its own interpolation, and classes that divide the window divide the patch."""
    codes = np.random.default_rng(3).integers(0, 4, (12, 12, 12))
    classes = torch.from_numpy(np.stack([codes == n for n in range(4)]).astype(np.float32))
    to_window = centered(1.6 * rotation((10, 20, 30)), (12, 12, 12), (6, 6, 6))
    patch = resampled(classes, to_window, (6, 6, 6), 0.0)
    assert patch.min() >= 0 and patch.max() <= 1
    inside = patch.sum(0) > 0
    torch.testing.assert_close(patch.sum(0)[inside], torch.ones(int(inside.sum())))
    for n in range(4):
        assert torch.equal(patch[n], resampled(classes[n : n + 1], to_window, (6, 6, 6), 0.0)[0])


def test_resampling_is_not_rounded_by_autocast() -> None:
    volume, to_window = noise((1, 40, 40, 40)), centered(1.2 * rotation((10, 20, 30)), (40, 40, 40), (30, 30, 30))
    plain = resampled(volume, to_window, (30, 30, 30), OUTSIDE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resampled(volume, to_window, (30, 30, 30), OUTSIDE), plain)


def test_the_step_is_the_patch_spacing_over_the_window_s() -> None:
    """However the patch is turned, as far as it has one spacing; along the axes for any."""
    window_mm, turn = np.array([5.0, 0.8, 0.7]), rotation((25, -30, 15))
    for linear, patch_mm in ((np.diag([3.0, 1.5, 0.5]), np.array([3.0, 1.5, 0.5])), (1.5 * turn, np.full(3, 1.5))):
        to_window = centered(np.diag(1 / window_mm) @ linear, (9, 9, 9), (9, 9, 9))
        assert augment.step_zyx(to_window) == pytest.approx(tuple(patch_mm / window_mm))


def test_the_prefilter_smooths_only_what_would_alias() -> None:
    volume = noise((2, 9, 12, 15))
    filtered = augment.prefiltered(volume, (0.5, 2.0, 3.6))
    np.testing.assert_allclose(filtered, ndimage.gaussian_filter(volume, (0, 0, 0.5, 1.3), mode="nearest"), atol=1e-5)
    assert torch.equal(augment.prefiltered(volume, (1.0, 0.3, 1.0 + 1e-12)), volume)


@pytest.mark.parametrize("sigma", [(0.5, 0.75, 1.0), (0.0, 2.0, 0.0), (1.0, 1.0, 30.0)])
def test_blur_agrees_with_scipy(sigma: Triple) -> None:
    """Also with a kernel that is wider than the image."""
    image = noise((1, 7, 16, 17))
    np.testing.assert_allclose(
        augment.blurred(image, sigma), ndimage.gaussian_filter(image, (0, *sigma), mode="nearest"), atol=1e-5
    )


def test_noise_is_normal_and_its_seed_s_own() -> None:
    image = smooth((1, 30, 30, 30))
    field = (augment.noisy(image, 0.2, 5) - image).flatten().double().numpy()
    assert stats.kstest(field, "norm", args=(0, 0.2)).pvalue > 0.01
    assert np.abs(np.corrcoef(field[:-1], field[1:])[0, 1]) < 0.03
    other = (augment.noisy(image, 0.2, 6) - image).flatten().double().numpy()
    assert np.abs(np.corrcoef(field, other)[0, 1]) < 0.03
    assert torch.equal(augment.noisy(image, 0.2, 5), augment.noisy(image, 0.2, 5))


def numpy_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip((image - image.mean()) * factor + image.mean(), image.min(), image.max())


def numpy_gamma(image: np.ndarray, gamma: float, inverted: bool) -> np.ndarray:
    image = -image if inverted else image
    bent = np.interp(image, (image.min(), image.max()), (0, 1)) ** gamma
    result = stats.zscore(bent, axis=None) * image.std() + image.mean()
    return -result if inverted else result


def scipy_lowered(image: np.ndarray, zoom: float) -> np.ndarray:
    """Nearest voxel centers down, linear between voxel centers up; the outermost voxels keep their centers' value."""
    full = image.shape[1:]
    size = [max(round(n * zoom), 1) for n in full]
    nearest = np.ix_([0], *[((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(full, size, strict=True)])
    places = np.meshgrid(*[(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(full, size, strict=True)], indexing="ij")
    return ndimage.map_coordinates(image[nearest][0], places, order=1, mode="nearest")[None]


def test_brightness_and_contrast_agree_with_numpy() -> None:
    image = smooth((1, 12, 13, 14))
    values = image.numpy().astype(np.float64)
    for factor in (0.75, 1.25):
        np.testing.assert_allclose(augment.brightened(image, factor), values * factor, atol=1e-6)
        np.testing.assert_allclose(augment.contrasted(image, factor), numpy_contrast(values, factor), atol=1e-5)
    assert augment.contrasted(image, 1.25).max() == image.max() and augment.contrasted(image, 1.25).min() == image.min()


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("gamma", [0.7, 1.5])
def test_gamma_agrees_with_numpy(gamma: float, inverted: bool) -> None:
    image = smooth((1, 12, 13, 14))
    expected = numpy_gamma(image.numpy().astype(np.float64), gamma, inverted)
    np.testing.assert_allclose(augment.gamma_changed(image, gamma, inverted), expected, atol=2e-5)


@pytest.mark.parametrize("zoom", [0.5, 0.61, 0.93, 1.0, 0.01])
def test_low_resolution_agrees_with_scipy(zoom: float) -> None:
    image = noise((1, 13, 17, 22))
    np.testing.assert_allclose(augment.lowered(image, zoom), scipy_lowered(image.numpy(), zoom), atol=1e-5)


def test_each_channel_has_its_own_statistics() -> None:
    """As if it had come alone."""
    channels = torch.stack([smooth((1, 8, 8, 8), 1)[0], 50 + 9 * smooth((1, 8, 8, 8), 2)[0]])
    for change in (lambda image: augment.contrasted(image, 0.8), lambda image: augment.gamma_changed(image, 0.8, True)):
        torch.testing.assert_close(change(channels), torch.cat([change(channels[:1]), change(channels[1:])]))


def test_changes_come_in_nnunet_s_order() -> None:
    """Noise, blur, brightness, contrast, low resolution, inverted gamma, gamma: the same chain in scipy and numpy."""
    image = smooth((1, 24, 25, 26))
    values = augment.noisy(image, 0.07, 11).numpy().astype(np.float64)
    values = ndimage.gaussian_filter(values, (0, 0.55, 0.8, 0.95), mode="nearest") * 0.85
    values = scipy_lowered(numpy_contrast(values, 1.2), 0.6)
    values = numpy_gamma(numpy_gamma(values, 0.8, True), 1.4, False)
    np.testing.assert_allclose(augment.changed(image, ALL, 11), values, atol=1e-4)


def test_draws_have_nnunet_s_probabilities_and_ranges() -> None:
    """Counts over 20,000 seeds are within 4 deviations; parameters fill their range; factors halve at 1."""
    count = 20_000
    draws = [astuple(Intensities.drawn(seed)) for seed in range(count)]
    expected = [(0.1, 0, 0.1), (0.1, 0.5, 1), (0.15, 0.75, 1.25), (0.15, 0.75, 1.25), (0.125, 0.5, 1), (0.1, 0.7, 1.5)]
    for column, (chance, low, high) in enumerate([*expected, (0.3, 0.7, 1.5)]):
        values = np.array([draw[column] for draw in draws if draw[column] is not None])
        assert len(values) == pytest.approx(count * chance, abs=4 * np.sqrt(count * chance))
        assert values.min() >= low and values.max() <= high and np.ptp(values) > 0.98 * (high - low)
        if low < 1 < high:
            assert np.mean(values < 1) == pytest.approx(0.5, abs=0.05)
    blurs = np.array([draw[1] for draw in draws if draw[1] is not None])
    assert np.abs(np.corrcoef(blurs.T) - np.eye(3)).max() < 0.1


def test_changes_are_drawn_independently() -> None:
    """Whether one is applied says nothing about another, nor about a neighbouring seed's."""
    applied = np.array([[value is not None for value in astuple(Intensities.drawn(seed))] for seed in range(8000)], float)
    assert np.abs(np.corrcoef(applied.T) - np.eye(7)).max() < 0.05
    assert np.abs(np.corrcoef(applied[:-1].T, applied[1:].T)[:7, 7:]).max() < 0.05


def test_draws_are_pinned() -> None:
    """What seeds 1 and 6 gave when this was written: other numbers would give every run other samples."""
    assert Intensities.drawn(1) == Intensities(pytest.approx(0.0921986677), *[None] * 6)
    blur = pytest.approx((0.6726459816, 0.7330699270, 0.7917015456))
    values = (pytest.approx(0.8942176520), pytest.approx(0.9193907040), None, pytest.approx(1.3779372392))
    assert Intensities.drawn(6) == Intensities(None, blur, None, *values)


def test_a_sample_is_the_same_in_any_batch() -> None:
    """Bit for bit: alone, among others, in another order; others' seeds give others."""
    images, seeds = torch.stack([smooth((1, 15, 17, 19), n) for n in range(24)]), list(range(100, 124))
    before = images.clone()
    together = augmented(images, seeds)
    assert torch.equal(images, before) and together.shape == images.shape and together.dtype == images.dtype
    assert torch.equal(augmented(images.flip(0), seeds[::-1]), together.flip(0))
    for n, seed in enumerate(seeds):
        assert torch.equal(augmented(images[n : n + 1], [seed]), together[n : n + 1])
    assert 8 < sum(not torch.equal(new, old) for new, old in zip(together, images, strict=True)) < 24


def test_the_number_of_threads_changes_nothing() -> None:
    """Ranks that share a machine get fewer threads each; sums and powers must not depend on it. Bit for bit."""
    image, to_window = noise((1, 41, 43, 47)) ** 3, centered(1.4 * rotation((9, 8, 7)), (41, 43, 47), (40, 40, 40))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append((augment.changed(image, ALL, 3), resampled(image, to_window, (40, 40, 40), OUTSIDE)))
    finally:
        torch.set_num_threads(threads)
    for changed, patch in results[1:]:
        assert torch.equal(changed, results[0][0]) and torch.equal(patch, results[0][1])


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_uniform_image_stays_finite(value: float) -> None:
    image = torch.full((1, 8, 8, 8), value)
    for inverted in (False, True):
        torch.testing.assert_close(augment.gamma_changed(image, 0.7, inverted), image)
    torch.testing.assert_close(augment.contrasted(image, 1.2), image)
    assert torch.isfinite(augment.changed(image, ALL, 0)).all()


def test_bfloat16_stays_bfloat16() -> None:
    """Every change runs in it, and is that of float32 as far as its 8 bits go."""
    image = smooth((1, 12, 12, 12))
    half = augment.changed(image.bfloat16(), ALL, 3)
    assert half.dtype == torch.bfloat16
    assert (half.float() - augment.changed(image, ALL, 3)).abs().mean() < 0.03


def test_left_and_right_swap() -> None:
    """Every paired structure of PanTS takes its other side's channel; the rest keep theirs; twice is no change."""
    order = swapped_left_right(PANTS)
    swapped = {name: PANTS[place] for name, place in zip(PANTS, order, strict=True) if PANTS[place] != name}
    organs = ("adrenal_gland", "femur", "kidney", "lung")
    pairs = {(f"{organ}_left", f"{organ}_right") for organ in organs}
    assert set(swapped.items()) == pairs | {(right, left) for left, right in pairs}
    assert [order[place] for place in order] == list(range(len(PANTS)))
    assert swapped_left_right(("rib_right_1", "leftover", "upright", "rib_left_1", "eye (left)", "eye (right)")) == [
        3,
        1,
        2,
        0,
        5,
        4,
    ]
    assert swapped_left_right((PANCREAS, LESION)) == [0, 1]


def test_a_side_without_its_other_is_refused() -> None:
    with pytest.raises(UserError, match="there is kidney_left but no kidney_right; add it to the structures"):
        swapped_left_right(("liver", "kidney_left"))
