"""Checks chunks and decodes them into a patch: one compiled call a patch, or the same in plain Python.

The compiled loop calls the C functions that numcodecs and google-crc32c already carry, by their addresses, without
holding the interpreter's lock. Where numba is missing, or a wheel hides those functions, the plain one serves; both give
equal bytes.
"""

import ctypes
import math
import sys
from functools import cache
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

from pants_dist.shard import CHECKSUM, CHUNK, compiled

BLOSC_HEADER = 16  # bytes; those from 4 on are the decoded size, those from 12 on the frame's


def decode(
    data: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    chunks_zyx: np.ndarray,
    corner_zyx: tuple[int, ...],
    out_zyx: np.ndarray,
    within_zyx: tuple[int, ...],
    fill: int,
) -> int:
    """Decode chunks into their places in `out_zyx`, a C-contiguous patch whose first voxel is `corner_zyx`.

    Chunk n lies at grid position `chunks_zyx[n]` (n, 3); its bytes, blosc frame and crc32c, are the `sizes[n]` ones from
    `starts[n]` on in `data` (uint8). One of negative size is filled with `fill`. Voxels outside an array of shape
    `within_zyx` are left as they are. Returns the number of the first chunk whose bytes are wrong, or -1.
    """
    bits = out_zyx.view(f"u{out_zyx.itemsize}")
    fill_bits = np.array([fill]).astype(out_zyx.dtype).view(bits.dtype)[0]
    scratch = np.empty((CHUNK, CHUNK, CHUNK), bits.dtype)
    corner, within = np.array(corner_zyx, np.int64), np.array(within_zyx, np.int64)
    loop, functions = _loop()
    return int(loop(data, starts, sizes, chunks_zyx, corner, bits, within, fill_bits, scratch, functions))


def block_means(array_zyx: np.ndarray, out_zyx: np.ndarray) -> None:
    """Fill `out_zyx` with the means of equal blocks of `array_zyx`, rounded half to even where it holds integers."""
    blocks = tuple(n // m for n, m in zip(array_zyx.shape, out_zyx.shape, strict=True))
    total = np.zeros(out_zyx.shape, np.float32 if array_zyx.itemsize <= 2 else np.float64)
    for z, y, x in np.ndindex(*blocks):
        total += array_zyx[z :: blocks[0], y :: blocks[1], x :: blocks[2]]
    total /= math.prod(blocks)
    out_zyx[...] = total if out_zyx.dtype.kind == "f" else np.rint(total, out=total)


@cache
def _loop() -> tuple[Any, tuple[int, ...]]:
    """(the loop, the addresses of crc32c_value, blosc_decompress_ctx and LZ4_decompress_safe)."""
    if sys.byteorder != "little":  # as the loop takes for granted
        return decode_plain, ()
    try:
        from google_crc32c import _crc32c

        from pants_dist import native

        checks, packers = ctypes.CDLL(_crc32c.__file__), ctypes.CDLL(blosc.__file__)
        functions = checks.crc32c_value, packers.blosc_decompress_ctx, packers.LZ4_decompress_safe
    except (ImportError, OSError, AttributeError):
        return decode_plain, ()
    addresses = tuple(ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
    return compiled(native.decode_loop, decode_plain), addresses


def decode_plain(
    data: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    chunks: np.ndarray,
    corner: np.ndarray,
    out: np.ndarray,
    within: np.ndarray,
    fill: Any,
    scratch: np.ndarray,
    functions: tuple[int, ...],
) -> int:
    """What native.decode_loop does, in Python, without the functions."""
    for number, (start, size, chunk) in enumerate(zip(starts.tolist(), sizes.tolist(), chunks, strict=True)):
        first = chunk * CHUNK
        low = np.maximum(first, corner)
        high = np.minimum(np.minimum(first + CHUNK, corner + out.shape), within)
        if (low >= high).any():
            continue
        target = tuple(slice(a, b) for a, b in zip(low - corner, high - corner, strict=True))
        if size < 0:
            out[target] = fill
            continue
        content = data[start : start + size].tobytes()
        frame, mark = content[:-CHECKSUM], content[-CHECKSUM:]
        if len(frame) < BLOSC_HEADER or google_crc32c.value(frame) != int.from_bytes(mark, "little"):
            return number
        try:
            blosc.decompress(frame, scratch)
        except (RuntimeError, ValueError):
            return number
        out[target] = scratch[tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))]
    return -1
