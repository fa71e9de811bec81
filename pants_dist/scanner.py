"""Draws an anatomy on a voxel grid and takes its CT: HU by tissue and contrast phase, partial volume, noise.

Arrays are (x, y, z) in RAS order. Masks are kept as one bit a structure, in the order of `structures.PANTS`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from pants_dist.anatomy import GLAND, SECTIONS, Part, Patient, trunk_half_mm
from pants_dist.shapes import Drawn, Ellipsoid, Grid
from pants_dist.structures import LESION, PANCREAS, PANTS

PHASES = ("Venous", "Arterial", "Non-contrast", "Delay")
BIT = {name: np.uint32(1 << n) for n, name in enumerate(PANTS)}
# HU before contrast, and what each of PHASES adds.
TISSUES_HU: dict[str, tuple[float, tuple[float, float, float, float]]] = {
    "air": (-1000, (0, 0, 0, 0)),
    "table": (-70, (0, 0, 0, 0)),
    "skin": (15, (5, 5, 0, 5)),
    "fat": (-102, (0, 0, 0, 0)),
    "muscle": (52, (12, 6, 0, 10)),
    "bone": (480, (0, 0, 0, 0)),
    "marrow": (150, (0, 0, 0, 0)),
    "vertebra": (330, (0, 0, 0, 0)),
    "vertebra marrow": (165, (8, 4, 0, 6)),
    "canal": (30, (0, 0, 0, 0)),
    "lung": (-850, (8, 8, 0, 8)),
    "heart": (42, (100, 170, 0, 60)),
    "artery": (42, (105, 250, 0, 65)),
    "cava": (40, (90, 45, 0, 62)),
    "portal vein": (42, (125, 80, 0, 70)),
    "hepatic vein": (42, (115, 25, 0, 62)),
    "liver": (58, (52, 14, 0, 38)),
    "spleen": (48, (70, 72, 0, 42)),
    "renal cortex": (34, (150, 160, 0, 105)),
    "renal medulla": (30, (135, 60, 0, 115)),
    "urine": (8, (10, 0, 0, 380)),
    "bladder urine": (6, (2, 0, 0, 40)),
    "pancreas": (42, (58, 72, 0, 34)),
    "tumor": (4, (24, 22, 0, 14)),
    "cyst": (6, (2, 2, 0, 2)),
    "duct": (8, (2, 2, 0, 2)),
    "bile": (8, (0, 0, 0, 0)),
    "adrenal": (35, (35, 40, 0, 25)),
    "prostate": (42, (28, 18, 0, 25)),
    "wall": (38, (38, 42, 0, 26)),
    "gut": (22, (10, 8, 0, 8)),
    "stomach content": (26, (0, 0, 0, 0)),
    "stool": (-30, (0, 0, 0, 0)),
    "gas": (-940, (0, 0, 0, 0)),
}
UNEVEN_HU = {"lung": 45.0, "stool": 130.0, "pancreas": 9.0, "fat": 7.0, "muscle": 10.0, "gut": 12.0}
TEXTURE_MM = 4.0  # the size of that unevenness
FLAT_BACK_MM, TABLE_DROP_MM = 4.0, 9.0


@dataclass(frozen=True)
class Scanner:
    """What makes a center's images its own: calibration, sharpness, and strength and grain of the noise."""

    offset_hu: float
    noise_hu: float
    grain_voxels_xyz: tuple[float, float, float]  # standard deviation of the kernel that correlates the noise
    blur_voxels: float


class Picture:
    """What has been drawn so far: HU and structure bits on a grid, and where the body is."""

    def __init__(self, grid: Grid, fat: float, tissue_hu: dict[str, float], texture: np.ndarray) -> None:
        self.grid, self.tissue_hu, self.texture = grid, tissue_hu, texture
        self.hu = np.full(grid.shape, tissue_hu["air"], np.float32)
        self.bits = np.zeros(grid.shape, np.uint32)
        self.cavity = np.zeros(grid.shape, bool)
        self._draw_trunk(fat)

    def _draw_trunk(self, fat: float) -> None:
        """Table, skin, fat, muscle and the fat of the cavity, slice by slice."""
        x, y, z = self.grid.axes_mm
        outlines = trunk_half_mm(z, fat)
        for n in range(len(z)):
            depth = {name: _ellipse(x, y, *(float(v[n]) for v in values)) for name, values in outlines.items()}
            back_mm = outlines["skin"][2][n] - outlines["skin"][1][n] + FLAT_BACK_MM
            inside = (depth["skin"] < 1) & (y[None, :] > back_mm)
            skin = (depth["skin"] > 1 - 3.0 / outlines["skin"][0][n]) | (y[None, :] < back_mm + 3)
            self.cavity[:, :, n] = depth["cavity"] < 1
            layers = (
                ("table", _table(x, y, back_mm)),
                ("fat", inside),
                ("skin", inside & skin),
                ("muscle", inside & (depth["muscle"] < 1)),
                ("fat", self.cavity[:, :, n]),
            )
            for tissue, where in layers:
                self.hu[where, n] = self.tissue_hu[tissue] + UNEVEN_HU.get(tissue, 0) * self.texture[where, n]

    def draw(self, part: Part) -> None:
        """Draw one part over what is there."""
        drawn = part.shape.on(self.grid.straight() if part.frame else self.grid, part.gap_mm)
        if not drawn.depth.size:
            return
        inside = drawn.depth < 1
        if not part.frame:
            inside &= self.cavity[drawn.box]
        if part.gap_mm:
            around = (drawn.depth < 1 + part.gap_mm / _least_radius_mm(part)) & ~inside & self.cavity[drawn.box]
            self._fill(drawn, around, "fat", 1.0)
            self.bits[drawn.box][around] = 0
        self._label(part, drawn, inside)
        for depth, tissue in part.layers:
            self._fill(drawn, inside & (drawn.depth < depth), tissue, drawn.solidity)
        if part.gas_above_y_mm is not None:
            high = self.grid.axes_mm[1][drawn.box[1]] > part.gas_above_y_mm
            self._fill(drawn, inside & (drawn.depth < part.layers[-1][0]) & high[None, :, None], "gas", 1.0)

    def _label(self, part: Part, drawn: Drawn, inside: np.ndarray) -> None:
        bits = self.bits[drawn.box]
        bits[inside] &= _bits(part.keeps)
        bits[inside] |= _bits(part.names)
        if drawn.along is not None:
            start = -np.inf
            for stop, name in part.sections:
                bits[inside & (drawn.along >= start) & (drawn.along < stop)] |= BIT[name]
                start = stop

    def _fill(self, drawn: Drawn, where: np.ndarray, tissue: str, solidity: float) -> None:
        hu = self.hu[drawn.box]
        new = self.tissue_hu[tissue] + UNEVEN_HU.get(tissue, 0) * self.texture[drawn.box][where]
        hu[where] += np.float32(solidity) * (new - hu[where])

    def ensure_lesion(self, part: Part) -> None:
        """Mark the voxel nearest to a lesion that fell between the voxels of a very coarse grid."""
        if (self.bits & BIT[LESION]).any() or not isinstance(part.shape, Ellipsoid):
            return
        nearest = tuple(
            int(np.abs(axis - mm).argmin()) for axis, mm in zip(self.grid.axes_mm, part.shape.center_mm, strict=True)
        )
        section = int(self.bits[nearest]) & int(_bits(GLAND - {PANCREAS})) or int(BIT[SECTIONS[0][1]])
        self.bits[nearest] = int(BIT[LESION] | BIT[PANCREAS]) | section
        self.hu[nearest] = self.tissue_hu["tumor"]


def scan(
    grid: Grid, patient: Patient, parts: Iterable[Part], phase: str, scanner: Scanner, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(int16 HU, uint32 bits by structure), both (x, y, z), of a patient on a grid in the patient's reference mm."""
    texture = _noise(grid.shape, TEXTURE_MM / grid.spacing_mm_xyz, rng)
    picture = Picture(grid, patient.fat, tissue_hu(phase, rng), texture)
    for part in parts:
        picture.draw(part)
        last = part
    if patient.lesion:
        picture.ensure_lesion(last)
    hu = gaussian_filter(picture.hu, scanner.blur_voxels, truncate=3)
    hu += scanner.offset_hu + scanner.noise_hu * _noise(grid.shape, scanner.grain_voxels_xyz, rng)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), picture.bits


def tissue_hu(phase: str, rng: np.random.Generator) -> dict[str, float]:
    """Tissue -> HU of one case: how well contrast was timed, and each tissue a little by itself."""
    timing = rng.normal(1, 0.08)
    column = PHASES.index(phase)
    return {name: base + timing * adds[column] + rng.normal(0, 3) for name, (base, adds) in TISSUES_HU.items()}


def mask(bits: np.ndarray, name: str) -> np.ndarray:
    """uint8 mask of one structure, of the bits' shape."""
    return ((bits & BIT[name]) != 0).view(np.uint8)


def _bits(names: Iterable[str]) -> np.uint32:
    return np.uint32(sum(int(BIT[name]) for name in names))


def _noise(shape: tuple[int, ...], grain_voxels: Iterable[float], rng: np.random.Generator) -> np.ndarray:
    """Normal noise of standard deviation 1, correlated by a Gaussian kernel."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), tuple(grain_voxels), truncate=3, mode="wrap")
    return noise / max(float(noise.std()), 1e-6)


def _ellipse(x: np.ndarray, y: np.ndarray, half_x: float, half_y: float, middle_y: float) -> np.ndarray:
    """Depth (x, y) in a slightly squarish ellipse: 1 on the outline."""
    power = 2.25
    across, along = np.abs(x / half_x) ** power, np.abs((y - middle_y) / half_y) ** power
    return (across[:, None] + along[None, :]) ** (1 / power)


def _table(x: np.ndarray, y: np.ndarray, back_mm: float) -> np.ndarray:
    """Where the scanner's table is: a thin curved shell below the back."""
    top_mm = back_mm - TABLE_DROP_MM + 0.0006 * x[:, None] ** 2
    return (y[None, :] < top_mm) & (y[None, :] > top_mm - 4) & (np.abs(x[:, None]) < 215)


def _least_radius_mm(part: Part) -> float:
    return min(part.shape.radii_mm)
