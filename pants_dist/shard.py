"""One Zarr 3 shard: an array cut into chunks of 32^3, each blosc-compressed and checked, with an index at the end.

    chunk, chunk, ..., index: (offset, bytes) uint64 little-endian a chunk in C order, crc32c of the index

A chunk is its blosc frame and then 4 bytes of crc32c, little-endian. A chunk of nothing but the fill value is left out:
its index entry is (2^64-1, 2^64-1). This is Zarr's `sharding_indexed` codec over `bytes, blosc, crc32c`; zarr-python
reads the same bytes and is what the tests compare with.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

CHUNK = 32
CHUNK_ZYX = (CHUNK, CHUNK, CHUNK)
MISSING = np.uint64(2**64 - 1)
CHECKSUM = 4  # bytes of crc32c behind each chunk and behind the index
MERGE_GAP = 64 * 1024  # chunks closer than this on disk are fetched with one read
SHUFFLES = {"noshuffle": 0, "bitshuffle": 2}  # blosc's numbers
blosc.use_threads = False  # parallelism is over processes; a second pool in each would oversubscribe

class BadChecksum(Exception):
    """A chunk, named by its grid position, or the index is not what was written."""


def grid_of(shape_zyx: tuple[int, ...]) -> tuple[int, ...]:
    """How many chunks an array of this shape has along z, y, x."""
    return tuple(-(-n // CHUNK) for n in shape_zyx)


def index_bytes(shape_zyx: tuple[int, ...]) -> int:
    """Size of the index at a shard's end, its checksum included."""
    return 16 * math.prod(grid_of(shape_zyx)) + CHECKSUM


def checksum(data: bytes) -> bytes:
    """crc32c (Castagnoli) as 4 bytes, little-endian."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM, "little")


def shuffle_of(dtype: np.dtype) -> str:
    """How blosc orders a chunk's bits. Single bytes stay in place: that decodes three times as fast, and is as small."""
    return "noshuffle" if dtype.itemsize == 1 else "bitshuffle"


def encode(array_zyx: np.ndarray, fill: int, cname: str, level: int) -> Iterator[bytes]:
    """The shard of an array (z, y, x) of any strides, piece by piece; no piece where every voxel is `fill`.

    Pieces are to be written as they come: keeping them costs more time than compressing does.
    """
    index = np.full((*grid_of(array_zyx.shape), 2), MISSING, "<u8")
    codec, shuffle, offset = cname.encode(), SHUFFLES[shuffle_of(array_zyx.dtype)], 0
    for position, chunk in _chunks(array_zyx, fill):
        frame = blosc.compress(chunk, codec, level, shuffle, 0)
        index[position] = offset, len(frame) + CHECKSUM
        offset += len(frame) + CHECKSUM
        yield frame
        yield checksum(frame)
    if offset:
        table = index.tobytes()
        yield table
        yield checksum(table)


def _chunks(array_zyx: np.ndarray, fill: int) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    """(grid position, chunk) in C order of those that hold more than `fill`; each is valid until the next.

    Chunks are contiguous and filled up at the edges. A row of them along x is gathered at a time: reading whole lines
    of the array costs half of reading chunk by chunk.
    """
    grid, gather = grid_of(array_zyx.shape), _gather()
    native = array_zyx.astype(array_zyx.dtype.newbyteorder("="), copy=False)
    memory, start, strides = _memory(native.view(f"u{native.itemsize}"))  # bits: all that is to be told is fill from not
    fill_bits = np.array([fill], native.dtype).view(memory.dtype)[0]
    row, holds = np.empty((grid[2], *CHUNK_ZYX), memory.dtype), np.zeros(grid[2], np.bool_)
    for gz, gy in np.ndindex(*grid[:2]):
        gather(memory, start, strides, array_zyx.shape, (gz * CHUNK, gy * CHUNK), fill_bits, row, holds)
        for gx in np.flatnonzero(holds).tolist():
            yield (gz, gy, gx), row[gx].view(native.dtype)


def _memory(array_zyx: np.ndarray) -> tuple[np.ndarray, int, tuple[int, ...]]:
    """(the array's memory in one dimension, its first voxel in there, steps along z, y, x): a view where x is fastest."""
    if abs(array_zyx.strides[2]) != array_zyx.itemsize:
        array_zyx = np.ascontiguousarray(array_zyx)
    backward = [step < 0 for step in array_zyx.strides]
    forward = array_zyx[tuple(slice(None, None, -1 if back else 1) for back in backward)]
    order = (0, 1, 2) if forward.strides[0] >= forward.strides[1] else (1, 0, 2)
    flat = np.ascontiguousarray(forward.transpose(order))
    steps = [step // flat.itemsize for step in flat.transpose(order).strides]
    start = sum((n - 1) * step * back for n, step, back in zip(array_zyx.shape, steps, backward, strict=True))
    return flat.reshape(-1), start, tuple(-step if back else step for step, back in zip(steps, backward, strict=True))


def _gather_loop(
    memory: np.ndarray,
    start: int,
    strides: tuple[int, int, int],
    shape: tuple[int, int, int],
    corner_zy: tuple[int, int],
    fill: Any,
    row: np.ndarray,
    holds: np.ndarray,
) -> None:
    """Fill `row` (chunk, z, y, x) with the chunks that begin at `corner_zy`; holds[chunk]: it is more than `fill`.

    Lines of whole chunks are spelled out for both directions, so that the compiler makes vector instructions of them.
    """
    depth, height = min(CHUNK, shape[0] - corner_zy[0]), min(CHUNK, shape[1] - corner_zy[1])
    start += corner_zy[0] * strides[0] + corner_zy[1] * strides[1]
    step_z, step_y, step_x = strides[0], strides[1], -1 if strides[2] < 0 else 1
    for gx in range(len(row)):
        different = fill ^ fill
        width = min(CHUNK, shape[2] - gx * CHUNK)
        if min(depth, height, width) < CHUNK:
            row[gx] = fill
        for z in range(depth):
            for y in range(height):
                first = start + z * step_z + y * step_y + gx * CHUNK * step_x
                target = row[gx, z, y]
                if step_x == 1 and width == CHUNK:
                    line = memory[first : first + CHUNK]
                    for x in range(CHUNK):
                        target[x] = line[x]
                        different |= line[x] ^ fill
                elif step_x == -1 and width == CHUNK:
                    line = memory[first - CHUNK + 1 : first + 1]
                    for x in range(CHUNK):
                        target[CHUNK - 1 - x] = line[x]
                        different |= line[x] ^ fill
                else:
                    for x in range(width):
                        target[x] = memory[first + x * step_x]
                        different |= target[x] ^ fill
        holds[gx] = different != 0


def _gather_plain(
    memory: np.ndarray,
    start: int,
    strides: tuple[int, int, int],
    shape: tuple[int, int, int],
    corner_zy: tuple[int, int],
    fill: Any,
    row: np.ndarray,
    holds: np.ndarray,
) -> None:
    """The same with numpy."""
    steps = [step * memory.itemsize for step in strides]
    whole = np.lib.stride_tricks.as_strided(memory[start:], shape, steps, writeable=False)
    lines = whole[corner_zy[0] : corner_zy[0] + CHUNK, corner_zy[1] : corner_zy[1] + CHUNK]
    row.fill(fill)
    for gx, chunk in enumerate(row):
        part = lines[..., gx * CHUNK : (gx + 1) * CHUNK]
        chunk[: part.shape[0], : part.shape[1], : part.shape[2]] = part
        holds[gx] = (chunk != fill).any()


def compiled(loop: Callable, plain: Callable) -> Any:
    """`loop` compiled by numba, `plain` where numba is missing."""
    try:
        from numba import njit
    except ImportError:
        return plain
    try:
        return njit(cache=True, nogil=True)(loop)
    except RuntimeError:  # no folder that can be written to for the cache
        return njit(nogil=True)(loop)


@cache
def _gather() -> Any:
    """Found on first use, since reading needs no numba."""
    return compiled(_gather_loop, _gather_plain)


def read_index(tail: bytes, shape_zyx: tuple[int, ...]) -> np.ndarray:
    """The index (z, y, x, 2) of (offset, bytes) as int64, -1 where a chunk is left out; raises BadChecksum."""
    table = tail[:-CHECKSUM]
    if checksum(table) != tail[-CHECKSUM:]:
        raise BadChecksum("the chunk index")
    return np.frombuffer(table, "<i8").reshape(*grid_of(shape_zyx), 2)  # 2^64-1 becomes -1


def touched(
    index: np.ndarray, shape_zyx: tuple[int, ...], corner_zyx: tuple[int, ...], size_zyx: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chunks that the box [corner, corner + size) touches: grid positions (n, 3), offsets (n), bytes (n). Pure.

    Bytes are negative where a chunk is left out.
    """
    inside = [(max(c, 0), min(c + n, length)) for length, c, n in zip(shape_zyx, corner_zyx, size_zyx, strict=True)]
    spans = [(low // CHUNK, -(-high // CHUNK)) if low < high else (0, 0) for low, high in inside]
    (z, z_end), (y, y_end), (x, x_end) = spans
    entries = index[z:z_end, y:y_end, x:x_end]
    chunks = np.empty((*entries.shape[:3], 3), np.int64)
    chunks[..., 0], chunks[..., 2] = np.arange(z, z_end)[:, None, None], np.arange(x, x_end)
    chunks[..., 1] = np.arange(y, y_end)[:, None]
    offsets, sizes = np.ascontiguousarray(entries.reshape(-1, 2).T)
    return chunks.reshape(-1, 3), offsets, sizes


def merged(offsets: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranges to fetch, gaps up to MERGE_GAP read over: (starts, stops, number of the range that each chunk lies in).

    Chunks that are left out count for nothing.
    """
    stored = sizes >= 0
    order = np.flatnonzero(stored)[np.argsort(offsets[stored], kind="stable")]
    starts, stops = offsets[order], np.maximum.accumulate((offsets + sizes)[order])
    breaks = np.concatenate([[True], starts[1:] - stops[:-1] > MERGE_GAP])[: len(order)]
    ranges = np.zeros(len(sizes), np.int64)
    ranges[order] = np.cumsum(breaks) - 1
    return starts[breaks], stops[np.concatenate([breaks[1:], [True]])[: len(order)]], ranges
