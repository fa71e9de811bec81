"""Which voxels of a case a patch needs, and where in them each voxel of the patch lies. Pure.

A patch is a grid of `size_zyx` points, `spacing_mm_zyx` apart, turned, scaled and mirrored about its middle as its
sample's seed says. The window is the box of the case's own voxels that covers it, inside the scan; along axes where
the patch is coarser than the scan it is read in whole blocks of voxels. One interpolation, on the device, then makes
the patch of the window: voxel p of the patch is the point `to_window @ (p, 1)` of the window.
"""

import math
from dataclasses import dataclass

import numpy as np

from pants_dist.plan import Sample, uniform, words

MARGIN = 3  # voxels around a window that is read more coarsely than it is: the prefilter reaches so far
MILDER = (1.0, 0.75, 0.5, 0.25, 0.0)  # shares of the drawn turn and zoom that are tried until the window is small enough
TURNED, SCALED = 0.2, 0.2  # probabilities, as nnU-Net's (Isensee et al. 2021); mirrored along each axis: 0.5

Triple = tuple[int, int, int]
Affine = tuple[tuple[float, float, float, float], ...]  # three rows: index along z, y, x in the window


@dataclass(frozen=True)
class Geometry:
    """What a patch is: points along z, y, x, their distance (None: each case's own), and how it may be turned.

    Turns are up to `rotation_degrees` about each axis, zooms within `scale`; `mirrored` are the axes, of "zyx", that may
    be flipped. Windows of over `max_window_bytes`, at 3 bytes a voxel, get milder turns and zooms.
    """

    size_zyx: Triple
    spacing_mm_zyx: tuple[float, float, float] | None = None
    rotation_degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    mirrored: str = ""
    max_window_bytes: int = 256 << 20


@dataclass(frozen=True)
class Window:
    """The box of a case to read, and the way from the patch's voxels into it, all (z, y, x).

    `corner` and `shape` * `block` are voxels of the case; the window has `shape` voxels after blocks became single ones:
    the image their means, the codes their middle voxels, which for even blocks is another point: hence two ways.
    """

    corner_zyx: Triple
    shape_zyx: Triple
    block_zyx: Triple
    to_image: Affine
    to_codes: Affine


def window_of(
    sample: Sample,
    geometry: Geometry,
    shape_zyx: Triple,
    spacing_mm_zyx: tuple[float, float, float],
    voxel_zyx: Triple | None,
) -> Window:
    """The window of a sample in a case of this shape and spacing.

    With `voxel_zyx`, one of the sample's structure, the patch is centred on it, else it lies anywhere. It stays inside the
    case along every axis that is long enough, and is centred on the others.
    """
    for share in MILDER:
        window = _window(sample, geometry, shape_zyx, np.array(spacing_mm_zyx), voxel_zyx, share)
        if 3 * math.prod(window.shape_zyx) <= geometry.max_window_bytes:
            break
    return window


def _window(
    sample: Sample, geometry: Geometry, shape: Triple, own_mm: np.ndarray, voxel: Triple | None, share: float
) -> Window:
    target_mm = own_mm if geometry.spacing_mm_zyx is None else np.array(geometry.spacing_mm_zyx)
    turn, zoom = drawn(sample.augment_seed, geometry, share)
    steps = (turn * target_mm) * zoom / own_mm[:, None]  # voxels of the case for each of the patch's, columns by patch axis
    size = np.array(geometry.size_zyx)
    half = np.abs(steps) @ ((size - 1) / 2)
    extent = np.ceil(2 * half + 1 - 1e-6).astype(int)
    corner = np.array(corner_of(sample, shape, tuple(extent.tolist()), voxel))
    middle = corner + (extent - 1) / 2
    block = blocks_of(zoom * target_mm / own_mm)
    margin = np.where(np.abs(steps).sum(1) > 1 + 1e-6, MARGIN * block, 0)
    low = np.maximum(np.floor(middle - half - margin + 1e-6).astype(int), 0)
    high = np.minimum(np.ceil(middle + half + margin - 1e-6).astype(int) + 1, shape)
    count = np.maximum((high - low) // block, 1)
    block = np.minimum(block, high - low)
    start = middle - steps @ ((size - 1) / 2) - low  # the patch's first voxel, in voxels of the case from `low` on
    return Window(
        _triple(low), _triple(count), _triple(block),
        _affine(steps, start, block, (block - 1) / 2), _affine(steps, start, block, block // 2),
    )  # fmt: skip


def blocks_of(steps: np.ndarray) -> np.ndarray:
    """How many of a scan's voxels along each axis become one, where the patch's are `steps` times as long."""
    return np.maximum(np.floor(steps + 1e-3).astype(int), 1)


def drawn(seed: int, geometry: Geometry, share: float = 1.0) -> tuple[np.ndarray, float]:
    """(matrix of turn and flips, zoom) of a seed; millimetres from the middle, patch to case. `share` < 1 makes it milder."""
    numbers = uniform(words(seed, 0, 0, 9))
    angles = np.radians(geometry.rotation_degrees) * (2 * numbers[:3] - 1) * (numbers[3] < TURNED) * share
    low, high = np.log(geometry.scale)
    zoom = math.exp((low + (high - low) * numbers[4]) * (numbers[5] < SCALED) * share)
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = (a for a in range(3) if a != axis)
        about = np.eye(3)
        about[one, one] = about[other, other] = math.cos(angle)
        about[one, other], about[other, one] = -math.sin(angle), math.sin(angle)
        turn = turn @ about
    flips = [-1.0 if name in geometry.mirrored and numbers[6 + axis] < 0.5 else 1.0 for axis, name in enumerate("zyx")]
    return turn * flips, zoom


def corner_of(sample: Sample, shape_zyx: Triple, size_zyx: Triple, voxel_zyx: Triple | None) -> Triple:
    """First voxel (z, y, x) of a box of `size_zyx` for the sample in a case of this shape; see `window_of`."""
    corner = []
    for axis, (length, size) in enumerate(zip(shape_zyx, size_zyx, strict=True)):
        room = length - size
        if room <= 0:
            corner.append(room // 2)
        elif voxel_zyx is not None:
            corner.append(min(max(voxel_zyx[axis] - size // 2, 0), room))
        else:
            corner.append(int(sample.uniform_zyx[axis] * (room + 1)))
    z, y, x = corner
    return z, y, x


def _affine(steps: np.ndarray, start: np.ndarray, block: np.ndarray, middle: np.ndarray) -> Affine:
    """In blocks of voxels: a block's voxel stands for the point `middle` of it."""
    rows = np.column_stack([steps / block[:, None], (start - middle) / block])
    z, y, x = ((a, b, c, d) for a, b, c, d in rows.tolist())
    return z, y, x


def _triple(values: np.ndarray) -> Triple:
    z, y, x = values.tolist()
    return z, y, x
