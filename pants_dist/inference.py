"""A whole scan through a network: overlapping windows, slab by slab along z, so that memory does not grow with its length.

A row of windows covers patch_zyx[0] planes. When the next row begins, the planes before it are final: they are divided by
their weights, brought back to the scan's grid, decided, and forgotten. On the device are a few windows, then a few planes.
Windows, overlap and Gaussian weights are those of nnU-Net (Isensee et al. 2021) and of MONAI's sliding_window_inference,
which gives the same to rounding; the way to the training spacing is that of training: means of blocks of voxels
(geometry.blocks_of), then augment.resampled. Logits go back linearly, without a filter, as in nnU-Net: one would take away
lesions of a slice.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from monai.data.utils import compute_importance_map
from torch import Tensor
from torch.nn.functional import pad

from pants_dist.augment import resampled
from pants_dist.casefile import AIR_HU
from pants_dist.decode import block_means
from pants_dist.errors import UserError
from pants_dist.geometry import blocks_of
from pants_dist.heartbeat import doing
from pants_dist.model import Segmenter
from pants_dist.structures import LESION
from pants_dist.targets import Masks, PredictedMasks, decided, log_odds

WINDOWS_AT_ONCE = 2
VOXELS_AT_ONCE = 1 << 21  # that are brought back and decided together: eight planes of 512 x 512
SIGMA = 0.125  # of a window's Gaussian, as a share of its length (nnU-Net, MONAI)
LEAST_WEIGHT = 1e-3  # of a voxel in a window, where the middle has 1 (MONAI)

Zyx = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Prediction:
    """What a system says of a scan, in the scan's grid: masks (z, y, x), and how likely a lesion is in each voxel.

    `lesion_log_odds_zyx` is float32, log(p / (1 - p)) of the lesion's probability p; None where it is not known.
    """

    masks: Masks
    lesion_log_odds_zyx: np.ndarray | None


def segmented(models: Sequence[Segmenter], image_zyx: np.ndarray, spacing_mm_zyx: Spacing, mirror: bool = False) -> Prediction:
    """What models, in evaluation mode, together say of CT in HU (z, y, x): the mean of their logits decides.

    Raises UserError as `logits_of` does.
    """
    target, done = models[0].target, 0
    odds = np.empty(image_zyx.shape, np.float32) if LESION in target.channels else None
    decisions = np.empty((0, *image_zyx.shape), np.uint8)
    for logits in logits_of(models, image_zyx, spacing_mm_zyx, mirror):
        some = decided(target, logits)
        if not len(decisions):
            decisions = np.empty((len(some), *image_zyx.shape), np.uint8)
        planes = slice(done, done + logits.shape[1])
        decisions[:, planes], done = some, planes.stop
        if odds is not None:
            odds[planes] = log_odds(target, logits, LESION).cpu().numpy()
    return Prediction(PredictedMasks(target, decisions), odds)


@torch.no_grad()
def logits_of(
    models: Sequence[Segmenter], image_zyx: np.ndarray, spacing_mm_zyx: Spacing, mirror: bool = False
) -> Iterator[Tensor]:
    """Logits (channels, planes, y, x) of a scan in its own grid, float32 on the models' device: a few planes at a time.

    Each is the mean over `models` and, with `mirror`, over every window mirrored along z and y where training did so; never
    left-right. Raises UserError where the models differ in patch, spacing or structures, or were not trained mirrored.
    """
    check_alike(models)
    axes = mirror_axes(models) if mirror else ()
    settings, shape = models[0].settings, _zyx(image_zyx.shape)
    trained = settings.data.spacing_mm_zyx or spacing_mm_zyx
    step = _spacing(to / own for to, own in zip(trained, spacing_mm_zyx, strict=True))
    size = _zyx(math.ceil(round(length / ratio, 3)) for length, ratio in zip(shape, step, strict=True))  # headers are float32
    merged, left = block_merged(image_zyx, step)
    there = Rescaling(left, _zyx(merged.shape), size)
    back = Rescaling(_spacing(1 / ratio for ratio in step), size, shape, filtered=False)
    windows = Windows(size, settings.data.patch_zyx, settings.validation.overlap)
    image = torch.from_numpy(merged)[None]

    def planes(start: int, stop: int) -> Tensor:
        low, high = there.needs(start, stop)
        return there.planes(image[:, low:high].float(), low, start, stop, AIR_HU)

    yield from back.stream(windows.blended(planes, lambda hu: mean_logits(models, hu, axes)), models[0].device)


def block_merged(image_zyx: np.ndarray, step: Spacing) -> tuple[np.ndarray, Spacing]:
    """A scan with blocks of voxels merged as a patch's voxels, `step` times as long, are read; and the step that is left."""
    block = blocks_of(np.array(step))
    size = -(-np.array(image_zyx.shape) // block)
    if tuple(size) == image_zyx.shape:
        return image_zyx, step
    whole = np.pad(image_zyx, [(0, after) for after in size * block - image_zyx.shape], mode="edge")
    merged = np.empty(tuple(size), image_zyx.dtype)
    block_means(whole, merged)
    return merged, _spacing(np.array(step) / block)


def check_alike(models: Sequence[Segmenter]) -> None:
    """Raises UserError where models cannot be averaged window by window."""
    first = models[0].settings
    for other in (model.settings for model in models[1:]):
        for name, one, another in (
            ("data.patch_zyx", first.data.patch_zyx, other.data.patch_zyx),
            ("data.spacing_mm_zyx", first.data.spacing_mm_zyx, other.data.spacing_mm_zyx),
            ("validation.overlap", first.validation.overlap, other.validation.overlap),
            ("what is segmented", first.model.outputs.channels, other.model.outputs.channels),
        ):
            if one != another:
                raise UserError(f"checkpoints: {name} is {one} in one and {another} in another; give models that agree")


def mirror_axes(models: Sequence[Segmenter]) -> tuple[int, ...]:
    """Axes (0: z, 1: y) along which every model was trained on mirrored patches. Raises UserError where there is none."""
    axes = tuple(axis for axis, name in enumerate("zy") if all(name in model.settings.augment.mirror for model in models))
    if not axes:
        raise UserError("--mirror: training mirrored no patch along z or y (augment.mirror); predict without it")
    return axes


def mean_logits(models: Sequence[Segmenter], hu: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Logits (B, channels, z, y, x), float32 on the CPU, of windows of HU (B, 1, z, y, x): the mean over the models, and
    over mirroring along every subset of `axes`."""
    turns = [[axis + 2 for axis in some] for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)]
    total = torch.zeros((), device=models[0].device)
    for model, turn in itertools.product(models, turns):
        total = total + model(hu.to(model.device).flip(turn)).float().flip(turn)
    return (total / (len(models) * len(turns))).cpu()


@dataclass(frozen=True)
class Windows:
    """Windows of `patch` voxels over a volume of `size`, both (z, y, x), neighbours overlapping by a share of the patch.

    A volume shorter than the patch is continued by air on both sides, the odd plane behind.
    """

    size: Zyx
    patch: Zyx
    overlap: float

    @cached_property
    def padded(self) -> Zyx:
        """The size with that air."""
        return _zyx(max(pair) for pair in zip(self.size, self.patch, strict=True))

    @cached_property
    def before(self) -> Zyx:
        """Voxels of air before the volume's first."""
        return _zyx((whole - length) // 2 for whole, length in zip(self.padded, self.size, strict=True))

    @cached_property
    def weights(self) -> Tensor:
        """How much each voxel of a window (z, y, x) counts: a Gaussian, since a network sees least at the border."""
        return compute_importance_map(self.patch, mode="gaussian", sigma_scale=SIGMA).clamp(min=LEAST_WEIGHT)

    def starts(self, axis: int) -> list[int]:
        """Where windows begin along an axis; the last ends with the volume."""
        last = self.padded[axis] - self.patch[axis]
        step = max(int(self.patch[axis] * (1 - self.overlap)), 1)
        return [*range(0, last, step), last]

    def blended(self, planes: Callable[[int, int], Tensor], network: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Weighted mean of the windows' logits (channels, planes, y, x), plane after plane from the first to the last.

        `planes(start, stop)` gives HU (1, planes, y, x) of the volume, `network` logits of windows.
        """
        rows, corners = self.starts(0), list(itertools.product(self.starts(1), self.starts(2)))
        total, weights = torch.zeros(0), torch.zeros(1, self.patch[0], *self.padded[1:])
        for row, following in zip(rows, [*rows[1:], self.padded[0]], strict=True):
            hu = self._row(planes, row)
            for first in range(0, len(corners), WINDOWS_AT_ONCE):
                doing("validation")
                some = [self._box(corner) for corner in corners[first : first + WINDOWS_AT_ONCE]]
                answers = network(torch.stack([hu[box] for box in some]))
                if not len(total):
                    total = torch.zeros(answers.shape[1], *weights.shape[1:])
                for box, answer in zip(some, answers, strict=True):
                    total[box] += answer * self.weights
                    weights[box] += self.weights
            yield from self._finished(total, weights, row, following)
            for sums in (total, weights):
                _move_up(sums, following - row)

    def _row(self, planes: Callable[[int, int], Tensor], row: int) -> Tensor:
        """HU (1, patch_z, y, x) of a row of windows, with the air around."""
        low, high = row - self.before[0], row - self.before[0] + self.patch[0]
        found = planes(max(low, 0), min(high, self.size[0]))
        ends = zip(self.before[1:], self.size[1:], self.padded[1:], strict=True)
        (top, bottom), (left, right) = ((before, whole - length - before) for before, length, whole in ends)
        around = (left, right, top, bottom, max(-low, 0), max(high - self.size[0], 0))
        return pad(found, around, value=AIR_HU)

    def _box(self, corner_yx: tuple[int, int]) -> tuple[slice, ...]:
        """A window's place in the row."""
        sides = zip(corner_yx, self.patch[1:], strict=True)
        return slice(None), slice(None), *(slice(first, first + length) for first, length in sides)

    def _finished(self, total: Tensor, weights: Tensor, row: int, following: int) -> Iterator[Tensor]:
        """The mean in planes `row` to `following`, without the air, one by one."""
        y, x = (slice(first, first + length) for first, length in zip(self.before[1:], self.size[1:], strict=True))
        for plane in range(max(row, self.before[0]), min(following, self.before[0] + self.size[0])):
            here = slice(plane - row, plane - row + 1)
            yield total[:, here, y, x] / weights[:, here, y, x]


def _move_up(sums: Tensor, planes: int) -> None:
    """Drop the first planes of (channels, z, y, x), in place, and make room for as many: a copy would take as much again."""
    kept = sums.shape[1] - planes
    for plane in range(kept):
        sums[:, plane] = sums[:, plane + planes]
    sums[:, kept:] = 0


@dataclass(frozen=True)
class Rescaling:
    """From a volume of voxels `length` (z, y, x) to one of `size`, whose voxels are `step` times as long along each axis.

    Both begin at the same outer corner. A few planes at a time, it gives what `resampled` gives of the whole: `filtered`
    against aliasing or not, then linear.
    """

    step: Spacing
    length: Zyx
    size: Zyx
    filtered: bool = True

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Planes [low, high) of the volume that planes [start, stop) of the result are made of."""
        step, last = self.step[0], self.length[0] - 1
        reach = int(4 * max(0.0, (step - 1) / 2) + 0.5) if self.filtered else 0  # augment.prefiltered
        low, high = ((plane + 0.5) * step - 0.5 for plane in (start, stop - 1))
        return max(min(math.floor(low) - reach, last), 0), min(math.ceil(high) + reach, last) + 1

    def planes(self, volume: Tensor, first: int, start: int, stop: int, outside: float) -> Tensor:
        """Planes [start, stop) of the result, of (C, z, y, x) whose first plane has the number `first` in the volume."""
        step = torch.tensor(self.step, dtype=torch.float64)
        shift = (step - 1) / 2 + torch.tensor([start * self.step[0] - first, 0, 0])
        to_window = torch.cat([step.diag(), shift[:, None]], 1)
        return resampled(volume, to_window, (stop - start, *self.size[1:]), outside, self.filtered)

    def stream(self, planes: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        """The result (channels, planes, y, x) on the device, a few planes at a time, of a volume's planes as they come."""
        held, first, done = list[Tensor](), 0, 0
        at_once = max(VOXELS_AT_ONCE // (self.size[1] * self.size[2]), 1)
        for plane in planes:
            held.append(plane)
            while done < self.size[0]:
                stop = min(done + at_once, self.size[0])
                low, high = self.needs(done, stop)
                if high > first + len(held):
                    break
                window = torch.cat(held[low - first : high - first], 1).to(device)
                yield self.planes(window, low, done, stop, 0.0)
                done, held, first = stop, held[low - first :], low


def _zyx(lengths: Iterable[int]) -> Zyx:
    z, y, x = lengths
    return z, y, x


def _spacing(lengths: Iterable[float]) -> Spacing:
    z, y, x = lengths
    return z, y, x
