"""One slice of a case as a picture, read from the store by patch: never a whole volume in memory.

Outlined are the reference, out of the store, and the prediction, out of what the evaluation kept (keptmasks.py).
"""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

from pants_dist.dashboard import folders
from pants_dist.errors import DamagedError, UserError
from pants_dist.keptmasks import Kept, kept_in, read_kept
from pants_dist.pictures import PREDICTION_COLOR, REFERENCE_COLOR, outlined, read_plane
from pants_dist.store import Store, open_store
from pants_dist.structures import LESION, PANCREAS
from pants_dist.targets import holding

WINDOWS_HU = {  # (low, high)
    "soft tissue": (-160.0, 240.0), "pancreas": (-50.0, 200.0), "liver": (-20.0, 180.0), "lung": (-1350.0, 150.0),
    "bone": (-450.0, 1050.0),
}  # fmt: skip
PLANES = ("axial", "coronal", "sagittal")  # across z, y, x
PIXELS = 560  # of a picture's longer side, at least: outlines of a coarse scan are to be fine
FILLED = 0.25  # how opaque the lesion is filled
Masks = dict[str, np.ndarray]


def store_of(runs: Path, name: str) -> Store:
    """The store of a run. Raises UserError where its settings or the store cannot be read here."""
    path = folders.run_folder(runs, name) / "config.yaml"
    try:
        place = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["store"]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__})") from error
    return _opened(str(place))


@lru_cache(maxsize=4)
def _opened(place: str) -> Store:
    return open_store(place)


def shape_of(runs: Path, name: str, case: str) -> tuple[int, int, int]:
    """Voxels of a case along z, y, x. Raises UserError where the store is not here or does not have it."""
    store = store_of(runs, name)
    if case not in store.cases:
        raise UserError(f"{case}: not in the store {store.path}")
    return store.shape_zyx(case)


def focus_of(runs: Path, name: str, case: str) -> tuple[int, int, int]:
    """The voxel (z, y, x) to show first: the median of those kept of the lesion, else of the pancreas, else the middle."""
    store = store_of(runs, name)
    try:
        kept = store.foreground(case)
    except (DamagedError, OSError) as error:
        raise UserError(f"{case}: {error}") from error
    voxels = next((kept[part] for part in (LESION, PANCREAS) if len(kept.get(part, ()))), None)
    z, y, x = (n // 2 for n in store.shape_zyx(case)) if voxels is None else np.median(voxels, axis=0).astype(int).tolist()
    return z, y, x


def kept_of(run: Path, case: str) -> Kept | None:
    """The predicted masks that an evaluation kept of a case, the newest; None where it kept none."""
    files = sorted(run.glob("evaluation/*/predictions*.masks"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = (_kept_in(path, path.stat().st_size, path.stat().st_mtime_ns).get(case) for path in files)
    return next((kept for kept in found if kept), None)


@lru_cache(maxsize=32)
def _kept_in(path: Path, size: int, written: int) -> dict[str, Kept]:
    return kept_in(path)


def slice_png(runs: Path, name: str, case: str, plane: str, index: int, window: str) -> bytes:
    """A slice as PNG, in its true proportions: CT in gray, the reference outlined in green, the prediction in orange.

    As on a reading station: anterior or head up, the patient's right on the left (sagittal: anterior on the left).
    Raises UserError for what there is not.
    """
    if plane not in PLANES or window not in WINDOWS_HU:
        raise UserError(f"{plane!r}, {window!r}: no such plane or window")
    shape, axis = shape_of(runs, name, case), PLANES.index(plane)
    if not 0 <= index < shape[axis]:
        raise UserError(f"{plane} slice {index}: the case has {shape[axis]}")
    store, kept = store_of(runs, name), kept_of(folders.run_folder(runs, name), case)
    (z, y, x), size = (index if n == axis else 0 for n in range(3)), list(shape)
    size[axis] = 1
    try:
        image, codes = store.read_patch(case, (z, y, x), (size[0], size[1], size[2]))
        same = kept is not None and kept.shape_zyx == shape
        predicted = read_kept(kept, (z, y, x), (size[0], size[1], size[2])) if kept and same else None
    except (DamagedError, OSError) as error:
        raise UserError(f"{case}: {error}") from error
    low, high = WINDOWS_HU[window]
    gray = ((image.take(0, axis).astype(np.float32) - low) / (high - low)).clip(0, 1)
    wanted = outlined(kept.structures if kept else store.structures(case))
    inside = holding(wanted, store.palette(case), store.structures(case))
    reference = {name: inside[:, n][codes.take(0, axis)] for n, name in enumerate(wanted)}
    bits = predicted.take(0, axis) if predicted is not None else np.zeros(gray.shape, np.uint8)
    prediction = {name: bits >> n & 1 == 1 for n, name in enumerate(wanted)}
    spacing = [mm for n, mm in enumerate(store.spacing_mm_zyx(case)) if n != axis]
    return _png(_drawn(gray, reference, prediction, spacing))


def plane_png(path: Path) -> bytes:
    """The slice of a worst case that was kept beside its picture, drawn as slices are. Raises UserError."""
    try:
        plane = read_plane(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path.name}: cannot be read ({type(error).__name__})") from error
    names = list(enumerate(plane.structures, start=1))
    reference, prediction = ({name: mask == n for n, name in names} for mask in (plane.reference_yx, plane.prediction_yx))
    pixels = plane.gray_yx.astype(np.float32) / 255
    turned = [{name: mask[::-1, ::-1] for name, mask in masks.items()} for masks in (reference, prediction)]
    return _png(_drawn(pixels[::-1, ::-1], turned[0], turned[1], [1.0, 1.0]))


def _drawn(gray: np.ndarray, reference: Masks, prediction: Masks, spacing_mm: list[float]) -> np.ndarray:
    """The picture (rows, columns, RGB in 0 to 1), turned as seen, of a slice (first axis, second axis) with these spacings."""
    extent = [n * mm for n, mm in zip(gray.shape, spacing_mm, strict=True)]
    pixel_mm = min(min(spacing_mm), max(extent) / PIXELS)
    size = [max(1, round(mm / pixel_mm)) for mm in extent]
    colors = np.repeat(_enlarged(gray, size)[..., None], 3, axis=2)
    for masks, color in ((reference, REFERENCE_COLOR), (prediction, PREDICTION_COLOR)):
        paint = np.array([int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)], np.float32)
        for name, mask in masks.items():
            if mask.any():
                fine = _enlarged(mask.astype(np.float32), size) >= 0.5
                if name == LESION:
                    colors[fine] += FILLED * (paint - colors[fine])
                colors[_edge(fine)] = paint
    return colors[::-1, ::-1]


def _enlarged(pixels: np.ndarray, size: list[int]) -> np.ndarray:
    """Interpolated linearly to so many rows and columns, which cover the same place."""
    from scipy.ndimage import zoom

    if list(pixels.shape) == size:
        return pixels
    factors = [n / own for n, own in zip(size, pixels.shape, strict=True)]
    return zoom(pixels, factors, order=1, mode="nearest", grid_mode=True)


def _edge(mask: np.ndarray) -> np.ndarray:
    """The outermost two pixels of a mask."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask, iterations=2)


def _png(colors: np.ndarray) -> bytes:
    from matplotlib.image import imsave

    out = io.BytesIO()
    imsave(out, np.ascontiguousarray(colors), format="png")
    return out.getvalue()
