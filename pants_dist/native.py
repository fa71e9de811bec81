"""The loop of decode.py in the part of Python that numba compiles, with calls of C functions by their address.

Chunks of 16-bit voxels, bit-shuffled and packed by LZ4, are most of what is read. Their bits are put in order here, for the
rows of the patch alone: blosc does that for whole chunks, and in numpy's company without AVX2.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils

from pants_dist.shard import CHECKSUM, CHUNK

VOXELS = CHUNK**3
HALF_BYTES = VOXELS  # of a chunk's 16-bit voxels: blosc packs the bytes of the lower bits and those of the upper ones apart
BIT_BYTES = VOXELS // 8  # one bit of every voxel
LZ4_BITSHUFFLED = 0x24  # blosc's flags: codec LZ4, bit-shuffled, in two parts
GROUP_ROWS = 8  # rows along x whose bits are ordered at once: 256 voxels, 32 bytes of each bit

intrinsic: Any = extending.intrinsic  # what it makes of a function takes one argument less than the function
_WORD, _HALF = ir.IntType(64), ir.IntType(32)
_QUADS = ir.VectorType(_WORD, 4)


def _called(result: Any, parameters: list[Any]) -> Any:
    """Code that calls the function whose address is the first argument with the others; parameters past those are 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(result, parameters)
        given = [
            builder.trunc(argument, parameter) if parameter is _HALF else argument
            for argument, parameter in zip(arguments[1:], parameters, strict=False)
        ]
        ones = [ir.Constant(parameter, 1) for parameter in parameters[len(given) :]]
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), given + ones)

    return generate


@intrinsic
def _crc32c(_: Any, function: Any, address: Any, count: Any) -> Any:
    """uint32_t crc32c_value(const uint8_t *data, size_t count)"""
    return types.uint32(types.int64, types.int64, types.int64), _called(_HALF, [_WORD, _WORD])


@intrinsic
def _blosc(_: Any, function: Any, source: Any, target: Any, size: Any) -> Any:
    """int blosc_decompress_ctx(const void *src, void *dest, size_t destsize, int numinternalthreads)"""
    signature = types.int32(types.int64, types.int64, types.int64, types.int64)
    return signature, _called(_HALF, [_WORD, _WORD, _WORD, _HALF])


@intrinsic
def _lz4(_: Any, function: Any, source: Any, target: Any, count: Any, size: Any) -> Any:
    """int LZ4_decompress_safe(const char *src, char *dst, int compressedSize, int dstCapacity)"""
    signature = types.int32(types.int64, types.int64, types.int64, types.int64, types.int64)
    return signature, _called(_HALF, [_WORD, _WORD, _HALF, _HALF])


@intrinsic
def _copy(_: Any, target: Any, source: Any, count: Any) -> Any:
    """memcpy"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source = (builder.inttoptr(address, ir.IntType(8).as_pointer()) for address in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _ordered(_: Any, source: Any, target: Any) -> Any:
    """256 voxels of 16 bits at `target` from 32 bytes of each bit, BIT_BYTES apart from `source` on.

    An 8 x 8 transposition of bits by exchanging ever smaller squares (Warren, Hacker's Delight, 7-3), for 32 bytes at
    once, then the bytes are put where they belong. Vectors are two lanes of 16 bytes, which never mix.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = arguments
        bits = []
        for number in range(16):
            address = builder.add(source, ir.Constant(_WORD, number * BIT_BYTES))
            bits.append(builder.load(builder.inttoptr(address, _QUADS.as_pointer()), align=1))
        for first in (0, 8):
            for apart, mask in ((4, 0x0F), (2, 0x33), (1, 0x55)):
                for number in (first + n for n in range(8) if not n & apart):
                    shift, masks = ir.Constant(_QUADS, [apart] * 4), ir.Constant(_QUADS, [mask * 0x0101010101010101] * 4)
                    low, high = bits[number], bits[number + apart]
                    moved = builder.and_(builder.xor(builder.lshr(low, shift), high), masks)
                    bits[number] = builder.xor(low, builder.shl(moved, shift))
                    bits[number + apart] = builder.xor(high, moved)
        octets = [builder.bitcast(vector, ir.VectorType(ir.IntType(8), 32)) for vector in bits]
        pairs = [_interleaved(builder, octets[n], octets[n + 8], 32) for n in range(8)]
        for half in (0, 1):
            rows = [builder.bitcast(pair[half], ir.VectorType(ir.IntType(16), 16)) for pair in pairs]
            for _ in range(3):
                rows = [part for n in range(4) for part in _interleaved(builder, rows[n], rows[n + 4], 16)]
            for number, row in enumerate(rows):
                for lane in (0, 1):
                    places = ir.Constant(ir.VectorType(_HALF, 8), list(range(8 * lane, 8 * lane + 8)))
                    address = builder.add(target, ir.Constant(_WORD, 16 * (number + 8 * half + 16 * lane)))
                    part = builder.shuffle_vector(row, row, places)
                    builder.store(part, builder.inttoptr(address, part.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _interleaved(builder: Any, one: Any, other: Any, count: int) -> tuple[Any, Any]:
    """a0 b0 a1 b1 ... of the first and of the second half of each lane, for vectors of `count` elements."""
    lane = count // 2
    halves = []
    for first in (0, lane // 2):
        places = [lane * which + first + n + more for which in (0, 1) for n in range(lane // 2) for more in (0, count)]
        halves.append(builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_HALF, count), places)))
    return halves[0], halves[1]


@njit(inline="always")
def _int32(data: np.ndarray, at: int) -> Any:
    """Four bytes of `data` from `at` on, little-endian, signed."""
    low = np.int64(data[at]) | np.int64(data[at + 1]) << 8 | np.int64(data[at + 2]) << 16
    return low | np.int64(np.int8(data[at + 3])) << 24


@njit
def _unpacked(
    data: np.ndarray, start: int, count: int, packed: np.ndarray, target: int, rows: tuple[int, int, int, int], lz4: int
) -> bool:
    """Decode planes rows[0] to rows[1], in them rows rows[2] to rows[3] (and some around), of a chunk to `target`.

    False where the frame is not the usual one of 16-bit voxels, or not whole: blosc is to judge.
    """
    stop = start + count
    if data[start + 2] != LZ4_BITSHUFFLED or data[start + 3] != 2 or _int32(data, start + 4) != 2 * VOXELS:
        return False
    if _int32(data, start + 8) != 2 * VOXELS or count < 28 or _int32(data, start + 16) != 20:
        return False
    at = start + 20
    for part in range(2):
        if at + 4 > stop:
            return False
        size = _int32(data, at)
        at += 4
        if size <= 0 or at + size > stop:
            return False
        place = packed.ctypes.data + part * HALF_BYTES
        if size == HALF_BYTES:
            _copy(place, data.ctypes.data + at, size)
        elif _lz4(lz4, data.ctypes.data + at, place, size, HALF_BYTES) != HALF_BYTES:
            return False
        at += size
    for z in range(rows[0], rows[1]):
        for group in range(rows[2] // GROUP_ROWS, -(-rows[3] // GROUP_ROWS)):
            voxel = (z * CHUNK + group * GROUP_ROWS) * CHUNK
            _ordered(packed.ctypes.data + voxel // 8, target + 2 * voxel)
    return True


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
    functions: tuple[int, int, int],
) -> int:
    """See decode.decode; `functions` are addresses. A frame that says another size than it has is wrong."""
    check, decompress, lz4 = functions
    packed = np.empty(2 * VOXELS, np.uint8)
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
        address = data.ctypes.data + start
        expected = np.uint32(_int32(data, start + count) & 0xFFFFFFFF)
        if _int32(data, start + 12) != count or _crc32c(check, address, count) != expected:
            return number
        rows = z_low - z0, z_high - z0, y_low - y0, y_high - y0
        if scratch.itemsize != 2 or not _unpacked(data, start, count, packed, scratch.ctypes.data, rows, lz4):
            if _blosc(decompress, address, scratch.ctypes.data, scratch.nbytes) != scratch.nbytes:
                return number
        width = (x_high - x_low) * out.itemsize
        for z in range(z_low, z_high):
            for y in range(y_low, y_high):
                source = ((z - z0) * CHUNK + y - y0) * CHUNK + x_low - x0
                target = ((z - corner[0]) * out.shape[1] + y - corner[1]) * out.shape[2] + x_low - corner[2]
                _copy(out.ctypes.data + target * out.itemsize, scratch.ctypes.data + source * out.itemsize, width)
    return -1
