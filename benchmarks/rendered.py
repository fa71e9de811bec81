"""A small rendered problem that a CPU can learn: a liver, a bent pancreas with a lesion in it, and bowel, in fat and noise.

One voxel does not tell: noise is over half of what sets bowel and pancreas apart, and what bowel, lesion and their blurred
edges look like overlaps. Each scan has a spacing and a size of its own. Written in PanTS's layout; the same files from the
same numbers.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from conversion import nifti
from pants_dist.shapes import Bend, Ellipsoid, Grid, Point, Shape, Tube

HU = {"fat": -90, "liver": 120, "pancreas": 60, "pancreatic_lesion": -10, "bowel": 20}
NOISE_HU, BLUR_VOXELS = 24.0, 0.6
STRUCTURES = ("liver", "pancreas", "pancreatic_lesion")
LIVER = Ellipsoid((-17.0, 2.0, 0.0), (11.0, 16.0, 17.0))
PANCREAS = Tube(((-3.0, -8.0, -9.0), (5.0, 4.0, -3.0), (13.0, -2.0, 5.0), (23.0, 5.0, 11.0)), (8.5, 8.0, 7.5, 7.0))
BOWEL = (Ellipsoid((15.0, -17.0, -10.0), (7.0, 7.0, 7.0)), Ellipsoid((4.0, 19.0, 13.0), (7.0, 7.0, 7.0)))


def make_rendered(folder: Path, numbers: list[int]) -> None:
    """Scans PanTS_<number> in `folder`; those that are there stay. From 9001 on they are the official test's."""
    for number in numbers:
        case = f"PanTS_{number:08d}"
        image = folder / "ImageTr" / case / "ct.nii.gz"
        if not image.exists():
            hu, masks, spacing = drawn(np.random.default_rng(number))
            affine = np.diag([*spacing, 1.0])
            for name, mask in masks.items():
                nifti.write(folder / "LabelTr" / case / "segmentations" / f"{name}.nii.gz", mask, affine)
            nifti.write(image, hu, affine)


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray], Point]:
    """(int16 HU, a mask for each structure, spacing in mm) of one scan, all x y z."""
    x_mm, z_mm = rng.uniform(1.4, 1.8), rng.uniform(1.6, 2.2)
    spacing = (round(x_mm, 3), round(x_mm, 3), round(z_mm, 3))
    size = [round(mm / step) for mm, step in zip(rng.uniform((62, 62, 60), (72, 72, 70)), spacing, strict=True)]
    x, y, z = (step * (np.arange(count) - (count - 1) / 2) for step, count in zip(spacing, size, strict=True))
    grid = Grid((x, y, z), Bend(rng))
    tissue = np.full(grid.shape, HU["fat"], np.float32)
    masks = {name: np.zeros(grid.shape, bool) for name in STRUCTURES}
    for name, shape in parts(rng):
        part = shape.on(grid)
        inside = part.depth < 1
        tissue[part.box][inside] = HU[name]
        for structure, mask in masks.items():
            mask[part.box][inside] = name == structure or (name, structure) == ("pancreatic_lesion", "pancreas")
    hu = gaussian_filter(tissue, BLUR_VOXELS) + rng.normal(0, NOISE_HU, grid.shape)
    return np.rint(hu).astype(np.int16), masks, spacing


def parts(rng: np.random.Generator) -> Iterator[tuple[str, Shape]]:
    """What is drawn, each over those before."""
    yield from (("bowel", piece.varied(rng, 2.0, 0.1)) for piece in BOWEL)
    pancreas = PANCREAS.varied(rng, 1.5, 0.1)
    yield "pancreas", pancreas
    x, y, z = pancreas.at(rng.uniform(0.5, 2.5)).tolist()
    yield "pancreatic_lesion", Ellipsoid((x, y, z), (7.0, 7.0, 7.0)).varied(rng, 0.5, 0.1)
    yield "liver", LIVER.varied(rng, 2.0, 0.1)
