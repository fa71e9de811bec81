"""Pictures of cases: an axial slice of CT with reference and prediction outlined, as a radiologist is used to see it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

REFERENCE_COLOR, PREDICTION_COLOR = "#1fd1a5", "#ff8a1f"
SOFT_TISSUE_HU = (-160, 240)
BODY_HU = -400  # skin and fat are denser, air and lung are not
WIDTH, CAPTION = 4.0, 0.35  # inches


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
    body = body_of(image_zyx[z])
    _, rows_mm, columns_mm = spacing_mm_zyx
    plane = as_seen(image_zyx[z][body])
    height = WIDTH * plane.shape[0] * rows_mm / (plane.shape[1] * columns_mm)
    figure = Figure(figsize=(WIDTH, height + CAPTION), dpi=110, facecolor="black")
    axes = figure.add_axes((0, 0, 1, height / (height + CAPTION)))
    axes.imshow(plane, cmap="gray", vmin=window_hu[0], vmax=window_hu[1], aspect=rows_mm / columns_mm)
    for masks, color in ((reference, REFERENCE_COLOR), (prediction, PREDICTION_COLOR)):
        for mask in masks.values():
            outline = as_seen(mask[z][body])
            if outline.any() and min(outline.shape) > 1:
                axes.contour(outline.astype(float), [0.5], colors=[color], linewidths=1.2)
    axes.axis("off")
    figure.text(0.02, 0.985, title, color="white", fontsize=9, va="top")
    figure.text(0.98, 0.01, f"slice {z}", color="#aaaaaa", fontsize=8, ha="right")
    figure.savefig(path, facecolor="black")


def body_of(plane_yx: np.ndarray) -> tuple[slice, slice]:
    """The part of an axial plane (y, x) in HU that holds the patient, with a small margin; all of it if it holds none."""
    inside = plane_yx > BODY_HU
    if not inside.any():
        return slice(None), slice(None)
    spans = [np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0)]
    rows, columns = (slice(max(span[0] - 2, 0), span[-1] + 3) for span in spans)
    return rows, columns


def as_seen(plane_yx: np.ndarray) -> np.ndarray:
    """A plane (y, x) of a RAS volume, turned so that anterior is up and the patient's right on the left."""
    return plane_yx[::-1, ::-1]
