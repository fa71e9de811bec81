"""Volumes of PanTS's first release: one array `data` (i, j, k) in an npz file, without affine."""

import io
import zipfile
import zlib

import numpy as np

from conversion.nifti import BadImage, Volume, check_finite

KEY = "data"
Spacing = tuple[float, float, float]


def decode(data: bytes, spacing_mm_ijk: Spacing = (1.0, 1.0, 1.0)) -> Volume:
    """The array in the bytes of an npz file; its affine says the spacing and no more. Raises BadImage."""
    if not data:
        raise BadImage("empty file (0 bytes)")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            array = archive[KEY]
    except KeyError as error:
        raise BadImage(f'no array "{KEY}" in it') from error
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, AttributeError, TypeError) as error:
        raise BadImage(f"not a whole npz file ({str(error) or type(error).__name__})") from error
    if array.ndim != 3 or not array.size:
        raise BadImage(f"{array.ndim} dimensions {array.shape}, not 3")
    array = array.view(np.uint8) if array.dtype == bool else array
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise BadImage(f"voxels of datatype {array.dtype.name}, not numbers of at most 64 bits")
    array = np.asfortranarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    check_finite(array)
    return Volume(array, np.diag([*spacing_mm_ijk, 1.0]), array.dtype, 1.0, 0.0, spacing_mm_ijk)
