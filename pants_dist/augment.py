"""Augmentation on the device: one interpolation a patch, then intensity changes. A sample's own seed decides all of it.

How often and how strongly an image is changed are those of nnU-Net v2.8.1 (nnUNetTrainer.get_training_transforms, whose
transforms are batchgeneratorsv2 0.3.6's); each function says where it departs. Random numbers are Philox's (Salmon et al.
2011), keyed by the sample's seed and made on the CPU, so that neither other samples, ranks nor the device change them.
Every sample is worked on alone, and sums and powers are formed so that the number of threads does not change a bit either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from pants_dist.plan import uniform, words

INTENSITY_STREAM, NOISE_STREAM = 1, 2  # independent generators under one seed; 0 is left for where the patch lies
SMALLEST = 1e-7  # instead of a range or deviation of 0
AXES = (-3, -2, -1)

Triple = tuple[float, float, float]


def resampled(
    volume: Tensor, to_window: Tensor, size_zyx: tuple[int, int, int], outside: float, filtered: bool = True
) -> Tensor:
    """A patch (C, *size_zyx) out of a window of a case (C, z, y, x), both float32: `filtered`, then trilinear.

    `to_window` (3, 4), float64 and on the CPU, maps voxel indices, z y x: window = to_window[:, :3] @ patch +
    to_window[:, 3]. Voxel centers lie at whole indices. A voxel of the patch that is more than half a voxel outside the
    window is exactly `outside`; nearer than that the window's edge continues, so that nothing is mixed with `outside`.
    Structures are interpolated as one channel each with values 0 to 1, never as codes. Whole-voxel shifts and flips pick
    voxels unchanged. Channels do not touch each other: given a few at a time, they need less memory and come out the same.
    """
    linear, shift = to_window[:, :3], to_window[:, 3]
    if torch.equal(linear.abs(), torch.eye(3, dtype=linear.dtype)) and torch.equal(shift, shift.round()):
        return _picked(volume, [(int(linear[axis, axis]), int(shift[axis])) for axis in range(3)], size_zyx, outside)
    lengths = volume.shape[1:]
    inside = torch.ones(size_zyx, dtype=torch.bool, device=volume.device)
    scaled = []
    for index, length in zip(_window_indices(to_window, size_zyx, volume.device), lengths, strict=True):
        inside &= (index >= -0.5) & (index <= length - 0.5)
        scaled.append((2 * index / max(length - 1, 1) - 1).float())
    grid = torch.stack(scaled[::-1], dim=-1)  # grid_sample wants x y z, from -1 at the first center to 1 at the last
    smooth = prefiltered(volume, step_zyx(to_window)) if filtered else volume
    patch = grid_sample(smooth[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
    return torch.where(inside, patch, outside)


def _picked(volume: Tensor, sign_and_first: list[tuple[int, int]], size_zyx: tuple[int, int, int], outside: float) -> Tensor:
    """Voxels first, first + sign, ... along each axis, `outside` where there are none."""
    patch = volume.new_full((len(volume), *size_zyx), outside)
    targets, sources = [slice(None)], [slice(None)]
    for (sign, first), size, length in zip(sign_and_first, size_zyx, volume.shape[1:], strict=True):
        low, high = (-first, length - first) if sign > 0 else (first - length + 1, first + 1)
        low = max(low, 0)
        high = max(min(high, size), low)
        targets.append(slice(low, high))
        sources.append(slice(first + low, first + high) if sign > 0 else slice(first - high + 1, first - low + 1))
    flipped = [axis for axis, (sign, _) in enumerate(sign_and_first, 1) if sign < 0]
    patch[tuple(targets)] = volume[tuple(sources)].flip(flipped)
    return patch


def _window_indices(to_window: Tensor, size_zyx: tuple[int, int, int], device: torch.device) -> list[Tensor]:
    """Window index along z, y and x of each voxel of the patch, each (z, y, x). No matmul: autocast would round it."""
    z, y, x = (torch.arange(size, dtype=torch.float64, device=device) for size in size_zyx)
    return [
        per_z * z[:, None, None] + per_y * y[:, None] + (per_x * x + first) for per_z, per_y, per_x, first in to_window.tolist()
    ]


def step_zyx(to_window: Tensor) -> Triple:
    """Sampling distance in voxels along each axis of the window: the Euclidean norm of each row of the linear part.

    With the axes aligned it is the patch's spacing over the window's. A round Gaussian of the patch's voxels has in the
    window the covariance L L^T (Heckbert, Fundamentals of Texture Mapping and Image Warping 1989), and row i's norm is its
    deviation along axis i: rotation alone gives 1, and a patch with one spacing gives that over the window's, however it is
    turned. For a turned patch of unequal spacing, whose Gaussian is oblique, a filter along the axes is an approximation.
    """
    z, y, x = to_window[:, :3].norm(dim=1).tolist()
    return z, y, x


def prefiltered(volume: Tensor, step_zyx: Triple) -> Tensor:
    """The volume (C, z, y, x), smoothed where samples `step_zyx` voxels apart would alias; the same where they would not.

    The Gaussian's sigma is max(0, (step - 1) / 2) voxels, as in scikit-image's `resize` with `anti_aliasing`. It reaches
    int(4 sigma + 0.5) voxels far. Training and inference both use it.
    """
    z, y, x = (max(0.0, (step - 1) / 2) for step in step_zyx)
    return blurred(volume, (z, y, x))


def blurred(volume: Tensor, sigma_zyx: Triple) -> Tensor:
    """Gaussian smoothing of (C, z, y, x) with a sigma in voxels for each axis; 0 leaves an axis alone.

    As scipy.ndimage.gaussian_filter with mode "nearest": cut off at 4 sigma, the edge continues. (batchgeneratorsv2 cuts
    off at 3 sigma and mirrors at the edge.) Sums of shifted copies stay float32 on GPUs, where convolutions may use TF32.
    """
    for axis, sigma in enumerate(sigma_zyx, 1):
        weights = _gaussian(sigma)
        if len(weights) > 1:
            volume = _weighted(volume, axis, weights)
    return volume


def _weighted(volume: Tensor, axis: int, weights: list[float]) -> Tensor:
    """Sum over voxels up to len(weights) - 1 away along one axis; beyond the edge stands the voxel at the edge."""
    length = volume.shape[axis]
    total = weights[0] * volume
    for far, weight in enumerate(weights[1:], 1):
        near = min(far, length)
        total.narrow(axis, near, length - near).add_(volume.narrow(axis, 0, length - near), alpha=weight)
        total.narrow(axis, 0, near).add_(volume.narrow(axis, 0, 1), alpha=weight)
        total.narrow(axis, 0, length - near).add_(volume.narrow(axis, near, length - near), alpha=weight)
        total.narrow(axis, length - near, near).add_(volume.narrow(axis, length - 1, 1), alpha=weight)
    return total


def _gaussian(sigma: float) -> list[float]:
    """Weights of the middle voxel and of those 1, 2, ... away on either side."""
    reach = int(4 * sigma + 0.5)
    if reach == 0:
        return [1.0]
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    return (weights / (weights[0] + 2 * weights[1:].sum())).tolist()


def noisy(image: Tensor, deviation: float, seed: int) -> Tensor:
    """Independent Gaussian noise on every voxel. The field is made on the CPU, so that every device gets the same."""
    generator = np.random.Generator(np.random.Philox(key=[seed, NOISE_STREAM]))
    field = torch.from_numpy(generator.standard_normal(image.shape, np.float32))
    return image + deviation * field.to(image.device, image.dtype)


def brightened(image: Tensor, factor: float) -> Tensor:
    """The image times a factor."""
    return image * factor


def contrasted(image: Tensor, factor: float) -> Tensor:
    """Distances from the mean times a factor, cut off at the least and greatest value there were; each channel alone."""
    mean = image.mean(AXES, keepdim=True, dtype=torch.float64).to(image.dtype)
    return ((image - mean) * factor + mean).clamp(image.amin(AXES, True), image.amax(AXES, True))


def lowered(image: Tensor, zoom: float) -> Tensor:
    """A lower resolution, by `zoom` in (0, 1] along z, y and x of (C, z, y, x): nearest voxels down, trilinear up again.

    As in nnU-Net there is no filter before: aliasing is part of what the network is to bear.
    """
    size = [max(round(length * zoom), 1) for length in image.shape[1:]]
    small = interpolate(image[None], size, mode="nearest-exact")
    return interpolate(small, image.shape[1:], mode="trilinear", align_corners=False)[0]


def gamma_changed(image: Tensor, gamma: float, inverted: bool) -> Tensor:
    """Values, scaled to 0..1 between the least and greatest, to the power of gamma; mean and deviation stay.

    `inverted` does so with the negative image, which bends the bright end instead of the dark one. Each channel alone.
    """
    before = -image if inverted else image
    low = before.amin(AXES, True)
    span = before.amax(AXES, True) - low
    bent = (gamma * ((before - low) / span.clamp(min=SMALLEST)).log()).exp() * span + low  # pow depends on the threads
    deviation, mean = torch.std_mean(before, AXES, keepdim=True)
    bent_deviation, bent_mean = torch.std_mean(bent, AXES, keepdim=True)
    after = (bent - bent_mean) * (deviation / bent_deviation.clamp(min=SMALLEST)) + mean
    return -after if inverted else after


@dataclass(frozen=True)
class Intensities:
    """How one sample's values are changed, in this order; None where they are not."""

    noise_deviation: float | None
    blur_sigma_zyx: Triple | None
    brightness: float | None
    contrast: float | None
    zoom: float | None
    inverted_gamma: float | None
    gamma: float | None

    @classmethod
    def drawn(cls, seed: int) -> "Intensities":
        """What the seed (an integer from 0 to 2^64 - 1) decides.

        Where nnU-Net gives a chance for the sample and one for each channel, CT's one channel has their product. nnU-Net
        calls the range of the noise a variance and uses it as the deviation; so is it here.
        """
        drawn: list[float] = uniform(words(seed, INTENSITY_STREAM, 0, 20)).tolist()
        chances, values = drawn[:7], drawn[7:]
        return cls(
            0.1 * values[0] if chances[0] < 0.1 else None,
            (_between(0.5, 1, values[1]), _between(0.5, 1, values[2]), _between(0.5, 1, values[3]))
            if chances[1] < 0.2 * 0.5
            else None,
            _around_one(0.75, 1.25, values[4], values[5]) if chances[2] < 0.15 else None,
            _around_one(0.75, 1.25, values[6], values[7]) if chances[3] < 0.15 else None,
            _between(0.5, 1, values[8]) if chances[4] < 0.25 * 0.5 else None,
            _around_one(0.7, 1.5, values[9], values[10]) if chances[5] < 0.1 else None,
            _around_one(0.7, 1.5, values[11], values[12]) if chances[6] < 0.3 else None,
        )


def _between(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform


def _around_one(low: float, high: float, side: float, uniform: float) -> float:
    """Below 1 and above 1 equally often."""
    return _between(low, 1, uniform) if side < 0.5 else _between(1, high, uniform)


def changed(image: Tensor, intensities: Intensities, seed: int) -> Tensor:
    """One image (1, z, y, x) with these changes; the seed is the noise's."""
    if intensities.noise_deviation is not None:
        image = noisy(image, intensities.noise_deviation, seed)
    if intensities.blur_sigma_zyx is not None:
        image = blurred(image, intensities.blur_sigma_zyx)
    if intensities.brightness is not None:
        image = brightened(image, intensities.brightness)
    if intensities.contrast is not None:
        image = contrasted(image, intensities.contrast)
    if intensities.zoom is not None:
        image = lowered(image, intensities.zoom)
    if intensities.inverted_gamma is not None:
        image = gamma_changed(image, intensities.inverted_gamma, inverted=True)
    if intensities.gamma is not None:
        image = gamma_changed(image, intensities.gamma, inverted=False)
    return image


def augmented(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Normalised images (B, 1, z, y, x) with the changes that each one's seed decides; a new tensor.

    An image comes out the same, bit for bit, alone or in any batch.
    """
    return torch.stack([changed(image, Intensities.drawn(seed), seed) for image, seed in zip(images, seeds, strict=True)])
