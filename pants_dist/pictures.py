"""Pictures of cases: an axial slice of CT with reference and prediction outlined, as a radiologist is used to see it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pants_dist.disk import replacing
from pants_dist.structures import LESION, PANCREAS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCE_COLOR, PREDICTION_COLOR = "#1fd1a5", "#ff8a1f"
SOFT_TISSUE_HU = (-160, 240)
BODY_HU = -400  # skin and fat are denser, air and lung are not
WIDTH, CAPTION = 4.0, 0.42  # inches
CLOSE, CLOSE_MM = 0.75, 80  # the part around what is wrong: its width beside the whole slice's, and what it shows
FILLED = 0.35  # how opaque what is wrong is filled


@dataclass(frozen=True)
class Plane:
    """An axial slice as it is shown, without outlines. Arrays are (y, x), uint8; a mask holds 1 + the index of a structure."""

    title: str
    structures: tuple[str, ...]
    gray_yx: np.ndarray
    reference_yx: np.ndarray
    prediction_yx: np.ndarray


def outlined(structures: Iterable[str]) -> tuple[str, ...]:
    """Those of `structures` that pictures outline: pancreas and lesion, or the first where there is neither."""
    known = tuple(structures)
    return tuple(name for name in (PANCREAS, LESION) if name in known) or known[:1]


def focus_of(reference: Mapping[str, np.ndarray], prediction: Mapping[str, np.ndarray]) -> tuple[str, int]:
    """The structure and the axial slice (index z) that say most: where most voxels of it are wrong, else where most of it is.

    Masks are boolean (z, y, x). The last structure that either of them has is the one that matters, such as the lesion
    after the pancreas; where there is none, it is the first, in the middle of the scan.
    """
    for name in reversed(list(reference)):
        ours, theirs = reference[name], prediction[name]
        for voxels in (ours ^ theirs, ours):
            areas = np.count_nonzero(voxels, axis=(1, 2))
            if areas.any():
                return name, int(areas.argmax())
    first = next(iter(reference))
    return first, reference[first].shape[0] // 2


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

    Of the structure in focus what is missed is filled with green, what is predicted in vain with orange; beside the whole
    slice its surroundings are shown larger. `title` may have parts between dots; the last one says what is wrong.
    Shown as on a reading station: anterior up, the patient's right on the left, pixels in their true proportions.
    """
    from matplotlib.figure import Figure  # takes a second

    focus, z = focus_of(reference, prediction)
    body = body_of(image_zyx[z])
    near = near_of(reference[focus][z] | prediction[focus][z], spacing_mm_zyx[1:])
    aspect = spacing_mm_zyx[1] / spacing_mm_zyx[2]
    shape = as_seen(image_zyx[z][body]).shape
    height = WIDTH * shape[0] * aspect / shape[1]
    close = WIDTH * CLOSE if near else 0.0
    figure = Figure(figsize=(WIDTH + close, height + CAPTION), dpi=110, facecolor="black")
    whole = WIDTH / (WIDTH + close), height / (height + CAPTION)
    panels = [(body, (0.0, 0.0, *whole), 1.2)]
    if near:
        panels.append((near, (whole[0], 0.0, 1 - whole[0], whole[1]), 1.8))
    for part, place, width in panels:
        axes = figure.add_axes(place)
        axes.imshow(as_seen(image_zyx[z][part]), cmap="gray", vmin=window_hu[0], vmax=window_hu[1], aspect=aspect)
        for masks, others, color in ((reference, prediction, REFERENCE_COLOR), (prediction, reference, PREDICTION_COLOR)):
            axes.imshow(_tinted(as_seen((masks[focus][z] & ~others[focus][z])[part]), color), aspect=aspect)
            for mask in masks.values():
                outline = as_seen(mask[z][part])
                if outline.any() and min(outline.shape) > 1:
                    axes.contour(outline.astype(float), [0.5], colors=[color], linewidths=width)
        axes.axis("off")
    _caption(figure, title, z)
    figure.savefig(path, facecolor="black")


def _caption(figure: "Figure", title: str, z: int) -> None:
    """The title in two lines, where from and what is wrong; the key of the colors; the slice."""
    where, _, wrong = title.rpartition(" · ")
    figure.text(0.02, 0.985, where if len(where) < 62 else where[:60] + "…", color="white", fontsize=8.5, va="top")
    top = 0.985 - 0.17 / figure.get_figheight()
    figure.text(0.02, top, f"{wrong}, slice {z}", color="white", fontsize=8.5, va="top")
    for x, text, color in ((0.86, "reference", REFERENCE_COLOR), (0.99, "prediction", PREDICTION_COLOR)):
        figure.text(x, top, text, color=color, fontsize=8.5, va="top", ha="right")


def near_of(mask_yx: np.ndarray, spacing_mm_yx: tuple[float, ...]) -> tuple[slice, slice] | None:
    """The square of CLOSE_MM around a mask (y, x), or what holds all of it; None where the mask is empty."""
    if not mask_yx.any():
        return None
    parts = []
    for axis, (size, spacing) in enumerate(zip(mask_yx.shape, spacing_mm_yx, strict=True)):
        span = np.flatnonzero(mask_yx.any(axis=1 - axis))
        reach = max(CLOSE_MM / spacing, float(np.ptp(span)) + 6) / 2
        middle = (span[0] + span[-1]) / 2
        parts.append(slice(max(int(middle - reach), 0), min(int(np.ceil(middle + reach)) + 1, size)))
    return parts[0], parts[1]


def _tinted(mask_yx: np.ndarray, color: str) -> np.ndarray:
    """The mask as an image (y, x, RGBA), see-through."""
    from matplotlib.colors import to_rgb

    return np.concatenate([np.broadcast_to(to_rgb(color), (*mask_yx.shape, 3)), FILLED * mask_yx[..., None]], axis=-1)


def plane_of(
    image_zyx: np.ndarray, reference: Mapping[str, np.ndarray], prediction: Mapping[str, np.ndarray], title: str
) -> Plane:
    """The slice that `draw_case` shows of CT in HU (z, y, x), in the same window. Of overlapping structures the last counts."""
    _, z = focus_of(reference, prediction)
    body = body_of(image_zyx[z])
    low, high = SOFT_TISSUE_HU
    gray = (as_seen(image_zyx[z][body]).clip(low, high) - low) * (255 / (high - low))
    labels = [np.zeros(gray.shape, np.uint8) for _ in (reference, prediction)]
    for label, masks in zip(labels, (reference, prediction), strict=True):
        for number, mask in enumerate(masks.values(), start=1):
            label[as_seen(mask[z][body])] = number
    return Plane(title, tuple(reference), gray.astype(np.uint8), *labels)


def write_plane(path: Path, plane: Plane) -> None:
    """As NumPy's npz, without pickle."""
    with replacing(path) as file:
        np.savez_compressed(file, **vars(plane))


def read_plane(path: Path) -> Plane:
    """What `write_plane` wrote."""
    with np.load(path, allow_pickle=False) as saved:
        parts = {name: saved[name] for name in saved.files}
    return Plane(**parts | {"title": str(parts["title"]), "structures": tuple(map(str, parts["structures"]))})


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
