"""Pictures of cases: an axial slice of CT with reference and prediction outlined, as a radiologist is used to see it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

REFERENCE_COLOR, PREDICTION_COLOR = "#1fd1a5", "#ff8a1f"
SOFT_TISSUE_HU = (-160, 240)


def slice_to_show(reference: Mapping[str, np.ndarray], prediction: Mapping[str, np.ndarray]) -> int:
    """The axial slice (index z) that says most: most of the last structure that the reference has, else of the prediction.

    Masks are boolean (z, y, x); the last name is the one that matters most, such as the lesion after the pancreas.
    """
    for masks in (reference, prediction):
        for name in reversed(list(masks)):
            areas = masks[name].sum(axis=(1, 2))
            if areas.any():
                return int(areas.argmax())
    return next(iter(reference.values())).shape[0] // 2


def draw_case(
    image_zyx: np.ndarray,
    reference: Mapping[str, np.ndarray],
    prediction: Mapping[str, np.ndarray],
    spacing_mm_zyx: tuple[float, float, float],
    path: Path,
    title: str,
    window_hu: tuple[float, float] = SOFT_TISSUE_HU,
) -> None:
    """Write a PNG: CT (z, y, x) in canonical RAS order in gray, reference outlined in green, prediction in orange.

    Shown as on a reading station: anterior up, the patient's right on the left, pixels in their true proportions.
    """
    z = slice_to_show(reference, prediction)
    _, rows_mm, columns_mm = spacing_mm_zyx
    height, width = image_zyx.shape[1] * rows_mm, image_zyx.shape[2] * columns_mm
    figure = Figure(figsize=(4, 4 * height / width + 0.35), dpi=110, facecolor="black")
    axes = figure.add_axes((0, 0, 1, (4 * height / width) / (4 * height / width + 0.35)))
    axes.imshow(as_seen(image_zyx[z]), cmap="gray", vmin=window_hu[0], vmax=window_hu[1], aspect=rows_mm / columns_mm)
    for masks, color in ((reference, REFERENCE_COLOR), (prediction, PREDICTION_COLOR)):
        for mask in masks.values():
            if mask[z].any():
                axes.contour(as_seen(mask[z]).astype(float), [0.5], colors=[color], linewidths=1.2)
    axes.axis("off")
    figure.text(0.02, 0.985, title, color="white", fontsize=8, va="top")
    figure.text(0.98, 0.01, f"slice {z}", color="#aaaaaa", fontsize=7, ha="right")
    figure.savefig(path, facecolor="black")


def as_seen(plane_yx: np.ndarray) -> np.ndarray:
    """A plane (y, x) of a RAS volume, turned so that anterior is up and the patient's right on the left."""
    return plane_yx[::-1, ::-1]
