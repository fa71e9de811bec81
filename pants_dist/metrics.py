"""One case, scored: Dice, surface Dice, HD95, volumes and lesion components; pure functions of boolean (z, y, x) masks.

Reference absent: Dice, surface Dice and HD95 are NaN, and the predicted volume is the false-positive volume. Reference
present and prediction empty: Dice and surface Dice are 0, HD95 is NaN. Structure not annotated: every value is NaN.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from scipy.optimize import linear_sum_assignment

from pants_dist.structures import LESION, PANCREAS, PANCREAS_PARTS
from pants_dist.surface import Box, bounding_box, hausdorff_mm, joint_box, nearest_mm, surface_dice, surfaces

NAN = float("nan")
DEFAULT_TOLERANCE_MM = 2.0
DUCTS_AND_VESSELS = (
    "aorta",
    "celiac_artery",
    "common_bile_duct",
    "pancreatic_duct",
    "postcava",
    "superior_mesenteric_artery",
    "veins",
)
TOLERANCES_MM: Mapping[str, float] = {
    **dict.fromkeys((PANCREAS, *PANCREAS_PARTS, LESION), 5.0),
    **dict.fromkeys(DUCTS_AND_VESSELS, 1.0),
}
MATCH_IOU = 0.1


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean masks of one shape; NaN where both are empty."""
    total = np.count_nonzero(reference) + np.count_nonzero(prediction)
    return float(2 * np.count_nonzero(reference & prediction) / total) if total else NAN


def hd95_monai_mm(reference: np.ndarray, prediction: np.ndarray, spacing_mm_zyx: tuple[float, float, float]) -> float:
    """The other HD95 in use, MONAI's: between centers of edge voxels, each of weight one; inf if one mask is empty.

    Edge voxels are those that a 6-neighborhood erosion takes away. It differs from `hausdorff_mm` by millimeters where
    voxels are anisotropic. NaN where both masks are empty.
    """
    box = joint_box(bounding_box(reference), bounding_box(prediction))
    if box is None:
        return NAN
    spacing, grid = np.asarray(spacing_mm_zyx, np.float64), reference[box].shape
    ours, theirs = (np.flatnonzero(_edge(mask[box])) for mask in (reference, prediction))
    if not ours.size or not theirs.size:
        return math.inf
    ways = [nearest_mm(*pair, grid, spacing) for pair in ((ours, theirs), (theirs, ours))]
    return float(max(np.quantile(distances, 0.95) for distances in ways))


def _edge(mask_zyx: np.ndarray) -> np.ndarray:
    """Voxels of a mask that lack one of their six neighbors."""
    padded = np.pad(mask_zyx, 1)
    inner = mask_zyx.copy()
    for axis in range(3):
        for first in (0, 2):
            place = [slice(1, -1)] * 3
            place[axis] = slice(first, first + mask_zyx.shape[axis])
            inner &= padded[tuple(place)]
    return mask_zyx & ~inner


@dataclass(frozen=True)
class Components:
    """Connected parts (26-neighborhood) of a reference and a prediction, and the one-to-one match between them.

    `reference_voxels`, `prediction_voxels`: size of each part, in cc3d's order. `reference_hit`, `prediction_hit`:
    whether it has a partner. `prediction_score`: largest score in each predicted part; empty where none were given.
    """

    reference_voxels: np.ndarray
    prediction_voxels: np.ndarray
    reference_hit: np.ndarray
    prediction_hit: np.ndarray
    prediction_score: np.ndarray


def match_components(
    reference: np.ndarray, prediction: np.ndarray, scores_zyx: np.ndarray | None = None, iou: float = MATCH_IOU
) -> Components:
    """Match parts of two boolean (z, y, x) masks one to one: as many pairs with IoU >= `iou` as can be, then the best.

    Maximum matching, not greedy: no order of the parts can change the counts.
    """
    box = joint_box(bounding_box(reference), bounding_box(prediction))
    if box is None:
        empty = np.zeros(0)
        return Components(empty.astype(int), empty.astype(int), empty.astype(bool), empty.astype(bool), empty)
    ours, n_ours = _labelled(reference[box])
    theirs, n_theirs = _labelled(prediction[box])
    our_voxels = np.bincount(ours.ravel(), minlength=n_ours + 1)[1:]
    their_voxels = np.bincount(theirs.ravel(), minlength=n_theirs + 1)[1:]
    rows, columns = _pairs(ours, theirs, our_voxels, their_voxels, iou)
    our_hit, their_hit = np.zeros(n_ours, bool), np.zeros(n_theirs, bool)
    our_hit[rows] = their_hit[columns] = True
    best = np.zeros(0)
    if scores_zyx is not None:
        inside = theirs > 0
        best = np.full(n_theirs, -np.inf)
        np.maximum.at(best, theirs[inside].astype(int) - 1, scores_zyx[box][inside])
    return Components(our_voxels, their_voxels, our_hit, their_hit, best)


def _labelled(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Part of each voxel, from 1 on, and how many there are. Padded, since cc3d fails on some boxes one voxel thin."""
    labels, count = cc3d.connected_components(np.pad(mask, (0, 1)), connectivity=26, return_N=True)
    return labels[:-1, :-1, :-1], count


def _pairs(
    ours: np.ndarray, theirs: np.ndarray, our_voxels: np.ndarray, their_voxels: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (from 0) of matched parts. A pair's weight is 1 + IoU / (n + 1), so one more pair outweighs any IoU."""
    both = (ours > 0) & (theirs > 0)
    met = np.stack([ours[both], theirs[both]]).astype(int) - 1
    (row, column), shared = np.unique(met, axis=1, return_counts=True)
    overlap = shared / (our_voxels[row] + their_voxels[column] - shared)
    good = overlap >= iou
    rows, row = np.unique(row[good], return_inverse=True)
    columns, column = np.unique(column[good], return_inverse=True)
    weight = np.zeros((rows.size, columns.size))
    weight[row, column] = 1 + overlap[good] / (min(weight.shape, default=0) + 1)
    first, second = linear_sum_assignment(weight, maximize=True)
    kept = weight[first, second] > 0
    return rows[first[kept]], columns[second[kept]]


def score_case(
    reference: Mapping[str, np.ndarray],
    prediction: Mapping[str, np.ndarray],
    spacing_mm_zyx: tuple[float, float, float],
    annotated: set[str],
    tolerances_mm: Mapping[str, float] = TOLERANCES_MM,
    lesion_max_logit: float | None = None,
    lesion_logits_zyx: np.ndarray | None = None,
) -> dict[str, Any]:
    """Columns of a case's row: dsc, nsd and its tolerance_mm, both HD95, volumes and voxels of every structure, then lesion_*.

    Structures are those of `prediction`.
    Masks are boolean (z, y, x) of one shape; each is asked for once, in turn, so both mappings may make them as they
    are asked for. Structures outside `tolerances_mm` get 2 mm. With `lesion_logits_zyx` the row also lists, for each
    predicted lesion component, its largest logit and whether it was matched, as FROC needs them.
    """
    row: dict[str, Any] = {}
    for name in prediction:
        known = name in annotated and name in reference
        ours, theirs = (reference[name] if known else None), prediction[name]
        tolerance_mm = tolerances_mm.get(name, DEFAULT_TOLERANCE_MM)
        scores = _score_structure(ours, theirs, spacing_mm_zyx, tolerance_mm)
        row |= {f"{score}/{name}": value for score, value in scores.items()}
        row[f"tolerance_mm/{name}"] = tolerance_mm if known else NAN
        if name == LESION:
            row |= _score_lesion(ours, theirs, lesion_logits_zyx)
            row["lesion_max_logit"] = NAN if lesion_max_logit is None else float(lesion_max_logit)
    return row


def _score_structure(
    reference: np.ndarray | None,
    prediction: np.ndarray,
    spacing_mm_zyx: tuple[float, float, float],
    tolerance_mm: float,
) -> dict[str, float]:
    names = ("dsc", "nsd", "hd95_mm", "hd95_monai_mm", "reference_mm3", "predicted_mm3", "reference_voxels", "predicted_voxels")
    if reference is None:
        return dict.fromkeys(names, NAN)
    if reference.shape != prediction.shape:
        raise ValueError(f"reference has shape {reference.shape}, prediction {prediction.shape}: both must be one grid")
    box = joint_box(bounding_box(reference), bounding_box(prediction))
    ours, theirs = _inside(reference, box), _inside(prediction, box)
    n_ours, n_theirs = int(np.count_nonzero(ours)), int(np.count_nonzero(theirs))
    voxel_mm3 = math.prod(float(mm) for mm in spacing_mm_zyx)
    overlap, surface, hd95_mm, monai_mm = (NAN if n_ours == 0 else 0.0, NAN if n_ours == 0 else 0.0, NAN, NAN)
    if n_ours and n_theirs:
        found = surfaces(ours, theirs, spacing_mm_zyx)
        overlap, surface, hd95_mm = dice(ours, theirs), surface_dice(found, tolerance_mm), hausdorff_mm(found)
        monai_mm = hd95_monai_mm(ours, theirs, spacing_mm_zyx)
    values = (overlap, surface, hd95_mm, monai_mm, n_ours * voxel_mm3, n_theirs * voxel_mm3, n_ours, n_theirs)
    return dict(zip(names, values, strict=True))


def _inside(mask: np.ndarray, box: Box | None) -> np.ndarray:
    return mask[:0, :0, :0] if box is None else mask[box]


def _score_lesion(reference: np.ndarray | None, prediction: np.ndarray, logits_zyx: np.ndarray | None) -> dict[str, Any]:
    """lesion_* columns. Without an annotation only what the prediction alone says is known; the rest is None."""
    known = reference is not None
    found = match_components(np.zeros_like(prediction) if reference is None else reference, prediction, logits_zyx)
    row: dict[str, Any] = {
        "lesion_present": bool(found.reference_voxels.size) if known else None,
        "lesion_predicted": bool(found.prediction_voxels.size),
        "lesion_components": found.reference_hit.size if known else None,
        "lesion_components_hit": int(found.reference_hit.sum()) if known else None,
        "lesion_components_predicted": found.prediction_hit.size,
        "lesion_components_false": int((~found.prediction_hit).sum()) if known else None,
    }
    if logits_zyx is not None:
        row["lesion_component_logits"] = found.prediction_score.tolist()
        row["lesion_component_matched"] = found.prediction_hit.tolist() if known else None
    return row
