"""One slice of a case as a picture, read from the store by patch: never a whole volume in memory."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

from pants_dist.dashboard import folders
from pants_dist.errors import DamagedError, UserError
from pants_dist.pictures import REFERENCE_COLOR
from pants_dist.store import Store, open_store
from pants_dist.structures import LESION, PANCREAS
from pants_dist.targets import holding

WINDOWS_HU = {  # (low, high)
    "soft tissue": (-160.0, 240.0), "pancreas": (-50.0, 200.0), "liver": (-20.0, 180.0), "lung": (-1350.0, 150.0),
    "bone": (-450.0, 1050.0),
}  # fmt: skip
PLANES = ("axial", "coronal", "sagittal")  # across z, y, x
OUTLINED = {PANCREAS: REFERENCE_COLOR, LESION: "#ff3b6b"}


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


def slice_png(runs: Path, name: str, case: str, plane: str, index: int, window: str) -> bytes:
    """A slice as PNG, in its true proportions: CT in gray, the reference's pancreas and lesion outlined.

    As on a reading station: anterior or head up, the patient's right on the left (sagittal: anterior on the left).
    Raises UserError for what there is not.
    """
    if plane not in PLANES or window not in WINDOWS_HU:
        raise UserError(f"{plane!r}, {window!r}: no such plane or window")
    shape, axis = shape_of(runs, name, case), PLANES.index(plane)
    if not 0 <= index < shape[axis]:
        raise UserError(f"{plane} slice {index}: the case has {shape[axis]}")
    store = store_of(runs, name)
    corner, size = [0, 0, 0], list(shape)
    corner[axis], size[axis] = index, 1
    try:
        image, codes = store.read_patch(case, (corner[0], corner[1], corner[2]), (size[0], size[1], size[2]))
    except (DamagedError, OSError) as error:
        raise UserError(f"{case}: {error}") from error
    low, high = WINDOWS_HU[window]
    gray = ((image.take(0, axis).astype(np.float32) - low) / (high - low)).clip(0, 1)
    colors = np.repeat(gray[..., None], 3, axis=2)
    inside = holding(tuple(OUTLINED), store.palette(case), store.structures(case))
    for number, color in enumerate(OUTLINED.values()):
        edge = _edge(inside[:, number][codes.take(0, axis)])
        colors[edge] = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    spacing = [mm for n, mm in enumerate(store.spacing_mm_zyx(case)) if n != axis]
    return _png(_square(colors[::-1, ::-1], spacing))


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that touch what is outside of it."""
    around = np.pad(mask, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return mask & ~inner


def _square(colors: np.ndarray, spacing_mm: list[float]) -> np.ndarray:
    """Rows or columns repeated so that pixels are square, the finer spacing deciding."""
    finest = min(spacing_mm)
    for axis, mm in enumerate(spacing_mm):
        count = max(1, round(colors.shape[axis] * mm / finest))
        colors = colors.take(np.arange(count) * colors.shape[axis] // count, axis)
    return colors


def _png(colors: np.ndarray) -> bytes:
    from matplotlib.image import imsave

    out = io.BytesIO()
    imsave(out, np.ascontiguousarray(colors), format="png")
    return out.getvalue()
