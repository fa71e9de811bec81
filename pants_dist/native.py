"""The loop of decode.py in the part of Python that numba compiles, and calls of C functions by their address."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from pants_dist.shard import CHECKSUM, CHUNK

_WORD, _HALF = ir.IntType(64), ir.IntType(32)


intrinsic: Any = extending.intrinsic  # what it makes of a function takes one argument less than the function


@intrinsic
def _crc32c(_: Any, function: Any, address: Any, count: Any) -> Any:
    """uint32_t crc32c_value(const uint8_t *data, size_t count)"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_HALF, [_WORD, _WORD])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.uint32(types.int64, types.int64, types.int64), generate


@intrinsic
def _decompress(_: Any, function: Any, source: Any, target: Any, size: Any) -> Any:
    """int blosc_decompress_ctx(const void *src, void *dest, size_t destsize, int numinternalthreads), with one thread"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_HALF, [_WORD, _WORD, _WORD, _HALF])
        called = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.call(called, [*arguments[1:], ir.Constant(_HALF, 1)])

    return types.int32(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def _copy(_: Any, target: Any, source: Any, count: Any) -> Any:
    """memcpy"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source = (builder.inttoptr(address, ir.IntType(8).as_pointer()) for address in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def decode_loop(
    data: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    chunks: np.ndarray,
    corner: np.ndarray,
    out: np.ndarray,
    within: np.ndarray,
    fill: Any,
    scratch: np.ndarray,
    check: int,
    decompress: int,
) -> int:
    """See decode.decode; `check` and `decompress` are addresses. A frame that says another size than it has is wrong."""
    for number in range(len(starts)):
        z0, y0, x0 = chunks[number, 0] * CHUNK, chunks[number, 1] * CHUNK, chunks[number, 2] * CHUNK
        z_low, z_high = max(z0, corner[0]), min(z0 + CHUNK, corner[0] + out.shape[0], within[0])
        y_low, y_high = max(y0, corner[1]), min(y0 + CHUNK, corner[1] + out.shape[1], within[1])
        x_low, x_high = max(x0, corner[2]), min(x0 + CHUNK, corner[2] + out.shape[2], within[2])
        if z_low >= z_high or y_low >= y_high or x_low >= x_high:
            continue
        if sizes[number] < 0:
            out[
                z_low - corner[0] : z_high - corner[0],
                y_low - corner[1] : y_high - corner[1],
                x_low - corner[2] : x_high - corner[2],
            ] = fill
            continue
        start, count = starts[number], sizes[number] - CHECKSUM
        if count < 16 or start < 0 or start + sizes[number] > len(data):
            return number
        expected, said = np.uint32(0), np.int64(0)
        for byte in range(4):
            expected |= np.uint32(data[start + count + byte]) << np.uint32(8 * byte)
            said |= np.int64(data[start + 12 + byte]) << np.int64(8 * byte)
        address = data.ctypes.data + start
        if said != count or _crc32c(check, address, count) != expected:
            return number
        if _decompress(decompress, address, scratch.ctypes.data, scratch.nbytes) != scratch.nbytes:
            return number
        width = (x_high - x_low) * out.itemsize
        for z in range(z_low, z_high):
            for y in range(y_low, y_high):
                source = ((z - z0) * CHUNK + y - y0) * CHUNK + x_low - x0
                target = ((z - corner[0]) * out.shape[1] + y - corner[1]) * out.shape[2] + x_low - corner[2]
                _copy(out.ctypes.data + target * out.itemsize, scratch.ctypes.data + source * out.itemsize, width)
    return -1
