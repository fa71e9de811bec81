"""A case's files as volumes in the index order of the image: the CT, then one structure's mask after the other.

Whether a structure lies in a file of its own or shares a label map, and whether files are NIfTI or npz, ends here.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conversion import nifti, npz
from conversion.nifti import BadImage, Scratch, Volume
from conversion.source import Source
from conversion.sparse import Sparse

THRESHOLD = 0.5  # released masks load as 1.0000001
LARGEST_LABEL = (1 << 16) - 1
OFF_BY = 1e-3  # of a label map's value, after its slope
INSIDE = np.arange(256) > 0


class Digests(dict[Path, tuple[int, str]]):
    """Size and sha256 of every file that was read, collected on the way."""

    def read(self, path: Path) -> bytes:
        """The file's bytes. Raises BadImage."""
        data = nifti.read_bytes(path)
        self[path] = len(data), hashlib.sha256(data).hexdigest()
        return data


@dataclass(frozen=True)
class Memory:
    """A worker's buffers, used again by every case: fresh memory costs as much as merging does."""

    image: Scratch = field(default_factory=Scratch)
    mask: Sparse = field(default_factory=Sparse)
    codes: Scratch = field(default_factory=Scratch)


def read_image(source: Source, digests: Digests, memory: Memory | None = None) -> Volume:
    """The CT, voxels as HU (i, j, k) in the smallest dtype that loses nothing. Raises BadImage with the file's name.

    With `memory`, voxels are valid until its next use.
    """
    try:
        volume = _decode(source, source.image, digests.read(source.image), memory.image if memory else None)
        return replace(volume, array_ijk=nifti.values(volume))
    except BadImage as error:
        raise BadImage(error.reason, source.image.name) from error


class Mask(NamedTuple):
    """One structure's mask, valid only until the next one is read.

    `voxels` is flat uint8 in index order; inside[value] says which of the 256 values mean inside; filled[block] is False
    where a block of BLOCK voxels is known to be zero (None: nothing is known); `affine` is the file's, None for npz.
    """

    structure: str
    voxels: np.ndarray
    inside: np.ndarray
    filled: np.ndarray | None
    affine: np.ndarray | None


def read_masks(
    source: Source,
    names: Iterable[str],
    shape_ijk: tuple[int, ...],
    digests: Digests,
    memory: Memory | None = None,
) -> Iterator[Mask]:
    """The masks of those of `names` that the case has, in that order. Raises BadImage with the file's name."""
    scratch, maps, room = memory.mask if memory else Sparse(), dict[Path, np.ndarray](), np.empty(0, np.uint8)
    affines: dict[Path, np.ndarray | None] = {}
    for name in (name for name in names if name in source.masks):
        path = source.masks[name]
        try:
            if name not in source.values:
                volume = _decode(source, path, digests.read(path), scratch)
                flat, inside = binary(volume, shape_ijk)
                yield Mask(name, flat, inside, scratch.filled(flat), _affine(path, volume))
                continue
            if path not in maps:
                volume = _decode(source, path, digests.read(path))
                maps[path], affines[path] = numbers(volume, shape_ijk), _affine(path, volume)
                _check_named(maps[path], {n for s, ns in source.values.items() if source.masks[s] == path for n in ns})
            room = room if len(room) else np.empty(len(maps[path]), np.uint8)
            np.take(_table(source.values[name], maps[path].dtype), maps[path], out=room)
        except BadImage as error:
            raise BadImage(error.reason, path.name) from error
        yield Mask(name, room, INSIDE, None, affines[path])


def _affine(path: Path, volume: Volume) -> np.ndarray | None:
    return None if path.suffix == ".npz" else volume.affine


def _decode(source: Source, path: Path, data: bytes, scratch: Scratch | None = None) -> Volume:
    if path.suffix != ".npz":
        return nifti.decode(data, scratch)
    if path == source.image and source.spacing_mm_ijk is None:
        raise BadImage("an npz file does not say its voxel size, and no metadata.xlsx with a column spacing has this case")
    return npz.decode(data, source.spacing_mm_ijk or (1.0, 1.0, 1.0))


def binary(volume: Volume, shape_ijk: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A mask as flat uint8 in index order, and which of the 256 values mean "inside" (value > 0.5 after scaling).

    Raises BadImage where the shape is not `shape_ijk` or there are more than two values.
    """
    array = volume.array_ijk
    _check_shape(array, shape_ijk)
    if array.dtype.itemsize == 1:
        inside = np.arange(256, dtype=np.uint8).view(array.dtype) * volume.slope + volume.inter > THRESHOLD
        flat = array.reshape(-1, order="F").view(np.uint8)
        if not inside[0]:
            return flat if flat.ctypes.data % 8 == 0 else flat.copy(), inside
    low, high = array.min(), array.max()
    if any(((plane != low) & (plane != high)).any() for plane in np.moveaxis(array, 2, 0)):
        raise BadImage(f"a mask with more than two values, {some_values(array)}")
    flat = np.empty(array.size, np.uint8)
    for target, plane in zip(flat.reshape(array.shape, order="F").T, array.T, strict=True):
        target[...] = plane * volume.slope + volume.inter > THRESHOLD
    return flat, INSIDE


def numbers(volume: Volume, shape_ijk: tuple[int, ...]) -> np.ndarray:
    """A label map as flat uint8, or uint16 where it has numbers over 255, in index order.

    Raises BadImage where the shape is not `shape_ijk` or a value, after scaling, is no whole number up to 65535.
    """
    array = volume.array_ijk
    _check_shape(array, shape_ijk)
    ends = [float(end) * volume.slope + volume.inter for end in (array.min(), array.max())]
    if min(ends) < -OFF_BY or max(ends) > LARGEST_LABEL + OFF_BY:
        raise BadImage(f"a label map with values from {min(ends):g} to {max(ends):g}")
    flat = np.empty(array.size, np.uint8 if max(ends) < 256 - OFF_BY else np.uint16)
    whole = array.dtype.kind in "iu" and (volume.slope, volume.inter) == (1.0, 0.0)
    for target, plane in zip(flat.reshape(array.shape, order="F").T, array.T, strict=True):
        values = plane if whole else plane.astype(np.float64) * volume.slope + volume.inter
        rounded = values if whole else np.rint(values)
        if not whole and (np.abs(values - rounded) > OFF_BY).any():
            raise BadImage(f"a label map with values that are not whole numbers, {some_values(values)}")
        target[...] = rounded
    return flat


def _check_shape(array: np.ndarray, shape_ijk: tuple[int, ...]) -> None:
    if array.shape != shape_ijk:
        raise BadImage(f"shape {array.shape} is not the image's {shape_ijk}")


def _check_named(flat: np.ndarray, named: set[int]) -> None:
    """Nothing is dropped in silence: every number of a label map must mean something."""
    there = np.zeros(LARGEST_LABEL + 1, bool)
    for begin in range(0, len(flat), 1 << 20):
        there[flat[begin : begin + (1 << 20)]] = True
    if unnamed := sorted(set(np.flatnonzero(there).tolist()) - named - {0}):
        raise BadImage(f"a label map with numbers that its dataset's labels do not name, {str(unnamed[:4])[1:-1]}")


def _table(values: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """uint8 by number: 1 for those in `values`."""
    table = np.zeros(np.iinfo(dtype).max + 1, np.uint8)
    table[[value for value in values if value < len(table)]] = 1
    return table


def some_values(array: np.ndarray) -> str:
    """A few of the values, for a message."""
    return ", ".join(f"{value:g}" for value in np.unique(array)[:4].tolist())
