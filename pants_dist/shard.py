"""One Zarr 3 shard: an array cut into chunks of 32^3, each blosc-compressed and checked, with an index at the end.

    chunk, chunk, ..., index: (offset, bytes) uint64 little-endian a chunk in C order, crc32c of the index

A chunk is its blosc frame and then 4 bytes of crc32c, little-endian. A chunk of nothing but the fill value is left out:
its index entry is (2^64-1, 2^64-1). This is Zarr's `sharding_indexed` codec over `bytes, blosc, crc32c`; zarr-python
reads the same bytes and is what the tests compare with.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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

Fetch = Callable[[int, int], bytes]  # (offset in the shard, bytes) -> those bytes, or an error


class BadChecksum(Exception):
    """A chunk, named by its grid position, is not what was written."""


def grid_of(shape_zyx: tuple[int, ...]) -> tuple[int, ...]:
    """How many chunks an array of this shape has along z, y, x."""
    return tuple(-(-n // CHUNK) for n in shape_zyx)


def index_bytes(shape_zyx: tuple[int, ...]) -> int:
    """Size of the index at a shard's end, its checksum included."""
    return 16 * int(np.prod(grid_of(shape_zyx))) + CHECKSUM


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
    shuffle, offset = SHUFFLES[shuffle_of(array_zyx.dtype)], 0
    for position, chunk in _chunks(array_zyx, fill):
        if chunk[0, 0, 0] == fill and (chunk == fill).all():
            continue
        frame = bytes(blosc.compress(chunk, cname.encode(), level, shuffle, 0))
        index[position] = offset, len(frame) + CHECKSUM
        offset += len(frame) + CHECKSUM
        yield frame
        yield checksum(frame)
    if offset:
        table = index.tobytes()
        yield table
        yield checksum(table)


def _chunks(array_zyx: np.ndarray, fill: int) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    """(grid position, chunk) in C order, chunks contiguous and filled up at the edges; each is valid until the next.

    A row of chunks along x is gathered at a time: reading whole lines of the array costs half of reading chunk by chunk.
    """
    grid, (_, _, x) = grid_of(array_zyx.shape), array_zyx.shape
    row = np.empty((grid[2], *CHUNK_ZYX), array_zyx.dtype)
    inner = x // CHUNK
    for gz, gy in np.ndindex(*grid[:2]):
        lines = array_zyx[gz * CHUNK : (gz + 1) * CHUNK, gy * CHUNK : (gy + 1) * CHUNK]
        z, y, _ = lines.shape
        if (z, y, inner) != (CHUNK, CHUNK, grid[2]):
            row.fill(fill)
        whole = lines[..., : inner * CHUNK].reshape(z, y, inner, CHUNK)
        row[:inner, :z, :y].transpose(1, 2, 0, 3)[...] = whole
        if inner < grid[2]:
            row[inner, :z, :y, : x % CHUNK] = lines[..., inner * CHUNK :]
        for gx in range(grid[2]):
            yield (gz, gy, gx), row[gx]


def read_index(tail: bytes, shape_zyx: tuple[int, ...]) -> np.ndarray:
    """The index (z, y, x, 2) of (offset, bytes) as int64, -1 where a chunk is left out; raises BadChecksum."""
    table = tail[:-CHECKSUM]
    if checksum(table) != tail[-CHECKSUM:]:
        raise BadChecksum("the chunk index")
    return np.frombuffer(table, "<u8").astype(np.int64).reshape(*grid_of(shape_zyx), 2)  # 2^64-1 becomes -1


@dataclass(frozen=True)
class Piece:
    """One chunk that a box touches: where its bytes are and which part of it goes where in the box."""

    position_zyx: tuple[int, int, int]
    offset: int
    size: int
    source: tuple[slice, slice, slice]
    target: tuple[slice, slice, slice]


def pieces_of(
    index: np.ndarray, shape_zyx: tuple[int, ...], corner_zyx: tuple[int, ...], size_zyx: tuple[int, ...]
) -> list[Piece]:
    """The stored chunks that the box [corner, corner + size) touches, in the order of their bytes. Pure."""
    spans = [_spans(*axis) for axis in zip(shape_zyx, corner_zyx, size_zyx, strict=True)]
    pieces = []
    for (z, sz, tz), (y, sy, ty), (x, sx, tx) in itertools.product(*spans):
        offset, size = index[z, y, x]
        if size >= 0:
            pieces.append(Piece((z, y, x), int(offset), int(size), (sz, sy, sx), (tz, ty, tx)))
    return sorted(pieces, key=lambda piece: piece.offset)


def _spans(length: int, corner: int, size: int) -> list[tuple[int, slice, slice]]:
    """Along one axis: (chunk, its part inside the box and the array, where that part goes in the box)."""
    start, stop = max(corner, 0), min(corner + size, length)
    spans = []
    for chunk in range(start // CHUNK, -(-stop // CHUNK)) if start < stop else ():
        low, high = max(start, chunk * CHUNK), min(stop, (chunk + 1) * CHUNK)
        spans.append((chunk, slice(low - chunk * CHUNK, high - chunk * CHUNK), slice(low - corner, high - corner)))
    return spans


def merged(pieces: list[Piece]) -> Iterator[tuple[int, int, list[Piece]]]:
    """Byte ranges to fetch, (start, stop, the pieces inside), with gaps up to MERGE_GAP read over."""
    group: list[Piece] = []
    stop = 0
    for piece in pieces:
        if group and piece.offset - stop > MERGE_GAP:
            yield group[0].offset, stop, group
            group = []
        group.append(piece)
        stop = piece.offset + piece.size
    if group:
        yield group[0].offset, stop, group


def decode_box(fetch: Fetch, pieces: list[Piece], out_zyx: np.ndarray) -> None:
    """Fetch, check and decode pieces into their places in `out_zyx`; the rest is left as it is. Raises BadChecksum."""
    buffer = np.empty(CHUNK_ZYX, out_zyx.dtype)
    for start, stop, group in merged(pieces):
        data = fetch(start, stop - start)
        for piece in group:
            begin = piece.offset - start
            frame = data[begin : begin + piece.size - CHECKSUM]
            if checksum(frame) != data[begin + piece.size - CHECKSUM : begin + piece.size]:
                raise BadChecksum(f"chunk {piece.position_zyx}")
            blosc.decompress(frame, buffer)
            out_zyx[piece.target] = buffer[piece.source]
