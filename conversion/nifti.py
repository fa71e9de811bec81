"""The one door to NIfTI: strict and fast, from the bytes of a .nii.gz to voxels in index order, and back.

nibabel's header classes say what the header means; decompression and voxels are our own, because its array proxies cost
several times what decoding does. Arrays are (i, j, k) as in the file, Fortran-ordered; an affine takes voxel indices to
RAS millimetres.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import aff2axcodes, io_orientation
from nibabel.spatialimages import HeaderDataError

from conversion import gz, scaling
from pants_dist.disk import replacing
from pants_dist.errors import UserError

SMALLEST_MM, LARGEST_MM = 0.01, 100.0  # a voxel outside these is no CT's
_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_VERSIONS = {_NIFTI1_BYTES: Nifti1Header, _NIFTI2_BYTES: Nifti2Header}


class BadImage(UserError):
    """An image that is refused; `reason` says why in plain words, the message also where."""

    def __init__(self, reason: str, where: str | os.PathLike = "") -> None:
        super().__init__(f"{where}: {reason}" if str(where) else reason)
        self.reason = reason


@dataclass(frozen=True)
class Volume:
    """An image: voxels `array_ijk` in index order (Fortran strides), and what its header said.

    `affine` (4, 4) float64 takes (i, j, k) to RAS millimetres; `dtype`, `slope` and `inter` are those on disk (1 and 0
    where the header asks for no scaling); `zooms_mm_ijk` are the header's own voxel sizes.
    """

    array_ijk: np.ndarray
    affine: np.ndarray
    dtype: np.dtype
    slope: float
    inter: float
    zooms_mm_ijk: tuple[float, float, float]

    @property
    def spacing_mm_ijk(self) -> tuple[float, float, float]:
        """Voxel size along i, j, k by the affine."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    @property
    def spacing_mm_zyx(self) -> tuple[float, float, float]:
        """Voxel size along z, y, x of `canonical`."""
        x, y, z = (self.spacing_mm_ijk[axis] for axis in _axes_xyz(self.affine)[0])
        return z, y, x

    @property
    def orientation(self) -> str:
        """The direction in which i, j and k grow, such as "LPS"."""
        return "".join(aff2axcodes(self.affine))


class Scratch:
    """A buffer that decoded files share one after the other: a fresh one for each costs more than decoding a mask."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def room(self, count: int) -> np.ndarray:
        """`count` bytes; what an earlier call returned is overwritten."""
        if len(self._buffer) < count:
            self._buffer = np.empty(count, np.uint8)
        return self._buffer[:count]

    def gunzip(self, data: bytes, count: int) -> tuple[np.ndarray, int]:
        """(room for `count` bytes, how many of them gzip `data` filled). Raises BadGzip, TooLong."""
        room = self.room(count)
        return room, gz.gunzip_into(data, room)


def read(path: str | os.PathLike, scaled: bool = True) -> Volume:
    """Read one .nii.gz or .nii. Raises BadImage.

    With `scaled`, voxels are values (HU): integers without slope as they are, all else in the smallest dtype that
    loses nothing. Without, they are as on disk.
    """
    try:
        volume = decode(read_bytes(path))
        if not scaled or (volume.dtype.kind in "iu" and (volume.slope, volume.inter) == (1.0, 0.0)):
            return volume
        return Volume(**{**vars(volume), "array_ijk": values(volume)})
    except BadImage as error:
        raise BadImage(error.reason, path) from error


def read_bytes(path: str | os.PathLike) -> bytes:
    """A file's bytes. Raises BadImage where it is missing, no file or unreadable."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror or error})", path) from error


def decode(data: bytes, scratch: Scratch | None = None) -> Volume:
    """The image in the bytes of a .nii.gz or .nii, voxels as on disk (native byte order). Raises BadImage.

    With `scratch`, voxels are valid only until its next use. A file is refused unless it is exactly one 3D image: the
    data as long as the header says, nothing behind them, a usable affine, finite values.
    """
    if not data:
        raise BadImage("empty file (0 bytes)")
    packed = data[:2] == gz.MAGIC
    try:
        header = _header(gz.head(data, _NIFTI2_BYTES) if packed else data[:_NIFTI2_BYTES])
        shape, offset = _shape(header), _voxel_offset(header)
        dtype = _dtype(header)
        size = offset + int(np.prod(shape)) * dtype.itemsize
        content = _content(data, size, packed, scratch or Scratch())
    except gz.TooLong as error:
        raise BadImage(f"longer than its header says (shape {shape}, {dtype.name})") from error
    except gz.BadGzip as error:
        raise BadImage(str(error)) from error
    array = _voxels(content, shape, dtype, offset)
    check_finite(array)
    slope, inter = _scaling(header)
    i, j, k = (float(mm) for mm in header.get_zooms()[:3])
    return Volume(array, _affine(header), array.dtype, slope, inter, (i, j, k))


def _header(head: bytes) -> Nifti1Header:
    sizes = [int.from_bytes(head[:4], order) for order in ("little", "big")]
    size = next((size for size in sizes if size in _VERSIONS), None)
    if size is None and len(head) >= 4:
        raise BadImage("not a NIfTI image (no NIfTI header)")
    if size is None or len(head) < size:
        raise BadImage("truncated: ends inside the NIfTI header")
    try:
        header = _VERSIONS[size](head[:size], check=False)
        magic = header["magic"].item()
    except (HeaderDataError, ValueError) as error:
        raise BadImage(f"not a NIfTI image ({error})") from error
    if magic in (b"ni1", b"ni2"):
        raise BadImage("header of a NIfTI pair (.hdr and .img); only single files are read")
    if not magic.startswith((b"n+1", b"n+2")):
        raise BadImage("not a NIfTI image (wrong magic)")
    return header


def _shape(header: Nifti1Header) -> tuple[int, int, int]:
    dim = header["dim"].tolist()
    shape = tuple(dim[1 : dim[0] + 1]) if 1 <= dim[0] <= 7 else ()
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise BadImage(f"{len(shape)} dimensions {shape}, not 3")
    if min(shape) < 1:
        raise BadImage(f"impossible shape {shape}")
    i, j, k = shape[:3]
    return i, j, k


def _voxel_offset(header: Nifti1Header) -> int:
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset < 1 << 31 or offset != int(offset):
        raise BadImage(f"impossible vox_offset {offset:g}")
    return int(offset)


def _dtype(header: Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise BadImage(f"unknown datatype code {int(header['datatype'])}") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise BadImage(f"voxels of datatype {dtype.name}, not numbers of at most 64 bits")
    return dtype


def _content(data: bytes, size: int, packed: bool, scratch: Scratch) -> np.ndarray:
    """Exactly `size` decoded bytes, uint8, writable."""
    if size > gz.LARGEST_RATIO * len(data):
        raise BadImage(f"truncated: {len(data)} bytes cannot hold the {size} that the header asks for")
    room, count = scratch.gunzip(data, size) if packed else (scratch.room(size), len(data))
    if count > size:
        raise gz.TooLong
    if count < size:
        raise BadImage(f"truncated: {count} bytes of the {size} that the header asks for")
    if not packed:
        room[:] = np.frombuffer(data, np.uint8)
    return room


def _voxels(content: np.ndarray, shape: tuple[int, int, int], dtype: np.dtype, offset: int) -> np.ndarray:
    array = np.ndarray(shape, dtype, content.data, offset, order="F")
    if not dtype.isnative:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder())
    return array if array.flags.aligned else array.copy(order="F")


def check_finite(array_ijk: np.ndarray) -> None:
    """Raises BadImage where a voxel is NaN or infinite."""
    if array_ijk.dtype.kind == "f":
        if bad := sum(plane.size - np.count_nonzero(np.isfinite(plane)) for plane in scaling.planes(array_ijk)):
            raise BadImage(f"{bad} voxels are NaN or infinite")


def _scaling(header: Nifti1Header) -> tuple[float, float]:
    """(slope, intercept); (1, 0) where the header asks for none."""
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise BadImage(f"slope {header['scl_slope']} with intercept {header['scl_inter']}") from error
    return (1.0, 0.0) if slope is None else (float(slope), float(inter or 0.0))


def _affine(header: Nifti1Header) -> np.ndarray:
    """sform, else qform, else zooms, as nibabel takes them. Refuses what no scanner makes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            affine = np.asarray(header.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as error:
        raise BadImage(f"unusable orientation ({error})") from error
    if not np.isfinite(affine).all():
        raise BadImage("affine with NaN or infinite entries")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing <= SMALLEST_MM).any() or (spacing > LARGEST_MM).any():
        raise BadImage(f"absurd voxel size {' x '.join(f'{mm:g}' for mm in spacing)} mm")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise BadImage("singular affine: two axes point the same way")
    return affine


def values(volume: Volume) -> np.ndarray:
    """Voxel values (i, j, k) after slope and intercept, in the smallest dtype that loses nothing. Raises BadImage."""
    try:
        return scaling.values(volume.array_ijk, volume.slope, volume.inter)
    except scaling.Unrepresentable as error:
        raise BadImage(str(error)) from error


def canonical(array_ijk: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The same voxels as (z, y, x) growing towards superior, anterior and right: a view. `original` undoes it."""
    axes, forward = _axes_xyz(affine)
    view_xyz = array_ijk.transpose(axes)[tuple(slice(None, None, step) for step in forward)]
    return view_xyz.transpose(2, 1, 0)


def original(array_zyx: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Voxels of `canonical` as (i, j, k) of the image with this affine: a view."""
    axes, forward = _axes_xyz(affine)
    view_xyz = array_zyx.transpose(2, 1, 0)[tuple(slice(None, None, step) for step in forward)]
    return view_xyz.transpose(np.argsort(axes))


def canonical_affine(shape_ijk: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """(4, 4): where the voxels of `canonical` lie, from indices z, y, x to RAS millimetres."""
    axes, forward = _axes_xyz(affine)
    first_ijk = [0 if step > 0 else shape_ijk[axis] - 1 for axis, step in sorted(zip(axes, forward, strict=True))]
    columns_xyz = affine[:, axes] * forward
    return np.column_stack([columns_xyz[:, ::-1], affine @ [*first_ijk, 1]])


def canonical_indices(indices_ijk: np.ndarray, shape_ijk: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Voxel indices (n, 3) i, j, k as indices z, y, x into `canonical`."""
    axes, forward = _axes_xyz(affine)
    last = np.array(shape_ijk)[list(axes)] - 1
    indices_xyz = indices_ijk[:, axes]
    return np.where(np.array(forward) < 0, last - indices_xyz, indices_xyz)[:, ::-1]


def _axes_xyz(affine: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For x, y and z: the voxel axis that runs along it most, and whether it does so forward (1) or backward (-1)."""
    orientation = io_orientation(affine)
    order = np.argsort(orientation[:, 0])
    return tuple(order.tolist()), tuple(int(step) for step in orientation[order, 1])


def write(
    path: str | os.PathLike,
    array_ijk: np.ndarray,
    affine: np.ndarray,
    slope: float | None = None,
    inter: float | None = None,
    level: int = 6,
) -> None:
    """Write voxels (i, j, k) as one .nii.gz, whole or not at all; the same image gives the same bytes.

    `affine` (4, 4) takes (i, j, k) to RAS millimetres. `slope` and `inter` only go into the header: `array_ijk` is as
    it shall stand on disk. bool becomes uint8.
    """
    array = array_ijk.astype(np.uint8) if array_ijk.dtype == bool else array_ijk
    header = Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1 if _orthogonal(affine) else 0)
    header.set_xyzt_units("mm")
    header.set_slope_inter(slope, None if slope is None else inter or 0.0)
    head = header.binaryblock + bytes(4)  # no extensions; voxels start at byte 352
    header["vox_offset"] = len(head)
    head = header.binaryblock + bytes(4)
    voxels = np.asfortranarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(gz.gzip_bytes(head + voxels.tobytes("F"), level))


def _orthogonal(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-4))
