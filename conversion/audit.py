"""What is odd about a case: measured while it is converted, kept in its record, shown by `info`. Pure functions.

A note reads "kind: details", so that notes can be counted by kind. Only one oddity refuses a case: masks whose affine
puts them elsewhere in the CT than their indices do, and whose organs show that the affine is right.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from conversion import nifti
from conversion.components import Components
from conversion.nifti import BadImage, Volume
from pants_dist.structures import LESION, PANCREAS, PANCREAS_PARTS

ZOOM_TOLERANCE = 1e-3  # of a voxel's edge: header zooms are float32, affines are often rounded
RIGHT_ANGLE_TOLERANCE = 1e-3  # cosine of the angle between two axes
AFFINE_TOLERANCE = 0.5  # of the CT's smallest voxel edge, by which a corner of the masks' grid may lie elsewhere
CLEARLY_BETTER = 0.2  # of organ voxels more with an organ's HU
PANCREAS_DICE = 0.9  # with head, body and tail together
LESION_OUTSIDE = 0.1  # of the lesion's voxels
LARGEST_LITERS = 15.0  # of the largest structure; both lungs of a tall man hold 8
UNENHANCED_BELOW_HU, ENHANCED_ABOVE_HU = 100.0, 70.0  # median of the aorta; blood without contrast has 30 to 60
UNENHANCED, ENHANCED = ("non", "native", "plain", "without"), ("arter", "ven", "delay", "portal", "contrast")
SHOWN_LESIONS = 20
HISTOGRAM_HU = (-900, -300, -30, 20, 70, 150, 300)  # edges between air, lung, fat, water, tissue, enhanced, dense, bone
HISTOGRAM_STEP = 8  # every 8th voxel along each axis
ORGAN_HU: Mapping[str, tuple[float, float]] = {  # wide enough for every contrast phase, narrow enough to tell air and fat
    "aorta": (0, 700), "bladder": (-30, 800), "gall_bladder": (-40, 300), "kidney_left": (0, 450), "kidney_right": (0, 450),
    "liver": (-30, 250), "lung_left": (-1050, -300), "lung_right": (-1050, -300), "pancreas": (-60, 250),
    "postcava": (0, 600), "spleen": (0, 350),
}  # fmt: skip


def measure(image: Volume, voxels: Mapping[str, int], hu: Mapping[str, np.ndarray], lesions: Components) -> dict[str, Any]:
    """What was measured, as plain data: volumes in mm3, lengths in mm, densities in HU.

    `voxels` counts each mask; `hu` are values under voxels drawn from each structure that has any.
    """
    voxel_mm3 = abs(float(np.linalg.det(image.affine[:3, :3])))
    sampled = image.array_ijk[::HISTOGRAM_STEP, ::HISTOGRAM_STEP, ::HISTOGRAM_STEP]
    bands = np.bincount(np.searchsorted(HISTOGRAM_HU, sampled.ravel(), "right"), minlength=len(HISTOGRAM_HU) + 1)
    largest = max(voxels, key=lambda name: voxels[name])
    return {
        "header_zooms_mm_ijk": [round(mm, 6) for mm in image.zooms_mm_ijk],
        "empty_masks": sorted(name for name in voxels if not voxels[name]),
        "lesions": lesions.count,
        "lesion_mm3_and_hu": [
            [round(count * voxel_mm3, 3), round(mean, 1)] for count, mean in lesions.largest(SHOWN_LESIONS)
        ],
        "median_hu": {name: round(float(np.median(values)), 1) for name, values in sorted(hu.items())},
        "largest": [largest, round(voxels[largest] * voxel_mm3, 1)],
        "histogram": [round(share, 4) for share in (bands / bands.sum()).tolist()],
    }


def geometry_notes(image: Volume) -> Iterator[str]:
    """What is odd about the CT's header."""
    lengths = image.spacing_mm_ijk
    if any(abs(abs(zoom) - mm) > ZOOM_TOLERANCE * mm for zoom, mm in zip(image.zooms_mm_ijk, lengths, strict=True)):
        yield f"header zooms differ from the affine: {_mm(image.zooms_mm_ijk)} and {_mm(lengths)} mm; the affine counts"
    unit = image.affine[:3, :3] / lengths
    cosine = float(np.abs(unit.T @ unit - np.eye(3)).max())
    if cosine > RIGHT_ANGLE_TOLERANCE:
        yield f"axes not at right angles: off by {np.degrees(np.arcsin(min(cosine, 1.0))):.2f} degrees; kept as they are"


def pancreas_notes(
    palette: Sequence[int], voxels: Sequence[int], structures: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Dice of `pancreas` with head, body and tail together, the share of the lesion outside of it; what is odd of both.

    `palette` has each code's bitmask over `structures`, `voxels` the number of voxels that carry it. Values are None
    where there is nothing to compare.
    """
    bits = {name: 1 << bit for bit, name in enumerate(structures)}
    whole, lesion = bits[PANCREAS], bits[LESION]
    parts = sum(bits[name] for name in PANCREAS_PARTS)
    pairs = list(zip(palette, voxels, strict=True))
    a, b, both = (sum(n for mask, n in pairs if test(mask)) for test in (
        lambda mask: mask & whole, lambda mask: mask & parts, lambda mask: mask & whole and mask & parts
    ))  # fmt: skip
    tumor = sum(n for mask, n in pairs if mask & lesion)
    outside = sum(n for mask, n in pairs if mask & lesion and not mask & (whole | parts))
    dice = round(2 * both / (a + b), 4) if a and b else None
    share = round(outside / tumor, 4) if tumor and a + b else None
    notes = []
    if dice is not None and dice < PANCREAS_DICE:
        notes.append(f"pancreas differs from head, body and tail together: Dice {dice:.2f}")
    if share is not None and share > LESION_OUTSIDE:
        notes.append(f"lesion outside the pancreas: {100 * share:.0f} % of its voxels")
    return {"pancreas_parts_dice": dice, "lesion_outside_share": share}, notes


def content_notes(phase: str, tumor_flag: bool | None, voxels: Mapping[str, int], measured: Mapping[str, Any]) -> Iterator[str]:
    """What the metadata say and the voxels do not."""
    if tumor_flag and voxels.get(LESION) == 0:
        yield "tumor? is 1 and the lesion mask is empty: lesion taken as not annotated"
    if tumor_flag is False and voxels.get(LESION):
        yield f"tumor? is 0 and the lesion mask is not empty: {voxels[LESION]:,} voxels"
    aorta = measured["median_hu"].get("aorta")
    if aorta is not None and _doubtful(phase, aorta):
        yield f"phase against the aorta: {phase}, median {aorta:g} HU"
    name, mm3 = measured["largest"]
    low, high = ORGAN_HU.get(name, (-np.inf, np.inf))
    median = measured["median_hu"].get(name, low)
    if mm3 > LARGEST_LITERS * 1e6 or not low <= median <= high:
        yield f"largest structure implausible: {name}, {mm3 / 1e6:.2f} l, median {median:g} HU"


def _doubtful(phase: str, aorta_hu: float) -> bool:
    words = phase.casefold()
    if any(word in words for word in UNENHANCED):
        return aorta_hu > UNENHANCED_BELOW_HU
    return any(word in words for word in ENHANCED) and aorta_hu < ENHANCED_ABOVE_HU


def affine_notes(
    image: Volume, affines: Mapping[str, np.ndarray], positions: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """What is odd about the masks' affines (4, 4), structure by structure, beside the CT's. Index order is what counts.

    `positions` are flat, in index order: voxels drawn from each structure that has any. Raises BadImage where the
    affines turn the masks against the CT, and organs have their HU only where that turn is followed.
    """
    nearness = AFFINE_TOLERANCE * min(image.spacing_mm_ijk)
    apart = {name: _farthest_corner_mm(image, affine) for name, affine in affines.items()}
    elsewhere = sorted(name for name, mm in apart.items() if mm > nearness)
    if not elsewhere:
        return
    by_index, by_affine = _organ_shares(image, {name: affines[name] for name in elsewhere}, positions)
    if by_affine - by_index >= CLEARLY_BETTER:
        raise BadImage(
            f"masks are turned against the CT: organs have their HU in {100 * by_index:.0f} % of voxels index by index, "
            f"in {100 * by_affine:.0f} % by the masks' affine; write the masks on the CT's grid",
            f"{elsewhere[0]} and {len(elsewhere) - 1} more" if len(elsewhere) > 1 else elsewhere[0],
        )
    worst = max(apart.values())
    yield f"affine of masks differs from the CT's: {len(elsewhere)} mask(s), by up to {worst:.1f} mm; taken index by index"


def _farthest_corner_mm(image: Volume, affine: np.ndarray) -> float:
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(image.array_ijk.shape) - 1)
    difference = image.affine - affine
    return float(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max())


def _organ_shares(
    image: Volume, affines: Mapping[str, np.ndarray], positions: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Mean share of organ voxels with the organ's HU: as the indices lie, and turned as the masks' affines say."""
    shares = []
    shape = image.array_ijk.shape
    upright = nifti.canonical(image.array_ijk, image.affine)
    for name in sorted(set(affines) & set(positions) & set(ORGAN_HU)):
        low, high = ORGAN_HU[name]
        indices = np.stack(np.unravel_index(positions[name], shape, "F"), axis=1)
        turned = nifti.canonical_indices(indices, shape, affines[name])
        if np.any(turned >= upright.shape):  # axes of other lengths: the turn leads out of the CT
            continue
        both = image.array_ijk[tuple(indices.T)], upright[tuple(turned.T)]
        shares.append([np.mean((values >= low) & (values <= high)) for values in both])
    by_index, by_affine = np.mean(shares, axis=0).tolist() if shares else (1.0, 1.0)
    return by_index, by_affine


def _mm(lengths: Sequence[float]) -> str:
    return " x ".join(f"{mm:g}" for mm in lengths)
