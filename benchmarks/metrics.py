"""Surface Dice and HD95 of full-size cases: pants_dist beside DeepMind's surface-distance and MONAI, in one run.

    pip install .[bench]
    python benchmarks/metrics.py [--shape 200 512 512] [--segmentations FOLDER]

Without a folder the masks are smooth shapes of organ size; with one they are its *.nii.gz masks. The prediction is the
reference with its surface moved in and out by a few millimeters. Each runs on one thread, three times in turn, and its
fastest run counts.
"""

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel
import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from pants_dist import surface
from pants_dist.surfels import surfel_areas

for old, new in (("bool", np.bool_), ("Inf", np.inf)):  # names that surface-distance 0.1 still uses
    if not hasattr(np, old):
        setattr(np, old, new)
for old in ("filters", "morphology"):
    setattr(ndimage, old, ndimage)

import surface_distance  # noqa: E402

SPACING_MM_ZYX = (1.25, 0.8, 0.8)
TOLERANCE_MM = 2.0
ORGANS_MM = {  # half axes z y x of ellipsoids
    "liver": (85, 70, 95),
    "lung": (110, 95, 70),
    "spleen": (50, 35, 30),
    "pancreas": (20, 15, 60),
    "aorta": (115, 11, 11),
    "lesion": (12, 12, 12),
}
Mask = np.ndarray
Scores = tuple[float, float | None]
Peer = Callable[[Mask, Mask, tuple[float, ...]], Scores]


def ours(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> Scores:
    found = surface.surfaces(reference, prediction, (spacing_mm[0], spacing_mm[1], spacing_mm[2]))
    return surface.surface_dice(found, TOLERANCE_MM), surface.hausdorff_mm(found)


def deepmind(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> Scores:
    found = surface_distance.compute_surface_distances(reference, prediction, spacing_mm)
    dice = surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE_MM)
    return dice, surface_distance.compute_robust_hausdorff(found, 95)


def monai(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> Scores:
    """Its HD95 is another definition, so only its time counts."""
    first, second = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
    dice = compute_surface_dice(first, second, [TOLERANCE_MM], True, spacing=spacing_mm, use_subvoxels=True)
    compute_hausdorff_distance(first, second, True, percentile=95, spacing=spacing_mm)
    return float(dice), None


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise that changes over about eight voxels, of standard deviation about 0.6."""
    coarse = rng.normal(size=tuple(max(4, n // 8) for n in shape))
    return ndimage.zoom(coarse, np.divide(shape, coarse.shape), order=1, grid_mode=True, mode="nearest")


def organs(shape: tuple[int, ...]) -> Iterator[tuple[str, Mask, Mask, tuple[float, ...]]]:
    """Ellipsoids with a rough rim, and the same with another."""
    rng = np.random.default_rng(0)
    for name, half_axes_mm in ORGANS_MM.items():
        axes = [(np.arange(n) - n / 2) * mm for n, mm in zip(shape, SPACING_MM_ZYX, strict=True)]
        z, y, x = (axis / half for axis, half in zip(axes, half_axes_mm, strict=True))
        field = np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)
        field = field + 0.1 * smooth_noise(rng, shape)
        yield name, field < 1, field + 0.06 * smooth_noise(rng, shape) < 1, SPACING_MM_ZYX


def masks_of(folder: Path) -> Iterator[tuple[str, Mask, Mask, tuple[float, ...]]]:
    """The NIfTI masks of a folder, and each with its surface moved in and out by about 2 mm."""
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("*.nii.gz")):
        image: Any = nibabel.load(path)
        mask = np.ascontiguousarray((np.asarray(image.dataobj) > 0.5).transpose(2, 1, 0))
        spacing = tuple(float(mm) for mm in image.header.get_zooms()[:3][::-1])
        box = surface.bounding_box(mask)
        if box is None:
            continue
        around = tuple(slice(max(part.start - 8, 0), part.stop + 8) for part in box)
        near = mask[around]
        depth = ndimage.distance_transform_edt(near, spacing) - ndimage.distance_transform_edt(~near, spacing)
        moved = np.zeros_like(mask)
        moved[around] = depth + 3 * smooth_noise(rng, near.shape) > 0
        yield path.name.removesuffix(".nii.gz"), mask, moved, spacing


def fastest(peers: tuple[Peer, ...], case: tuple[Any, ...], runs: int) -> tuple[list[float], list[Scores]]:
    """Shortest time of each peer, who take turns so that a busy machine slows all, and their scores."""
    seconds = [float("inf")] * len(peers)
    scores: list[Scores] = [(0.0, None)] * len(peers)
    for _ in range(runs):
        for n, peer in enumerate(peers):
            start = time.perf_counter()
            scores[n] = peer(*case)
            seconds[n] = min(seconds[n], time.perf_counter() - start)
    return seconds, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--segmentations", type=Path, help="folder of NIfTI masks to use instead of made ones")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    surfel_areas(*SPACING_MM_ZYX)
    cases = masks_of(given.segmentations) if given.segmentations else organs(tuple(given.shape))
    print(f"{platform.processor() or platform.machine()}, one thread; seconds for surface Dice and HD95 together\n")
    print(f"| {'structure':24} | voxels | pants-dist | surface-distance | MONAI | times faster | NSD | max difference |")
    print("|---|---|---|---|---|---|---|---|")
    total = np.zeros(3)
    for case in cases:
        seconds, (found, expected, other) = fastest((ours, deepmind, monai), case[1:], given.runs)
        total += seconds
        apart = max(abs(found[0] - expected[0]), abs((found[1] or 0) - (expected[1] or 0)), abs(found[0] - other[0]))
        print(
            f"| {case[0]:24} | {np.count_nonzero(case[1]):,} | {seconds[0]:.3f} | {seconds[1]:.3f} | {seconds[2]:.3f} "
            f"| {seconds[1] / seconds[0]:.1f} | {found[0]:.3f} | {apart:.1e} |",
            flush=True,
        )
    print(f"| all | | {total[0]:.2f} | {total[1]:.2f} | {total[2]:.2f} | {total[1] / total[0]:.1f} | | |")


if __name__ == "__main__":
    main()
